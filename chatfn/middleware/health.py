"""What is known of targets, and where a call goes by it: pure functions of an immutable map.  The law:

- A target that failed is left alone for ``base`` seconds, twice as long after each further failure in a row, at most
  ``cap``, and never for less than its ``retry-after``.  No call is sent to it in that time.
- When its time is over one call, the next, is sent there to see; it is left alone until that call has ended.
- Among the others each is chosen with a probability in proportion to its weight: the tokens that are left to it, as its
  last answer said and as they have grown back since, times the share of good answers lately.
- If all are left alone, a new call goes to the one whose time is over first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pyrsistent import PMap, pmap

from chatfn.middleware.limit.headers import Report, report_of
from chatfn.spec import Response

LATELY = 0.2  # the weight of the newest answer in the share of good ones
LEAST_GOOD = 0.05  # so that a target that is not left alone gets calls
LEAST_LEFT = 0.01  # of the mean of the others; likewise
MINUTE = 60.0  # seconds: limits are said per minute, and grow back evenly
MOST = 1_024  # targets that are known; one more, and all of them are forgotten
LONGEST = 86_400.0  # seconds that a target is left alone at most, whatever it asks for


class Health(NamedTuple):
    """What is known of a target; times are seconds of a monotonic clock."""

    failures: int = 0  # in a row, each of a call that began after the one before was known
    since: float = float("-inf")  # when the last of them was known
    until: float = float("-inf")  # left alone until then
    probe: object = None  # the call that is out to see whether it is well again
    good: float = 1.0  # the share of good answers, the newest ones counting most
    seen: float = 0.0  # when it said what is left
    tokens: Report | None = None
    requests: Report | None = None


State = PMap[str, Health]
NEW = Health()
NOTHING_KNOWN: State = pmap()


class Turn(NamedTuple):
    """Where a call goes."""

    name: str
    probe: bool = False  # to see whether it is well again
    others: bool = False  # whether there is another to try


class Law(NamedTuple):
    base: float = 1.0
    cap: float = 300.0


# --- the choice ---------------------------------------------------------------------------------------------------


def chosen(
    state: Mapping[str, Health], names: Sequence[str], tried: Sequence[str], now: float, chance: float
) -> Turn | None:
    """Where a call goes that has ``tried`` some of ``names`` in vain, or None for nowhere.  ``chance``: from 0 to 1.

    >>> chosen({}, ["a", "b"], [], 0.0, 0.6), chosen({}, ["a", "b"], ["a", "b"], 0.0, 0.6)
    (Turn(name='b', probe=False, others=True), None)
    """
    known = {name: state.get(name, NEW) for name in names if name not in tried}
    free = {name: health for name, health in known.items() if health.probe is None and health.until <= now}
    others = len(free) > 1
    failed = [name for name in free if free[name].failures]
    if failed:
        return Turn(min(failed, key=lambda name: free[name].until), probe=True, others=others)
    if free:
        return Turn(drawn(weights_of(free, now), chance), others=others)
    if tried or not known:
        return None
    return Turn(min(known, key=lambda name: known[name].until))


def weights_of(healths: Mapping[str, Health], now: float) -> dict[str, float]:
    """The weights of targets: tokens left times the share of good answers; who says nothing has the mean of the others.

    >>> a, b = (Health(tokens=Report(None, tokens, None)) for tokens in (3e4, 1e4))
    >>> weights_of({"a": a, "b": b, "c": Health()}, 0.0)
    {'a': 30000.0, 'b': 10000.0, 'c': 20000.0}
    """
    left = {name: tokens_left(health, now) for name, health in healths.items()}
    said = [tokens for tokens in left.values() if tokens is not None]
    mean = max(sum(said) / len(said), 1.0) if said else 1.0
    tokens = {name: mean if found is None else max(found, LEAST_LEFT * mean) for name, found in left.items()}
    return {name: tokens[name] * max(health.good, LEAST_GOOD) for name, health in healths.items()}


def tokens_left(health: Health, now: float) -> float | None:
    """The tokens that a target has left by now, or None if it has not said."""
    passed = max(0.0, now - health.seen)
    requests = grown(health.requests, passed)
    return 0.0 if requests is not None and requests < 1 else grown(health.tokens, passed)


def grown(report: Report | None, passed: float) -> float | None:
    """What is left of a limit so many seconds after a report, or None if that is not known, or no longer.

    >>> grown(Report(6_000, 100, 59), 29.5), grown(Report(6_000, 100, None), 3)
    (3050.0, 400.0)
    >>> grown(Report(None, 100, None), 3), grown(Report(None, 100, None), 61)
    (100, None)
    """
    limit, left, reset = report or (None, None, None)
    if left is None:
        return None
    if limit is None:
        return left if passed < (MINUTE if reset is None else reset) else None
    span = MINUTE * (1 - left / limit) if reset is None else reset
    return left + (limit - left) * passed / span if passed < span else limit


def drawn(weights: Mapping[str, float], chance: float) -> str:
    """The name that falls to ``chance``, each in proportion to its weight."""
    point = chance * sum(weights.values())
    for name, weight in weights.items():
        point -= weight
        if point < 0:
            return name
    return name


# --- what is learned ----------------------------------------------------------------------------------------------


def probed(state: State, name: str, now: float, call: object) -> State:
    """The state in which ``call`` is the one that sees whether a target is well, unless another is, or it was."""
    health = state.get(name, NEW)
    free = health.probe is None and health.failures and health.until <= now
    return state.set(name, health._replace(probe=call)) if free else state


def released(state: State, name: str, call: object) -> State:
    """The state in which ``call`` sees no longer."""
    health = state.get(name, NEW)
    return state.set(name, health._replace(probe=None)) if health.probe is call else state


class News(NamedTuple):
    """What a call that began and ended at some time says of its target."""

    kind: Literal["well", "failing", "nothing"]
    began: float
    ended: float
    wait: float = 0.0  # seconds that the target asked for
    headers: Mapping[str, str] = {}


def learned(state: State, name: str, news: News, law: Law) -> State:
    """The state after some news of a target."""
    health = with_limits(state.get(name, NEW), news)
    if news.kind == "well":
        known = news.began >= health.since  # else the call is older than the failure
        health = health._replace(good=health.good + LATELY * (1 - health.good))
        health = health._replace(failures=0, until=NEW.until) if known else health
    elif news.kind == "failing":
        health = failed(health._replace(good=health.good * (1 - LATELY)), news, law)
    if len(state) >= MOST and name not in state:
        state = NOTHING_KNOWN
    return state.set(name, health)


def failed(health: Health, news: News, law: Law) -> Health:
    """A target's health after a failure; of many calls that were in flight together, only the first counts."""
    asked = news.ended + min(news.wait, LONGEST)
    if news.began < health.since:
        return health._replace(until=max(health.until, asked))
    failures = health.failures + 1
    until = max(asked, news.ended + pause(failures, law))
    return health._replace(failures=failures, since=news.ended, until=max(health.until, until))


def pause(failures: int, law: Law) -> float:
    """Seconds for which a target is left alone after so many failures in a row.

    >>> [pause(failures, Law()) for failures in (1, 2, 3, 20)]
    [1.0, 2.0, 4.0, 300.0]
    """
    return min(law.cap, law.base * 2.0 ** min(failures - 1, 60))


def with_limits(health: Health, news: News) -> Health:
    """A target's health with what the headers of its answer say is left."""
    tokens, requests = (report_of(news.headers, kind) for kind in ("tokens", "requests"))
    return health if tokens is requests is None else health._replace(seen=news.ended, tokens=tokens, requests=requests)


def kind_of(
    response: Response, found: frozenset[str], on: frozenset[str], cut: bool
) -> Literal["well", "failing", "nothing"]:
    """What a response says of its target; ``cut``: its caller would not wait, which says nothing of the target."""
    if found & on - {"content_filter"}:
        return "nothing" if cut and "interrupted" in found else "failing"
    return "well" if response["status"] else "nothing"
