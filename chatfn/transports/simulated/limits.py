"""The limits that a simulated server enforces: token buckets, or fixed windows, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, inf
from typing import NamedTuple

from chatfn.transports.simulated.settings import Limits

MINUTE = 60.0


class Meter(NamedTuple):
    """What is left of one limit; times are virtual seconds and never go back."""

    limit: float
    left: Callable[[float], float]  # at a time
    take: Callable[[float], None]  # at the time of the last look
    wait: Callable[[float], float]  # seconds until there is so much
    reset: Callable[[], float]  # seconds until all is there
    allowed: Callable[[float], float]  # all that may have been taken until a time
    earliest: Callable[[float], float]  # when so much can have been taken


def bucket(limit: float, period: float, burst: float) -> Meter:
    """A bucket that holds ``limit * burst`` and is filled at ``limit`` in ``period`` seconds.

    >>> meter = bucket(60, 60, 0.5)
    >>> meter.take(30), meter.left(10.0), meter.wait(25), meter.reset(), meter.allowed(10.0), meter.earliest(90)
    (None, 10.0, 15.0, 20.0, 40.0, 60.0)
    """
    capacity, rate = limit * burst, limit / period
    level, at = capacity, 0.0

    def left(now: float) -> float:
        nonlocal level, at
        if now > at:
            level, at = min(capacity, level + rate * (now - at)), now
        return level

    def take(amount: float) -> None:
        nonlocal level
        level = max(0.0, level - amount)

    return Meter(
        limit,
        left,
        take,
        lambda amount: inf if amount > capacity else max(0.0, amount - level) / rate,
        lambda: (capacity - level) / rate,
        lambda now: capacity + rate * now,
        lambda amount: max(0.0, amount - capacity) / rate,
    )


def fixed(limit: float, period: float, burst: float) -> Meter:
    """Windows of ``period`` seconds, one after the other, with ``limit`` in each; there is no ``burst``.

    >>> meter = fixed(60, 60, 1)
    >>> meter.take(30), meter.left(10.0), meter.wait(31), meter.reset(), meter.allowed(70.0), meter.earliest(61)
    (None, 30, 50.0, 50.0, 120, 60)
    """
    level, at, end = limit, 0.0, period

    def left(now: float) -> float:
        nonlocal level, at, end
        at = max(at, now)
        if at >= end:
            level, end = limit, period * (floor(at / period) + 1)
        return level

    def take(amount: float) -> None:
        nonlocal level
        level = max(0.0, level - amount)

    return Meter(
        limit,
        left,
        take,
        lambda amount: 0.0 if amount <= level else end - at if amount <= limit else inf,
        lambda: end - at,
        lambda now: limit * (floor(now / period) + 1),
        lambda amount: period * max(0, ceil(amount / limit) - 1),
    )


def meters_of(limits: Limits) -> dict[str, Meter]:
    """The meters of the limits that are set, by what they count."""
    make = bucket if limits.window == "bucket" else fixed
    found = {"requests": limits.rpm, "tokens": limits.tpm}
    per = limits.period / MINUTE
    return {name: make(limit * per, limits.period, limits.burst) for name, limit in found.items() if limit is not None}


def headers_of(meters: dict[str, Meter], now: float) -> dict[str, str]:
    """What the API says of its limits.  Source: https://platform.openai.com/docs/guides/rate-limits

    >>> headers_of({"requests": bucket(60, 60, 1)}, 0.0)
    ... # doctest: +NORMALIZE_WHITESPACE
    {'x-ratelimit-limit-requests': '60', 'x-ratelimit-remaining-requests': '60', 'x-ratelimit-reset-requests': '0ms'}
    """
    found = {}
    for name, meter in meters.items():
        found[f"x-ratelimit-limit-{name}"] = str(int(meter.limit))
        found[f"x-ratelimit-remaining-{name}"] = str(int(meter.left(now)))
        found[f"x-ratelimit-reset-{name}"] = spelled(meter.reset())
    return found


def spelled(seconds: float) -> str:
    """
    >>> spelled(0.12), spelled(1.5), spelled(360.0), spelled(3725.25)
    ('120ms', '1.5s', '6m0s', '1h2m5.25s')
    """
    if seconds < 1:
        return f"{ceil(1000 * seconds)}ms"
    if seconds < MINUTE:
        return f"{ceil(1000 * seconds) / 1000:g}s"
    minutes, rest = divmod(ceil(1000 * seconds) / 1000, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h{minutes}m{rest:g}s" if hours else f"{minutes}m{rest:g}s"
