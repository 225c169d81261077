"""JSON Schemas flattened: references followed, ``allOf`` met, one alternative of each ``anyOf`` and ``oneOf`` taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import islice, product
from typing import Any

from chatfn.transports.echo.fits import checked, frozen, listed, target_of, unique

NONE: frozenset[str] = frozenset()
BRANCHES = 64  # combinations of alternatives that are tried


def flats(schema: Any, root: Any, fuel: Iterator[int], refs: frozenset[str] = NONE) -> Iterator[dict[str, Any]]:
    """The schemas without references and alternatives whose instances, together, are those of ``schema``.

    ``fuel``: one is drawn for every schema that is looked at; without any there are no more.
    ``refs``: the references that led here; one that leads back to itself has no instances.
    """
    if isinstance(schema, bool):
        yield from [{}] if schema else []
        return
    ref = checked(schema).get("$ref")
    if ref in refs or next(fuel, None) is None:
        return
    alternatives = [[part] for part in schema.get("allOf", ())]
    alternatives += [schema[key] for key in ("anyOf", "oneOf") if key in schema]
    if "if" in schema:
        alternatives.append([{"allOf": [schema["if"], schema.get("then", True)]}, schema.get("else", True)])
    inner = refs if ref is None else refs | {ref}
    if ref is not None:
        alternatives.insert(0, [target_of(ref, root)])
    for choice in islice(product(*alternatives), BRANCHES):
        parts = [list(islice(flats(part, root, fuel, inner), BRANCHES)) for part in choice]
        for combination in islice(product(*parts), BRANCHES):
            yield reduce(meet, combination, own(schema))


APART = ("$ref", "allOf", "anyOf", "oneOf", "const", "if")


def own(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema's own demands, its ``const`` as an ``enum``."""
    flat = {key: value for key, value in schema.items() if key not in APART}
    return meet(flat, {"enum": [schema["const"]]}) if "const" in schema else flat


def meet(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A flat schema for the instances of both."""
    both = {key: MEET.get(key, kept)(one[key], value) for key, value in other.items() if key in one}
    return {**one, **other, **both}


def kept(one: Any, other: Any) -> Any:
    return one


def meet_types(one: Any, other: Any) -> list[str]:
    found = [name for name in listed(one) if name in listed(other) or (name == "integer" and "number" in listed(other))]
    return found + ["integer"] * ("integer" in listed(other) and "number" in listed(one) and "integer" not in found)


def meet_schemas(one: Any, other: Any) -> Any:
    return {"allOf": [one, other]}


def meet_properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, **{key: meet_schemas(one[key], value) if key in one else value for key, value in other.items()}}


def meet_multiples(one: float, other: float) -> float:
    return math.lcm(one, other) if isinstance(one, int) and isinstance(other, int) else max(one, other)


MEET: dict[str, Callable[[Any, Any], Any]] = {
    "type": meet_types,
    "enum": lambda one, other: [value for value in one if frozen(value) in map(frozen, other)],
    "required": lambda one, other: list(unique([*one, *other])),
    "properties": meet_properties,
    "multipleOf": meet_multiples,
    "nullable": lambda one, other: one and other,
    "uniqueItems": lambda one, other: one or other,
    **dict.fromkeys(("items", "additionalProperties", "contains", "propertyNames"), meet_schemas),
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains"), min),
}
