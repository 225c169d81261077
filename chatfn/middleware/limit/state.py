"""The state of the limits of one deployment: an immutable value, moved by pure functions of it and the time.

``looked`` asks whether a request may be sent now, or joins the line; ``left`` takes a ticket out of it.  What comes of
a request moves the state in ``learning``.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

from chatfn.middleware.limit.line import Line, Ticket, ahead_of, joined, ticket_of, without
from chatfn.middleware.limit.meters import Meter, Seen, fixed_requests, fixed_tokens, ready_at, spent
from chatfn.middleware.limit.sizes import Guess, Size, tokens_of
from chatfn.middleware.limit.window import Window, allowed, sent, wait_for

SLACK = 0.1  # seconds by which a request may overtake another on its way
BACK = 30.0  # seconds that no clock goes back
SHORTEST = 0.002  # seconds of a wait
EXACT = 0.5  # seconds: a shorter wait for a rate is slept at once, of a longer one three quarters
LONGEST = 60.0  # seconds between two looks


class Fixed(NamedTuple):
    """The settings."""

    rpm: float | None = None
    tpm: float | None = None
    concurrency: float = inf


class Slot(NamedTuple):
    """A request in flight."""

    number: int  # from 1, in the order of sending
    at: float
    tokens: float  # reserved
    size: Size
    total: float  # tokens of all requests so far, this one included
    others: int  # that were in flight
    reserved: float  # their tokens
    recent: int  # requests sent so shortly before it that it may have overtaken them


class Wait(NamedTuple):
    """Look again at ``until``; before ``sure`` it can't be sent."""

    ticket: Ticket
    until: float
    sure: float


class State(NamedTuple):
    # what every send and every answer moves, first, so that the rest can be taken over as one slice
    own_requests: Meter | None  # the meters of the fixed limits
    own_tokens: Meter | None
    requests: Meter | None = None  # the server's, learned
    tokens: Meter | None = None
    line: Line = Line()
    window: Window = Window()
    number: int = 0  # of the request sent last
    mark: tuple[float, int, int] = (-inf, 0, 0)  # a time, the number sent by then, and that at the mark before
    total: float = 0.0  # tokens of all requests sent
    reserved: float = 0.0  # of what is in flight
    time: float = -inf  # of the last look
    answer: Slot | Wait | None = None  # to that look
    guess: Guess = Guess()
    fixed: Fixed = Fixed()
    newest: int = 0  # request that headers were heard of
    heard: float = -inf  # when
    seen_requests: Seen | None = None
    seen_tokens: Seen | None = None
    base: Seen | None = None  # an older one, to compare with
    charged: float = 2_000.0  # sums of tokens as the server counts them, and as we do; the first are there
    counted: float = 2_000.0  # to be outweighed
    charge: float = 1.0  # tokens that the server counts for one of ours: the one over the other
    late: bool = False  # whether the server counts tokens when a request ends
    slack: float = SLACK
    doubt: float = 0.0  # requests that the last report may have overtaken
    doubt_tokens: float = 0.0
    burst: float = 1.0  # part of a bucket that may be sent in one go
    pause: float = -inf  # until when nothing is sent


MOVED = State._fields.index("fixed")


def state_of(fixed: Fixed, now: float) -> State:
    rpm, tpm = fixed.rpm, fixed.tpm
    return State(
        None if rpm is None else fixed_requests(rpm, now),
        None if tpm is None else fixed_tokens(tpm, 0.0, now),
        fixed=fixed,
    )


def looked(state: State, now: float, ticket: Ticket | None, size: Size) -> State:
    """The state after a look of one who has a ``ticket``, or comes now: its ``answer`` is a ``Slot`` or a ``Wait``.

    One goes when there is enough for all who stand before it, and for itself; so nobody is overtaken at their cost, and
    who looks first makes no difference.
    """
    if now < state.time - BACK:  # on another clock, as of a simulator
        state, ticket = state_of(state.fixed, now)._replace(guess=state.guess), None
    line = state.line
    if ticket is None:
        own, rows, tokens = tokens_of(state.guess, size), line.waiting, line.tokens
    else:
        own = tokens_of(state.guess, size)
        rows, tokens = ahead_of(line, ticket)
        tokens *= own / ticket.tokens  # what was guessed when it came, of those before it too, is better known now
    if state.own_tokens is not None and own > state.own_tokens.capacity:
        state = grown(state, now, own)
    due = turn(state, now, rows, tokens, own)
    places = rows + 1 - allowed(state.window, state.fixed.concurrency) + state.window.flying
    if due <= now and places <= 0:
        return gone(state, now, own, size, line if ticket is None else without(line, ticket))
    until = next_look(state, now, due, places)
    doubtful = state.doubt or state.doubt_tokens
    if due > now and doubtful and turn(state._replace(doubt=0.0, doubt_tokens=0.0), now, rows, tokens, own) <= now:
        until = min(until, now + state.window.latency)  # an answer will tell
    if ticket is None:
        ticket = ticket_of(line, own, size)
        line = joined(line, ticket)
    return state._replace(line=line, time=max(now, state.time), answer=Wait(ticket, max(until, now + SHORTEST), due))


def grown(state: State, now: float, tokens: float) -> State:
    """The state with a meter of fixed tokens that is large enough for a request."""
    tpm = state.fixed.tpm or inf
    return state._replace(own_tokens=fixed_tokens(tpm, min(tokens, tpm), now, state.own_tokens))


def turn(state: State, now: float, rows: int, tokens: float, own: float) -> float:
    """When all rates will have room for one who has so many before it."""
    if state.fixed.tpm is not None and own > state.fixed.tpm:
        return inf
    due = max(now, state.pause)
    if state.own_requests is not None:
        due = max(due, ready_at(state.own_requests, now, rows, 1.0))
    if state.own_tokens is not None:
        due = max(due, ready_at(state.own_tokens, now, tokens, own))
    if state.requests is not None or state.tokens is not None:
        flying = state.window.flying
        if state.requests is not None:
            due = max(due, ready_at(state.requests, now, rows, 1.0, state.doubt if flying else 0.0))
        if state.tokens is not None:
            charge = state.charge
            margin = state.doubt_tokens if flying else 0.0
            due = max(due, ready_at(state.tokens, now, tokens * charge, own * charge, margin))
    return due


def next_look(state: State, now: float, due: float, places: int) -> float:
    """When to look again: by part of a long wait, for things may turn out better; a pause is waited for to its end."""
    start = max(now, state.pause)
    ready = due if due <= start + EXACT else start + 0.75 * (due - start)
    for meter in (state.requests, state.tokens):
        if meter is not None and start < meter.reset < due:
            ready = min(ready, meter.reset + state.window.latency)
    if places > 0:
        ready = max(ready, start + 0.5 * wait_for(state.window, places, now, state.fixed.concurrency))
    return min(ready, start + LONGEST)


def gone(state: State, now: float, tokens: float, size: Size, line: Line) -> State:
    """The state after a request was let go."""
    number, total, mark, window = state.number + 1, state.total + tokens, state.mark, state.window
    own_requests, own_tokens, requests, metered = state.own_requests, state.own_tokens, state.requests, state.tokens
    if now > mark[0] + state.slack:
        mark = (now, state.number, mark[1] if now <= mark[0] + 2 * state.slack else state.number)
    rest: tuple[Any, ...] = state[MOVED:]
    slot = Slot(number, now, tokens, size, total, window.flying, state.reserved, state.number - mark[2])
    return State(
        None if own_requests is None else spent(own_requests, now, 1.0),
        None if own_tokens is None else spent(own_tokens, now, tokens),
        None if requests is None else spent(requests, now, 1.0),
        None if metered is None else spent(metered, now, tokens * state.charge),
        line,
        sent(window, now),
        number,
        mark,
        total,
        state.reserved + tokens,
        max(now, state.time),
        slot,
        state.guess,
        *rest,
    )


def left(state: State, ticket: Ticket) -> State:
    """The state after one who waited has gone away."""
    if not state.line.head <= ticket.number < state.line.next:  # of a state that is no more
        return state
    return state._replace(line=without(state.line, ticket), answer=None)
