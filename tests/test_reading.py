"""The reading of streams, with ``next`` and ``send``: no I/O, no clock."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from chatfn.errors import ChatError, category_of
from chatfn.middleware import Call
from chatfn.middleware.reading import Read, event_reader, streamed

REQUEST: Any = {"body": {}, "bounds": {"event": 1_000}, "timeout": (1.0, 2.0), "deadline": 9.0}
RESPONSE: Any = {"status": 200, "headers": {}, "body": None}
BROKEN: Any = {"category": "interrupted", "message": "reset"}


def event(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def wire(*data: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % (json.dumps(each).encode() if isinstance(each, dict) else each) for each in data)


def steps_of(chunks: Iterable[Any], waited: float = 0.5, due: float | None = None, *secrets: str) -> list[Any]:
    """What the flow yields for chunks that came so many seconds after one another, and the error that it ends in."""
    reads = (Read(chunk, waited, waited * n) for n, chunk in enumerate(chunks, 1))
    steps = streamed(None, next(reads), REQUEST, due, event_reader(REQUEST, RESPONSE, list(secrets), category_of))
    found: list[Any] = []
    try:
        step = next(steps)
        while True:
            found.append(step)
            step = steps.send(next(reads) if step is None else None)
    except StopIteration:
        return found
    except ChatError as exc:
        return [*found, exc.error]


def message_of(steps: list[Any]) -> Any:
    return steps[-1]["message"]


def test_the_events_of_a_chunk_come_before_the_next_is_read() -> None:
    a, b, c = event("a"), event("b"), event("c")
    *given, last = steps_of([wire(a, b), wire(c) + b"data: {", b"}\n\n" + wire(b"[DONE]", a)])
    assert given == [[a, b], None, [c], None, [{}]]
    assert isinstance(last, Call)  # what follows [DONE] is read for the connection's sake, and not given


def test_a_stream_that_is_whole_needs_no_done_and_one_that_is_not_does() -> None:
    a, b = event("a"), event("b", "stop")
    assert steps_of([wire(a, b), None]) == [[a, b], None]
    assert steps_of([wire(a, b), BROKEN]) == [[a, b], None]
    assert "without [DONE]" in message_of(steps_of([wire(a), None]))


def test_an_error_has_what_had_arrived() -> None:
    *given, error = steps_of([wire(event("a"), event("b")), BROKEN])
    assert given == [[event("a"), event("b")], None]
    assert error["partial"]["choices"][0]["message"]["content"] == "ab"
    assert {key: error[key] for key in ("category", "message", "status", "attempts")} == {
        **BROKEN,
        "status": 200,
        "attempts": 1,
    }


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (wire({"error": {"message": "overloaded sk-123456789"}}), "overloaded ***"),
        (b"event: error\n" + wire({"message": "no"}), "no"),
        (wire(b"nonsense"), "an event that is no JSON map: nonsense"),
        (wire(b"[1]"), "an event that is no JSON map"),
        (b"data: " + b"x" * 1_001, 'bounds["event"]'),
    ],
)
def test_what_is_no_event_ends_the_stream(chunk: bytes, words: str) -> None:
    *given, error = steps_of([wire(event("a")) + chunk, b""], 0.5, None, "sk-123456789")
    assert given[0] == [event("a")]
    assert words in error["message"]
    assert error["partial"]["choices"][0]["message"]["content"] == "a"


def test_an_event_that_is_cut_short_is_an_interruption() -> None:
    error = steps_of([wire(event("a")) + b'data: {"id', None])[-1]
    assert (error["category"], error["message"]) == ("interrupted", 'the stream was cut off in an event: {"id')


def test_seconds_without_an_event_add_up_until_one_comes() -> None:
    ping, a = b": ping\n\n", wire(event("a"))
    assert len(steps_of([a, *[ping] * 4, a, *[ping] * 4, wire(b"[DONE]")])) == 13
    steps = steps_of([a, *[ping] * 5])
    assert len(steps) == 7
    assert "no event for 2 s" in message_of(steps)


def test_a_stream_is_read_up_to_its_deadline() -> None:
    chunks = [wire(event("a"))] * 6 + [wire(b"[DONE]")]
    assert isinstance(steps_of(chunks, 0.5, 3.5)[-1], Call)
    steps = steps_of(chunks, 0.5, 1.2)
    assert steps[-2] == [event("a")]
    assert "within the deadline of 9 s" in message_of(steps)


def test_a_secret_is_masked_in_events() -> None:
    secret = "sk-0123456789abcdef"
    assert steps_of([wire(event(f"say {secret}"), b"[DONE]")], 0.5, None, secret)[0] == [event("say ***")]
