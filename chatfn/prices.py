"""What a model's tokens cost: of the caller's own table, and of the data that come with ``genai-prices``.

Money is exact: integers of atto-dollars (10**-18 US dollars), so that a price per million tokens may have twelve
decimals.  What has more is rounded up.  The library (extra ``cost``) is data in a package; nothing is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Context, Decimal
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from chatfn.spec import Json

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
OWN_KEYS = (*Rates._fields, "above", "max_output_tokens", *TIERS)
DATED = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$")
HALF_HOUR = 1_800  # seconds: prices that depend on the time of day change at whole halves
NO_LIBRARY = "prices are data of genai-prices: pip install 'chatfn[cost]', or give a table as 'prices'"


def lookup_of(prices: Json | None = None) -> Lookup:
    """A function that finds prices: in the table ``prices``, then in the library, if that is installed.

    ``prices``: model -> a map of US dollars per million tokens, by the names of ``Rates`` (``request``: dollars a
    request).  Without a price of their own cached, audio, image and reasoning tokens cost as others of their direction.
    ``above``: ``{272000: {"input": …}}``, what differs if there are more input tokens; ``flex``, ``priority``, ``fast``
    and ``batch``: what differs at that service tier, or a factor; ``max_output_tokens``: of one choice.  A string in
    place of a map is the name of another model.  A model is found by its name, with or without the date at its end.
    Raises ``ValueError`` for a table that is wrong.

    >>> find = lookup_of({"my-model": {"input": 0.5, "output": "1.5"}})
    >>> find("my-model-2026-01-31", None, None, None).steps[0][1][:2]
    (500000000000, 1500000000000)
    """
    table = {} if prices is None else dict(checked(prices))
    found: dict[tuple[str, str | None], Price | str] = {}

    def find(model: str, provider: str | None, tier: str | None, at: float | None) -> Price | str:
        seen: list[str] = []
        while (name := name_in(table, model)) is not None and isinstance(table[name], str) and name not in seen:
            seen.append(name)
            model = table[name]
        if name is None or name in seen:
            return library_price(model, provider, tier, at)
        key = name, tier if tier in TIERS else None
        if key not in found:
            found[key] = own_price(name, table[name], key[1])
        return found[key]

    return find


def name_in(table: Json, model: str) -> str | None:
    """The name under which a table has a model, which servers answer with a date at its end.

    >>> name_in({"gpt-4o": 1}, "gpt-4o-2024-08-06"), name_in({"ft:gpt-4o": 1}, "ft:gpt-4o-2024-08-06:acme::x1")
    ('gpt-4o', 'ft:gpt-4o')
    """
    if not table or model in table:
        return model if table else None
    tuned = ":".join(model.split(":")[:2]) if model.startswith("ft:") else model
    for name in (DATED.sub("", model), tuned, DATED.sub("", tuned)):
        if name in table:
            return name
    return None


def checked(prices: Any) -> Json:
    """A caller's table; raises ``ValueError`` for what is wrong with it, at its first use and not at the first call."""
    if not isinstance(prices, Mapping):
        raise ValueError(f"prices are {type(prices).__name__}; give a map of models to dollars per million tokens")
    for model, entry in prices.items():
        if not isinstance(entry, str):
            for tier in (None, *TIERS):
                own_price(model, entry, tier)
    return prices


def own_price(model: str, entry: Any, tier: str | None) -> Price | str:
    """The price that an entry of a caller's table says; raises ``ValueError`` for a wrong one."""
    check_entry(model, entry, OWN_KEYS)
    if tier is not None and tier not in entry:
        return f"the table has no price of {model!r} at the service tier {tier!r}; add {{{tier!r}: {{…}}}} to it"
    special = {} if tier is None else entry[tier]
    longest = entry.get("max_output_tokens")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise ValueError(f"the price of {model!r}: max_output_tokens is {longest!r}; give a whole number")
    above = entry.get("above") or {}
    check_map(model, "above", above)
    if isinstance(special, Mapping):
        check_entry(model, special, (*Rates._fields, "above"))
        above = {**above, **(special.get("above") or {})} if "above" in special or not special else {}
        own, factor = {**entry, **special}, Decimal(1)
    else:
        own, factor = dict(entry), decimal_of(model, str(tier), special)
    steps = [(0, own_rates(model, own, factor))]
    for start in sorted(above, key=int):
        check_entry(model, above[start], Rates._fields)
        steps.append((int(start), own_rates(model, {**own, **above[start]}, factor)))
    return Price(model, "the caller's table", tuple(steps), longest)


def check_entry(model: str, entry: Any, known: tuple[str, ...]) -> None:
    check_map(model, "its entry", entry)
    for name in entry:
        if name not in known:
            close = get_close_matches(str(name), known, 1, 0.5)
            meant = f": did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"the price of {model!r}: unknown key {name!r}{meant}; known: {', '.join(known)}")


def check_map(model: str, what: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"the price of {model!r}: {what} is {type(value).__name__}; give a map")


def own_rates(model: str, entry: Json, factor: Decimal) -> Rates:
    found = {
        name: attos_of(decimal_of(model, name, entry[name]) * factor * (10**6 if name == "request" else 1))
        for name in Rates._fields
        if entry.get(name) is not None
    }
    return Rates(**found)


def decimal_of(model: str, name: str, value: Any) -> Decimal:
    number = None
    if isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool):
        try:
            number = Decimal(str(value))
        except ArithmeticError:
            number = None
    if number is None or not number.is_finite() or number < 0:
        raise ValueError(f"the price of {model!r}: {name} is {value!r}; give dollars per million tokens, 0 or more")
    return number


def attos_of(price: Decimal) -> int:
    """Attos a token, of dollars per million tokens."""
    return int(MANY_DIGITS.multiply(price, PER_TOKEN).to_integral_value(ROUND_CEILING))


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
