"""What prices are: attos a token, by the kind of token, for a model.

Money is exact: integers of atto-dollars (10**-18 US dollars), so that a price per million tokens may have twelve
decimals.  What has more is rounded up.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, Context, Decimal
from typing import NamedTuple

ATTOS = 10**18  # of a dollar
PER_TOKEN = 10**12  # attos a token, of a dollar per million tokens
MANY_DIGITS = Context(prec=60)


class Rates(NamedTuple):
    """Attos a token, None where there is no price; ``request``: attos a request."""

    input: int | None = None
    output: int | None = None
    cached_input: int | None = None
    cache_write_input: int | None = None
    reasoning_output: int | None = None
    audio_input: int | None = None
    cached_audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    cached_image_input: int | None = None
    image_output: int | None = None
    request: int | None = None


class Price(NamedTuple):
    """The price of a model: rates from so many input tokens on (more than 0, more than 272,000 …), ascending."""

    model: str  # as the source calls it
    source: str
    steps: tuple[tuple[int, Rates], ...]
    longest: int | None = None  # output tokens that an answer has at most, as far as it is known


# The price of a model at a provider (a name, or a URL of it), a service tier and a time; or why there is none.
Lookup = Callable[[str, str | None, str | None, float | None], Price | str]

TIERS = ("batch", "flex", "priority", "fast")  # others are charged at the standard price, or are prepaid


def attos_of(price: Decimal) -> int:
    """Attos a token, of dollars per million tokens."""
    return int(MANY_DIGITS.multiply(price, PER_TOKEN).to_integral_value(ROUND_CEILING))
