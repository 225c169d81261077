"""How many requests may be in flight: additive increase, multiplicative decrease, after TCP's Reno (RFC 5681).

It starts with a few, and doubles with each round trip (slow start) until the first refusal.  A refusal takes away a
part, once for all that were in flight together, and each round trip without one adds the same amount again.
"""

from __future__ import annotations

from math import inf, log2
from typing import NamedTuple

FIRST = 8.0  # in flight at the start
LOST, LOST_LATER = 0.5, 0.8  # what is left after a refusal: the first one comes when twice too many were sent
REGAIN = 1 / 16  # of the size at the last refusal, that a round trip adds
GUESS = 0.5  # seconds of latency, until the first answer
LARGEST = 1e6


class Window(NamedTuple):
    size: float = FIRST
    threshold: float = inf  # below it a round trip doubles the size
    step: float = 1.0  # that a round trip adds above it
    flying: int = 0
    latency: float = GUESS  # running mean of the seconds until an answer
    known: bool = False  # whether there was one
    cut: int = 0  # requests up to this number were sent before the last decrease
    streak: int = 0  # decreases without a good answer to what was sent after the last
    moved: float = -inf  # when the last answer came, or the first request went


def allowed(window: Window, most: float) -> int:
    return int(min(window.size, most))


def sent(window: Window, now: float) -> Window:
    size, threshold, step, flying, latency, known, cut, streak, moved = window
    return Window(size, threshold, step, flying + 1, latency, known, cut, streak, moved if flying else now)


def freed(window: Window) -> Window:
    """The window after a request of which nothing is known."""
    return window._replace(flying=max(0, window.flying - 1))


def answered(window: Window, now: float, took: float, number: int, others: int, most: float) -> Window:
    """The window after a good answer to the request ``number``, sent when ``others`` were in flight."""
    size, threshold, step, flying, latency, known, cut, streak, _ = window
    latency = 0.9 * latency + 0.1 * took if known else took
    if size < most and 2 * (others + 1) >= size:  # else it is not what holds requests back
        size = min(LARGEST, size + (1.0 if size < threshold else step / size))
    return Window(size, threshold, step, max(0, flying - 1), latency, True, cut, 0 if number > cut else streak, now)


def refused(window: Window, now: float, number: int, others: int, newest: int, explained: bool) -> Window:
    """The window after a refusal of the request ``number``, sent when ``others`` were in flight; ``newest`` was the
    last one sent.

    ``explained``: a rate was used up, so that as many may be in flight as that rate needs.  After a second refusal
    without an answer between them it begins again with one.
    """
    size, threshold, step, flying, latency, known, cut, streak, _ = window
    if number > cut:
        streak, cut = streak + 1, newest
        if explained:
            size = threshold = max(1.0, size * LOST_LATER)
        elif streak == 1:
            size = threshold = max(1.0, min(size, others + 1.0) * (LOST if threshold == inf else LOST_LATER))
        else:
            size, threshold = 1.0, max(2.0, threshold * LOST_LATER)
        step = max(1.0, threshold * REGAIN)
    return Window(size, threshold, step, max(0, flying - 1), latency, known, cut, streak, now)


def opened(window: Window, rate: float) -> Window:
    """The window before its first refusal, when a rate is known: the server takes so many requests a second."""
    wide = min(LARGEST, 1.5 * rate * max(window.latency, 0.2))
    return window._replace(size=wide) if window.threshold == inf and wide > window.size else window


def wait_for(window: Window, places: int, now: float, most: float) -> float:
    """The seconds until so many places will be free, as far as one can tell."""
    size = min(window.size, most)
    turns = log2(1 + places / size) if size < min(window.threshold, most) else places / size
    silent = now - window.moved if window.flying else 0.0
    return max(window.latency * turns, silent / 4)
