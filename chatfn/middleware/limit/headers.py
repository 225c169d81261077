"""What the headers of a response say of the limits that the server keeps.

Source: https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(d|h|ms|us|µs|ns|m|s)")
WHOLE = re.compile(rf"(?:{PART.pattern})+")
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
NAMES = {
    kind: (f"x-ratelimit-limit-{kind}", f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}")
    for kind in ("requests", "tokens")
}
LONGEST = 366 * 86_400.0  # seconds: more is no time to wait but a date


class Report(NamedTuple):
    """What one response says of requests, or of tokens; None for what it does not say."""

    limit: float | None
    remaining: float | None
    reset: float | None  # seconds until all of the limit is there again


def report_of(headers: Mapping[str, str], kind: str) -> Report | None:
    """The report of the headers on ``"requests"`` or on ``"tokens"``, or None if there is none.

    >>> headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}
    >>> report_of({**headers, "x-ratelimit-reset-requests": "1s"}, "requests")
    Report(limit=60.0, remaining=59.0, reset=1.0)
    >>> report_of(headers, "tokens")
    """
    limit_name, remaining_name, reset_name = NAMES[kind]
    remaining = number_of(headers.get(remaining_name))
    limit = number_of(headers.get(limit_name))
    if remaining is None and not limit:
        return None
    return Report(limit or None, remaining, seconds_of(headers.get(reset_name)))


def number_of(text: str | None) -> float | None:
    """
    >>> number_of("59"), number_of("-1"), number_of("many")
    (59.0, None, None)
    """
    if text is None or not (text.isdecimal() or NUMBER.fullmatch(text)):
        return None
    return min(float(text), 1e15)


@lru_cache(1_024)
def seconds_of(text: str | None) -> float | None:
    """The seconds in a text such as ``6m0s``, ``120ms``, ``1h2m3.5s`` or ``2``; None for anything else.

    >>> [seconds_of(text) for text in ("6m0s", "120ms", "1h2m3.5s", "2", "soon", "1m soon")]
    [360.0, 0.12, 3723.5, 2.0, None, None]
    """
    if text is None:
        return None
    if WHOLE.fullmatch(text):
        seconds = sum(float(amount) * UNITS[unit] for amount, unit in PART.findall(text))
    else:
        plain = number_of(text)
        if plain is None:
            return None
        seconds = plain
    return seconds if seconds <= LONGEST else None
