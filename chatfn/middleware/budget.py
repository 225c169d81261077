"""A cap that is never passed: each attempt reserves the most that it can cost before it is sent.

What is counted is a ``Ledger``, an immutable value that pure functions move, in an ``Atom`` for each budget of this
process.  An attempt reserves its worst case, and is not sent if that does not fit; its real usage takes the place of
the reservation afterwards.  What surely cost nothing is given back.  Where nobody knows, after a timeout say, the worst
case counts as spent.

The worst case of input: no byte-level BPE makes more tokens of a text than it has bytes of UTF-8, and the JSON around
the texts has more bytes than the chat format has tokens of its own; ``FORMAT`` is for what servers add before all.
Parts that are no text have no such bound: the setting ``parts`` has to say how many tokens one has at most.
The worst case of output: ``max_completion_tokens`` (or ``max_tokens``) times ``n``, or what the model can say at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from threading import Lock
from typing import Any, NamedTuple, cast

from pyrsistent import PMap, pmap

from chatfn.atom import Atom
from chatfn.cost import counts_of, money, worst
from chatfn.errors import failure
from chatfn.middleware import Flow, Sleep, WoundDown, middleware, tapped
from chatfn.middleware.cost import streamed, usage_watch
from chatfn.prices import ATTOS, TIERS, Lookup, Price, decimal_of, lookup_of
from chatfn.spec import Error, Json, Middleware, Request, Response
from chatfn.usage import is_free, is_stream, model_asked, own_usage, said_of

FORMAT = 256  # tokens that a server may put before the messages: its own instructions, the frame of tools
SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.25  # seconds between two looks at what is reserved
TEXTS = ("text", "refusal")
ADDED = ("web_search_options", "data_sources")  # of a body: the server looks up text, and charges for it as input
UNBOUNDED = (
    'how long its answer can be is not known; give "max_completion_tokens" in params, '
    'or the model\'s "max_output_tokens" in "prices"'
)
KINDS = {"image_url": ("image",), "file": ("image",), "input_audio": ("audio",), "audio": ("audio",)}


class Amount(NamedTuple):
    attos: int  # of a dollar
    tokens: int


NOTHING = Amount(0, 0)
NO_HOLDS: PMap[int, Amount] = pmap()


class Ledger(NamedTuple):
    """What a budget's calls have cost, and may cost."""

    spent: Amount = NOTHING
    unsure: Amount = NOTHING  # of what is spent: worst cases of calls whose outcome is not known
    reserved: Amount = NOTHING  # all that is held
    held: PMap[int, Amount] = NO_HOLDS  # a reservation for each attempt in flight


class Cap(NamedTuple):
    """The most that may be spent; None: no matter how much."""

    attos: int | None
    tokens: int | None


def plus(a: Amount, b: Amount, sign: int = 1) -> Amount:
    return Amount(a.attos + sign * b.attos, a.tokens + sign * b.tokens)


def fits(cap: Cap, amount: Amount) -> bool:
    return all(most is None or used <= most for most, used in zip(cap, amount, strict=True))


def reserve(ledger: Ledger, number: int, need: Amount, cap: Cap) -> Ledger:
    """The ledger with a reservation, if all that is spent and reserved stays within the cap; else as it is.

    >>> [len(reserve(Ledger(), 1, Amount(5, 5), cap).held) for cap in (Cap(None, 9), Cap(4, 9))]
    [1, 0]
    """
    reserved = plus(ledger.reserved, need)
    if not fits(cap, plus(ledger.spent, reserved)):
        return ledger
    return ledger._replace(reserved=reserved, held=ledger.held.set(number, need))


def settle(ledger: Ledger, number: int, used: Amount | None) -> Ledger:
    """The ledger with what an attempt used in place of its reservation; None: nobody knows, so all of that.

    >>> settle(reserve(Ledger(), 1, Amount(5, 5), Cap(9, 9)), 1, Amount(2, 3)).spent
    Amount(attos=2, tokens=3)
    """
    need = ledger.held.get(number)
    if need is None:
        return ledger
    return Ledger(
        plus(ledger.spent, need if used is None else used),
        plus(ledger.unsure, need if used is None else NOTHING),
        plus(ledger.reserved, need, -1),
        ledger.held.remove(number),
    )


class Budget(NamedTuple):
    cap: Cap
    lookup: Lookup
    provider: str | None
    parts: Json
    wait: float
    key: str


ledgers: dict[str, Atom[Ledger]] = {}  # by the key of their budget
numbers = count()
opening = Lock()


def ledger_of(key: str, begin: Callable[[], Amount] | None = None) -> Atom[Ledger]:
    """The ledger of a budget in this process; a new one begins with what ``begin()`` says is spent."""
    found = ledgers.get(key)
    if found is None:
        with opening:
            found = ledgers.get(key)
            if found is None:
                found = ledgers[key] = Atom(Ledger(NOTHING if begin is None else begin()))
    return found


def after_fork() -> None:
    """The child goes on from what was spent; what its parent has in flight is not its own."""
    global opening
    opening = Lock()
    for key, atom in list(ledgers.items()):
        spent, unsure, *_ = atom.deref()
        ledgers[key] = Atom(Ledger(spent, unsure))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)


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
    wait: float = 60.0,
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
    whole = budget_of(usd, tokens, prices, provider, parts, wait, key)
    ledger_of(whole.key, None if begin is None else partial(begin, whole))
    return budgeted(whole)


@middleware
def budgeted(request: Request, budget: Budget) -> Flow:
    """Reserve, send, settle."""
    bound = bound_of(request, budget)
    if isinstance(bound, str):
        return refused("incorrect", "budget_unbounded", f"no budget can hold this call: {bound}")
    need, number, ledger = bound, next(numbers), ledger_of(budget.key)
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
    add, last = usage_watch()

    def end(error: Error | None) -> None:
        settled(used_of(request, streamed(response, last(), error), budget))

    return cast(Response, {**response, "body": tapped(response["body"], add, end)})


def reserved_later(request: Request, budget: Budget, ledger: Atom[Ledger], number: int, need: Amount) -> Any:
    """Wait for attempts in flight to cost less than they might; then None, or the response of one that is refused."""
    due, wait, quiet = request.get("due"), SHORTEST_WAIT, 0.0
    seen = ledger.deref()
    while True:
        if not fits(budget.cap, plus(seen.spent, need)) or not seen.held or quiet >= budget.wait:
            return exceeded(budget, seen, need)
        time: float = yield Sleep(wait)
        if due is not None and time >= due:
            return unsent("interrupted", "no room in the budget within the deadline (option 'deadline')")
        now = ledger.swap(reserve, number, need, budget.cap)
        if number in now.held:
            return None
        still = now == seen
        quiet, wait, seen = quiet + wait if still else 0.0, min(2 * wait, LONGEST_WAIT) if still else wait, now


def used_of(request: Request, response: Json, budget: Budget) -> Amount | None:
    """What an attempt used; None if nobody knows."""
    usage = own_usage(response)
    if usage is None:
        return NOTHING if is_free(response) else None
    counts = counts_of(usage)
    if counts is None:
        return None
    if budget.cap.attos is None:
        return Amount(0, sum(counts))
    said = cast(Json, said_of(response))
    for model in (said.get("model"), model_asked(request)):  # an answer may name a model that no table has
        where, tier = budget.provider or request["url"], said.get("service_tier")
        found = money(usage, model, budget.lookup, where, tier, said.get("created"))
        if not isinstance(found, str):
            return Amount(found[0], sum(counts))
    return None


def bound_of(request: Request, budget: Budget) -> Amount | str:
    """The most that a request can cost, or why there is no bound, and what would make one."""
    body, model = request["body"], model_asked(request)
    if not isinstance(body, Mapping):
        return "its body is no map"
    given = input_bound(body, budget.parts)
    if isinstance(given, str):
        return given
    price = budget.lookup(model or "", budget.provider or request["url"], None, None)
    longest = price.longest if isinstance(price, Price) else None
    asked = [n for name in ("max_completion_tokens", "max_tokens") if type(n := body.get(name)) is int and n > 0]
    if not asked and longest is None:
        return UNBOUNDED
    choices = body.get("n")
    made = (max(asked) if asked else cast(int, longest)) * (choices if type(choices) is int and choices > 1 else 1)
    attos = 0
    if budget.cap.attos is not None:
        dear = dearest(request, budget, price, given[0], made, given[1])
        if isinstance(dear, str):
            return dear
        attos = dear
    return Amount(attos, given[0] + made)


def dearest(
    request: Request, budget: Budget, price: Price | str, given: int, made: int, kinds: tuple[str, ...]
) -> int | str:
    """The attos that so many tokens cost at most, at whatever tier the server may take them."""
    if isinstance(price, str):
        return price
    tier = request["body"].get("service_tier")
    found = [worst(price, given, made, kinds)]
    for other in {tier} & set(TIERS) or ({"priority"} if tier in (None, "auto") else ()):
        special = budget.lookup(model_asked(request) or "", budget.provider or request["url"], other, None)
        if isinstance(special, Price):
            found.append(worst(special, given, made, kinds))
        elif tier is not None and tier != "auto":
            return special
    return next((problem for problem in found if isinstance(problem, str)), max(cast("list[int]", found)))


def input_bound(body: Json, parts: Json) -> tuple[int, tuple[str, ...]] | str:
    """The most tokens that a body is as input, and what kinds there are beside text; or why there is no bound.

    >>> input_bound({"messages": [{"role": "user", "content": "hi"}]}, {})
    (301, ())
    """
    foreign, plain = foreign_in(body)
    for name in foreign:
        if name not in parts:
            fix = f'{{"{name}": 1500}}'
            return f'nobody knows the tokens of {name!r}; say how many it can be in the budget\'s "parts": {fix}'
    kinds = {kind for name in foreign for kind in KINDS.get(name, ())}
    if "audio" in (body.get("modalities") or ()):
        kinds.add("audio")
    size = len(encode(plain).encode("utf-8", "surrogatepass"))
    return size + FORMAT + sum(parts[name] for name in foreign), tuple(sorted(kinds))


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def foreign_in(body: Json) -> tuple[list[str], Json]:
    """The kinds of the parts that are no text, one by one, and the body without them."""
    foreign = [name for name in ADDED if body.get(name) is not None]
    messages = body.get("messages")
    if not isinstance(messages, list) or all(type(m) is dict and type(m.get("content")) is str and "audio" not in m
                                             for m in messages):  # fmt: skip
        return foreign, body
    lean: list[Any] = []
    for message in messages:
        if isinstance(message, dict) and message.get("audio") is not None:
            foreign.append("audio")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            foreign += [name for part in content if (name := kind_of(part)) not in TEXTS]
            message = {**message, "content": [part for part in content if kind_of(part) in TEXTS]}
        lean.append(message)
    return foreign, {**body, "messages": lean}


def kind_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else None
    return kind if isinstance(kind, str) else "a part without a type"


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
    """
    >>> usd_text(1_234_560_000_000_000_000), usd_text(2_500_000_000_000)
    ('$1.23', '$0.0000025')
    """
    usd = attos / ATTOS
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.12f}".rstrip("0") if usd < 0.0001 else f"${usd:.4f}"


def refused(category: Any, code: str, message: str) -> Response:
    response = unsent(category, message)
    return {**response, "error": {**response["error"], "code": code}}


def unsent(category: Any, message: str) -> Response:
    return {**failure(category, message), "attempts": 0}
