"""Choose among targets by what is left of their limits and by how they did lately, as ``health`` has the law.

What is known of the targets is one immutable map in an ``Atom``, shared by all calls of the process; time comes from
the flow's ``Sleep(0)``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chatfn.atom import Atom
from chatfn.middleware import Flow, Sleep, WoundDown, middleware
from chatfn.middleware.health import (
    NOTHING_KNOWN,
    Law,
    News,
    State,
    Turn,
    chosen,
    kind_of,
    learned,
    probed,
    released,
)
from chatfn.middleware.ways import (
    Outcome,
    Way,
    asked_of,
    begun,
    check_attempts,
    check_buildable,
    concluded,
    conditions_of,
    outcome_of,
    over,
    reasons,
    ways_of,
)
from chatfn.options import seconds
from chatfn.spec import Middleware, Request

ON = ("busy", "unavailable", "interrupted", "fault", "quota")
SHARED: list[Atom[State]] = [Atom(NOTHING_KNOWN)]


def forget() -> None:
    """Know nothing of any target: in a child of a fork, whose parent's lock may be held by nobody."""
    SHARED[0] = Atom(NOTHING_KNOWN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def balance(
    impls: Sequence[Any],
    on: Sequence[str] = ON,
    attempts: int | None = 1,
    base: float = 1.0,
    cap: float = 300.0,
    chance: Callable[[], float] = random.random,
    state: Atom[State] | None = None,
) -> Middleware:
    """Middleware that chooses for each call among its own target and those of ``impls``, by the law of ``health``.

    A target whose answer is in ``on`` (a category, ``quota`` or ``content_filter``) failed, unless it is only the
    content filter's, and the call goes on to another, as long as there is one that is not left alone.
    ``attempts``: how many of them ``retry`` makes at a target while there is another; None for all of its own.
    ``chance``: a function to a number from 0 to 1.  ``state``: an atom in place of the one that all calls share.
    """
    check_attempts("balance", attempts)
    law = Law(seconds(base, "'base' of 'balance'"), seconds(cap, "'cap' of 'balance'"))
    ways = {way.name: way for way in ways_of("balance", impls)}
    return balanced(ways, conditions_of("balance", on), attempts, law, chance, state)


@middleware
def balanced(
    request: Request,
    ways: Mapping[str, Way],
    on: frozenset[str],
    attempts: int | None = 1,
    law: Law = Law(),  # noqa: B008  # immutable
    chance: Callable[[], float] = random.random,
    state: Atom[State] | None = None,
) -> Flow:
    """Send the request on one of ``ways``, and on another for as long as its outcome is ``on`` and one is free."""
    check_buildable(ways.values(), request)
    known = SHARED[0] if state is None else state
    outcomes: list[Outcome] = []
    tried: list[str] = []
    try:
        while turn := take(known, tuple(ways), tried, began := (yield Sleep(0)), chance(), call := object()):
            way = ways[turn.name]
            few = attempts if turn.others else None
            asked = asked_of(request, way, outcomes, 1 if turn.others and turn.probe else few)
            try:
                response = yield from begun(asked)
                ended = yield Sleep(0)
                cut = yield from over(request)
                found = reasons(response)
                wait = response.get("error", {}).get("retry_after", 0.0)
                news = News(kind_of(response, found, on, cut), began, ended, wait, response["headers"])
                known.swap(learned, turn.name, news, law)
            finally:
                known.swap(released, turn.name, call)
            tried.append(turn.name)
            outcomes.append(outcome_of(asked, response, way))
            if cut or not found & on:
                break
    except WoundDown:
        if not outcomes:
            raise
    return concluded(outcomes)


def take(
    known: Atom[State], names: Sequence[str], tried: Sequence[str], now: float, chance: float, call: object
) -> Turn | None:
    """Where ``call`` goes; should two want to see after one target, one of them is given another."""
    while True:
        turn = chosen(known.deref(), names, tried, now, chance)
        if turn is None or not turn.probe or known.swap(probed, turn.name, now, call)[turn.name].probe is call:
            return turn
