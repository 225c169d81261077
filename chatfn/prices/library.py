"""Prices of the library ``genai-prices`` (extra ``cost``): data in a package; nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

from chatfn.prices.rates import TIERS, Price, Rates, attos_of

LIBRARY = "genai-prices"
KEYS = {  # of the library
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write_input": "cache_write_mtok",
    "reasoning_output": "output_reasoning_mtok",
    "audio_input": "input_audio_mtok",
    "cached_audio_input": "cache_audio_read_mtok",
    "audio_output": "output_audio_mtok",
    "image_input": "input_image_mtok",
    "cached_image_input": "cache_image_read_mtok",
    "image_output": "output_image_mtok",
    "request": "requests_kcount",
}
HALF_HOUR = 1_800  # seconds: prices that depend on the time of day change at whole halves
NO_LIBRARY = "prices are data of genai-prices: pip install 'chatfn[cost]', or give a table as 'prices'"


def library_price(model: str, provider: str | None, tier: str | None, at: float | None) -> Price | str:
    """The price that the library has.  ``at``: seconds since 1970; None: of those that hold today, the dearest."""
    if not has_library():
        return NO_LIBRARY
    slot = None if at is None else int(at // HALF_HOUR)
    return priced(model, provider, tier if tier in TIERS else None, slot)


@cache
def has_library() -> bool:
    """Whether the library is installed; it is not imported for that."""
    return find_spec("genai_prices") is not None


@lru_cache(4_096)
def priced(model: str, provider: str | None, tier: str | None, slot: int | None) -> Price | str:
    from genai_prices.data_snapshot import get_snapshot  # at its first use: 2 MB of data, and an extra

    named = None if provider is None or "//" in provider else provider
    try:
        seller, info = get_snapshot().find_provider_model(model, None, named, provider if named is None else None)
    except LookupError:
        place = "" if provider is None else f" at {provider.split('?')[0]}"
        return f"no price of the model {model!r}{place} is known; give one in a table, as 'prices'"
    own = any(info is one for one in seller.models)  # else found at the maker's, whose tiers are not the seller's
    found = list(alternatives(info, tier if own else None, slot))
    if tier is not None and not (own and found):
        return f"no price of {info.id!r} at the service tier {tier!r} is known for that day; give one as 'prices'"
    steps = steps_of(found)
    if all(rate is None for _, rates in steps for rate in rates):
        return f"the model {model!r} has no price by tokens"
    return Price(info.id, library_name(), steps, info.context_window)


def alternatives(info: Any, tier: str | None, slot: int | None) -> Iterator[dict[str, Any]]:
    """The prices that may hold: those of a time, or all of the day's; none if there are none of the tier."""
    now = datetime.now(UTC) if slot is None else datetime.fromtimestamp(slot * HALF_HOUR, UTC)
    hours = [now] if slot is not None else [now.replace(hour=n // 2, minute=n % 2 * 30) for n in range(48)]
    when = {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
    conditions = [c for c in info.prices if c.constraint is not None] if isinstance(info.prices, list) else []
    by_day = any(hasattr(c.constraint, "start_time") for c in conditions)
    for hour in hours if by_day else [now]:
        standard = info.get_prices(hour).__dict__
        if tier is None:
            yield standard
        for variant in (info.price_variants or ()) if tier is not None else ():
            if variant.when == when and (variant.constraint is None or variant.constraint.active(hour)):
                yield {**standard, **{k: v for k, v in variant.prices.__dict__.items() if v is not None}}
                break


def steps_of(found: list[dict[str, Any]]) -> tuple[tuple[int, Rates], ...]:
    """Prices of the library as steps; of several the dearest."""
    tiered = [price for prices in found for price in prices.values() if hasattr(price, "tiers")]
    starts = sorted({0} | {tier.start for price in tiered for tier in price.tiers})
    return tuple((start, dearest([rates_at(prices, start) for prices in found])) for start in starts)


def rates_at(prices: dict[str, Any], start: int) -> Rates:
    def rate(key: str) -> int | None:
        price = prices.get(key)
        if price is not None and hasattr(price, "tiers"):
            price = [price.base, *(tier.price for tier in price.tiers if tier.start <= start)][-1]
        return None if price is None else attos_of(price * (1_000 if key == "requests_kcount" else 1))

    return Rates(**{name: rate(key) for name, key in KEYS.items()})


def dearest(rates: list[Rates]) -> Rates:
    columns = zip(*rates, strict=True)
    return Rates(*(max((rate for rate in column if rate is not None), default=None) for column in columns))


@cache
def library_name() -> str:
    """The library, its version, and the day of its newest price that holds already: ``genai-prices 0.2.3 (…)``."""
    from importlib.metadata import version

    from genai_prices.data_snapshot import get_snapshot

    constraints = [
        part.constraint
        for seller in get_snapshot().providers
        for model in seller.models
        for part in [*(model.price_variants or ()), *(model.prices if isinstance(model.prices, list) else ())]
    ]
    today = datetime.now(UTC).date()
    days: list[date] = [constraint.start_date for constraint in constraints if hasattr(constraint, "start_date")]
    newest = max((day for day in days if day <= today), default=None)
    return f"{LIBRARY} {version(LIBRARY)}" + (f", newest price of {newest}" if newest else "")
