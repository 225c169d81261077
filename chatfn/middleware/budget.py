"""A cap that is never passed: each attempt reserves the most that it can cost before it is sent.

What is counted is a ``Ledger``, in an ``Atom`` for each budget of this process.  An attempt reserves its worst case
(``bounds``), and is not sent if that does not fit; its real usage takes the place of the reservation afterwards.  What
surely cost nothing is given back.  Where nobody knows, after a timeout say, the worst case counts as spent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from typing import Any, cast

from chatfn.atom import Atom
from chatfn.errors import unsent
from chatfn.middleware import Flow, Sleep, WoundDown, middleware
from chatfn.middleware.bounds import Budget, bound_of, used_of
from chatfn.middleware.cost import streamed, usage_watch
from chatfn.middleware.ledger import NOTHING, Amount, Cap, Ledger, fits, ledger_of, plus, reserve, settle
from chatfn.middleware.streams import tapped, whoever
from chatfn.prices import ATTOS, decimal_of, lookup_of
from chatfn.spec import Error, Json, Middleware, Request, Response
from chatfn.usage import is_stream

SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.25  # seconds between two looks at what is reserved
STUCK = 1.0  # seconds to wait for streams that the waiting task itself would have to read

HELD = "the budget is held by streams that are open here: read them to their end, or close them, first"

numbers = count()
readers: dict[int, object] = {}  # who was given a stream to read, by the number of its reservation


def budget_of(
    usd: Any, tokens: Any, prices: Any, provider: str | None, parts: Any, wait: Any, key: str | None
) -> Budget:
    """Settings made whole; raises ``ValueError`` for what can't be a budget."""
    if usd is None and tokens is None:
        raise ValueError('a budget needs a cap: give "usd", "tokens" or both')
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise ValueError(f'the budget\'s "tokens" is {tokens!r}; give a whole number greater than 0')
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait < 1e9:
        raise ValueError(f'the budget\'s "wait" is {wait!r}; give seconds, 0 or more')
    for name, most in (parts or {}).items() if isinstance(parts or {}, Mapping) else [("", None)]:
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise ValueError(f'the budget\'s "parts" must say tokens for each kind of part; {name!r} has {most!r}')
    attos = None if usd is None else int(dollars(usd) * ATTOS)
    if attos == 0:
        raise ValueError(f'the budget\'s "usd" is {usd!r}; give dollars, more than 0')
    own = json.dumps([str(usd), tokens, prices, provider, parts], sort_keys=True, default=str)
    return Budget(Cap(attos, tokens), lookup_of(prices), provider, parts or {}, wait, key or own)


def dollars(usd: Any) -> Any:
    try:
        return decimal_of("", "usd", usd)
    except ValueError:
        pass_on = f'the budget\'s "usd" is {usd!r}; give dollars, more than 0'
    raise ValueError(pass_on)


def budget(
    usd: float | str | None = None,
    tokens: int | None = None,
    prices: Json | None = None,
    provider: str | None = None,
    parts: Mapping[str, int] | None = None,
    wait: float = 600.0,
    key: str | None = None,
    begin: Callable[[Budget], Amount] | None = None,
) -> Middleware:
    """Middleware that sends no attempt that could pass a cap of dollars or of tokens.

    ``prices``, ``provider``: as of the middleware ``cost``.  ``parts``: the most tokens of a part that is no text, by
    its type: ``{"image_url": 1500}``.  ``wait``: seconds without any news of the attempts in flight before one that
    would fit if they cost less is refused.
    ``key``: budgets of one key share their ledger; without one, those of equal settings.  ``begin``: a function to what
    is spent already.
    """
    whole = budget_of(usd, tokens, prices, provider, parts, wait, key)._replace(begin=begin)
    opened(whole)
    return budgeted(whole)


def opened(budget: Budget) -> Atom[Ledger]:
    """The ledger of a budget, which it has since it was made, unless this is another process."""
    return ledger_of(budget.key, None if budget.begin is None else partial(budget.begin, budget))


@middleware
def budgeted(request: Request, budget: Budget) -> Flow:
    """Reserve, send, settle."""
    bound = bound_of(request, budget)
    if isinstance(bound, str):
        return refused("incorrect", "budget_unbounded", f"no budget can hold this call: {bound}")
    need, number, ledger = bound, next(numbers), opened(budget)
    now = ledger.swap(reserve, number, need, budget.cap)
    if number not in now.held:
        problem = yield from reserved_later(request, budget, ledger, number, need)
        if problem is not None:
            return cast(Response, problem)

    def settled(used: Amount | None) -> None:
        ledger.swap(settle, number, used)

    try:
        response: Response = yield request
    except (ValueError, TypeError, WoundDown):  # a mistake found before anything was sent, or the end of sending
        settled(NOTHING)
        raise
    except BaseException:  # the end of the flow included: its caller went away
        settled(None)
        raise
    if not is_stream(response):
        settled(used_of(request, response, budget))
        return response
    watch, last = usage_watch()
    readers[number] = whoever()

    def add(event: dict[str, Any]) -> None:
        readers[number] = whoever()
        watch(event)

    def end(error: Error | None) -> None:
        readers.pop(number, None)
        settled(used_of(request, streamed(response, last(), error), budget))

    return cast(Response, {**response, "body": tapped(response["body"], add, end)})


def reserved_later(request: Request, budget: Budget, ledger: Atom[Ledger], number: int, need: Amount) -> Any:
    """Wait for attempts in flight to cost less than they might; then None, or the response of one that is refused."""
    due, wait, quiet, waited = request.get("due"), SHORTEST_WAIT, 0.0, 0.0
    seen = ledger.deref()
    while True:
        if not fits(budget.cap, plus(seen.spent, need)) or not seen.held or quiet >= budget.wait:
            return exceeded(budget, seen, need)
        if waited >= STUCK and all(readers.get(held) == whoever() for held in seen.held):
            return refused("forbidden", "budget_held", HELD)
        time: float = yield Sleep(wait)
        if due is not None and time >= due:
            return unsent("interrupted", "no room in the budget within the deadline (option 'deadline')")
        now = ledger.swap(reserve, number, need, budget.cap)
        if number in now.held:
            return None
        still, waited = now == seen, waited + wait
        quiet, wait, seen = quiet + wait if still else 0.0, min(2 * wait, LONGEST_WAIT) if still else wait, now


def exceeded(budget: Budget, ledger: Ledger, need: Amount) -> Response:
    cap = budget.cap
    names = [name for name, most in zip(("usd", "tokens"), cap, strict=True) if most is not None]
    message = (
        f"the budget is spent: {spent_text(cap, ledger)}, and this call could take {words(cap, need)}; "
        f"raise {' or '.join(names)} of the budget to go on"
    )
    response = refused("forbidden", "budget_exceeded", message)
    return cast(Response, {**response, "stop": message})


def spent_text(cap: Cap, ledger: Ledger) -> str:
    """What is spent, of what."""
    text = f"{words(cap, ledger.spent)} of {words(cap, Amount(cap.attos or 0, cap.tokens or 0))}"
    notes = [
        f"{words(cap, amount)} {what}"
        for amount, what in ((ledger.unsure, "of it for calls whose outcome is not known"),
                             (ledger.reserved, "more held for calls in flight"))
        if amount != NOTHING
    ]  # fmt: skip
    return text + (f" ({', '.join(notes)})" if notes else "")


def words(cap: Cap, amount: Amount) -> str:
    parts: Iterable[tuple[int | None, str]] = (
        (cap.attos, usd_text(amount.attos)),
        (cap.tokens, f"{amount.tokens:,} tokens"),
    )
    return " and ".join(text for most, text in parts if most is not None)


def usd_text(attos: int) -> str:
    """Dollars for a reader: cents from a dollar on, below it four decimals, or as many as two digits of it take.

    >>> usd_text(1_234_560_000_000_000_000), usd_text(250_000_000_000_000_000), usd_text(12_345_000_000_000)
    ('$1.23', '$0.2500', '$0.000012')
    """
    usd = attos / ATTOS
    if usd >= 1 or usd == 0:
        return f"${usd:,.2f}"
    power = int(f"{usd:.1e}".partition("e")[2])  # of ten, of the first digit once it is rounded
    text = f"{usd:.{max(4, 1 - power)}f}"
    return f"${text[:6]}{text[6:].rstrip('0')}"


def refused(category: Any, code: str, message: str) -> Response:
    response = unsent(category, message)
    return {**response, "error": {**response["error"], "code": code}}
