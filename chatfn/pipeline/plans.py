"""What a map would send, find in its journal, cost and take, before anything is sent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, cast

from chatfn.client import resolved
from chatfn.core import NO_OPTIONS, requester
from chatfn.cost import Counts, attos_of, rates_for, worst
from chatfn.journal import request_key
from chatfn.lints import lint
from chatfn.options import nearest
from chatfn.pipeline.columns import ANSWERED, BAD, DUPLICATE, KEPT, NEW, NO_KEY, Columns, add, columns
from chatfn.pipeline.rows import outcome, params_in
from chatfn.pipeline.seen import States, first_seen, journal_states
from chatfn.pipeline.sums import NO_ROWS, Attos, Item, counted, summary_of
from chatfn.pipeline.tokens import Size, quarter, size_of
from chatfn.prices import Lookup, Price, lookup_of
from chatfn.sealing import sealed
from chatfn.spec import Json, Options
from chatfn.stack import STACK, check_order
from chatfn.transports import named
from chatfn.usage import model_asked

BATCH = 500  # rows whose keys are looked up at once
LIMITS = ("rpm", "tpm", "concurrency", "latency")
NO_MODEL = "no model is named"
NO_COUNTS = Counts(*[0] * len(Counts._fields))


def plan(
    rows: Iterable[Json],
    options: Options | Json = NO_OPTIONS,
    *,
    params_of: Callable[[Any], Json] | None = None,
    prices: Json | None = None,
    limits: Json | None = None,
    output_tokens: tuple[int, int] | None = None,
    tokens_of: Callable[[str], int] = quarter,
    keys: bool = False,
    id_of: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """What ``map_chat(rows, options)`` would send, as JSON data; nothing is sent, and no file is made.

    ``rows`` (all of them), ``unique`` requests, ``duplicates`` (sent too if there is no journal), ``bad`` rows
    that can't be sent; ``answered`` in the journal that the options' middleware names, ``failed`` there before (and to
    be sent again, unless its errors are kept); ``to_send``, and of these calls ``tokens``, ``cost`` in US dollars,
    ``time`` in seconds, and the same by ``models``; ``bad_rows`` with their errors; and what ``lint`` finds, by rule
    and place, with the first row.  Rows count from 0.  What is not known is None, with the reason as ``unknown``, and
    never 0.

    ``prices``: as of the middleware "cost", and its own if it is there; ``limits``: ``{"rpm": requests a minute,
    "tpm": tokens a minute, "concurrency": calls in flight, "latency": seconds a call}``, or those of the middleware
    "limit".  ``output_tokens``: the least and the most of an answer; without it they are 1 and what the request or the
    model allows.  ``tokens_of``: a tokenizer of your own; without one input is a quarter of its bytes, and an estimate.
    Prompt caching and retries are not foreseen.

    ``rows`` is read once, and may have any number of rows: memory is bounded, but for ``keys``, which keeps 120 bytes a
    row, and its id, for ``diff_plans``.  ``id_of``: a function of a row to its id; without one it is the row's "id".
    Raises ``ValueError`` for options, prices or limits that can't be, and what ``rows`` raises.

    >>> rows = [{"params": {"model": "m", "messages": [{"role": "user", "content": text}]}} for text in "aba"]
    >>> found = plan(rows, prices={"m": {"input": 1, "output": 2, "max_output_tokens": 10}}, limits={"rpm": 60})
    >>> found["rows"], found["unique"], found["duplicates"], found["to_send"], found["tokens"]
    (3, 2, 1, 3, {'input': 15, 'output': {'low': 3, 'high': 30}})
    >>> found["cost"]["low"], found["cost"]["high"], found["time"]["high"]
    (2.1e-05, 7.5e-05, 3.0)
    """
    options = sealed(options)
    whole = resolved(options)
    stack = whole.get("middleware", STACK)
    check_order(stack)
    journal, own_prices, own_limits = (settings_of(stack, name) for name in ("journal", "cost", "limit"))
    bounds = limits_of(limits if limits is not None else {k: v for k, v in own_limits.items() if k in LIMITS})
    lookup = lookup_of(prices if prices is not None else own_prices.get("prices"))
    look = reader(whole, params_of, id_of, tokens_of, output_of(output_tokens), lookup, own_prices.get("provider"))
    path, keep_errors = journal.get("path"), journal.get("errors") == "keep"
    tally, kept = NO_ROWS, columns() if keys else None
    with first_seen() as is_new, journal_states(path) as states_of:
        source = iter(rows)
        while batch := [look(row) for row in islice(source, BATCH)]:
            fresh = [item.problem is None and is_new(number_of(item.key)) for item in batch]
            states = states_of([item.key for item, new in zip(batch, fresh, strict=True) if new])
            becomes = partial(state_of, states, path is not None, keep_errors)
            found = [(item, becomes(item, new)) for item, new in zip(batch, fresh, strict=True)]
            failed = states.failed - states.answered
            tally = counted(tally, found, sum(fresh), len(failed))
            for item, state in found if kept is not None else ():
                keep(cast(Columns, kept), item, state)
    return summary_of(tally, bounds, None if path is None else os.fsdecode(path), kept)


def keep(kept: Columns, item: Item, state: str) -> None:
    """One more row of the columns."""
    key = NO_KEY if item.problem is not None else number_of(item.key)
    low, high = (None, None) if isinstance(item.attos, str) else item.attos
    add(kept, item.label, state, (key, *item.size), (low, high))


def settings_of(stack: Iterable[Any], name: str) -> Json:
    """The settings of a layer of the stack that is given by its name."""
    found = (named(item, "middleware") for item in stack if not callable(item))
    return next((settings for known, settings in found if known == name), {})


def limits_of(limits: Any) -> dict[str, float]:
    """Limits, checked; raises ``ValueError`` for what is none."""
    for name, value in limits.items():
        if name not in LIMITS:
            raise ValueError(f"unknown limit {name!r}{nearest(name, LIMITS)}; known: {', '.join(LIMITS)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise ValueError(f"the limit {name!r} is {value!r}; give a number greater than 0")
    return {name: value for name, value in limits.items() if value is not None}


def output_of(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    if isinstance(given, Sequence) and len(given) == 2 and all(type(n) is int for n in given):
        least, most = given
        if 0 <= least <= most:
            return least, most
    raise ValueError(f"output_tokens is {given!r}; give the least and the most tokens of an answer, such as (50, 400)")


def reader(
    options: Options,
    params_of: Callable[[Any], Json] | None,
    id_of: Callable[[Any], Any] | None,
    tokens_of: Callable[[str], int],
    output: tuple[int, int] | None,
    lookup: Lookup,
    provider: str | None,
) -> Callable[[Any], Item]:
    """A function of a row to what it would send; like a map it never raises for a row."""
    request_of = requester(options)

    @lru_cache(1_024)
    def price_of(model: str, url: str, tier: str | None) -> Price | str:
        return lookup(model, provider or url, tier, None)

    def look(row: Any) -> Item:
        label = row.get("id") if id_of is None and isinstance(row, Mapping) else id_of(row) if id_of else None
        label = label if isinstance(label, (str, int, float)) else None
        try:
            params = params_in(row, params_of)
            request: Any = request_of(params)
            if isinstance(row, Mapping) and row.get("sample") is not None:
                request["sample"] = row["sample"]
            key = request_key(request)
        except Exception as exc:
            return Item(label, problem=outcome({}, exc)["error"]["message"])
        body, model = request["body"], model_asked(request)
        tier = body.get("service_tier")
        price = price_of(model, request["url"], tier if isinstance(tier, str) else None) if model else NO_MODEL
        size = size_of(body, tokens_of, output, price.longest if isinstance(price, Price) else None)
        return Item(label, key, model, size, attos_in(price, size), None, lint(params, options))

    return look


def attos_in(price: Price | str, size: Size) -> Attos | str:
    """What a call costs at least and at most, or why it is not known."""
    if isinstance(price, str):
        return price
    low = attos_of(counts_of(size), rates_for(price, size.input))
    high = None if size.high is None else worst(price, size.input, size.high)
    return next((problem for problem in (low, high) if isinstance(problem, str)), (cast(int, low), cast(Any, high)))


def counts_of(size: Size) -> Counts:
    return NO_COUNTS._replace(input=size.input, output=size.low)


def number_of(key: str) -> int:
    """The first 64 bits of a key, of which a million are all different but for one time in 37 million.

    >>> number_of("ff" * 32), number_of("00" * 7 + "01" + "ff" * 24)
    (-1, 1)
    """
    number = int(key[:16], 16)
    return number - 2**64 if number >= 2**63 else number


def state_of(states: States, once: bool, keep_errors: bool, item: Item, new: bool) -> str:
    """What becomes of a row.  Without a journal equal requests are sent as often as they come."""
    if item.problem is not None:
        return BAD
    if not new:
        return DUPLICATE if once else NEW
    if item.key in states.answered:
        return ANSWERED
    return KEPT if keep_errors and item.key in states.failed else NEW
