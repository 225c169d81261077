"""How many requests may be in flight: additive increase, multiplicative decrease, after TCP's Reno (RFC 5681).

It starts with a few, and doubles with each round trip (slow start) until a refusal.  A refusal takes away a part, once
for all that were in flight together.  What is left is at most what the rate at which requests went through needed, as
in TCP Westwood; near the size at which the refusal came it grows slowly, and faster beyond it, as in CUBIC (RFC 9438).
"""

from __future__ import annotations

from math import inf, log2
from typing import NamedTuple

FIRST = 8.0  # in flight at the start
LOST, LOST_LATER = 0.75, 0.8  # what is left after a refusal; after the first one it begins again, up to so much
CAREFUL = 0.95  # of the size at the last refusal, from which on it grows slowly
REGAIN, LEAST = 1 / 64, 0.25  # of that size, that a round trip adds, and at least
BEYOND = 1 / 16  # of what it has grown since, that a round trip adds if that is more
SHUT = 4  # refusals with no answer between them, that are not for too many in flight
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
    before: float = 2.0  # the threshold before the last decrease


def allowed(window: Window, most: float) -> int:
    return int(min(window.size, most))


def sent(window: Window, now: float) -> Window:
    size, threshold, step, flying, latency, known, cut, streak, moved, before = window
    return Window(size, threshold, step, flying + 1, latency, known, cut, streak, moved if flying else now, before)


def freed(window: Window) -> Window:
    """The window after a request of which nothing is known."""
    return window._replace(flying=max(0, window.flying - 1))


def answered(window: Window, now: float, took: float, number: int, others: int, most: float) -> Window:
    """The window after a good answer to the request ``number``, sent when ``others`` were in flight."""
    size, threshold, step, flying, latency, known, cut, streak, _, before = window
    latency = 0.9 * latency + 0.1 * took if known else took
    if number > cut and size < most and 2 * (others + 1) >= size:  # else it is not what holds requests back
        size = min(LARGEST, size + (1.0 if size < threshold else max(step, BEYOND * (size - threshold)) / size))
    streak = 0 if number > cut else streak
    return Window(size, threshold, step, max(0, flying - 1), latency, True, cut, streak, now, before)


def refused(
    window: Window, now: float, number: int, others: int, newest: int, explained: bool, need: float = inf
) -> Window:
    """The window after a refusal of the request ``number``, sent when ``others`` were in flight; ``newest`` was the
    last one sent.

    ``explained``: a rate was used up, so that as many may be in flight as that rate needs.  ``need``: how many had to
    be, for all that went through since the last decrease.  After a second refusal without an answer between them it
    begins again with one; after some more, nothing is let in, and the last decrease was a mistake.
    """
    size, threshold, step, flying, latency, known, cut, streak, _, before = window
    if number > cut:
        streak, cut = streak + 1, newest
        if explained:
            size, threshold = max(1.0, size * LOST_LATER), max(1.0, size * CAREFUL)
        elif streak > 1:
            size, threshold = 1.0, max(2.0, threshold if streak < SHUT else before)
        elif threshold == inf:
            before = threshold = max(1.0, min(size, others + 1.0) * LOST)
            size = min(FIRST, threshold)
        else:
            full, before = min(size, others + 1.0, need), threshold
            size, threshold = max(1.0, full * LOST_LATER), max(1.0, full * CAREFUL, threshold / 2)
        step = max(LEAST, threshold * REGAIN)
    return Window(size, threshold, step, max(0, flying - 1), latency, known, cut, streak, now, before)


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
