"""What the state learns from the answer to a request: places, tokens, limits, and how the server counts.

``settled`` takes a request at its end, ``heard`` the headers of a stream, ``abandoned`` a request that was given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

from chatfn.middleware.limit.headers import Report, report_of
from chatfn.middleware.limit.meters import NEAR, Meter, Seen, level_at, reported
from chatfn.middleware.limit.sizes import Guess, taught
from chatfn.middleware.limit.state import MOVED, Slot, State
from chatfn.middleware.limit.window import Window, answered, freed, opened, refused

MOST_SLACK = 1.0
PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds after a refusal that names none
LONGER = 1.5  # times the pause before, after one that was too short
OFTEN = 0.01  # seconds between two reports that are read
APART = 4  # times the requests that two reports may have overtaken, that lie between them
MEMORY = 100  # requests over which it is learned how the server counts tokens
FEWEST, MOST = 0.75, 64.0  # tokens that the server may count for one of ours

Changes = dict[str, Any]  # fields of the state, to be replaced at once


class Answer(NamedTuple):
    """What is known of a request at its end, or of a stream at its headers."""

    error: str | None  # its category; "busy": refused, for too many were sent
    retry_after: float | None
    headers: Mapping[str, str]
    read: float | None  # prompt tokens
    written: float | None  # completion tokens


def settled(state: State, now: float, slot: Slot, answer: Answer) -> State:
    """The state after the end of a request."""
    if slot.number > state.number:  # of a state that is no more
        return state
    state = heard(state, now, slot, answer)
    if answer.error == "busy":
        state = refusal(state, now, slot, answer)
        return paid(state, state.window, state.guess, slot, 0.0)
    if answer.error is None:
        took, most = max(0.0, now - slot.at), state.fixed.concurrency
        window = answered(state.window, now, took, slot.number, slot.others, most)
    else:
        window = freed(state.window)
    read, written = answer.read, answer.written
    if read is None and written is None:
        return paid(state, window, state.guess, slot, slot.tokens)
    return paid(state, window, taught(state.guess, slot.size, read, written), slot, (read or 0.0) + (written or 0.0))


def abandoned(state: State, slot: Slot) -> State:
    """The state after a request whose end nobody saw: it is counted as it was reserved."""
    if slot.number > state.number:
        return state
    return paid(state, freed(state.window), state.guess, slot, slot.tokens)


def heard(state: State, now: float, slot: Slot, answer: Answer) -> State:
    """The state after the headers of a response, which may go on."""
    if slot.number > state.number:
        return state
    changes = news(state, now, slot, answer)
    return state._replace(**changes) if changes else state


def paid(state: State, window: Window, guess: Guess, slot: Slot, real: float) -> State:
    """The state when the tokens of a request are known: its reservation becomes what it was."""
    own, meter, back = state.own_tokens, state.tokens, slot.tokens - real
    if back and own is not None:
        own = own._replace(level=min(own.capacity, own.level + back))
    if back and meter is not None and meter.reset > state.time:
        seen = state.seen_tokens
        if state.late or seen is None or slot.number > seen.number:  # not counted by the server as yet
            meter = meter._replace(level=min(meter.capacity, meter.level + back * state.charge))
    rest: tuple[Any, ...] = state[MOVED:]
    return State(
        state.own_requests,
        own,
        state.requests,
        meter,
        state.line,
        window,
        state.number,
        state.mark,
        state.total,
        max(0.0, state.reserved - slot.tokens) if window.flying else 0.0,
        state.time,
        None,
        guess,
        *rest,
    )


def news(state: State, now: float, slot: Slot, answer: Answer) -> Changes:
    """The changes that headers make.

    Reports are counts at the time when a request came to the server.  The one on the newest request counts, less what
    was sent after it.
    """
    if slot.number <= state.newest or not answer.headers or (answer.error is None and now < state.heard + OFTEN):
        return {}
    requests, tokens = report_of(answer.headers, "requests"), report_of(answer.headers, "tokens")
    if requests is None and tokens is None:
        return {}
    at = now if answer.error == "busy" else slot.at
    changes: Changes = {"newest": slot.number, "heard": now}
    if requests is not None:
        old, seen_before, after = state.requests, state.seen_requests, float(state.number - slot.number)
        changes["requests"] = reported(old, seen_before, requests, at, now, after, state.slack, state.burst)
        changes["doubt"] = doubt_of(old, changes["requests"], now, float(slot.recent))
        changes["seen_requests"] = seen_of(slot, requests, slot.number, at, changes["requests"], state.slack)
    if tokens is not None:
        after = state.charge * (state.total - slot.total + (slot.reserved + slot.tokens if state.late else 0.0))
        meter = reported(state.tokens, state.seen_tokens, tokens, at, now, after, state.slack, state.burst)
        seen = seen_of(slot, tokens, slot.total, at, meter, state.slack)
        changes["doubt_tokens"] = slot.recent * state.charge * state.total / state.number
        changes.update(charges(state, seen, meter), tokens=meter, seen_tokens=seen)
    if state.window.threshold == inf:
        changes["window"] = opened(state.window, rate_of(state, changes))
    return changes


def doubt_of(old: Meter | None, new: Meter, now: float, recent: float) -> float:
    """How much less than reported there may be: what was sent just before may have been overtaken.  In a window, where
    nothing comes back before its end, that is not so of what we had counted ourselves."""
    if old is None or new.rate > 0:
        return recent
    return min(recent, max(0.0, level_at(new, now) - level_at(old, now)))


def seen_of(slot: Slot, report: Report, total: float, at: float, meter: Meter, slack: float) -> Seen:
    remaining = -1.0 if report.remaining is None else report.remaining
    ends = at + (report.reset or 0.0) if meter.reset == inf else meter.reset - slack
    return Seen(slot.number, at, remaining, ends, total, slot.recent)


def rate_of(state: State, changes: Changes) -> float:
    """Requests a second that the server takes, as far as one knows."""
    requests, tokens = changes.get("requests", state.requests), changes.get("tokens", state.tokens)
    rate: float = 0.0 if requests is None else requests.capacity / state.burst / requests.period
    if tokens is not None:
        mean = max(1.0, state.charge * state.total / state.number)
        by_tokens = tokens.capacity / state.burst / tokens.period / mean
        rate = by_tokens if requests is None else min(rate, by_tokens)
    return rate


def charges(state: State, seen: Seen, meter: Meter) -> Changes:
    """The changes by what two reports teach of the tokens that the server counts for one of ours.

    They must be far apart, measured by the requests that either may have overtaken, and of one window.
    """
    base = state.base
    if seen.remaining < 0 or state.late:  # a server that counts at the end counts what was used
        return {}
    if base is None or 2 * seen.recent < base.recent:
        return {"base": seen}
    full = meter.rate > 0 and seen.remaining >= 0.98 * meter.capacity
    if full or (meter.rate == 0 and abs(seen.ends - base.ends) > NEAR):
        return {"base": seen}
    rows = seen.number - base.number
    if rows < APART * (1 + seen.recent + base.recent):
        return {}
    kept = max(0.0, 1 - rows / MEMORY)
    theirs = base.remaining - seen.remaining + meter.rate * max(0.0, seen.at - base.at)
    charged, counted = kept * state.charged + theirs, kept * state.counted + seen.total - base.total
    return {
        "base": seen,
        "charged": charged,
        "counted": counted,
        "charge": min(MOST, max(FEWEST, charged / counted)),
    }


def refusal(state: State, now: float, slot: Slot, answer: Answer) -> State:
    """The state after a 429: fewer in flight, a pause for all, and a doubt in what made us send too much."""
    first = slot.number > state.window.cut
    requests, tokens = report_of(answer.headers, "requests"), report_of(answer.headers, "tokens")
    blind = requests is None and tokens is None
    need = 2 * slot.tokens * state.charge
    low_requests, low_tokens = low(state.requests, requests, 2.0), low(state.tokens, tokens, need)
    explained = low_requests or low_tokens
    wait = answer.retry_after or 0.0
    needed = needed_of(state, slot) if wait < state.window.latency else inf
    window = refused(state.window, now, slot.number, slot.others, state.number, explained, needed)
    if first and not explained and answer.retry_after is None:
        wait = min(LONGEST_PAUSE, PAUSE * LONGER ** min(20, window.streak - 1))
    state = state._replace(
        window=window,
        pause=max(state.pause, now + wait),
        requests=owing(state.requests, now, 1.0, wait) if low_requests else state.requests,
        tokens=owing(state.tokens, now, need / 2, wait) if low_tokens else state.tokens,
    )
    if not first:
        return state
    if blind:
        return state._replace(requests=emptied(state.requests, now), tokens=emptied(state.tokens, now))
    if not explained:
        return state._replace(burst=max(1 / 60, state.burst / 4))
    late = state.late or (low_tokens and in_debt(state.tokens, tokens, answer.retry_after, need))
    return state._replace(late=late, charge=1.0 if late else state.charge, slack=min(MOST_SLACK, 1.5 * state.slack))


def needed_of(state: State, slot: Slot) -> float:
    """How many had to be in flight for all that went through since the last pause (Little's law)."""
    took, window = slot.at - state.pause, state.window
    return 1.0 + window.latency * (slot.number - window.cut) / took if 0 < took < inf else inf


def low(meter: Meter | None, report: Report | None, need: float) -> bool:
    """Whether a report says that there is too little for one more."""
    if meter is None or report is None or report.remaining is None:
        return False
    return report.remaining < max(need, 0.01 * meter.capacity)


def in_debt(meter: Meter | None, report: Report | None, retry_after: float | None, need: float) -> bool:
    """Whether a server has counted more tokens than there were: it counts them when a request ends."""
    if meter is None or report is None or report.remaining:
        return False
    return meter.rate == 0 or retry_after is None or retry_after * meter.rate > need


def owing(meter: Meter | None, now: float, need: float, wait: float) -> Meter | None:
    """A bucket that has ``need`` after a ``wait``, so that there may be a debt, which a server does not report."""
    if meter is None or meter.rate == 0:
        return meter
    return meter._replace(level=min(level_at(meter, now), need - meter.rate * wait), at=now)


def emptied(meter: Meter | None, now: float) -> Meter | None:
    return None if meter is None or meter.rate == 0 else meter._replace(level=min(0.0, level_at(meter, now)), at=now)
