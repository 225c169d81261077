"""Whether a value fits a JSON Schema: the keywords of draft 2020-12 that the schemas of chat requests use.

One table of keywords; keywords that it lacks say nothing, as the standard has it.  ``format`` is only a note.
Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")
Within = Callable[[Any, Any], bool]  # value, schema
Check = Callable[[Any, Any, Mapping[str, Any], Within], bool]  # value, the keyword's argument, schema, within


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def are_schemas(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_schema, value))


def are_named_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_schema, value.values()))


def are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except (re.error, OverflowError, RecursionError):
        return False


TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: is_number(value) and value == int(value),
    "number": is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": is_list,
    "object": lambda value: isinstance(value, dict),
}


def are_types(value: Any) -> bool:
    return all(isinstance(name, str) and name in TYPES for name in listed(value))


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def frozen(value: Any) -> Any:
    """A hashable stand-in, equal for equal JSON: ``1`` is ``1.0`` but not ``true``, and key order says nothing."""
    if isinstance(value, dict):
        return frozenset((key, frozen(item)) for key, item in value.items())
    if isinstance(value, list):
        return tuple(map(frozen, value))
    return (bool, value) if isinstance(value, bool) else value


def unique(values: Iterable[T]) -> Iterator[T]:
    """Each JSON value once, lazily."""
    seen = set()
    for value in values:
        mark = frozen(value)
        if mark not in seen:
            seen.add(mark)
            yield value


def is_unique(items: list[Any]) -> bool:
    return len(items) == len(set(map(frozen, items)))


def exact(number: float) -> Fraction:
    """The number as it is written: a tenth for ``0.1``, which no binary float is."""
    return Fraction(repr(number))


def bound(kind: Callable[[Any], bool], measure: Callable[[Any], Any], compare: Callable[[Any, Any], bool]) -> Check:
    return lambda value, limit, schema, within: not kind(value) or compare(measure(value), limit)


def array_items(value: Any, items: Any, schema: Mapping[str, Any], within: Within) -> bool:
    return not is_list(value) or all(within(item, items) for item in value[len(schema.get("prefixItems", ())) :])


def contained(value: Any, inner: Any, schema: Mapping[str, Any], within: Within) -> bool:
    found = sum(within(item, inner) for item in value) if is_list(value) else 0
    least, most = schema.get("minContains", 1), schema.get("maxContains", found)
    return not is_list(value) or bool(least <= found <= most)


def is_free(name: str, schema: Mapping[str, Any]) -> bool:
    """Whether ``additionalProperties`` speaks for the property."""
    patterns = schema.get("patternProperties", {})
    return name not in schema.get("properties", {}) and not any(re.search(pattern, name) for pattern in patterns)


def members(select: Callable[[str, Any, Mapping[str, Any]], list[Any]]) -> Check:
    """Every member of an object against each of the schemas that ``select`` finds for its name."""
    return lambda value, argument, schema, within: (
        not isinstance(value, dict)
        or all(within(item, inner) for name, item in value.items() for inner in select(name, argument, schema))
    )


def dependents(value: Any, names: Any, schema: Mapping[str, Any], within: Within) -> bool:
    return not isinstance(value, dict) or all(set(names[name]) <= set(value) for name in names if name in value)


def conditional(value: Any, condition: Any, schema: Mapping[str, Any], within: Within) -> bool:
    return within(value, schema.get("then" if within(value, condition) else "else", True))


TEXT, LIST, MAP = TYPES["string"], is_list, TYPES["object"]
KEYWORDS: dict[str, tuple[Callable[[Any], bool], Check | None]] = {  # what its argument must be, what it demands
    "type": (are_types, lambda v, names, s, w: any(TYPES[name](v) for name in listed(names))),
    "enum": (is_list, lambda v, options, s, w: frozen(v) in map(frozen, options)),
    "const": (lambda _: True, lambda v, only, s, w: bool(frozen(v) == frozen(only))),
    "minimum": (is_number, bound(is_number, lambda v: v, operator.ge)),
    "maximum": (is_number, bound(is_number, lambda v: v, operator.le)),
    "exclusiveMinimum": (is_number, bound(is_number, lambda v: v, operator.gt)),
    "exclusiveMaximum": (is_number, bound(is_number, lambda v: v, operator.lt)),
    "multipleOf": (lambda n: is_number(n) and n > 0, bound(is_number, exact, lambda v, n: v % exact(n) == 0)),
    "minLength": (is_count, bound(TEXT, len, operator.ge)),
    "maxLength": (is_count, bound(TEXT, len, operator.le)),
    "pattern": (is_pattern, bound(TEXT, str, lambda v, pattern: re.search(pattern, v) is not None)),
    "minItems": (is_count, bound(LIST, len, operator.ge)),
    "maxItems": (is_count, bound(LIST, len, operator.le)),
    "uniqueItems": (TYPES["boolean"], bound(LIST, is_unique, lambda unique, wanted: unique or not wanted)),
    "prefixItems": (are_schemas, lambda v, inner, s, w: not is_list(v) or all(map(w, v, inner))),
    "items": (is_schema, array_items),
    "contains": (is_schema, contained),
    "minContains": (is_count, None),
    "maxContains": (is_count, None),
    "required": (are_names, bound(MAP, set, lambda v, names: v >= set(names))),
    "minProperties": (is_count, bound(MAP, len, operator.ge)),
    "maxProperties": (is_count, bound(MAP, len, operator.le)),
    "properties": (are_named_schemas, members(lambda name, inner, s: [inner[name]] if name in inner else [])),
    "patternProperties": (
        lambda inner: are_named_schemas(inner) and all(map(is_pattern, inner)),
        members(lambda name, inner, s: [inner[pattern] for pattern in inner if re.search(pattern, name)]),
    ),
    "additionalProperties": (is_schema, members(lambda name, inner, s: [inner] if is_free(name, s) else [])),
    "propertyNames": (is_schema, lambda v, inner, s, w: not isinstance(v, dict) or all(w(name, inner) for name in v)),
    "dependentRequired": (lambda names: isinstance(names, dict) and all(map(are_names, names.values())), dependents),
    "allOf": (are_schemas, lambda v, inner, s, w: all(w(v, each) for each in inner)),
    "anyOf": (are_schemas, lambda v, inner, s, w: any(w(v, each) for each in inner)),
    "oneOf": (are_schemas, lambda v, inner, s, w: sum(w(v, each) for each in inner) == 1),
    "not": (is_schema, lambda v, inner, s, w: not w(v, inner)),
    "if": (is_schema, conditional),
    "then": (is_schema, None),
    "else": (is_schema, None),
    "$ref": (TYPES["string"], None),
    "nullable": (TYPES["boolean"], None),
}


def checked(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself; ValueError if the argument of a keyword is not what the standard wants there."""
    for keyword, argument in schema.items():
        if keyword in KEYWORDS and not KEYWORDS[keyword][0](argument):
            raise ValueError(f"'{keyword}' is no valid JSON Schema keyword argument there")
    return schema


def target_of(ref: str, root: Any) -> Any:
    """What a ``$ref`` within the document points at: ``#`` or a JSON pointer.  ValueError: nothing is there.

    >>> target_of("#/$defs/a~1b", {"$defs": {"a/b": {"type": "null"}}})
    {'type': 'null'}
    """
    found = root
    for part in unquote(ref.removeprefix("#")).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        known = isinstance(found, dict) and key in found
        listed_there = isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found)
        found = found[key] if known else found[int(key)] if listed_there else None
    if not is_schema(found) or not (ref == "#" or ref.startswith("#/")):
        raise ValueError(f"the reference '{ref[:200]}' points at no schema in this document")
    return found


def fits(value: Any, schema: Any, root: Any = None, refs: frozenset[str] = frozenset()) -> bool:
    """True if the JSON ``value`` fits ``schema``; ``root`` is the document that its references point into.

    ``refs``: the references that led here from the same value; one that leads back to itself fits nothing.
    OpenAPI 3.0's ``nullable`` is obeyed.  ValueError: a malformed keyword, or a reference to nothing.

    >>> fits({"n": 1}, {"properties": {"n": {"type": "integer"}}}), fits(True, {"type": "integer"})
    (True, False)
    """
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if checked(schema).get("nullable") and value is None:
        return True
    here, below = partial(fits, root=root, refs=refs), partial(fits, root=root)
    if "$ref" in schema:
        ref = schema["$ref"]
        if ref in refs or not fits(value, target_of(ref, root), root, refs | {ref}):
            return False
    return all(
        check(value, schema[keyword], schema, here if keyword in SAME_VALUE else below)
        for keyword, (_, check) in KEYWORDS.items()
        if check is not None and keyword in schema
    )


SAME_VALUE = frozenset({"allOf", "anyOf", "oneOf", "not", "if"})
