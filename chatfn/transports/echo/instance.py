"""The smallest instance of a JSON Schema of the kind that structured outputs take.

Values are made to fit and not checked afterwards, so a demand that is not understood is refused by its name.  The depth
to which a schema is followed grows by one until there is an instance: a recursive schema takes its shortest way out.
"""

from __future__ import annotations

import importlib
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial, reduce
from itertools import chain, islice
from typing import Any, NamedTuple
from urllib.parse import unquote

Flat = Mapping[str, Any]  # a schema in which ``anyOf`` is the only keyword that applies others to the same value

DEEPEST = 32  # schemas in each other; the API itself takes 10 levels of objects
STEPS = 20_000  # schemas that one search looks at, which takes a part of a second
LONGEST = 10_000  # characters of a string, items of an array
VARIETY = 100  # values of one schema, for items that must differ
REFUSED = (
    "not", "if", "contains", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
TYPES = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,),
}  # fmt: skip
FORMATS = {
    "date-time": "1970-01-01T00:00:00Z", "date": "1970-01-01", "time": "00:00:00Z", "duration": "P0D",
    "email": "a@example.com", "hostname": "example.com", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
    "uri": "https://example.com/", "uuid": "00000000-0000-4000-8000-000000000000",
}  # fmt: skip


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
        except (TypeError, AttributeError, LookupError, OverflowError) as exc:  # from whoever met a malformed argument
            problem = f"a keyword has a malformed argument: {exc}"
    raise ValueError(problem)


def demand(holds: object, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def values_of(schema: Any, search: Search, depth: int) -> Iterator[Any]:
    """Instances, the smallest first; ValueError if there is none."""
    flat = flat_of(schema, search, depth)
    found, problem = False, f"no value is found for {', '.join(map(repr, flat))}"
    if "anyOf" in flat:
        rest = {key: value for key, value in flat.items() if key != "anyOf"}
        tries = (values_of({"allOf": [rest, each]}, search, depth - 1) for each in flat["anyOf"])
    else:
        tries = (MAKERS[kind](flat, search, depth - 1) for kind in kinds_of(flat))
    for values in tries:
        try:
            for value in values:
                found = True
                yield value
        except ValueError as exc:
            problem = str(exc)
    demand(found, problem)


def flat_of(schema: Any, search: Search, depth: int) -> Flat:
    """The schema with its references followed and its ``allOf`` met."""
    demand(depth, f"a '$ref' has no end, or there are more than {DEEPEST} schemas in each other")
    demand(next(search.steps, None) is not None, f"more than {STEPS} schemas, most likely in 'anyOf' and '$ref'")
    demand(schema is not False, "no instance of false")
    demand(isinstance(schema, (dict, bool)), "a schema must be an object or a boolean")
    own = dict(schema) if isinstance(schema, dict) else {}
    if own.pop("nullable", False) is True:  # OpenAPI 3.0
        return {"anyOf": [own, {"type": "null"}]}
    for keyword in REFUSED:
        demand(keyword not in own, f"the echo model does not support '{keyword}'")
    parts = [*own.pop("allOf", ())]
    parts += [{"enum": [own.pop("const")]}] if "const" in own else []
    parts += [{"anyOf": own.pop("oneOf")}] if "oneOf" in own else []
    parts += [target_of(own.pop("$ref"), search.root)] if "$ref" in own else []
    return reduce(meet, (flat_of(part, search, depth - 1) for part in parts), own)


def target_of(ref: str, root: Any) -> Any:
    """What a ``$ref`` points at: ``#``, or a JSON pointer into this document."""
    first, *path = unquote(ref).split("/")
    demand(first == "#", f"'$ref' must point into this document: {ref[:200]}")
    for part in path:
        inner = dict(enumerate(root)) if isinstance(root, list) else root
        key = part.replace("~1", "/").replace("~0", "~")
        demand(isinstance(inner, dict) and key in map(str, inner), f"'$ref' points at nothing: {ref[:200]}")
        root = inner[int(key) if isinstance(root, list) else key]
    return root


def meet(one: Flat, other: Flat) -> Flat:
    """A flat schema for the instances of both."""
    return {**one, **other, **{key: MEET[key](one[key], other[key]) for key in one if key in other and key in MEET}}


def equal(one: Any, other: Any) -> Any:
    demand(one == other, f"'allOf' of different patterns or 'prefixItems': {one!r:.99}, {other!r:.99}")
    return one


def all_of(one: Any, other: Any) -> Any:
    return {"allOf": [one, other]}


def met_types(one: Any, other: Any) -> list[str]:
    left, right = ([*listed(types), *["integer"] * ("number" in types)] for types in (one, other))
    return [name for name in dict.fromkeys(left) if name in right]


MEET: dict[str, Callable[[Any, Any], Any]] = {
    "type": met_types,
    "enum": lambda one, other: [value for value in one if text_of(value) in map(text_of, other)],
    "anyOf": lambda one, other: [
        all_of(left, right) for left in one[:STEPS] for right in other[: STEPS // (len(one) or 1)]
    ],
    "required": operator.add,
    "properties": lambda one, other: {**one, **{k: all_of(one[k], v) if k in one else v for k, v in other.items()}},
    "multipleOf": math.lcm,
    "uniqueItems": operator.or_,
    **dict.fromkeys(("items", "additionalProperties"), all_of),
    **dict.fromkeys(("pattern", "prefixItems"), equal),
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # tells 1 from true, as Python does not


def kinds_of(flat: Flat) -> list[str]:
    guess = "object" if {"properties", "required"} & flat.keys() else "array" if "items" in flat else "string"
    kinds = listed(flat.get("type", guess))
    demand(
        kinds and all(kind in TYPES for kind in kinds), f"'type' must be, and can only be, one of {', '.join(TYPES)}"
    )
    return ["enum"] if "enum" in flat else kinds


def options(flat: Flat, search: Search, depth: int) -> Iterator[Any]:
    """The values of an ``enum`` that have the type; that they fit what else stands there is left to its author."""
    types = [each for name in listed(flat.get("type", list(TYPES))) for each in TYPES[name]]
    return (value for value in flat["enum"] if type(value) in types)


def numbers(flat: Flat, search: Search, depth: int, integer: bool = False) -> Iterator[int | float]:
    """Those closest to zero first, then those at the bounds and between them."""
    bounds = [(exact(flat[key]), compare) for key, compare in BOUNDS.items() if key in flat]
    lows, highs = ([bound for bound, compare in bounds if compare(end, 0)] for end in (1, -1))
    multiple = exact(flat.get("multipleOf", 1))
    demand(multiple > 0, "'multipleOf' must be above 0")
    step = Fraction(multiple.numerator) if integer else multiple
    start = round(max([min([Fraction(0), *highs]), *lows]) / step)
    between = [*lows, *highs, *((low + high) / 2 for low in lows for high in highs)]
    steps = (step * (start + way * k) for k in range(VARIETY) for way in (1, -1))
    for number in chain(steps, [] if integer or "multipleOf" in flat else between):
        value = (
            int(number) if number.denominator == 1 and abs(number) < 2**63 else number.numerator / number.denominator
        )
        if all(compare(exact(value), bound) for bound, compare in bounds):
            yield value


def exact(number: float) -> Fraction:
    """The number as it is written: a tenth for ``0.1``, which no binary float is."""
    return Fraction(repr(number))


def strings(flat: Flat, search: Search, depth: int) -> Iterator[str]:
    least, most = math.ceil(flat.get("minLength", 0)), flat.get("maxLength", LONGEST)
    demand(least <= LONGEST, f"'minLength' is above {LONGEST}")
    found: Iterator[str] = ("a" * size for size in range(least, least + VARIETY))
    if "pattern" in flat:
        found = matches_of(flat["pattern"], least)
    elif flat.get("format") in FORMATS:
        found = iter([FORMATS[flat["format"]]])
    return (text for text in found if least <= len(text) <= most)


def matches_of(pattern: str, least: int) -> Iterator[str]:
    """Matches of a pattern: a short one, its last character repeated."""
    try:
        parsed = importlib.import_module("re._parser").parse(pattern)  # private, but it knows the whole syntax
        short = [sample_of(parsed, filler) for filler in "a0-é"]
        longer = (text.ljust(size, text[-1:] or "a") for text in short for size in range(least, least + VARIETY))
        yield from (text for text in longer if re.search(pattern, text))
    except (re.error, OverflowError, RecursionError, Warning) as exc:
        raise ValueError(f"'pattern' is not understood: {exc}") from exc


def sample_of(parsed: Any, filler: str) -> str:
    """A string close to a match; ``filler`` stands where a pattern only says which character it is not."""
    text = ""
    for operation, argument in parsed:
        match str(operation):
            case "LITERAL" | "RANGE":
                text += chr(argument if isinstance(argument, int) else argument[0])
            case "IN":
                text += sample_of(argument[:1], filler)
            case "CATEGORY":
                text += {"CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " "}.get(str(argument), "-")
            case "SUBPATTERN" | "BRANCH":
                text += sample_of(argument[3] if len(argument) == 4 else argument[1][0], filler)
            case "MAX_REPEAT" | "MIN_REPEAT":
                piece = sample_of(argument[2], filler)
                demand(len(piece) * argument[0] <= LONGEST, f"'pattern' asks for more than {LONGEST} characters")
                text += piece * argument[0]
            case "ANY" | "NEGATE" | "NOT_LITERAL":
                text += filler
    return text


def arrays(flat: Flat, search: Search, depth: int) -> Iterator[list[Any]]:
    least, prefix = math.ceil(flat.get("minItems", 0)), flat.get("prefixItems", [])
    demand(least <= LONGEST, f"'minItems' is above {LONGEST}")
    for size in range(least, math.floor(min(flat.get("maxItems", LONGEST), least + VARIETY)) + 1):
        items: dict[Any, Any] = {}
        for index, schema in enumerate([*prefix[:size], *[flat.get("items", True)] * (size - len(prefix))]):
            keyed = ((text_of(v) if flat.get("uniqueItems") else index, v) for v in values_of(schema, search, depth))
            items.update(islice((pair for pair in keyed if pair[0] not in items), 1))
        demand(len(items) == size, "'uniqueItems' asks for more different items than are found")
        yield list(items.values())


def objects(flat: Flat, search: Search, depth: int) -> Iterator[dict[str, Any]]:
    """The object of the fewest members, then those in which one member differs."""
    declared, required = flat.get("properties", {}), dict.fromkeys(flat.get("required", ()))
    names = dict.fromkeys([*(name for name in declared if search.whole or name in required), *required])
    demand(len(names) >= flat.get("minProperties", 0), "'minProperties' asks for more than 'required'")
    demand(len(names) <= flat.get("maxProperties", len(names)), "'required' asks for more than 'maxProperties'")
    inner = {name: declared.get(name, flat.get("additionalProperties", True)) for name in names}
    base = {name: next(values_of(schema, search, depth)) for name, schema in inner.items()}
    yield base
    for name, schema in inner.items():
        yield from ({**base, name: value} for value in islice(values_of(schema, search, depth), 1, VARIETY))


BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge, "exclusiveMinimum": operator.gt, "maximum": operator.le, "exclusiveMaximum": operator.lt,
}  # fmt: skip
MAKERS: dict[str, Callable[[Flat, Search, int], Iterator[Any]]] = {
    "string": strings,
    "integer": partial(numbers, integer=True),
    "number": numbers,
    "boolean": lambda flat, search, depth: iter((False, True)),
    "null": lambda flat, search, depth: iter((None,)),
    "array": arrays,
    "object": objects,
    "enum": options,
}
