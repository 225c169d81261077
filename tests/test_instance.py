"""Instances of JSON Schemas, judged by the jsonschema library."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn.transports.echo.fits import fits, target_of
from chatfn.transports.echo.instance import instance_of
from chatfn.transports.echo.pattern import sample_of

jsonschema = pytest.importorskip("jsonschema")

NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TABLE: list[tuple[Any, Any]] = [
    ({"type": "string"}, ""),
    ({"type": ["null", "string"]}, None),
    ({"type": ["string", "null"]}, ""),
    ({"type": "string", "minLength": 3}, "aaa"),
    ({"type": "string", "format": "date-time"}, "1970-01-01T00:00:00Z"),
    ({"type": "string", "format": "uuid"}, "00000000-0000-4000-8000-000000000000"),
    ({"type": "string", "pattern": "^[A-Z]{2}[0-9]+$", "minLength": 5}, "AA000"),
    ({"type": "string", "pattern": "b"}, "b"),
    ({"type": "string", "pattern": "^[a-c]+$", "minLength": 7, "maxLength": 7}, "aaaaaaa"),
    ({"type": "string", "pattern": "^a", "minLength": 3, "maxLength": 3}, "aaa"),
    ({"type": "array", "items": {"pattern": "^b+$"}, "minItems": 2, "uniqueItems": True}, ["b", "bb"]),
    ({"type": "string", "pattern": "^(?!a)[a-c]$", "enum": ["a", "c"]}, "c"),
    ({"type": "integer"}, 0),
    ({"type": "integer", "minimum": 2.5}, 3),
    ({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 4}, 3),
    ({"type": "integer", "maximum": -7, "multipleOf": 5}, -10),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
    ({"type": "number", "minimum": 0.3, "multipleOf": 0.25}, 0.5),
    ({"type": "number", "minimum": 1e300, "maximum": 1e300}, 1e300),
    ({"not": {"type": "integer"}, "type": "number", "minimum": 0, "maximum": 1}, 0.5),
    ({"type": "boolean"}, False),
    ({"type": "boolean", "const": True}, True),
    ({"const": {"a": [1]}}, {"a": [1]}),
    ({"enum": ["red", "blue"]}, "red"),
    ({"type": "integer", "enum": ["a", True, 4]}, 4),
    ({"type": "array", "items": {"type": "null"}}, []),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "uniqueItems": True}, [False, True]),
    ({"type": "array", "items": {"type": "integer", "minimum": 5}, "minItems": 3, "uniqueItems": True}, [5, 6, 7]),
    ({"prefixItems": [{"const": 1}, {"const": 2}], "minItems": 2, "items": False, "type": "array"}, [1, 2]),
    ({"type": "array", "contains": {"const": 3}}, [3]),
    ({"type": "object"}, {}),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, {}),
    ({"properties": {"b": {"type": "null"}, "a": {"const": 1}}, "required": ["a", "b"]}, {"b": None, "a": 1}),
    ({"type": "object", "required": ["x"]}, {"x": ""}),
    ({"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}}, {"x": 0}),
    ({"type": "object", "required": ["x1"], "patternProperties": {"^x": {"type": "null"}}}, {"x1": None}),
    ({"type": "object", "minProperties": 2, "additionalProperties": {"const": 1}}, {"a": 1, "b": 1}),
    ({"type": "object", "minProperties": 1, "properties": {"only": {"const": 1}}}, {"only": 1}),
    ({"anyOf": [False, {"type": "null"}]}, None),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 0.5),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"}, {"a": ""}),
    ({"allOf": [{"type": "number", "minimum": 2}, {"type": "integer", "maximum": 3}]}, 2),
    ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 4}}, "required": ["a"]}]},
     {"a": 4}),
    ({"type": "integer", "if": {"minimum": 0}, "then": {"minimum": 10}}, 10),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a"],
      "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 2}),
    ({"type": "object", "properties": {"a": {"const": 1}}, "not": {"const": {}}}, {"a": 1}),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "not": {"const": {"a": 0}}}, {"a": 1}),
    ({"title": "one", "allOf": [{"title": "other", "multipleOf": 4}], "multipleOf": 6, "minimum": 1}, 12),
    (NODE, {"value": 0, "next": None}),
    ({"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]},
     {"kids": []}),
    ({"$defs": {"a/b": {"type": "integer", "minimum": 1}}, "$ref": "#/$defs/a~1b", "maximum": 1}, 1),
    ({"definitions": {"c d": {"const": "x"}}, "$ref": "#/definitions/c%20d"}, "x"),
    (True, ""),
    ({}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "instance"), TABLE)
def test_smallest_instance(schema: Any, instance: Any) -> None:
    """The instance is the one that a reader of the schema would call the smallest, and it is valid."""
    found = instance_of(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    assert found == instance
    assert repr(found) == repr(instance), "0 is not False, and not 0.0"


@pytest.mark.parametrize("schema", [
    False,
    {"type": "string", "enum": []},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "integer", "minimum": 3, "maximum": 2},
    {"type": "array", "minItems": 1, "items": False},
    {"type": "array", "minItems": 3, "uniqueItems": True, "items": {"type": "boolean"}},
    {"type": "array", "minItems": 10**12},
    {"type": "object", "minProperties": 10**12},
    {"type": "string", "minLength": 10**12},
    {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    {"$ref": "#"},
    {"$ref": "#/nowhere"},
    {"$ref": "https://example.com/schema.json"},
    {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]},
    {"type": "text"},
    {"type": "string", "pattern": "("},
    {"properties": []},
    {"minimum": "3"},
    {"type": "array", "minItems": 60, "items": {"type": "array", "minItems": 60, "items": {"type": "array",
     "minItems": 60, "items": {"type": "array", "minItems": 60}}}},
])  # fmt: skip
def test_no_instance_is_a_value_error(schema: Any) -> None:
    """What has no instance, none within bounds, or is no schema, is a ValueError, soon."""
    with pytest.raises(ValueError):
        instance_of(schema)


def test_nullable_is_a_way_out() -> None:
    """OpenAPI's ``nullable`` ends a recursion."""
    schema = {"type": "object", "properties": {"up": {"$ref": "#"}}, "required": ["up"], "nullable": True}
    assert instance_of(schema) is None
    assert fits(None, {"type": "string", "nullable": True})


def test_whole_takes_optional_properties_where_that_can_be() -> None:
    """``whole`` gives every property a value; an optional recursion is left out rather than failing."""
    assert instance_of({"properties": {"a": {"type": "integer"}, "b": {"const": 1}}}, whole=True) == {"a": 0, "b": 1}
    assert instance_of({"type": "object", "properties": {"a": {"$ref": "#"}}}, whole=True) == {}


def test_instances_are_not_shared() -> None:
    """A caller who changes an instance does not change the next one."""
    schema = {"type": "array", "minItems": 1, "items": {"type": "integer"}}
    instance_of(schema).append("mine")
    assert instance_of(schema) == [0]


@pytest.mark.parametrize("pattern", [
    r"^\d{4}-\d{2}-\d{2}$", r"^[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}$", r"^(foo|bar)+(?:baz)?$", r"\bx\b", r"^[^\s]+$",
    r"^\+?[1-9]\d{1,14}$", r"^#(?:[0-9a-fA-F]{3}){1,2}$", r"^\x41\u0042$", r"^[]]$", r"^[^]a]$", r"a{,2}", r"^a{2,}?b$",
    r"^(?P<year>\d+)$", r"^(?i:abc)$", r".", "", r"^\.\*$", r"{x}", r"^(a|)$",
])  # fmt: skip
@pytest.mark.parametrize("extra", [0, 3])
def test_samples_match_their_pattern(pattern: str, extra: int) -> None:
    """A sample of a pattern without look-arounds and back references is a match."""
    assert re.search(pattern, sample_of(pattern, extra))


def test_references_point_into_lists_too() -> None:
    """A JSON pointer counts the items of a list."""
    root = {"anyOf": [{"type": "null"}, {"const": 1}]}
    assert target_of("#/anyOf/1", root) == {"const": 1}
    for ref in ("#/anyOf/2", "#/anyOf/x", "#/anyOf", "#name"):
        with pytest.raises(ValueError):
            target_of(ref, root)


NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "bb"])
COUNTS = st.integers(0, 3)
HALVES = st.integers(-6, 6).map(lambda number: number / 2)


def some(keywords: dict[str, st.SearchStrategy[Any]], **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({key: st.just(value) for key, value in fixed.items()}, optional=keywords)


LEAVES = (
    some(
        {"minLength": COUNTS, "maxLength": COUNTS, "pattern": st.sampled_from(["a", "^b+$", "^[ab]{2}"])}, type="string"
    )
    | some({"minimum": HALVES, "maximum": HALVES, "multipleOf": st.sampled_from([0.5, 1, 2, 3])}, type="integer")
    | some({"exclusiveMinimum": HALVES, "exclusiveMaximum": HALVES}, type="number")
    | st.builds(lambda values: {"enum": values}, st.lists(SCALARS, min_size=1, max_size=3))
    | st.builds(lambda value: {"const": value}, SCALARS)
    | st.lists(st.sampled_from(["null", "boolean", "integer"]), min_size=1, unique=True).map(
        lambda names: {"type": names}
    )
    | st.sampled_from([True, {}, {"$ref": "#/$defs/d"}, {"$ref": "#"}])
)


def branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.lists(inner, min_size=1, max_size=3)
    return (
        some({"items": inner, "minItems": COUNTS, "uniqueItems": st.booleans(), "prefixItems": parts}, type="array")
        | some({"contains": inner, "items": inner, "maxItems": COUNTS}, type="array")
        | some(
            {
                "properties": st.dictionaries(NAMES, inner, max_size=3),
                "required": st.lists(NAMES, max_size=3, unique=True),
                "additionalProperties": inner | st.booleans(),
                "minProperties": COUNTS,
            },
            type="object",
        )
        | st.builds(lambda key, found: {key: found}, st.sampled_from(["anyOf", "oneOf", "allOf"]), parts)
        | st.builds(lambda one: {"not": one}, inner)
    )


SCHEMAS = st.recursive(LEAVES, branches, max_leaves=8)


@settings(deadline=None)
@given(SCHEMAS, SCHEMAS)
def test_found_instances_are_valid(schema: Any, definition: Any) -> None:
    """Whatever the schema, an instance that is found is valid; nothing but ValueError says that none was."""
    whole = {"$defs": {"d": definition}, "allOf": [schema]}
    try:
        found = instance_of(whole)
    except ValueError:
        return
    jsonschema.Draft202012Validator(whole).validate(found)


@settings(deadline=None)
@given(SCHEMAS.filter(lambda schema: "$ref" not in str(schema)), SCALARS | st.lists(SCALARS, max_size=3))
def test_fits_agrees_with_jsonschema(schema: Any, value: Any) -> None:
    """Whether a value fits is what jsonschema says."""
    assert fits(value, schema) == jsonschema.Draft202012Validator(schema).is_valid(value)


@settings(deadline=None)
@given(st.dictionaries(NAMES, LEAVES.filter(lambda leaf: "$ref" not in str(leaf)), max_size=3))
def test_objects_of_satisfiable_properties_have_an_instance(properties: dict[str, Any]) -> None:
    """An object whose members each have an instance has one, with all of them."""
    try:
        wanted = {name: instance_of(inner) for name, inner in properties.items()}
    except ValueError:
        return
    assert instance_of({"type": "object", "properties": properties, "required": list(properties)}) == wanted
