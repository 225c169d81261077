"""Bytes to events by the WHATWG rules, and back."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn.errors import ChatError
from chatfn.sse import decoder, encode, within

Events = list[tuple[str, str]]

WIRE: dict[str, tuple[bytes, Events]] = {
    "nothing": (b"", []),
    "one event": (b"data: a\n\n", [("", "a")]),
    "two events": (b"data: a\n\ndata: b\n\n", [("", "a"), ("", "b")]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", "a"), ("", "b")]),
    "CR": (b"data: a\r\rdata: b\r\r", [("", "a"), ("", "b")]),
    "LF, CR and CRLF mixed": (
        b"data: a\n\r\ndata: b\r\ndata: c\r\rdata: d\r\n\n",
        [("", "a"), ("", "b\nc"), ("", "d")],
    ),
    "LF CR is two line ends": (b"data: a\n\rdata: b\n\n", [("", "a"), ("", "b")]),
    "many blank lines": (b"\n\r\n\rdata: a\n\n\n\ndata: b\n\n\n\n\n", [("", "a"), ("", "b")]),
    "three line ends": (b"data: a\n\n\ndata: b\n\n\n", [("", "a"), ("", "b")]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [("", "a")]),
    "only the first byte order mark goes": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [("", "b")]),
    "no byte order mark after a line": (b"\n\xef\xbb\xbfdata: a\n\ndata: b\n\n", [("", "b")]),
    "half a byte order mark": (b"\xef\xbb", []),
    "half a byte order mark, then data": (b"\xef\xbbdata: a\n\ndata: b\n\n", [("", "b")]),
    "comments": (b": ping\n\n:\n\ndata: a\n: between\ndata: b\n\n:end\n\n", [("", "a\nb")]),
    "several data lines": (b"data: a\ndata:\ndata: b\n\n", [("", "a\n\nb")]),
    "one leading space goes": (
        b"data:a\n\ndata: a\n\ndata:  a\n\ndata:\ta\n\n",
        [("", "a")] * 2 + [("", " a"), ("", "\ta")],
    ),
    "colons in the value": (b"data: a: b:\n\n", [("", "a: b:")]),
    "type": (b"event: error\ndata: a\n\ndata: b\n\n", [("error", "a"), ("", "b")]),
    "type after data, the last one counts": (b"data: a\nevent: x\nevent:y\n\n", [("y", "a")]),
    "type without data is forgotten": (b"event: x\n\ndata: a\n\n", [("", "a")]),
    "id and retry": (b"id: 1\nretry: 10\ndata: a\nid\n\n", [("", "a")]),
    "unknown fields and cases": (b"Data: x\n data: y\ndatas: z\ndata: a\n\n", [("", "a")]),
    "field without colon": (b"data\n\ndata\ndata: a\n\nevent\ndata: b\n\n", [("", "\na"), ("", "b")]),
    "empty data": (b"data:\n\ndata: \n\ndata\n\nevent: x\ndata:\n\n", []),
    "[DONE] inside text": (b'data: "[DONE]"\n\ndata: [DONE]\n\n', [("", '"[DONE]"'), ("", "[DONE]")]),
    "UTF-8": ("data: é€😀\n\ndata: 漢\n\n".encode(), [("", "é€😀"), ("", "漢")]),
    "other line separators are text": ("data: a\u2028b\x85c\x0bd\x0ce\n\n".encode(), [("", "a\u2028b\x85c\x0bd\x0ce")]),
    "NUL": (b"data: a\0b\n\n", [("", "a\0b")]),
    "broken UTF-8 is replaced": (
        b"data: \xff\xe2\x82\n\ndata: \xf0\x9f\x98x\n\n",
        [("", "\ufffd\ufffd"), ("", "\ufffdx")],
    ),
    "no blank line at the end": (b"data: a\n\ndata: b\n", [("", "a"), ("", "b")]),
    "no line end at the end": (b"data: a\n\ndata: b", [("", "a"), ("", "b")]),
    "CR at the end": (b"data: a\r", [("", "a")]),
    "a field cut off": (b"data: a\n\ndat", [("", "a")]),
}


def decoded(pieces: list[bytes], limit: int = 1 << 24) -> Events:
    decode = decoder(limit)
    return [event for piece in pieces for event in decode(piece)] + decode(b"", last=True)


def cut(wire: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if place <= len(wire)), len(wire)]
    return [wire[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize(("wire", "events"), WIRE.values(), ids=WIRE)
def test_what_the_wire_says(wire: bytes, events: Events) -> None:
    """The same bytes are the same events, whole, cut in two at every byte, in three, or in single bytes."""
    assert decoder()(wire, last=True) == events
    assert decoded([bytes([byte]) for byte in wire]) == events
    for place in range(len(wire) + 1):
        assert decoded(cut(wire, [place])) == events
        assert decoded(cut(wire, [place, place + 1])) == events
        decode = decoder()
        assert decode(wire[:place]) + decode(wire[place:], last=True) == events


def test_an_event_comes_with_its_blank_line() -> None:
    """Nothing waits for the next chunk: not a CR for its LF, not an event for the one after it."""
    decode = decoder()
    assert decode(b"data: a\n\n") == [("", "a")]
    assert decode(b"data: b\r\n\r") == [("", "b")]
    assert decode(b"") == []
    assert decode(b"\ndata: c\r\r") == [("", "c")]
    assert decode(b"data: d\n") == []
    assert decode(b"\n") == [("", "d")]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1)


@settings(deadline=None)
@given(st.lists(TEXTS | st.text("ab: \n", min_size=1)), st.data())
def test_any_data_comes_out_as_it_went_in(texts: list[str], data: st.DataObject) -> None:
    """Whatever the data, each line's end, and the cuts."""
    wire = b""
    for text in texts:
        for line in encode(text).split(b"\n")[:-1]:
            # a blank line after CR can't be LF: the two would be one line end
            ends = [b"\r", b"\r\n", b"\n"][: 2 if wire.endswith(b"\r") and not line else 3]
            wire += line + data.draw(st.sampled_from(ends))
    places = data.draw(st.lists(st.integers(0, len(wire))))
    assert decoded(cut(wire, places)) == [("", text) for text in texts]


@settings(deadline=None)
@given(st.lists(TEXTS), st.sampled_from(["\n", "\r", "\r\n"]), st.lists(st.integers(0, 500)))
def test_encode_and_decode(texts: list[str], line_end: str, places: list[int]) -> None:
    """Decoding undoes encoding, with each kind of line end and any cuts."""
    wire = b"".join(map(encode, texts)).replace(b"\n", line_end.encode())
    assert decoded(cut(wire, places)) == [("", text) for text in texts]


def test_encode() -> None:
    """One event; several lines are several fields; a type that would be more than its line is refused."""
    assert encode("a") == b"data: a\n\n"
    assert encode("a\r\nb\rc\n", "note") == b"event: note\ndata: a\ndata: b\ndata: c\ndata: \n\n"
    assert decoded([encode("é", "note")]) == [("note", "é")]
    with pytest.raises(ValueError, match="one line"):
        encode("a", "x\ndata: y")
    with pytest.raises(ValueError, match="surrogates"):
        encode("\ud800")


def test_time_is_linear() -> None:
    """An event of 16 MB in pieces of 1 KB: seconds if each byte is touched a few times, hours if each is re-joined."""
    size, piece = 16_000_000, 1_000
    decode = decoder()
    assert decode(b"data: ") == []
    assert not any(decode(b"x" * piece) for _ in range(size // piece))
    assert decode(b"\n\n") == [("", "x" * size)]


@pytest.mark.parametrize("wire", [b"data: 3456", b": 23456789", b"data: 3\n: ", b"\xef\xbb\xbfdata: 3456"])
def test_the_limit(wire: bytes) -> None:
    """Ten bytes are ten bytes, however they are cut; the eleventh is a fault that names the bound."""
    for place in range(len(wire) + 1):
        first = decoded([*cut(wire + b"\n\n", [place]), b"data: ok\n\n"], limit=10)
        assert first[-1] == ("", "ok")
        for ending in (b"", b"\n\n", b"\r\r"):
            with pytest.raises(ChatError) as caught:
                decoded(cut(wire + b"x" + ending, [place]), limit=10)
            assert caught.value.error["category"] == "fault"
            assert 'bounds["event"], 10 bytes' in caught.value.error["message"]


@pytest.mark.parametrize(
    "long", [b"data: 34567\n\n", b"data: 34567", b"data: 34567\n\ndata: b\n\n", b": 234567890\n\n"]
)
def test_what_came_before_the_limit_is_given_out(long: bytes) -> None:
    """Events before the one that is too long come first, the error at the next call and at all that follow."""
    decode = decoder(10)
    assert decode(b"data: a\n\n" + long) == [("", "a")]
    for last in (False, True, True):
        with pytest.raises(ChatError):
            decode(b"", last)


def test_the_last_call_keeps_no_error_back() -> None:
    with pytest.raises(ChatError):
        decoder(10)(b"data: a\n\ndata: 34567\n\n", last=True)


def test_many_short_events_are_not_one_long() -> None:
    """The limit is for each event, not for a chunk."""
    assert decoded([b"data: a\n\n\n: b\n\n" * 9], limit=10) == [("", "a")] * 9
    assert within(b"\naaa\n\nbbbb\n\nc", 3) == (b"\naaa", True)


def test_a_typical_chunk() -> None:
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "\n\r[DONE]"}}]})
    assert decoder()(encode(event) * 3 + encode("[DONE]")) == [("", event)] * 3 + [("", "[DONE]")]
