"""What the calls of a journal used and cost: the sum by day and model, and what a budget begins with."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial, reduce
from typing import Any, NamedTuple

from chatfn.cost import paid_attos
from chatfn.journal.report import reading, rows_of
from chatfn.journal.rows import TOKENS, integer
from chatfn.middleware.bounds import Budget, bound_of, used_of
from chatfn.middleware.budget import budget
from chatfn.middleware.ledger import NOTHING, Amount, plus
from chatfn.prices import ATTOS, Lookup
from chatfn.spec import Json, Middleware
from chatfn.usage import Paid, is_free

DAY = 86_400  # seconds
SAID = ("usage", "model", "service_tier", "created")
CALLS = (
    "SELECT id, sent, state, model, url, status, category, attempts, prompt_tokens, completion_tokens, total_tokens,"
    " coalesce(json_extract(response, '$.usage', '$.model', '$.service_tier', '$.created'),"
    " json_extract(error, '$.partial.usage', '$.partial.model', '$.partial.service_tier', '$.partial.created')),"
    " json_extract(error, '$.sent'), unsure, paid,"
    " CASE WHEN state <> 'answered' OR prompt_tokens IS NULL OR unsure IS NOT NULL THEN request END"
    " FROM calls WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
)


class Used(NamedTuple):
    """A call of a journal, as far as it matters for what it cost."""

    sent: float  # seconds since 1970
    model: str | None
    url: str
    usage: Json  # of all attempts, as far as it is known
    paid: list[Paid]  # the attempts that it is known of
    open: bool  # whether nobody knows how many attempts it had
    unsure: int  # attempts of which nobody knows what they used, if it is not open
    lost: bool  # whether the last is one of them
    request: Json | None  # if there may be something of which nobody knows what it used


def calls_in(db: sqlite3.Connection) -> Iterator[Used]:
    return map(used, rows_of(db, CALLS))


def used(row: tuple[Any, ...]) -> Used:
    _, sent, state, model, url, status, category, attempts, *tokens, text, left, unsure, paid, request = row
    found = json.loads(text) if text is not None else [None] * len(SAID)
    said = {name: value for name, value in zip(SAID, found, strict=True) if value is not None}
    counted = {name: value for name, value in zip(TOKENS, tokens, strict=True) if value is not None}
    own, answered = said.get("usage"), said.get("model")
    own = own if isinstance(own, dict) else {}
    usage = {**own, **counted}
    earlier: list[Paid] = [] if paid is None else json.loads(paid)
    own = own if earlier else usage  # without it the counts may be of all attempts, and the answer's own of the last
    error = {"category": category, **({} if left is None else {"sent": bool(left)})}
    failed = {"status": status, "error": error, "attempts": attempts}
    free = state == "failed" and not own and is_free(failed)
    lost = not own and not free
    name = answered if isinstance(answered, str) else model
    return Used(
        sent,
        name,
        url,
        usage,
        [*earlier, {**said, "model": name, "usage": own, "url": url}] if own else earlier,
        state in ("sent", "unknown"),
        (unsure or 0) + lost,
        lost,
        None if (free and not unsure) or request is None else json.loads(request),
    )


def by_day(path: str | os.PathLike[str], lookup: Lookup, provider: str | None = None) -> list[dict[str, Any]]:
    """What the calls of a journal used, for each day (UTC) and model, in this order.

    ``{"day", "model", "calls", "tokens": {"prompt", "completion", "total"}, "usd", "unpriced"}``: ``usd`` is the sum of
    what is known, or None if nothing is; ``unpriced`` says of how many calls the cost is not known.
    Raises as ``chatfn.journal.report.summary`` does.
    """
    sums: dict[tuple[int, str], list[int]] = {}
    with reading(os.path.realpath(os.fsdecode(path))) as db:
        for call in calls_in(db):
            entry = sums.setdefault((int(call.sent // DAY), call.model or ""), [0] * 7)
            entry[0] += 1
            for place, name in enumerate(TOKENS, 1):
                entry[place] += integer(call.usage.get(name)) or 0
            found = paid_attos(call.paid, lookup, provider)
            if call.paid and not isinstance(found, str):
                entry[4] += found[0]
                entry[5] += 1
            entry[6] += call.lost or isinstance(found, str)
    return [
        {
            "day": datetime.fromtimestamp(day * DAY, UTC).date().isoformat(),
            "model": model or None,
            "calls": calls,
            "tokens": {"prompt": prompt, "completion": completion, "total": total},
            "usd": attos / ATTOS if priced else None,
            "unpriced": unpriced,
        }
        for (day, model), (calls, prompt, completion, total, attos, priced, unpriced) in sorted(sums.items())
    ]


def spent_in(path: str, attempts: int, budget: Budget) -> Amount:
    """What the calls of a journal have taken of a budget; the worst case of attempts whose outcome is not known.

    ``attempts``: how many a call may have had of which nothing is known.
    """
    total = NOTHING
    with reading(path) as db:
        for call in calls_in(db):
            total = plus(total, taken(call, attempts, budget))
    return total


def taken(call: Used, attempts: int, budget: Budget) -> Amount:
    """What a call has taken of a budget, as ``spent_in`` has it."""
    request: Any = call.request or {"url": call.url, "body": {"model": call.model}}
    request = {**request, "body": request["body"] if isinstance(request.get("body"), Mapping) else {}}
    found = [used_by(paid, {**request, "url": paid.get("url", call.url)}, budget) for paid in call.paid]
    known = [amount for amount in found if amount is not None]
    times = attempts if call.open else call.unsure + len(found) - len(known)
    bound = bound_of(request, budget) if times and call.request is not None else ""
    return reduce(plus, [*known, *([] if isinstance(bound, str) else [bound] * times)], NOTHING)


def used_by(paid: Paid, request: Any, budget: Budget) -> Amount | None:
    """What an attempt used that was sent as ``request``; None if nobody knows."""
    return used_of(request, {"status": 200, "body": paid}, budget)


def budget_in(path: str | os.PathLike[str], attempts: int, settings: Json) -> Middleware:
    """The middleware ``budget`` with the ledger of a journal, which begins with what its calls have taken."""
    real = os.path.realpath(os.fsdecode(path))
    found = os.stat(real) if os.path.exists(real) else None
    key = real if found is None else f"{real} {found.st_dev} {found.st_ino}"
    return budget(**settings, key=key, begin=None if found is None else partial(spent_in, real, attempts))
