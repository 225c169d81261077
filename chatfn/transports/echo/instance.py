"""The smallest instance of a JSON Schema of the kind that structured outputs take.

Values are made to fit and not checked afterwards, so a demand that is not understood is refused by its name.  The depth
that an instance may have grows by one until there is one: so a recursive schema takes its shortest way out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import unquote

from chatfn.transports.echo.pattern import samples_of

Flat = Mapping[str, Any]  # a schema without references and alternatives

DEEPEST = 24  # levels of an instance; the API itself takes schemas of 10
STEPS = 20_000  # schemas that one search looks at, which takes a part of a second
LONGEST = 10_000  # characters of a string, items of an array
VARIETY = 100  # values of one schema, where items must differ
FORMATS = {
    "date-time": "1970-01-01T00:00:00Z", "date": "1970-01-01", "time": "00:00:00Z", "duration": "P0D",
    "email": "a@example.com", "hostname": "example.com", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
    "uri": "https://example.com/", "uuid": "00000000-0000-4000-8000-000000000000",
}  # fmt: skip
REFUSED = {
    "": ("not", "if", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"),
    "array": ("contains", "unevaluatedItems"),
    "object": ("propertyNames", "patternProperties", "unevaluatedProperties"),
}


class Search(NamedTuple):
    root: Any  # the whole document
    whole: bool  # optional properties too
    steps: Iterator[int]  # one is drawn for every schema that is looked at


def instance_of(schema: Any, whole: bool = False) -> Any:
    """The smallest instance of the JSON ``schema`` that is easily found, always the same one.

    It has the required properties only, the shortest strings and arrays, numbers close to zero, and the first
    alternative that works; whether another one of a ``oneOf`` fits too is not looked at.  ``whole``: all properties.
    ValueError: no instance, or none that is found, with the keyword that stands in the way.

    >>> instance_of({"properties": {"n": {"type": "integer", "minimum": 3}, "s": {}}, "required": ["n"]})
    {'n': 3}
    >>> instance_of({"properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["left"]})
    {'left': None}
    """
    search, problem = Search(schema, whole, iter(range(STEPS))), ""
    for depth in range(1, DEEPEST + 1):
        try:
            return next(values_of(schema, search, depth))
        except ValueError as exc:
            problem = str(exc)
        except (TypeError, AttributeError, LookupError) as exc:  # whoever reads a malformed argument
            problem = f"a keyword has a malformed argument ({exc})"
    raise ValueError(problem)


def demand(holds: object, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def values_of(schema: Any, search: Search, depth: int) -> Iterator[Any]:
    """Instances of at most ``depth`` levels, the smallest first; ValueError if there is none."""
    demand(depth, f"it has more than {DEEPEST} levels, or a '$ref' without a way out")
    found, problem = False, "nothing is allowed: false, an empty 'enum' or 'anyOf', or a '$ref' to itself"
    for flat in flats_of(schema, search):
        for kind in kinds_of(flat):
            try:
                for keyword in (*REFUSED[""], *REFUSED.get(kind, ())):
                    demand(keyword not in flat, f"the echo model does not support '{keyword}'")
                for value in MAKERS[kind](flat, search, depth - 1):
                    found = True
                    yield value
            except ValueError as exc:
                problem = str(exc)
    demand(found, problem)


def flats_of(schema: Any, search: Search) -> Iterator[Flat]:
    """The schemas without references and alternatives whose instances, together, are those of ``schema``."""
    stack: list[tuple[tuple[Any, ...], Flat]] = [(((schema, ()),), {})]  # parts still to meet, and what was met
    while stack:
        parts, flat = stack.pop()
        if not parts:
            yield flat
            continue
        demand(next(search.steps, None) is not None, "it is too large, or has too many 'anyOf' in each other")
        (part, refs), *rest = parts  # and the references that led here: one that leads to itself allows nothing
        demand(isinstance(part, (dict, bool)), "a schema must be an object or a boolean")
        own = part if isinstance(part, dict) else {}
        ref = own.get("$ref")
        if part is False or (ref is not None and ref in refs):
            continue
        inner, choices = list(own.get("allOf", ())), own.get("anyOf", [True])
        if own.get("nullable") is True:  # OpenAPI 3.0
            own, ref, inner, choices = {}, None, [], [{**own, "nullable": False}, {"type": "null"}]
        inner += [target_of(ref, search.root)] if ref is not None else []
        inner += [{"anyOf": own["oneOf"]}] if "oneOf" in own else []
        for choice in reversed(choices):
            beneath = [(each, refs if ref is None else (*refs, ref)) for each in (*inner, choice)]
            stack.append(((*beneath, *rest), meet(flat, own)))


def target_of(ref: str, root: Any) -> Any:
    """What a ``$ref`` points at: ``#``, or a JSON pointer into this document."""
    first, *path = unquote(ref).split("/")
    demand(first == "#", f"'$ref' must point into this document: {ref[:200]}")
    for part in path:
        key = part.replace("~1", "/").replace("~0", "~")
        items = dict(zip(map(str, range(len(root))), root, strict=True)) if isinstance(root, list) else root
        demand(isinstance(items, dict) and key in items, f"'$ref' points at nothing: {ref[:200]}")
        root = items[key]
    return root


def meet(one: Flat, other: Flat) -> Flat:
    """The keywords for the instances of both; ``const`` becomes an ``enum``."""
    new = {key: value for key, value in other.items() if key not in ("const", *APART)}
    if "const" in other:
        new = meet(new, {"enum": [other["const"]]})
    return {**one, **new, **{key: MEET.get(key, same)(key, one[key], new[key]) for key in one.keys() & new}}


def same(key: str, one: Any, other: Any) -> Any:
    demand(key not in ("pattern", "prefixItems") or one == other, f"two different '{key}' are not supported")
    return one
