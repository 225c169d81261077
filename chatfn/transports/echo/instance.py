"""The smallest instance of a JSON Schema that a plain search finds.

Flat schemas make guesses, smallest first, and only a guess that fits the schema counts.  The search deepens one level
at a time, so that a recursive schema takes its shortest way out.  It gives up after a fixed number of values and not by
the clock, so that equal schemas have equal instances everywhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import chain, count, islice
from typing import Any, NamedTuple

from chatfn.transports.echo.fits import TYPES, exact, fits, frozen, is_free, is_number, listed, unique
from chatfn.transports.echo.flat import BRANCHES, flats, meet_schemas
from chatfn.transports.echo.pattern import sample_of

DEEPEST = 24  # levels of an instance; the API itself takes schemas of 10
FUEL = 200_000  # schemas and values that one search looks at, which takes a second or so
GUESSES = 128  # values that are tried for each flat schema
HEAVIEST = 4_000  # values in one instance: a short schema may demand billions
FORMATS = {
    "date-time": "1970-01-01T00:00:00Z",
    "date": "1970-01-01",
    "time": "00:00:00Z",
    "duration": "P0D",
    "email": "a@example.com",
    "idn-email": "a@example.com",
    "hostname": "example.com",
    "idn-hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
    "uri-reference": "/",
    "iri": "https://example.com/",
    "iri-reference": "/",
    "uri-template": "/",
    "json-pointer": "/a",
    "relative-json-pointer": "0",
    "regex": "a",
}


class Search(NamedTuple):
    """One search: what stays the same all the way down, what is left to spend, and what was found."""

    root: Any  # the whole document
    whole: bool  # optional properties too
    fuel: Iterator[int]  # drawn from for every schema and every value that is looked at
    found: dict[tuple[str, int], tuple[Any, ...]]  # by the schema's text and the depth


def instance_of(schema: Any, whole: bool = False) -> Any:
    """A small instance of the JSON ``schema``: required properties only, shortest strings, least arrays.

    ``whole``: optional properties too, where that can be.  Equal schemas give equal instances, in every process.
    ValueError: the schema is malformed, or the search found no instance.
    Source: https://json-schema.org/draft/2020-12/json-schema-core

    >>> instance_of({"properties": {"n": {"type": "integer", "minimum": 3}, "s": {}}, "required": ["n"]})
    {'n': 3}
    >>> instance_of({"properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["left"]})
    {'left': None}
    """
    return json.loads(instance_text(json.dumps(schema), whole))


@lru_cache(maxsize=256)
def instance_text(text: str, whole: bool) -> str:
    """The instance as JSON text, which cannot be changed and so can be kept."""
    root = json.loads(text)
    for optional in (True, False)[not whole :]:
        search = Search(root, optional, iter(range(FUEL)), {})
        for depth in range(1, DEEPEST + 1):
            for value in first_of(root, search, depth):
                return json.dumps(value)
    raise ValueError("no instance of the JSON schema was found")


def first_of(schema: Any, search: Search, depth: int) -> tuple[Any, ...]:
    """The first solution, if there is one of at most ``depth`` levels."""
    key = json.dumps(schema), depth
    if key not in search.found:
        search.found[key] = tuple(islice(solutions(schema, search, depth), 1))
    return search.found[key]


def solutions(schema: Any, search: Search, depth: int) -> Iterator[Any]:
    """Values that fit, each once, the smallest first."""
    found = flats(schema, search.root, search.fuel) if depth > 0 else iter(())
    guesses = (value for flat in islice(found, BRANCHES) for value in islice(guesses_of(flat, search, depth), GUESSES))
    return unique(value for value in guesses if affordable(value, search.fuel) and fits(value, schema, search.root))


def affordable(value: Any, fuel: Iterator[int]) -> bool:
    """Whether a value is small enough, and there is fuel left to look at it."""
    cost = weight(value)
    return cost <= HEAVIEST and len(list(islice(fuel, cost))) == cost


def weight(value: Any) -> int:
    """How many values there are in a value, a long string counting as several; past the limit no more is counted."""
    if isinstance(value, str):
        return 1 + len(value) // 64
    total = 1
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        total += weight(item)
        if total > HEAVIEST:
            break
    return total


def guesses_of(flat: Mapping[str, Any], search: Search, depth: int) -> Iterator[Any]:
    """Values worth trying for a flat schema, the smallest first."""
    if "enum" in flat:
        yield from flat["enum"]
    else:
        for name in types_of(flat):
            yield from islice(GUESS[name](flat, search, depth), GUESSES // 2)
    if flat.get("nullable"):
        yield None


def types_of(flat: Mapping[str, Any]) -> list[str]:
    """The types to try, in order: those that are declared, or else those that the other keywords speak of first."""
    if "type" in flat:
        return listed(flat["type"])
    return [name for name in HINTS if HINTS[name] & flat.keys()] or list(TYPES)


HINTS = {
    "object": {"properties", "required", "minProperties", "additionalProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "contains", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}


def strings(flat: Mapping[str, Any], search: Search, depth: int) -> Iterator[str]:
    least = int(flat.get("minLength", 0))
    if least > 64 * HEAVIEST:
        return
    if flat.get("format") in FORMATS:
        yield FORMATS[flat["format"]]
    if "pattern" in flat:
        short = least - len(sample_of(flat["pattern"]))
        for extra in unique((0, *range(max(1, short), max(1, short) + 3), 1, 2, 3)):
            sample = sample_of(flat["pattern"], extra)
            yield sample
            yield sample.ljust(least, "a")
        return
    if least == 0:
        yield ""
    for number in count():
        yield letters(number).rjust(least, "a")


def letters(number: int) -> str:
    """``a``, ``b``, … ``z``, ``ba``, …: another word for each number."""
    head, last = divmod(number, 26)
    return (letters(head) if head else "") + chr(ord("a") + last)


def numbers(flat: Mapping[str, Any], search: Search, depth: int) -> Iterator[float]:
    """Zero, and what lies at the bounds, between them and beside them."""
    bounds = {key: exact(flat[key]) for key in HINTS["number"] if is_number(flat.get(key))}
    step = bounds.get("multipleOf", Fraction(1))
    lows = sorted(bounds[key] for key in ("minimum", "exclusiveMinimum") if key in bounds)[-1:]
    highs = sorted(bounds[key] for key in ("maximum", "exclusiveMaximum") if key in bounds)[:1]
    start = math.ceil(lows[0] / step) if lows else math.floor(highs[0] / step) if highs else 0
    way = -1 if highs and not lows else 1
    multiples = (step * (start + way * k) for k in range(GUESSES))
    middles = [(low + high) / 2 for low in lows for high in highs]
    return unique(map(plain, chain([Fraction(0)], lows, highs, middles, [step * (start + Fraction(1, 2))], multiples)))


def plain(number: Fraction) -> float:
    whole = number.denominator == 1 and abs(number) < 2**53  # larger ones are floats, as the bounds they come from
    return int(number) if whole else number.numerator / number.denominator


def arrays(flat: Mapping[str, Any], search: Search, depth: int) -> Iterator[list[Any]]:
    """The shortest array, longer ones, and each with another last item."""
    least = int(flat.get("minItems", 0))
    for size in range(least, least + 4) if least <= HEAVIEST else ():
        if size <= flat.get("maxItems", size):
            prefix = flat.get("prefixItems", [])
            inner = [*prefix[:size], *[flat.get("items", True)] * (size - len(prefix))]
            wanted = [meet_schemas(inner[-1], flat["contains"])] if "contains" in flat and size else []
            copies = min(size, int(flat.get("minContains", 1))) if wanted else 0
            yield from varied([*inner[: size - copies], *wanted * copies], flat, search, depth - 1)


def varied(inner: list[Any], flat: Mapping[str, Any], search: Search, depth: int) -> Iterator[list[Any]]:
    """Arrays with an item for each of the ``inner`` schemas."""
    if flat.get("uniqueItems"):
        items = distinct(inner, search, depth)
    else:
        items = [value for schema in inner for value in first_of(schema, search, depth)]
    if len(items) == len(inner):
        yield items
        for value in islice(solutions(inner[-1], search, depth), GUESSES) if inner else ():
            yield [*items[:-1], value]


def distinct(inner: list[Any], search: Search, depth: int) -> list[Any]:
    """An item for each schema, no two alike; fewer if there are not so many."""
    items: dict[Any, Any] = {}
    for schema in inner[:GUESSES]:
        found = (value for value in solutions(schema, search, depth) if frozen(value) not in items)
        for value in islice(found, 1):
            items[frozen(value)] = value
    return list(items.values())


def objects(flat: Mapping[str, Any], search: Search, depth: int) -> Iterator[dict[str, Any]]:
    """The object of the fewest properties, then with one property more, then with another value for one."""
    declared = flat.get("properties", {})
    names = needed(flat, search.whole)
    base = {name: value for name in names for value in first_of(member_schema(name, flat), search, depth - 1)}
    if len(base) < len(names) or len(names) > HEAVIEST:
        return
    yield base
    for name in declared:
        for value in first_of(declared[name], search, depth - 1) if name not in base else ():
            yield {**base, name: value}
    for name in names:
        for value in islice(solutions(member_schema(name, flat), search, depth - 1), GUESSES // 4):
            yield {**base, name: value}


def needed(flat: Mapping[str, Any], whole: bool) -> list[str]:
    """The names of the members that an object must have, the declared ones first; enough for ``minProperties``."""
    declared, required = flat.get("properties", {}), flat.get("required", [])
    names = list(unique([*(name for name in declared if whole or name in required), *required]))
    least = min(int(flat.get("minProperties", 0)), HEAVIEST + 1)
    spare = unique(chain(names, declared, map(letters, range(least))))
    return list(islice(spare, max(least, len(names))))


def member_schema(name: str, flat: Mapping[str, Any]) -> Any:
    """The schema for a member: what is declared for its name or its pattern, or what is left for others."""
    if name in flat.get("properties", {}):
        return flat["properties"][name]
    if is_free(name, flat):
        return flat.get("additionalProperties", True)
    return {"allOf": [inner for pattern, inner in flat["patternProperties"].items() if re.search(pattern, name)]}


def constants(*values: Any) -> Callable[[Mapping[str, Any], Search, int], Iterator[Any]]:
    return lambda flat, search, depth: iter(values)


Guess = Callable[[Mapping[str, Any], Search, int], Iterable[Any]]
GUESS: dict[str, Guess] = {
    "string": strings,
    "integer": numbers,
    "number": numbers,
    "boolean": constants(False, True),
    "null": constants(None),
    "array": arrays,
    "object": objects,
}
