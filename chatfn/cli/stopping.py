"""Signals: the first one asks a map to end in order, the second one stops it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from chatfn.errors import failure
from chatfn.middleware import Flow, middleware
from chatfn.spec import Request, Response

T = TypeVar("T")

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
WORDS = b"\nchatfn: stopping when the calls in flight have ended; once more stops at once\n"


class Stop(NamedTuple):
    """What signals have asked for."""

    event: threading.Event  # set when nothing more is to be sent
    signals: list[int]  # that arrived
    reading: list[bool]  # not empty while the next row is waited for


class Halted(Exception):
    """Raised by the handler of a signal while the next row is waited for, and by those who find a signal come."""


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A ``Stop`` that signals move until the block ends; a signal that is ignored stays ignored."""
    stop = Stop(threading.Event(), [], [])

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signals.append(number)
        stop.event.set()
        if len(stop.signals) > 1:
            raise KeyboardInterrupt
        with suppress(OSError):
            os.write(2, WORDS)  # sys.stderr might be in use, by the very thread that runs this
        if stop.reading:
            raise Halted

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {n: signal.signal(n, handle) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until(stop: Stop, items: Iterator[T], interruptible: bool) -> Iterator[T]:
    """The items until a signal; ``interruptible``: do not wait for one that may never come, such as a pipe's."""
    if not interruptible:
        yield from takewhile(lambda _: not stop.event.is_set(), items)
        return
    while not stop.event.is_set():
        try:
            stop.reading.append(True)
            item = next(items)
        except (StopIteration, Halted):
            return
        finally:
            stop.reading.clear()
        yield item


@middleware
def gate(request: Request, stopped: Callable[[], bool]) -> Flow:
    """Sends nothing once ``stopped()``: outside a journal, which then hears nothing of the call."""
    if stopped():
        return failure("interrupted", "not sent: the map was stopped")
    response: Response = yield request
    return response
