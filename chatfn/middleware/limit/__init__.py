"""Keep to the limits of a server, before it has to say no.

Nothing needs to be set: requests and tokens per minute are learned from the ``x-ratelimit-*`` headers of every
response, how many may be in flight from the refusals (``window``).  What is known of one deployment is one immutable
value (``state``), kept per process; a row asks it whether it may go, and sleeps until its turn if not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from math import inf, isfinite
from typing import Any, NamedTuple, cast

from chatfn.atom import Atom
from chatfn.errors import failure
from chatfn.middleware import Flow, Sleep, middleware
from chatfn.middleware.limit.learning import Answer, abandoned, heard, settled
from chatfn.middleware.limit.line import Ticket
from chatfn.middleware.limit.sizes import size_of
from chatfn.middleware.limit.state import Fixed, Slot, State, Wait, left, looked, state_of
from chatfn.middleware.streams import tapped
from chatfn.secret import fingerprint
from chatfn.spec import Error, Middleware, Request, Response

DEPLOYMENTS = 1_024  # that a process knows the limits of
LONGEST_PAUSE = 120.0  # seconds: nobody is kept waiting for longer without being told, as in ``retry``
NOTHING = (None, None)


class Account(NamedTuple):
    """The state of one deployment, and what is to be told to it.

    Streams and flows may end anywhere, in a garbage collection in the midst of a move too; so their ends are noted, and
    the next move begins with them.
    """

    atom: Atom[State]
    notes: deque[tuple[Slot | Ticket, Answer | None]]


def limit(rpm: float | None = None, tpm: float | None = None, concurrency: int | None = None) -> Middleware:
    """Middleware that sends a request when the server's limits have room for it, in the order of coming.

    ``rpm``, ``tpm``: at most so many requests and tokens in any minute; ``concurrency``: at most so many requests in
    flight.  What is learned from the server holds too.  A response says how many seconds it ``waited``.  A request with
    ``limits`` of its own, a mapping of these names, has those in their place.

    >>> handler = limit(rpm=600)(lambda request: {"status": 200, "headers": {}, "body": {}})
    >>> handler({"url": "https://h/v1/chat/completions", "body": {"model": "m"}})["waited"]
    0.0
    """
    return limited(fixed_of(rpm, tpm, concurrency))


def fixed_of(rpm: float | None = None, tpm: float | None = None, concurrency: int | None = None) -> Fixed:
    """The settings, checked."""
    for name, value in (("rpm", rpm), ("tpm", tpm), ("concurrency", concurrency)):
        whole = name == "concurrency"
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and isfinite(value)
        if value is not None and not (right and value >= (1 if whole else 1e-9)):
            kind = "a whole number greater than 0" if whole else "a number greater than 0"
            raise ValueError(f"the setting {name!r} of 'limit' is {value!r}; give {kind}, or none")
    return Fixed(rpm, tpm, inf if concurrency is None else concurrency)


@middleware
def limited(request: Request, fixed: Fixed) -> Flow:
    own = request.get("limits")
    account = account_of(*target_of(request), fixed if own is None else fixed_of(**own))
    body, due = request["body"], request.get("due")
    held: Slot | Ticket | None = None
    size = size_of(body)
    began: float = yield Sleep(0)
    now = began
    try:
        while True:
            answer = moved(account, looked, now, held, size).answer
            if type(answer) is Slot:
                held = slot = answer
                break
            wait = cast(Wait, answer)
            held = wait.ticket
            refused = refusal_of(account, request, wait, now, due)
            if refused is not None:
                return cast(Response, {**refused, "waited": now - began})
            now = yield Sleep(wait.until - now if due is None else max(0.0, min(wait.until, due) - now))
        waited = now - began
        response: Response = yield request
        now = yield Sleep(0)
        found = response["body"]
        if "error" not in response and (hasattr(found, "__next__") or hasattr(found, "__anext__")):
            moved(account, heard, now, slot, answer_of(response))
            usage: list[Any] = [None]
            found = tapped(found, partial(note_usage, usage), partial(noted, account, slot, usage))
            held = None
            return cast(Response, {**response, "body": found, "waited": waited})
        held = None
        moved(account, settled, now, slot, answer_of(response))
        return cast(Response, {**response, "waited": waited})
    finally:
        if held is not None:
            account.notes.append((held, None))


def refusal_of(account: Account, request: Request, wait: Wait, now: float, due: float | None) -> Response | None:
    """The response to one who would wait in vain."""
    fixed = account.atom.deref().fixed
    if request.get("cancelled", bool)():
        return {**failure("interrupted", "the call was cancelled"), "attempts": 0}
    if fixed.tpm is not None and wait.ticket.tokens > fixed.tpm:
        words = f"takes about {wait.ticket.tokens:.0f} tokens; the limit is {fixed.tpm:g} a minute"
        return unsent("incorrect", words)
    if due is not None and max(wait.sure, now) >= due:
        return unsent("interrupted", "the limits leave no room to send it within the deadline")
    pause = account.atom.deref().pause - now
    if pause > LONGEST_PAUSE:
        refused = unsent("busy", f"the server wants nothing more for {pause:.0f} s")
        return {**refused, "error": {**refused["error"], "retry_after": pause}}
    return None


def unsent(category: Any, message: str) -> Response:
    response = failure(category, message)
    return {**response, "error": {**response["error"], "should_retry": False}, "attempts": 0}


def answer_of(response: Response) -> Answer:
    """What a response tells of limits and tokens."""
    body, error = response["body"], response.get("error")
    if error is not None:
        return Answer(error["category"], error.get("retry_after"), response["headers"], None, None)
    usage = body.get("usage") if isinstance(body, dict) else None
    read, written = NOTHING if usage is None else usage_of(usage)
    return Answer(None, None, response["headers"], read, written)


def usage_of(usage: Any) -> tuple[float | None, float | None]:
    if not isinstance(usage, dict):
        return NOTHING
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return read if isinstance(read, int) else None, written if isinstance(written, int) else None


def note_usage(usage: list[Any], event: Any) -> None:
    if event.get("usage") is not None:
        usage[0] = event["usage"]


def noted(account: Account, slot: Slot, usage: list[Any], error: Error | None) -> None:
    """Note the end of a stream."""
    category, wait = (None, None) if error is None else (error["category"], error.get("retry_after"))
    account.notes.append((slot, Answer(category, wait, {}, *usage_of(usage[0]))))


def moved(account: Account, move: Callable[..., State], now: float, *args: Any) -> State:
    """The state after all that was noted, and a move."""
    if not account.notes:
        return account.atom.swap(move, now, *args)
    return account.atom.swap(lambda state: move(brought_up(state, account.notes, now), now, *args))


def brought_up(state: State, notes: deque[tuple[Slot | Ticket, Answer | None]], now: float) -> State:
    """The state after all that was noted."""
    while notes:
        held, answer = notes.popleft()
        if type(held) is Ticket:
            state = left(state, held)
        elif answer is None:
            state = abandoned(state, cast(Slot, held))
        else:
            state = settled(state, now, cast(Slot, held), answer)
    return state


def target_of(request: Request) -> tuple[str, str, Any]:
    """What has limits of its own: an endpoint, with its deployment, a model, and a key, by its fingerprint; of a
    function that gives keys nobody knows whose they are.

    >>> target_of({"url": "https://h/v1/chat/completions?a=1", "body": {"model": "m"}})
    ('https://h/v1/chat/completions', 'm', None)
    """
    body, auth = request["body"], request.get("auth")
    model = body.get("model") if isinstance(body, Mapping) else None
    whose = None if auth is None or auth["secret"].kind != "value" else fingerprint(auth["secret"])
    return request["url"].partition("?")[0], model if isinstance(model, str) else "", whose


@lru_cache(DEPLOYMENTS)
def account_of(url: str, model: str, whose: Any, fixed: Fixed) -> Account:
    return Account(Atom(state_of(fixed, -inf)), deque())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=account_of.cache_clear)  # a child counts for itself
