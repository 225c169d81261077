"""Signals: the first one asks a map to end in order, the second one stops it.

What a signal's handler does may come at any moment, so there is no lock in it but those of a map's own ``wind_down``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from types import FrameType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
WORDS = b"\nchatfn: stopping when the calls in flight have ended; once more stops at once\n"


class Stop(NamedTuple):
    """What signals have asked for."""

    signals: list[int]  # that arrived
    ends: list[Callable[[], object]]  # called at the first one
    reading: list[bool]  # not empty while the next row is waited for


class Halted(Exception):
    """Raised by the handler of a signal while the next row is waited for, and by those who find a signal come."""


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A ``Stop`` that signals move until the block ends; a signal that is ignored stays ignored."""
    stop = Stop([], [], [])

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signals.append(number)
        if len(stop.signals) > 1:
            raise KeyboardInterrupt
        for end in stop.ends:
            end()
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


def until(stop: Stop, items: Iterator[T]) -> Iterator[T]:
    """The items until a signal."""
    return takewhile(lambda _: not stop.signals, items)


def until_at_once(stop: Stop, items: Iterator[T]) -> Iterator[T]:
    """The same, without waiting for one that may never come, such as a pipe's."""
    while not stop.signals:
        try:
            stop.reading.append(True)
            item = next(items)
        except (StopIteration, Halted):
            return
        finally:
            stop.reading.clear()
        yield item
