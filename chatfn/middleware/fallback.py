"""Try the next target where one has no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatfn.middleware import Flow, WoundDown, middleware
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
from chatfn.spec import Middleware, Request

ON = ("busy", "unavailable", "quota", "content_filter")


def fallback(impls: Sequence[Any], on: Sequence[str] = ON, attempts: int | None = None) -> Middleware:
    """Middleware that asks the call's own target first, and then those of ``impls`` in their order, as long as what
    comes back is in ``on``: a category, ``quota`` or ``content_filter``.  Any other error is returned.

    ``attempts``: how many of them ``retry`` makes at a target while there is another to try; None for all of its own.
    If all fail, the last error is returned, or a completion that the content filter cut short.
    """
    check_attempts("fallback", attempts)
    return failing_over(ways_of("fallback", impls), conditions_of("fallback", on), attempts)


@middleware
def failing_over(request: Request, ways: Sequence[Way], on: frozenset[str], attempts: int | None = None) -> Flow:
    """Send the request on the first of ``ways``, and on the next for as long as its outcome is ``on``."""
    check_buildable(ways, request)
    outcomes: list[Outcome] = []
    try:
        for way in ways:
            asked = asked_of(request, way, outcomes, None if way is ways[-1] else attempts)
            response = yield from begun(asked)
            outcomes.append(outcome_of(asked, response, way))
            if not reasons(response) & on or (yield from over(request)):
                break
    except WoundDown:
        if not outcomes:
            raise
    return concluded(outcomes)
