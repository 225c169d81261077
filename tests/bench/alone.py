"""What chatfn itself costs: calls, events, rows and journals on a transport that answers at once, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from tests.bench.contestants import params_of
from tests.bench.server import COMPLETION, EVENT, FIRST, LAST

EVERY = 100  # each so many rows, one is new to the journal of a run that is resumed
AT_ONCE = 16
Told = dict[str, Any]


def data_of(chunks: bytes) -> bytes:
    """The lines of an event stream without its HTTP chunks."""
    return b"".join(line for line in chunks.split(b"\r\n") if line.startswith(b"data: "))


def at_once(request: Any) -> Any:
    return {"status": 200, "headers": {}, "body": COMPLETION}


def calls(asked: Told) -> Told:
    """So many whole calls with the default stack."""
    create, params, options = import_module("chatfn").create_chat_completion, params_of(), {"transport": at_once}
    for _ in range(asked["count"]):
        create(params, options)
    return {}


def events(asked: Told) -> Told:
    """A stream of so many events, some at a time."""
    count, batch = asked["count"], asked["batch"]
    whole, pieces = data_of(EVENT) * batch, count // batch

    def body() -> Iterator[bytes]:
        yield data_of(FIRST)
        for _ in range(pieces):
            yield whole
        yield data_of(LAST)

    def send(request: Any) -> Any:
        return {"status": 200, "headers": {"content-type": "text/event-stream"}, "body": body()}

    create = import_module("chatfn").create_chat_completion
    found = sum(1 for _ in create(params_of(stream=True), {"transport": send}))
    if found != pieces * batch + 2:
        raise RuntimeError(f"{found} events of {count}")
    return {}


def rows(numbers: Iterable[int], journal: str) -> Told:
    """Map rows of these numbers, to the seconds until the first was sent."""
    began, first, given = time.perf_counter(), 0.0, 0

    def send(request: Any) -> Any:
        nonlocal first
        first = first or time.perf_counter() - began
        return {"status": 200, "headers": {}, "body": COMPLETION}

    middleware = [*([["journal", {"path": journal}]] if journal else []), "retry"]
    source = ({"n": n, "params": params_of(f"question {n}")} for n in numbers)
    options = {"transport": send, "middleware": middleware}
    for row in import_module("chatfn").map_chat(source, options, concurrency=AT_ONCE):
        given += 1
        if "response" not in row:
            raise RuntimeError(f"not an answer: {row!r}")
    return {"first": first, "rows": given}


def is_kept(number: int) -> bool:
    return number % EVERY != EVERY - 1


MEASURES: dict[str, Callable[[Told], Told]] = {
    "null_calls": calls,
    "null_events": events,
    "bare": lambda asked: rows(range(asked["count"]), ""),
    "kept": lambda asked: rows(filter(is_kept, range(asked["count"])), asked["journal"]),
    # Rows that the journal has, in a map of which nothing is sent but one new row after them.
    "replayed": lambda asked: rows([*filter(is_kept, range(asked["count"])), -1], asked["journal"]),
    # All rows, of which the journal lacks each hundredth.
    "resumed": lambda asked: rows(range(asked["count"]), asked["journal"]),
}
