"""What JSON can carry, and the path of what it cannot."""

from __future__ import annotations

import array
import enum
import json
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze, pmap, pvector, thaw

from chatfn.plain import DEEPEST, path_text, plain, without

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
MAPPINGS = (dict, MappingProxyType, OrderedDict, UserDict, ChainMap, lambda m: defaultdict(list, m))
SEQUENCES = (list, tuple, deque, UserList, pvector)


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def wrapped(value: Any, draw: Any) -> Any:
    """The same data in other containers that keep their order."""
    if isinstance(value, dict):
        return draw(st.sampled_from(MAPPINGS))({key: wrapped(item, draw) for key, item in value.items()})
    if isinstance(value, list):
        return draw(st.sampled_from(SEQUENCES))([wrapped(item, draw) for item in value])
    return value


@settings(deadline=None)
@given(JSON)
def test_data_of_json_is_taken_as_it_is_in_the_order_in_which_it_stands(value: Any) -> None:
    assert dumped(plain(value)) == dumped(value)


@settings(deadline=None)
@given(JSON, st.data())
def test_containers_of_any_kind_give_the_same_text(value: Any, data: st.DataObject) -> None:
    assert dumped(plain(wrapped(value, data.draw))) == dumped(value)


@settings(deadline=None)
@given(JSON)
def test_persistent_containers_give_the_same_data_in_their_own_order(value: Any) -> None:
    frozen = freeze(value)
    assert plain(frozen) == value
    assert dumped(plain(frozen)) == dumped(thaw(frozen))


@settings(deadline=None)
@given(JSON)
def test_what_comes_out_is_plain_and_a_copy_and_what_went_in_is_unchanged(value: Any) -> None:
    before = dumped(value)
    found = plain(value)

    def check(a: Any, b: Any) -> None:
        assert type(b) in (dict, list, str, int, float, bool, type(None))
        if isinstance(b, dict):
            assert a is not b
            for key in b:
                assert type(key) is str
                check(a[key], b[key])
        if isinstance(b, list):
            assert a is not b
            for x, y in zip(a, b, strict=True):
                check(x, y)

    check(value, found)
    assert dumped(value) == before
    assert plain(found) == found


class Color(str, enum.Enum):  # noqa: UP042  # its str() is its name, not its value
    RED = "red"
    GREEN = "grün"


class Level(enum.IntEnum):
    HIGH = 3


class Pair(NamedTuple):
    a: int
    b: str


class Half(float):
    def __repr__(self) -> str:
        return "half"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Color.RED, '"red"'),
        (Color.GREEN, '"grün"'),
        ({Color.GREEN: Level.HIGH, Color.RED: 1}, '{"grün": 3, "red": 1}'),
        (Half(0.5), "0.5"),
        (Pair(1, "x"), '[1, "x"]'),
        (range(3), "[0, 1, 2]"),
        (array.array("i", [1, 2]), "[1, 2]"),
        ({"a": pmap({"b": pvector([1])})}, '{"a": {"b": [1]}}'),
        (True, "true"),
        (2**64, str(2**64)),
        (10**4_000, "1" + "0" * 4_000),
        (-0.0, "-0.0"),
        (1e308, "1e+308"),
        ({"": {"": []}}, '{"": {"": []}}'),
    ],
)
def test_subclasses_count_as_what_they_are(value: Any, text: str) -> None:
    found = plain(value)
    assert dumped(found) == text
    assert type(found) in (dict, list, str, int, float, bool)


class Model:
    def model_dump(self) -> Any: ...


class Array:
    def tolist(self) -> Any: ...


BAD = [
    (float("nan"), ValueError, "nan is no JSON number"),
    (float("inf"), ValueError, "inf is no JSON number"),
    (-float("inf"), ValueError, "-inf is no JSON number"),
    (Half("nan"), ValueError, "nan is no JSON number"),
    ("a\ud800", ValueError, "lone surrogate (half of a character) at position 1"),
    ("\udfff", ValueError, "lone surrogate"),
    ([10**4_300], ValueError, "an integer of more than 4,000 digits"),
    ([-(10**1_000_000)], ValueError, "an integer of more than 4,000 digits"),
    (b"x", TypeError, "bytes has no form in JSON; decode it"),
    (bytearray(b"x"), TypeError, "bytearray has no form in JSON; decode it"),
    (memoryview(b"x"), TypeError, "memoryview has no form in JSON; decode it"),
    ({1}, TypeError, "set has no form in JSON; give a list"),
    (frozenset(), TypeError, "frozenset has no form in JSON; give a list"),
    (Model(), TypeError, "Model has no form in JSON; give its .model_dump()"),
    (Array(), TypeError, "Array has no form in JSON; give its .tolist()"),
    (object(), TypeError, "object has no form in JSON; give a dict"),
    (date(2020, 1, 1), TypeError, "date has no form in JSON"),
    (Decimal(1), TypeError, "Decimal has no form in JSON"),
    (1j, TypeError, "complex has no form in JSON"),
    (print, TypeError, "builtin_function_or_method has no form in JSON"),
    ((x for x in ()), TypeError, "generator has no form in JSON"),
    ({}.keys(), TypeError, "dict_keys has no form in JSON"),
    ({1: "x"}, TypeError, "the key 1 is int; JSON has string keys only"),
    ({None: "x"}, TypeError, "the key None is NoneType"),
    ({b"k": "x"}, TypeError, "the key b'k' is bytes"),
    ({"\ud800": "x"}, ValueError, "lone surrogate"),
]


@pytest.mark.parametrize(("value", "kind", "words"), BAD)
def test_what_json_cannot_carry_is_named_with_its_path(value: Any, kind: type[Exception], words: str) -> None:
    for data, path in [
        (value, ""),
        ({"messages": [{"content": "fine"}, {"role": "user", "content": value}]}, "messages[1].content"),
        ({"a": ({"b": deque([0, 1, value])},)}, "a[0].b[2]"),
        ([[value]], "[0][0]"),
        (pmap({"é": MappingProxyType({"b": value})}), "é.b"),
    ]:
        with pytest.raises(kind) as info:
            plain(data)
        assert words in str(info.value)
        assert str(info.value).startswith(path)
        assert type(info.value) is kind
        assert info.value.__context__ is None
        assert info.value.__cause__ is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "messages", "é", 0, 1, 2]), max_size=15))
def test_the_path_leads_to_the_fault(path: list[Any]) -> None:
    value: Any = {1, 2}
    for part in reversed(path):
        value = {"x": 0, part: value} if isinstance(part, str) else [*[0] * part, value]
    with pytest.raises(TypeError) as info:
        plain(value)
    said = str(info.value).removesuffix("set has no form in JSON; give a list").removesuffix(": ")
    assert said == path_text(path)


@pytest.mark.parametrize("text", ["\ud83d\ude00", "a\ud800b", "é\udfff", "\ud800" * 3])
def test_lone_surrogates_are_replaced_if_asked_and_pairs_are_mended(text: str) -> None:
    found = plain({"k": [text], text: 1}, "replace")
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert found == {"k": [mended], mended: 1}
    dumped(found).encode()


@settings(deadline=None)
@given(st.text(st.characters()))
def test_replacing_leaves_good_text_alone(text: str) -> None:
    good = text.encode("utf-8", "replace").decode()
    assert plain(good, "replace") == good
    assert plain(good) == good


@pytest.mark.parametrize("nest", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: pmap({"a": v})])
def test_depth_is_bounded(nest: Any) -> None:
    value: Any = 1
    for _ in range(DEEPEST):
        value = nest(value)
    dumped(plain(value))
    with pytest.raises(ValueError, match="…: nested more than 200 levels deep, or containing itself"):
        plain(nest(value))


def test_what_contains_itself_is_named_and_not_followed() -> None:
    knot: dict[str, Any] = {"a": 1}
    knot["self"] = knot
    ring: list[Any] = []
    ring.append(ring)
    for value in (knot, ring):
        with pytest.raises(ValueError, match="containing itself"):
            plain(value)


class Endless(Mapping[str, Any]):
    """A mapping that needs the whole stack to be read."""

    def __getitem__(self, key: str) -> Any:
        return self[key]

    def __iter__(self) -> Any:
        return iter(["k"])

    def __len__(self) -> int:
        return 1


def test_a_mapping_that_recurses_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="nested more than"):
        plain({"a": Endless()})


def test_a_path_is_cut_after_twenty_parts() -> None:
    assert path_text([]) == ""
    assert path_text([0, "a", 1, 2, "b"]) == "[0].a[1][2].b"
    assert path_text(["a"] * 20) == ".".join(["a"] * 20)
    assert path_text(["a"] * 21) == ".".join(["a"] * 20) + "…"


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers()), st.lists(st.text(max_size=3)))
def test_without_keeps_the_order_of_the_rest_and_changes_nothing(mapping: dict[str, int], names: list[str]) -> None:
    before = list(mapping.items())
    assert list(without(mapping, *names).items()) == [(k, v) for k, v in before if k not in names]
    assert list(mapping.items()) == before
    assert without(pmap(mapping), *names) == without(mapping, *names)
