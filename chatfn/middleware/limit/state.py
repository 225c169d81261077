"""The state of the limits of one deployment: an immutable value, moved by pure functions of it and the time.

``looked`` asks whether a request may be sent now, or joins the line; ``heard`` takes what headers say; ``settled``
gives back a place in flight and counts real tokens; ``left`` takes a ticket out of the line.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from chatfn.middleware.limit.headers import Report
from chatfn.middleware.limit.line import Line, Ticket, ahead_of, joined, ticket_of, without
from chatfn.middleware.limit.meters import (
    Meter,
    Seen,
    fixed_requests,
    fixed_tokens,
    level_at,
    ready_at,
    reported,
    spent,
)
from chatfn.middleware.limit.sizes import Guess, Size, taught, tokens_of
from chatfn.middleware.limit.window import Window, allowed, answered, freed, opened, refused, sent, wait_for

SLACK = 0.1  # seconds by which a request may overtake another on its way
MOST_SLACK = 1.0
SHORTEST = 0.002  # seconds of a wait
EXACT = 0.5  # seconds: a shorter wait for a rate is slept at once, of a longer one three quarters
LONGEST = 60.0  # seconds between two looks
PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds after a refusal that names none
MEMORY = 100  # requests over which it is learned how the server counts tokens
APART = 4
MANY = 64.0  # how many times our own count of tokens the server's may be


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


class Answer(NamedTuple):
    """What is known of a request at its end."""

    error: str | None  # its category; "busy": refused, for too many were sent
    retry_after: float | None
    requests: Report | None
    tokens: Report | None
    read: float | None  # prompt tokens
    written: float | None  # completion tokens


class State(NamedTuple):
    fixed: Fixed
    own_requests: Meter | None  # the meters of the fixed limits
    own_tokens: Meter | None
    requests: Meter | None = None  # the server's, learned
    tokens: Meter | None = None
    seen_requests: Seen | None = None
    seen_tokens: Seen | None = None
    base: Seen | None = None  # an older one, to compare with
    line: Line = Line()
    window: Window = Window()
    guess: Guess = Guess()
    number: int = 0  # of the request sent last
    total: float = 0.0  # their tokens
    reserved: float = 0.0  # of what is in flight
    charged: float = 2_000.0  # sums of tokens as the server counts them, and as we do; the first are there
    counted: float = 2_000.0  # to be outweighed
    charge: float = 1.0  # the one over the other
    late: bool = False  # whether the server counts tokens when a request ends
    slack: float = SLACK
    doubt: int = 0  # requests that the last report may have overtaken
    mark: tuple[float, int, int] = (-inf, 0, 0)  # a time, the number sent by then, and that at the mark before
    burst: float = 1.0  # part of a bucket that may be sent in one go
    pause: float = -inf  # until when nothing is sent
    time: float = -inf  # of the last look
    answer: Slot | Wait | None = None  # to that look


def state_of(fixed: Fixed, now: float) -> State:
    rpm, tpm = fixed.rpm, fixed.tpm
    return State(
        fixed,
        None if rpm is None else fixed_requests(rpm, now),
        None if tpm is None else fixed_tokens(tpm, 0.0, now),
    )


def looked(state: State, now: float, ticket: Ticket | None, size: Size) -> State:
    """The state after a look of one who has a ``ticket``, or comes now: its ``answer`` is a ``Slot`` or a ``Wait``.

    One goes when there is enough for all who stand before it, and for itself; so nobody is overtaken at their cost, and
    who looks first makes no difference.
    """
    line = state.line
    if ticket is None:
        new = ticket_of(line, tokens_of(state.guess, size), size)
        rows, tokens = line.waiting, line.tokens
    else:
        new = ticket
        rows, tokens = ahead_of(line, ticket)
    if state.fixed.tpm is not None:
        state = grown(state, now, new.tokens)
    due = turn(state, now, rows, tokens, new.tokens)
    places = rows + 1 - allowed(state.window, state.fixed.concurrency) + state.window.flying
    if due <= now and places <= 0:
        return gone(state if ticket is None else state._replace(line=without(line, ticket)), now, new)
    until = next_look(state, now, due, places)
    if due > now and state.doubt and turn(state._replace(doubt=0), now, rows, tokens, new.tokens) <= now:
        until = min(until, now + state.window.latency)  # an answer will tell
    wait = Wait(new, max(until, now + SHORTEST), due)
    if ticket is None:
        line = joined(line, new)
    return state._replace(line=line, time=max(now, state.time), answer=wait)


def grown(state: State, now: float, tokens: float) -> State:
    """The meter of fixed tokens, large enough for a request."""
    meter, tpm = state.own_tokens, state.fixed.tpm
    if meter is None or tpm is None or tokens <= meter.capacity:
        return state
    return state._replace(own_tokens=fixed_tokens(tpm, min(tokens, tpm), now, meter))


def turn(state: State, now: float, rows: int, tokens: float, own: float) -> float:
    """When all rates will have room for one who has so many before it."""
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
            margin = state.doubt * state.reserved / flying * charge if flying else 0.0
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


def gone(state: State, now: float, ticket: Ticket) -> State:
    """The state after a request was let go."""
    tokens, number, total = ticket.tokens, state.number + 1, state.total + ticket.tokens
    own_requests, own_tokens, requests, metered = state.own_requests, state.own_tokens, state.requests, state.tokens
    mark = state.mark
    if now > mark[0] + state.slack:
        mark = (now, state.number, mark[1] if now <= mark[0] + 2 * state.slack else state.number)
    slot = Slot(number, now, tokens, ticket.size, total, state.window.flying, state.reserved, state.number - mark[2])
    return state._replace(
        own_requests=None if own_requests is None else spent(own_requests, now, 1.0),
        own_tokens=None if own_tokens is None else spent(own_tokens, now, tokens),
        requests=None if requests is None else spent(requests, now, 1.0),
        tokens=None if metered is None else spent(metered, now, tokens * state.charge),
        window=sent(state.window, now),
        number=number,
        mark=mark,
        total=total,
        reserved=state.reserved + tokens,
        time=max(now, state.time),
        answer=slot,
    )


def left(state: State, ticket: Ticket) -> State:
    """The state after one who waited has gone away."""
    return state._replace(line=without(state.line, ticket), answer=None)


def settled(state: State, now: float, slot: Slot, answer: Answer) -> State:
    """The state after the end of a request."""
    if answer.requests is not None or answer.tokens is not None:
        state = heard(state, now, slot, answer)
    if answer.error == "busy":
        state = refusal(state, now, slot, answer)
    elif answer.error is None:
        took, most = max(0.0, now - slot.at), state.fixed.concurrency
        state = state._replace(window=answered(state.window, now, took, slot.number, slot.others, most))
    else:
        state = state._replace(window=freed(state.window))
    if answer.error == "busy" or (answer.read is None and answer.written is None):
        real = 0.0 if answer.error == "busy" else slot.tokens
    else:
        real = (answer.read or 0.0) + (answer.written or 0.0)
        state = state._replace(guess=taught(state.guess, slot.size, answer.read, answer.written))
    return paid(state, slot, real)


def paid(state: State, slot: Slot, real: float) -> State:
    """The state after the tokens of a request are known: its reservation becomes what it was."""
    back = slot.tokens - real
    reserved = max(0.0, state.reserved - slot.tokens) if state.window.flying else 0.0
    own, meter, seen = state.own_tokens, state.tokens, state.seen_tokens
    if own is not None and back:
        own = own._replace(level=min(own.capacity, own.level + back))
    if (
        meter is not None
        and back
        and (state.late or seen is None or slot.number > seen.number)
        and meter.reset > state.time
    ):
        meter = meter._replace(level=min(meter.capacity, meter.level + back * state.charge))
    return state._replace(reserved=reserved, own_tokens=own, tokens=meter, answer=None)


def refusal(state: State, now: float, slot: Slot, answer: Answer) -> State:
    """The state after a 429: fewer in flight, a pause for all, and a doubt in what made us send too much."""
    first, blind = slot.number > state.window.cut, answer.requests is None and answer.tokens is None
    need = 2 * slot.tokens * state.charge
    low_requests, low_tokens = low(state.requests, answer.requests, 2.0), low(state.tokens, answer.tokens, need)
    explained = low_requests or low_tokens
    window = refused(state.window, now, slot.number, slot.others, state.number, explained)
    wait = answer.retry_after or 0.0
    if first and not explained and (blind or answer.retry_after is None):
        wait = max(wait, min(LONGEST_PAUSE, PAUSE * 2.0 ** min(20, window.streak - 1)))
    state = state._replace(window=window, pause=max(state.pause, now + wait))
    if not first:
        return state
    if blind:
        return state._replace(requests=emptied(state.requests, now), tokens=emptied(state.tokens, now))
    if not explained:
        return state._replace(burst=max(1 / 60, state.burst / 4))
    late = state.late or (low_tokens and in_debt(state.tokens, answer, need))
    return state._replace(late=late, charge=1.0 if late else state.charge, slack=min(MOST_SLACK, 1.5 * state.slack))


def low(meter: Meter | None, report: Report | None, need: float) -> bool:
    """Whether a report says that there is too little for one more."""
    if meter is None or report is None or report.remaining is None:
        return False
    return report.remaining < max(need, 0.01 * meter.capacity)


def in_debt(meter: Meter | None, answer: Answer, need: float) -> bool:
    """Whether a server has counted more tokens than there were: it counts them when a request ends."""
    if meter is None or answer.tokens is None or answer.tokens.remaining:
        return False
    return meter.rate == 0 or answer.retry_after is None or answer.retry_after * meter.rate > need


def emptied(meter: Meter | None, now: float) -> Meter | None:
    return None if meter is None or meter.rate == 0 else meter._replace(level=min(0.0, level_at(meter, now)), at=now)


def heard(state: State, now: float, slot: Slot, answer: Answer) -> State:
    """The state after the headers of a response.  Reports are counts at the time when a request came to the server:
    the one on the newest request counts, less what was sent after it."""
    at = now if answer.error == "busy" else slot.at
    rate = inf
    number = state.seen_requests.number if state.seen_requests is not None else 0
    if slot.number > number:
        state = state._replace(doubt=slot.recent)
    if answer.requests is not None and (state.seen_requests is None or slot.number > state.seen_requests.number):
        meter = reported(
            state.requests,
            state.seen_requests,
            answer.requests,
            at,
            now,
            state.number - slot.number,
            state.slack,
            state.burst,
        )
        state = state._replace(requests=meter, seen_requests=seen_of(slot, answer.requests, slot.number, at))
    if answer.tokens is not None and (state.seen_tokens is None or slot.number > state.seen_tokens.number):
        state = heard_of_tokens(state, now, slot, answer.tokens, at)
    if state.window.threshold == inf:
        if state.requests is not None:
            rate = state.requests.capacity / state.burst / state.requests.period
        if state.tokens is not None and state.number:
            mean = state.charge * state.total / state.number
            rate = min(rate, state.tokens.capacity / state.burst / state.tokens.period / max(1.0, mean))
        if rate < inf:
            state = state._replace(window=opened(state.window, rate))
    return state


def heard_of_tokens(state: State, now: float, slot: Slot, report: Report, at: float) -> State:
    seen = seen_of(slot, report, slot.total, at)
    state = charges(state, slot, seen)
    after = state.charge * (state.total - slot.total + (slot.reserved if state.late else 0.0))
    meter = reported(state.tokens, state.seen_tokens, report, at, now, after, state.slack, state.burst)
    return state._replace(tokens=meter, seen_tokens=seen)


def charges(state: State, slot: Slot, seen: Seen) -> State:
    """The state with what two reports teach of how the server counts tokens.

    They must be far apart, measured by the requests that either may have overtaken, and of one window.
    """
    base, meter = state.base, state.tokens
    if seen.remaining < 0 or state.late:  # a server that counts at the end counts what was used
        return state
    if base is None or meter is None:
        return state._replace(base=seen)
    full = meter.rate > 0 and seen.remaining >= 0.98 * meter.capacity
    over = meter.rate == 0 and (seen.at >= meter.reset or base.at < meter.reset - meter.period)
    if full or over or 2 * seen.recent < base.recent:
        return state._replace(base=seen)
    rows = seen.number - base.number
    if rows < APART * (1 + seen.recent + base.recent):
        return state
    kept = max(0.0, 1 - rows / MEMORY)
    theirs = base.remaining - seen.remaining + meter.rate * max(0.0, seen.at - base.at)
    charged, counted = kept * state.charged + theirs, kept * state.counted + seen.total - base.total
    charge = min(MANY, max(1 / 2, charged / counted))
    return state._replace(base=seen, charged=charged, counted=counted, charge=charge)


def seen_of(slot: Slot, report: Report, total: float, at: float) -> Seen:
    remaining = -1.0 if report.remaining is None else report.remaining
    return Seen(slot.number, at, remaining, at + (report.reset or 0.0), total, slot.recent)


def abandoned(state: State, slot: Slot) -> State:
    """The state after a request whose end nobody saw: it is counted as it was reserved."""
    return paid(state._replace(window=freed(state.window)), slot, slot.tokens)
