"""What calls cost: token counts and prices to dollars, exactly, and "unknown" where either is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from chatfn.prices import ATTOS, Lookup, Price, Rates, lookup_of
from chatfn.spec import Json
from chatfn.usage import Paid

NO_USAGE = 'the answer says no usage; of a stream, ask for it: "stream_options": {"include_usage": True}'


class Counts(NamedTuple):
    """Tokens by what they cost; each is counted once."""

    input: int
    cached_input: int
    cache_write_input: int
    audio_input: int
    cached_audio_input: int
    image_input: int
    cached_image_input: int
    output: int
    reasoning_output: int
    audio_output: int
    image_output: int

    def given(self) -> int:
        """All input tokens."""
        return sum(self[:7])


INSTEAD = {  # what a kind of tokens costs that has no price of its own
    "cached_input": "input",
    "cache_write_input": "input",
    "audio_input": "input",
    "cached_audio_input": "audio_input",
    "image_input": "input",
    "cached_image_input": "image_input",
    "reasoning_output": "output",
    "audio_output": "output",
    "image_output": "output",
}


def cost_of(
    usage: Json | None,
    model: str | None,
    prices: Json | None = None,
    *,
    provider: str | None = None,
    tier: str | None = None,
    at: float | None = None,
) -> dict[str, Any]:
    """What an answer cost, ``{"usd": …, "model": …, "prices": …}``; or ``{"usd": None, "unknown": why}``, never 0.

    ``usage``, ``model``: of the completion.  ``prices``: a table of your own, as ``chatfn.prices.lookup_of`` has it,
    which goes before the library's data.  ``provider``: whose prices, a name or a URL, such as "azure"; without one the
    maker's.  ``tier``: the completion's ``service_tier``, or "batch".  ``at``: when, in seconds since 1970, such as the
    completion's ``created``; None is now.  ``usd`` is rounded once, from an exact sum.
    Raises ``ValueError`` for a wrong table.

    >>> usage = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 400}}
    >>> cost_of(usage, "m", {"m": {"input": 2.5, "cached_input": 1.25, "output": 10}})
    {'usd': 0.0021, 'model': 'm', 'prices': "the caller's table"}
    >>> cost_of(None, "m")["usd"] is None
    True
    """
    return shown(money(usage, model, lookup_of(prices), provider, tier, at))


def shown(found: tuple[int, Price] | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"usd": None, "unknown": found}
    attos, price = found
    return {"usd": attos / ATTOS, "model": price.model, "prices": price.source}


def money(
    usage: Json | None, model: Any, lookup: Lookup, provider: str | None, tier: Any, at: Any
) -> tuple[int, Price] | str:
    """Attos and the price that they come of, or why they are unknown."""
    if not isinstance(usage, Mapping):
        return NO_USAGE
    counts = counts_of(usage)
    if counts is None:
        return f"the usage has no token counts that could be priced: {str(dict(usage))[:200]}"
    return charged(counts, model, lookup, provider, tier, at)


def charged(
    counts: Counts, model: Any, lookup: Lookup, provider: str | None, tier: Any, at: Any
) -> tuple[int, Price] | str:
    """The same, of tokens that are counted."""
    if not isinstance(model, str):
        return "the answer names no model"
    when = float(at) if isinstance(at, (int, float)) and 0 < at < 1e11 else None
    price = lookup(model, provider, tier if isinstance(tier, str) else None, when)
    if isinstance(price, str):
        return price
    attos = attos_of(counts, rates_for(price, counts.given()))
    return attos if isinstance(attos, str) else (attos, price)


def paid_attos(paid: Iterable[Paid], lookup: Lookup, provider: str | None = None) -> tuple[int, Price | None] | str:
    """The attos of several attempts, and the price of the last; why they are unknown, if one is."""
    total, price = 0, None
    for one in paid:
        found = money(
            one["usage"], one.get("model"), lookup, provider or one.get("url"), one.get("service_tier"),
            one.get("created"),
        )  # fmt: skip
        if isinstance(found, str):
            return found
        total, price = total + found[0], found[1]
    return total, price


def counts_of(usage: Json) -> Counts | None:
    """Tokens by kind, or None if there are none to count.

    Where ``total_tokens`` is more than prompt and completion together, the rest is reasoning: xAI and Gemini count it
    beside the completion, OpenAI in it.

    >>> counts_of({"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 9})._asdict()
    ... # doctest: +NORMALIZE_WHITESPACE
    {'input': 5, 'cached_input': 0, 'cache_write_input': 0, 'audio_input': 0, 'cached_audio_input': 0,
     'image_input': 0, 'cached_image_input': 0, 'output': 1, 'reasoning_output': 3, 'audio_output': 0,
     'image_output': 0}
    """
    prompt, completion, total = usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens")
    if type(prompt) is not int and type(completion) is not int:
        return None
    given, said = whole(prompt), whole(completion)
    made = max(said, whole(total) - given)
    i, o = details(usage, "prompt_tokens_details"), details(usage, "completion_tokens_details")
    if made == said and not any(i.values()) and not any(o.values()) and "prompt_cache_hit_tokens" not in usage:
        return Counts(given, 0, 0, 0, 0, 0, 0, made, 0, 0, 0)  # as most answers are
    audio = min(whole(i.get("audio_tokens")), given)
    image = min(whole(i.get("image_tokens")), given - audio)
    text = given - audio - image
    hit = whole(i.get("cached_tokens")) or whole(usage.get("prompt_cache_hit_tokens"))  # DeepSeek's name for it
    cached = min(hit, text)
    cached_audio = min(hit - cached, audio)
    cached_image = min(hit - cached - cached_audio, image)
    written = min(whole(i.get("cache_write_tokens")), text - cached)
    spoken = min(whole(o.get("audio_tokens")), made)
    drawn = min(whole(o.get("image_tokens")), made - spoken)
    thought = min(max(whole(o.get("reasoning_tokens")), made - said), made - spoken - drawn)
    return Counts(
        text - cached - written, cached, written,
        audio - cached_audio, cached_audio, image - cached_image, cached_image,
        made - spoken - drawn - thought, thought, spoken, drawn,
    )  # fmt: skip


def whole(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def details(usage: Json, name: str) -> Json:
    found = usage.get(name)
    return found if type(found) is dict or isinstance(found, Mapping) else {}


def rates_for(price: Price, given: int) -> Rates:
    """The rates for so many input tokens: the whole request is charged at the step that they reach."""
    return next(rates for start, rates in reversed(price.steps) if given > start or start == 0)


def attos_of(counts: Counts, rates: Rates) -> int | str:
    total = rates.request or 0
    for name, count in zip(Counts._fields, counts, strict=True):
        if count:
            rate = rate_of(rates, name)
            if rate is None:
                return f"there is no price of {name.replace('_', ' ')} tokens"
            total += count * rate
    return total


def rate_of(rates: Rates, name: str) -> int | None:
    """The rate of a kind of tokens, its own or that of those that it is among."""
    rate: int | None = getattr(rates, name)
    while rate is None and name in INSTEAD:
        name = INSTEAD[name]
        rate = getattr(rates, name)
    return rate


Ceiling = tuple[tuple[int, int, int, int], ...]  # from so many input tokens: attos a token in, out, and a request


def ceiling(price: Price, kinds: Sequence[str] = ()) -> Ceiling | str:
    """The dearest that tokens of a model can be, or why that is not known.

    ``kinds``: "audio", "image", where text is not all.
    """
    parts = ["input", "cached_input", "cache_write_input"]
    parts += [f"{cached}{kind}_input" for kind in kinds for cached in ("", "cached_")]
    results = ["output", "reasoning_output", *(f"{kind}_output" for kind in kinds)]
    steps = []
    for start, rates in price.steps:
        into, out = (
            max((rate for name in names if (rate := rate_of(rates, name)) is not None), default=None)
            for names in (parts, results)
        )
        if into is None or out is None:
            return f"there is no price of {'input' if into is None else 'output'} tokens of {price.model!r}"
        steps.append((start, into, out, rates.request or 0))
    return tuple(steps)


def at_most(steps: Ceiling, given: int, made: int) -> int:
    """The attos of a request with so many input and output tokens at most."""
    return max(given * into + made * out + each for start, into, out, each in steps if given > start or start == 0)


def worst(price: Price, given: int, made: int, kinds: Sequence[str] = ()) -> int | str:
    """The attos that a request costs at most, of so many input and output tokens at most; or why that is not known."""
    steps = ceiling(price, kinds)
    return steps if isinstance(steps, str) else at_most(steps, given, made)
