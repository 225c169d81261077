"""Meters: how much may be sent now, and when there will be room for more.

A meter is a token bucket, filled at ``rate`` up to its ``capacity``; or, with a rate of 0, a fixed window, filled at
once at ``reset``.  Which of the two a server keeps is told by its reports: in a bucket the time until it is full goes
with what is missing, in a window it ends at the same moment whatever is sent.
"""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from chatfn.middleware.limit.headers import Report

MINUTE = 60.0
PERIODS = (60.0, 3_600.0, 86_400.0)
SHARE = 0.01  # of a fixed limit, that may be sent in one go
NEAR = 1.0  # seconds by which two times may differ and be the same, for there are servers that round to seconds


class Meter(NamedTuple):
    capacity: float
    rate: float  # units a second
    level: float  # at the time ``at``; below 0 is a debt
    at: float
    reset: float = inf
    period: float = MINUTE


class Seen(NamedTuple):
    """A report of the server, and the request that it counts up to."""

    number: int  # of that request
    at: float  # when the server counted it, by our clock
    remaining: float
    ends: float  # when all will be there again
    total: float  # what we had sent by then, it included
    recent: int  # requests that it may have overtaken


def level_at(meter: Meter, now: float) -> float:
    """What may be sent at a time.

    >>> level_at(Meter(60, 1.0, 0.0, at=100.0), 130.0), level_at(Meter(60, 0.0, 5.0, at=100.0, reset=130.0), 130.0)
    (30.0, 60)
    """
    capacity, rate, level, at, reset, _ = meter
    if now >= reset:
        return capacity
    if now > at:
        level += rate * (now - at)
    return min(capacity, level)


def spent(meter: Meter, now: float, amount: float) -> Meter:
    """The meter after ``amount`` was sent."""
    capacity, rate, level, at, reset, period = meter
    if now >= reset:
        level, reset = capacity, next_reset(meter, now)
    elif now > at:
        level = min(capacity, level + rate * (now - at))
    return Meter(capacity, rate, level - amount, max(at, now), reset, period)


def next_reset(meter: Meter, now: float) -> float:
    return meter.reset + meter.period * (ceil((now - meter.reset) / meter.period) or 1)


def ready_at(meter: Meter, now: float, ahead: float, own: float, margin: float = 0.0) -> float:
    """When there is room for ``own``, after all that is ``ahead`` in the line was sent.

    More than a meter holds is sent when it is full.

    >>> ready_at(Meter(60, 1.0, 0.0, at=100.0), 100.0, ahead=4, own=1)
    105.0
    """
    capacity, need = meter.capacity, own + margin
    missing = ahead + min(capacity, need) - level_at(meter, now)
    if missing <= 1e-6:
        return now
    if meter.rate > 0:
        return max(now, meter.at) + missing / meter.rate
    reset = meter.reset if now < meter.reset else next_reset(meter, now)
    return reset + meter.period * (ceil(missing / capacity) - 1 if missing > capacity else 0)


def fixed_requests(limit: float, now: float) -> Meter:
    """A meter that lets no more than ``limit`` requests pass in any 60 seconds.

    In a window that begins at a send, at most ``capacity`` are there and 60 times ``rate`` come; at its very end, where
    one more would be, the next window has begun.
    """
    capacity = max(1.0, SHARE * limit)
    return Meter(capacity, (limit + 1 - capacity) / MINUTE, capacity, now)


def fixed_tokens(limit: float, largest: float, now: float, old: Meter | None = None) -> Meter:
    """The same for tokens, where one request takes up to ``largest`` of them.  Only of requests that take more than
    half of the limit each may there be two in a window, for else the second would wait for hours."""
    capacity = max(SHARE * limit, largest)
    level = capacity if old is None else level_at(old, now)
    return Meter(capacity, max(limit - capacity, limit / 2) / MINUTE, level, now)


def reported(
    old: Meter | None,
    seen: Seen | None,
    report: Report,
    at: float,
    now: float,
    after: float,
    slack: float,
    burst: float,
) -> Meter:
    """The meter as a report says that it is.

    ``at``: when the server counted.  ``after``: what was sent and is not in the report.  ``slack``: seconds by which a
    window's end may be late.  ``burst``: which part of a bucket may be sent in one go.
    """
    remaining = report.remaining
    limit = report.limit or max(1.0, remaining or 0.0, old.capacity if old else 0.0)
    if remaining is None:
        return limited(old, limit, now, after, burst)
    period, ends = kind_of(old, seen, limit, remaining, report.reset, at, now)
    if ends < inf:
        if now >= ends:  # a report on a window that is over
            return Meter(limit, 0.0, limit, now, ends + slack, period) if old is None else old
        return Meter(limit, 0.0, remaining - after, now, ends + slack, period)
    rate, capacity = limit / period, limit * burst
    return Meter(capacity, rate, min(capacity, remaining) + rate * max(0.0, now - at) - after, now, inf, period)


def limited(old: Meter | None, limit: float, now: float, after: float, burst: float) -> Meter:
    """The meter of a limit of which the server does not say how much is left."""
    if old is None:
        return Meter(limit * burst, limit / MINUTE, limit * burst - after, now)
    if old.rate == 0:
        return old._replace(capacity=limit)
    return Meter(limit * burst, limit / old.period, min(limit * burst, level_at(old, now)), max(now, old.at))


def kind_of(
    old: Meter | None, seen: Seen | None, limit: float, remaining: float, reset: float | None, at: float, now: float
) -> tuple[float, float]:
    """The period of a limit in seconds, and the end of its window: infinity for a bucket.

    The server counted between ``at`` and ``now``, for a request may have waited on its way to be sent.

    >>> kind_of(None, None, 3000, 2999, 0.02, 100.0, 101.0), kind_of(None, None, 3000, 2999, 40.0, 100.0, 101.0)
    ((60.0, inf), (60.0, 140.0))
    """
    missing = max(0.0, limit - remaining)
    if reset is None:
        return (MINUTE, inf) if old is None else (old.period, inf if old.reset == inf else max(at, old.reset))
    first, last = at + reset, now + reset
    if old is None or seen is None or old.reset == inf:
        period = MINUTE if old is None or old.reset < inf else old.period
        if near(reset, missing * period / limit):
            return period, inf
        return next((period for period in PERIODS if reset <= period), reset), first
    if first - NEAR <= seen.ends <= last + NEAR:
        return old.period, min(max(seen.ends, first), last)
    if now >= seen.ends - NEAR:  # a new window
        ends = seen.ends + old.period
        ends = ends if first - NEAR <= ends <= last + NEAR else first
        return max(NEAR, ends - seen.ends), ends
    before = max(0.0, limit - seen.remaining)
    if missing and before and near(reset, missing * (seen.ends - seen.at) / before):
        return max(NEAR / 10, reset * limit / missing), inf
    return old.period, first


def near(seconds: float, expected: float) -> bool:
    return abs(seconds - expected) <= NEAR + 0.2 * expected
