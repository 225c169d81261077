"""Instances of JSON Schemas, judged by the jsonschema library."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn.transports.echo.instance import instance_of

jsonschema = pytest.importorskip("jsonschema")

NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}  # fmt: skip
TABLE: list[tuple[Any, Any]] = [
    ({"type": "string"}, ""),
    ({"type": ["null", "string"]}, None),
    ({"type": ["string", "null"]}, ""),
    ({"type": "string", "minLength": 3}, "aaa"),
    ({"type": "string", "format": "date-time"}, "1970-01-01T00:00:00Z"),
    ({"type": "string", "format": "uuid", "maxLength": 36}, "00000000-0000-4000-8000-000000000000"),
    ({"type": "string", "pattern": "^[A-Z]{2}[0-9]+$", "minLength": 5}, "AA000"),
    ({"type": "string", "pattern": r"^\d{4}-\d{2}$"}, "0000-00"),
    ({"type": "string", "pattern": r"^#(?:[0-9a-f]{3}){1,2}$"}, "#000"),
    ({"type": "string", "pattern": r"^[a-z._]+@[^\s]+\.(com|org)$"}, "a@a.com"),
    ({"type": "string", "pattern": r"^[^a-z]\S.\W$"}, "0-0-"),
    ({"type": "string", "pattern": ""}, ""),
    ({"type": "array", "items": {"type": "string", "pattern": "^b+$"}, "minItems": 2, "uniqueItems": True}, ["b", "bb"]),
    ({"type": "integer"}, 0),
    ({"type": "integer", "minimum": 2.5}, 3),
    ({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 4}, 3),
    ({"type": "integer", "maximum": -7, "multipleOf": 5}, -10),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
    ({"type": "number", "minimum": 0.3, "multipleOf": 0.25}, 0.5),
    ({"type": "number", "minimum": 1e300, "maximum": 1e300}, 1e300),
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
    ({"type": "object"}, {}),
    ({"type": "object", "properties": {"a": {"type": "string"}}}, {}),
    ({"properties": {"b": {"type": "null"}, "a": {"const": 1}}, "required": ["a", "b"]}, {"b": None, "a": 1}),
    ({"type": "object", "required": ["x"]}, {"x": ""}),
    ({"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}}, {"x": 0}),
    ({"anyOf": [False, {"type": "null"}]}, None),
    ({"anyOf": [{"not": {}}, {"type": "string"}], "minLength": 1}, "a"),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}], "anyOf": [{"type": "integer"}, {"type": "string"}]}, 0),
    ({"allOf": [{"type": "number", "minimum": 2}, {"type": "integer", "maximum": 3}]}, 2),
    ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 4}}, "required": ["a"]}]},
     {"a": 4}),
    ({"title": "one", "type": "integer", "allOf": [{"title": "other", "multipleOf": 4}], "multipleOf": 6, "minimum": 1}, 12),
    (NODE, {"value": 0, "next": None}),
    ({"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]},
     {"kids": []}),
    ({"$defs": {"a/b": {"type": "integer", "minimum": 1}}, "$ref": "#/$defs/a~1b", "maximum": 1}, 1),
    ({"definitions": {"c d": {"const": "x"}}, "$ref": "#/definitions/c%20d"}, "x"),
    ({"properties": {"a": {"anyOf": [{"const": 7}]}, "b": {"$ref": "#/properties/a/anyOf/0"}}, "required": ["b"]}, {"b": 7}),
    (True, ""),
    ({}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "instance"), TABLE)
def test_smallest_instance(schema: Any, instance: Any) -> None:
    """The instance is the one that a reader of the schema would call the smallest, and it is valid."""
    found = instance_of(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    assert repr(found) == repr(instance), "0 is not False, and not 0.0"


def nested(levels: int) -> Any:
    return {"type": "array", "minItems": 60, "items": nested(levels - 1)} if levels else {"type": "null"}


@pytest.mark.parametrize(("schema", "keyword"), [
    (False, "false"),
    (None, "schema"),
    ({"enum": []}, "enum"),
    ({"type": "object", "not": {"required": ["a"]}}, "not"),
    ({"type": "integer", "if": {"minimum": 0}, "then": {"minimum": 10}}, "if"),
    ({"type": "array", "contains": {"const": 1}}, "contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "propertyNames": {"minLength": 1}}, "propertyNames"),
    ({"$ref": "https://example.com/schema.json"}, "$ref"),
    ({"$ref": "#/nowhere"}, "$ref"),
    ({"$ref": "#"}, "$ref"),
    ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "$ref"),
    ({"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]}, "$ref"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "type"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "pattern"),
    ({"allOf": [{"anyOf": [{"const": str(n)} for n in range(99)]}] * 9 + [{"const": 1}]}, ""),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
    ({"type": "number", "multipleOf": 0}, "multipleOf"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
    ({"type": "string", "minLength": 10**12}, "minLength"),
    ({"type": "string", "format": "uuid", "maxLength": 9}, "maxLength"),
    ({"type": "string", "pattern": "((a{1000}){1000}){1000}"}, "pattern"),
    ({"type": "string", "pattern": "("}, "pattern"),
    ({"type": "string", "pattern": "[[a]"}, "pattern"),
    ({"type": "string", "pattern": "(" * 5_000 + ")" * 5_000}, "pattern"),
    ({"type": "string", "pattern": r"^(?=b)a$"}, "pattern"),
    ({"type": "array", "minItems": 1, "items": False}, "false"),
    ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems"),
    ({"type": "array", "minItems": 3, "uniqueItems": True, "items": {"type": "boolean"}}, "uniqueItems"),
    ({"type": "array", "minItems": 10**12}, "minItems"),
    (nested(4), ""),
    ({"type": "object", "minProperties": 1}, "minProperties"),
    ({"type": "object", "required": ["a"], "maxProperties": 0}, "maxProperties"),
    ({"type": "text"}, "type"),
    ({"type": [["string"]]}, "type"),
    ({"required": [[]]}, "malformed"),
    ({"properties": [], "required": ["a"]}, "malformed"),
    ({"type": "integer", "minimum": 10**400, "maximum": 10**400}, "malformed"),
    ({"allOf": [{"anyOf": []}, {"anyOf": []}]}, "anyOf"),
    ({"type": "integer", "minimum": "3"}, ""),
])  # fmt: skip
def test_no_instance_is_a_value_error(schema: Any, keyword: str) -> None:
    """What has no instance, none that is found, or is no schema, is a ValueError, soon; it names the keyword."""
    with pytest.raises(ValueError) as caught:
        instance_of(schema)
    assert keyword in str(caught.value)


def test_nullable_is_a_way_out() -> None:
    """OpenAPI's ``nullable`` ends a recursion."""
    schema = {"type": "object", "properties": {"up": {"$ref": "#"}}, "required": ["up"], "nullable": True}
    assert instance_of(schema) is None
    assert instance_of({"type": "string", "nullable": True}) == ""


def test_whole_takes_optional_properties() -> None:
    """``whole`` gives every property a value."""
    assert instance_of({"properties": {"a": {"type": "integer"}, "b": {"const": 1}}}, whole=True) == {"a": 0, "b": 1}


COUNTS = st.integers(0, 3)
HALVES = st.integers(-6, 6).map(lambda number: number / 2)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "bb"])
PATTERNS = st.sampled_from(["a", "^b+$", "^[ab]{2}", r"^\d+(-\d+)?$", "^[^a-z]$"])


def some(keywords: dict[str, st.SearchStrategy[Any]], **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({key: st.just(value) for key, value in fixed.items()}, optional=keywords)


LEAVES = (
    some({"minLength": COUNTS, "maxLength": COUNTS, "pattern": PATTERNS}, type="string")
    | some({"minimum": HALVES, "maximum": HALVES, "multipleOf": st.sampled_from([0.5, 1, 2, 3])}, type="integer")
    | some({"exclusiveMinimum": HALVES, "exclusiveMaximum": HALVES}, type="number")
    | st.builds(lambda values: {"enum": values}, st.lists(SCALARS, min_size=1, max_size=3))
    | st.builds(lambda value: {"const": value}, SCALARS)
    | st.lists(st.sampled_from(["null", "boolean", "integer"]), min_size=1, unique=True).map(lambda of: {"type": of})
    | st.sampled_from([True, False, {"$ref": "#/$defs/d"}, {"$ref": "#/$defs/tree"}])
)
TREE = {"type": ["object", "null"], "properties": {"up": {"$ref": "#/$defs/tree"}}, "required": ["up"]}


def branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "c"])
    members = {"properties": st.dictionaries(names, inner, max_size=3), "required": st.lists(names, unique=True)}
    parts = st.lists(inner, min_size=1, max_size=3)
    return (
        some({"items": inner, "minItems": COUNTS, "uniqueItems": st.booleans(), "prefixItems": parts}, type="array")
        | some({**members, "minProperties": COUNTS}, type="object", additionalProperties=False)
        | parts.map(lambda found: {"anyOf": found})
    )


SCHEMAS = st.recursive(LEAVES, branches, max_leaves=8)


@settings(deadline=None)
@given(SCHEMAS, LEAVES.filter(lambda leaf: "$ref" not in str(leaf)), st.booleans())
def test_found_instances_are_valid(schema: Any, definition: Any, whole: bool) -> None:
    """Whatever the schema, an instance that is found is valid; nothing but ValueError says that none was."""
    document = {"$defs": {"d": definition, "tree": TREE}, "allOf": [schema]}
    try:
        found = instance_of(document, whole)
    except ValueError:
        return
    jsonschema.Draft202012Validator(document).validate(found)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=2), LEAVES.filter(lambda leaf: "$ref" not in str(leaf)), max_size=3))
def test_objects_of_satisfiable_properties_have_an_instance(properties: dict[str, Any]) -> None:
    """An object whose members each have an instance has one, with all of them."""
    try:
        wanted = {name: instance_of(inner) for name, inner in properties.items()}
    except ValueError:
        return
    assert instance_of({"type": "object", "properties": properties}, whole=True) == wanted
