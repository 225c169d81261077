"""With orjson and without it the same: the same bytes, the same data, the same words for what is wrong."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import Enum, IntEnum, StrEnum
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatfn.core import encode, parse
from chatfn.fastjson import fast, fast_dumps, fast_loads, has_wide_integer, is_written_alike
from chatfn.middleware.reading import parse_event


class Text(str):
    __slots__ = ()


class Count(int):
    pass


class Colour(Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    YES = "yes"


@dataclass
class Record:
    a: int = 1


Pair = namedtuple("Pair", "a b")  # it is one of the things that json writes
ODD = [
    Text("é"),
    Count(7),
    True,
    Number.ONE,
    Word.YES,
    Colour.RED,
    Record(),
    Pair(1, "b"),
    UUID(int=5),
    date(2026, 1, 1),
]
ODD += [
    b"bytes",
    {1},
    {1: "a"},
    {None: 0},
    {Text("k"): 1},
    OrderedDict(b=1, a=2),
    UserDict(a=1),
    object,
    1j,
    (),
    (1, (2,)),
]
ODD += [10**30, -(2**63) - 1, 2**64 - 1, 2**64, "\ud800", "a\udfff", {"\ud800": 1}, float("nan"), float("inf"), -0.0]
SIZES = [
    1e-4,
    9.999e-5,
    1e-5,
    1e-7,
    5e-324,
    1e15,
    1e16,
    9999999999999998.0,
    1e17,
    123456789012345678.0,
    1.7e308,
    -2.5e-6,
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.sampled_from(SIZES)
    | st.text(st.characters(), max_size=20)
    | st.text('"\\/\b\f\n\r\t\x00\x1f\x7f\x85\u2028é😀', max_size=8)
)
KEYS = st.text(st.characters(), max_size=5) | st.sampled_from(["a", "b", "é", "", "content"])


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str] = KEYS) -> st.SearchStrategy[Any]:
    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)

    return st.recursive(leaves, around, max_leaves=12)


JSON = trees(SCALARS)
STRICT = trees(
    st.none() | st.booleans() | st.integers(1 - 10**18, 10**18 - 1) | st.floats(1e-4, 1e15) | st.text(max_size=9),
    st.text(max_size=5),  # without halves of surrogate pairs
)


def nested(levels: int) -> Any:
    data: Any = []
    for _ in range(levels - 1):
        data = [data]
    return data


def outcome(function: Callable[[], Any]) -> Any:
    """What comes out, its types and all; or what is raised, and its words."""
    try:
        return repr(function())
    except Exception as exc:
        return type(exc), str(exc)


def written(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def read(body: bytes) -> Any:
    return json.loads(body.removeprefix(b"\xef\xbb\xbf").decode())


def stand_in() -> Any:
    """As much of orjson as shows that every path is taken where it is not installed."""

    def dumps(data: Any, option: int) -> bytes:
        if any(bracket * 3 in json.dumps(data) for bracket in "[{"):
            raise TypeError("too deep")
        return written(data) if option == 7 else b""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    def loads(body: bytes) -> Any:
        return json.loads(body, parse_constant=refuse)

    flags = {f"OPT_PASSTHROUGH_{name}": 2**bit for bit, name in enumerate(("SUBCLASS", "DATACLASS", "DATETIME"))}
    return SimpleNamespace(dumps=dumps, loads=loads, **flags)


@pytest.fixture
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module in orjson's place; None for none."""
    monkeypatch.setitem(sys.modules, "orjson", request.param)
    fast.cache_clear()
    yield
    fast.cache_clear()


real = pytest.mark.skipif(not find_spec("orjson"), reason="orjson is not installed")


# --- to bytes -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(JSON)
@example({"b": 1, "a": {"z": [], "y": {}}})
def test_any_data_has_the_bytes_or_the_error_that_json_gives_it(data: Any) -> None:
    assert outcome(lambda: encode({"body": data})["body"]) == outcome(lambda: written(data))


@settings(deadline=None)
@given(st.floats())
def test_every_float_has_the_text_that_json_gives_it(value: float) -> None:
    assert fast_dumps(value) in (None, repr(value).encode())


@pytest.mark.parametrize("value", [*ODD, *SIZES], ids=repr)
@pytest.mark.parametrize("around", [lambda v: v, lambda v: [v], lambda v: {"a": {"b": (1, [v, "c"])}}])
def test_what_is_no_plain_json_is_written_or_refused_as_json_does(value: Any, around: Callable[[Any], Any]) -> None:
    data = around(value)
    assert outcome(lambda: encode({"body": data})["body"]) == outcome(lambda: written(data))


@pytest.mark.parametrize("levels", [1, 200, 253, 254, 255, 300, 600])
def test_no_depth_that_json_writes_is_too_deep(levels: int) -> None:
    data = nested(levels)
    assert encode({"body": data})["body"] == written(data)


def test_what_contains_itself_is_refused_in_the_words_of_json() -> None:
    data: list[Any] = []
    data += [data, data]
    assert outcome(lambda: encode({"body": data})) == outcome(lambda: written(data))


def test_only_the_very_types_of_json_and_middling_floats_are_taken() -> None:
    assert is_written_alike({"a": [None, True, 1, 0.5, -0.0, 0.0, -1e-4, "x", {}, (), [[]]]})
    for value in (Text(), Number.ONE, Word.YES, Colour.RED, UUID(int=1), OrderedDict(), Pair(1, 2), b"", 1e16, -9e-5):
        assert not is_written_alike({"a": ["x", {"b": [value]}]})
    assert not is_written_alike([float("nan")])
    assert not is_written_alike([float("inf")])


@real
@settings(deadline=None)
@given(STRICT)
def test_common_data_takes_the_fast_way(data: Any) -> None:
    body = fast_dumps(data)
    assert body == written(data)
    assert repr(fast_loads(body)) == repr(data)


# --- from bytes ---------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [
        "0",
        "-0",
        "-0.0",
        "1",
        "1.0",
        "1e5",
        "1E+5",
        "1e-5",
        "0e0",
        "1e400",
        "-1e400",
        "1e-400",
        "5e-324",
        "9007199254740993",
        "9007199254740993.0",
        "0.1",
        "NaN",
        "Infinity",
        "-Infinity",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775808",
        "-9223372036854775809",
        "00",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "0.0001234567890123456789",
        "0.12345678901234567890123456789012345678901234567890",
        "1.2e-0000000000000000000001",
        "12345678901234567890.5",
        "2.2250738585072011e-308",
        "179769313486231580793e289",
        "100000000000000000000000000000",
    ]
)
STRINGS = st.sampled_from(
    [
        r'"\ud800"',
        r'"\udc00\ud800"',
        r'"\ud83d\ude00"',
        r'"\u0000"',
        '"\x00"',
        '"\x7f"',
        r'"\/"',
        r'"\x"',
        '"a\tb"',
        '"',
    ]
)
SPACES = st.sampled_from(["", "", "", " ", "\n", "\t\r", "\x0c", "\u00a0", "\ufeff"])


@st.composite
def texts(draw: st.DrawFn, depth: int = 3) -> str:
    """JSON, duplicate keys and faults included."""
    kind = draw(st.integers(0, 5 if depth else 3))
    if kind < 2:
        text = draw(NUMBERS if kind else STRINGS)
    elif kind < 4:
        text = json.dumps(draw(SCALARS), ensure_ascii=draw(st.booleans()))
    elif kind == 4:
        text = f"[{','.join(draw(st.lists(texts(depth - 1), max_size=3)))}]"
    else:
        members = draw(st.lists(st.tuples(st.sampled_from(["a", "b", r"\u0061", "é"]), texts(depth - 1)), max_size=4))
        text = "{" + ",".join(f'"{key}":{value}' for key, value in members) + "}"
    return draw(SPACES) + text + draw(SPACES)


BODIES = texts().map(lambda text: text.encode("utf-8", "surrogatepass"))
DAMAGED = st.tuples(BODIES, st.integers(0, 40), st.binary(max_size=2)).map(lambda it: it[0][: it[1]] + it[2])


@settings(deadline=None, max_examples=300)
@given(BODIES | DAMAGED | st.binary(max_size=20))
@example(b"\xef\xbb\xbf{}")
@example(b"\xef\xbb\xbf\xef\xbb\xbf{}")
@example(b"\xed\xa0\x80")
@example(b'{"a":1,"b":2,"a":[]}')
@example(b"null")
@example(b"")
def test_any_body_is_the_data_or_the_error_that_json_makes_of_it(body: bytes) -> None:
    assert outcome(lambda: parse(body)) == outcome(lambda: read(body))


def event_of(text: str) -> Any:
    """An event as the standard library alone reads it."""
    data, end = json.JSONDecoder().raw_decode(text)
    if type(data) is not dict or text[end:].strip():
        raise ValueError("no JSON map")
    return data


@settings(deadline=None, max_examples=300)
@given(texts().map(lambda text: '{"a":' + text + "}" if text[:1] != "{" else text), SPACES)
@example("[]", "")
@example("null", "")
@example("{} {}", "")
@example('{"a": "\ud800"}', "\u00a0")
def test_any_event_is_the_data_or_the_error_that_json_makes_of_it(text: str, space: str) -> None:
    assert outcome(lambda: parse_event(text + space)) == outcome(lambda: event_of(text + space))


@settings(deadline=None)
@given(st.integers() | st.integers(-(2**66), 2**66), st.text("[]{},:0123456789abc ", max_size=60))
def test_integers_stay_integers_wherever_they_stand(number: int, before: str) -> None:
    for body in (str(number), json.dumps([before, number]), json.dumps({before: {"a": number}})):
        assert repr(parse(body.encode())) == repr(json.loads(body))
    assert has_wide_integer(before.encode() + b"," + str(number).encode()) or -(2**63) <= number < 2**64


@pytest.mark.parametrize("levels", [1, 253, 254, 255, 300, 499, 501, 700])
def test_no_depth_that_json_reads_is_too_deep(levels: int) -> None:
    body = written(nested(levels))
    assert parse(body) == nested(levels)
    assert parse_event('{"a":' + body.decode() + "}") == {"a": nested(levels)}


@pytest.mark.parametrize("levels", [1_023, 1_024, 1_025, 100_000])
def test_what_is_too_deep_for_json_is_too_deep(levels: int) -> None:
    body = b"[" * levels + b"]" * levels
    try:
        data = json.loads(body)
    except RecursionError:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse(body)
    else:
        assert parse(body) == data


@real
def test_what_cannot_be_the_same_is_left_to_json_and_nothing_else() -> None:
    for body in (
        b"[NaN]",
        b"[1e400]",
        b'["\\ud800"]',
        b"[18446744073709551616]",
        b"[-9223372036854775809]",
        b"[1,]",
        b"",
    ):
        assert fast_loads(body) is None
    deep, wide = nested(600), [{"logprob": -0.0004580660897772759, "n": 123456789012345678}] * 900
    assert fast_loads(written(deep)) is None
    assert fast_loads(written(wide)) == wide
    assert fast_loads(written(nested(400))) == nested(400)  # too short to be deep
    assert fast_loads(written(nested(254)) + b" " * 1_000) == nested(254)  # too few brackets to be deep
    assert fast_loads(written(nested(255)) + b" " * 1_000) is None


# --- with and without the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [None], indirect=True)
@pytest.mark.usefixtures("module")
def test_without_orjson_the_standard_library_does_it_all() -> None:
    data = {"model": "m", "n": 2**70, "messages": [{"content": "é"}]}
    assert (fast(), fast_dumps(data), fast_loads(b"{}"), fast_loads("{}")) == (None, None, None, None)
    body = encode({"body": data})["body"]
    assert body == written(data)
    assert parse(body) == data == parse_event(body.decode())


@pytest.mark.parametrize("module", [stand_in()], indirect=True)
@pytest.mark.usefixtures("module")
def test_with_whatever_stands_in_for_orjson_every_way_is_taken() -> None:
    long = {"content": "x" * 2_000, "user": 12345678901234567890 // 10**8}
    for data in ({}, [1, 2.5, "é"], long, {"a": [[]]}, [1e16], [{"a": {1: 2}}]):
        assert encode({"body": data})["body"] == written(data)
        assert repr(parse(written(data))) == repr(json.loads(written(data)))
    assert fast_dumps([1e16]) is None
    assert fast_dumps([[[]]]) is None
    assert fast_loads(written(long)) == long
    assert fast_loads(b"[NaN]") is None
    assert fast_loads(b" " * 2_000 + b"[[[]]]") == [[[]]]
    assert fast_loads(written([[[[]]]] * 100) + b" " * 2_000) is None
    assert fast_loads("[12345678901234567890]") is None
    assert fast_loads("[0.1234567890123456789]") == [0.1234567890123456789]
    assert fast_loads("[1.5]") == [1.5]
