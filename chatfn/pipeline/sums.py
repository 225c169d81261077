"""The sums of a plan: rows counted by what becomes of them, calls by model, findings by rule."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from toolz import groupby

from chatfn.lints import LEVELS
from chatfn.pipeline.columns import ANSWERED, BAD, NEW, VERSION, Columns, packed
from chatfn.pipeline.tokens import Size
from chatfn.prices import ATTOS
from chatfn.spec import Json

MOST_NAMED = 100  # bad rows, findings, models
INDEX = re.compile(r"\[\d+\]")
OTHERS = "(others)"

NO_NAME = "(none named)"
NO_END = 'how long an answer can be is not known: give "max_completion_tokens" in params, or output_tokens'
NO_LIMITS = 'no limits are given: {"rpm": …, "tpm": …}, or {"concurrency": …, "latency": …}'
NOTHING = Size(0, 0, 0)

Attos = tuple[int, int | None]
Findings = dict[tuple[str, str, str], dict[str, Any]]


class Item(NamedTuple):
    """A row as it would be sent, or why it can't be."""

    label: Any  # its id
    key: str = ""
    model: str | None = None
    size: Size = NOTHING
    attos: Attos | str = (0, 0)  # or why its price is not known
    problem: str | None = None
    findings: Sequence[Json] = ()


class Part(NamedTuple):
    """The sums of calls that are to be sent."""

    calls: int
    input: int
    low: int
    high: int
    endless: int  # calls of which nobody knows how long their answer can be
    attos_low: int
    attos_high: int
    unpriced: int
    unknown: Mapping[str, int]  # reasons, and of how many calls


class Tally(NamedTuple):
    """What a plan knows of the rows that it has seen."""

    rows: int
    unique: int
    failed: int
    answered: int
    bad: int
    bad_rows: list[Json]
    models: dict[str, Part]
    findings: Findings


NO_CALLS = Part(0, 0, 0, 0, 0, 0, 0, 0, {})
NO_ROWS = Tally(0, 0, 0, 0, 0, [], {}, {})


def added(part: Part, items: Sequence[Item]) -> Part:
    """The sums with the calls of some more rows."""
    priced = [item.attos for item in items if not isinstance(item.attos, str)]
    reasons = Counter(item.attos for item in items if isinstance(item.attos, str))
    endless = sum(item.size.high is None for item in items)
    if endless:
        reasons[NO_END] += endless
    return Part(
        part.calls + len(items),
        part.input + sum(item.size.input for item in items),
        part.low + sum(item.size.low for item in items),
        part.high + sum(item.size.high or 0 for item in items),
        part.endless + endless,
        part.attos_low + sum(low for low, _ in priced),
        part.attos_high + sum(high or 0 for _, high in priced),
        part.unpriced + len(items) - len(priced),
        few(part.unknown, reasons),
    )


def together(parts: Iterable[Part]) -> Part:
    """The sum of several."""
    columns: list[Any] = list(zip(NO_CALLS, *parts, strict=True))
    return Part._make([*map(sum, columns[:-1]), reduce(few, columns[-1])])


def few(known: Mapping[str, int], more: Mapping[str, int]) -> Mapping[str, int]:
    """Both counts, of not too many names; the rest under one."""
    found = dict(known)
    for name, number in more.items():
        place = name if name in found or len(found) < MOST_NAMED else OTHERS
        found[place] = found.get(place, 0) + number
    return found


def counted(tally: Tally, batch: Sequence[tuple[Item, str]], unique: int, failed: int) -> Tally:
    """What a plan knows after some more rows, each with its state."""
    models, calls = dict(tally.models), [item for item, state in batch if state == NEW]
    for model, items in groupby(lambda item: item.model or NO_NAME, calls).items():
        name = model if model in models or len(models) < MOST_NAMED else OTHERS
        models[name] = added(models.get(name, NO_CALLS), items)
    bad = [
        {"row": tally.rows + place, "id": item.label, "error": item.problem}
        for place, (item, state) in enumerate(batch)
        if state == BAD
    ]
    return Tally(
        tally.rows + len(batch),
        tally.unique + unique,
        tally.failed + failed,
        tally.answered + sum(state == ANSWERED for _, state in batch),
        tally.bad + len(bad),
        [*tally.bad_rows, *bad[: MOST_NAMED - len(tally.bad_rows)]],
        models,
        with_findings(tally.findings, tally.rows, batch),
    )


def with_findings(known: Findings, before: int, batch: Sequence[tuple[Item, str]]) -> Findings:
    """What ``lint`` found, by rule and place, counted, with the first row that has it."""
    found = known
    for place, (item, _) in enumerate(batch):
        seen = set()
        for each in item.findings:
            key = each["level"], each["rule"], INDEX.sub("[]", each["path"])
            key = key if key in found or len(found) < MOST_NAMED else (each["level"], OTHERS, "")
            if key not in seen:
                seen.add(key)
                first = found.get(key) or {**each, "row": before + place, "id": item.label, "rows": 0}
                found = {**found, key: {**first, "rows": first["rows"] + 1}}
    return found


def summary_of(tally: Tally, limits: Json, journal: str | None, kept: Columns | None) -> dict[str, Any]:
    total = together(tally.models.values())
    return {
        "plan": VERSION,
        "rows": tally.rows,
        "unique": tally.unique,
        "duplicates": tally.rows - tally.bad - tally.unique,
        "bad": tally.bad,
        "answered": tally.answered,
        "failed": tally.failed,
        "to_send": total.calls,
        "tokens": tokens_of_part(total),
        "cost": cost_of_part(total),
        "time": time_of(total, limits),
        "models": {
            name: {"to_send": part.calls, "tokens": tokens_of_part(part), "cost": cost_of_part(part)}
            for name, part in tally.models.items()
        },
        "journal": journal,
        "bad_rows": tally.bad_rows,
        "lint": sorted(tally.findings.values(), key=lambda each: (LEVELS.index(each["level"]), -each["rows"])),
        **({} if kept is None else {"keys": packed(kept)}),
    }


def tokens_of_part(part: Part) -> dict[str, Any]:
    return {"input": part.input, "output": {"low": part.low, "high": None if part.endless else part.high}}


def cost_of_part(part: Part) -> dict[str, Any]:
    """Dollars: None if the price of a call is not known, and the high one if the end of an answer is not."""
    high = None if part.unpriced or part.endless else part.attos_high / ATTOS
    why = {"unknown": dict(part.unknown)} if part.unknown else {}
    return {"low": None if part.unpriced else part.attos_low / ATTOS, "high": high, **why}


def time_of(part: Part, limits: Json) -> dict[str, Any]:
    """Seconds that calls take under limits, at least and at most, and which of the limits says so.

    >>> time_of(NO_CALLS._replace(calls=600, input=600_000, low=0, high=600_000), {"rpm": 300, "tpm": 400_000})
    {'low': 120.0, 'high': 180.0, 'by': 'tpm'}
    """
    rates: dict[str, tuple[float, float]] = {}
    if "rpm" in limits:
        rates["rpm"] = (part.calls / limits["rpm"] * 60,) * 2
    if "tpm" in limits:
        rates["tpm"] = tuple((part.input + made) / limits["tpm"] * 60 for made in (part.low, part.high))
    if "latency" in limits and "concurrency" in limits:
        rates["latency"] = (math.ceil(part.calls / limits["concurrency"]) * limits["latency"],) * 2
    if not rates:
        return {"low": None, "high": None, "unknown": NO_LIMITS}
    low, by = max(low for low, _ in rates.values()), max(rates, key=lambda name: rates[name][1])
    if "tpm" in rates and part.endless:
        return {"low": low, "high": None, "by": "tpm", "unknown": NO_END}
    return {"low": low, "high": rates[by][1], "by": by}
