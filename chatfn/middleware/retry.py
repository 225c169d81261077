"""Send again what failed in a way that may pass.

The safe defaults, and why: three attempts, as openai-python makes; full jitter, so that callers who failed together do
not come back together; a wait that the server asks for is taken exactly, but nobody is kept waiting for more than two
minutes without being told.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from chatfn.errors import RETRYABLE
from chatfn.middleware import NOW, Flow, Sleep, WoundDown, middleware
from chatfn.spec import Error, Request, Response
from chatfn.usage import Paid, paid_of, unsure_of, with_paid, with_unsure


def backoff(
    attempt: int,
    error: Error | None,
    jitter: float = 1.0,
    *,
    attempts: int = 3,
    base: float = 0.5,
    cap: float = 8.0,
    longest: float = 120.0,
) -> float | None:
    """Seconds to wait after the ``attempt``-th attempt, or None to stop.  ``jitter``: between 0 and 1.

    >>> [backoff(n, {"category": "busy", "message": ""}, attempts=9) for n in (1, 2, 6, 9)]
    [0.5, 1.0, 8.0, None]
    >>> backoff(1, {"category": "busy", "message": "", "retry_after": 7.0})
    7.0
    """
    if error is None or attempt >= attempts or "insufficient_quota" in (error.get("code"), error.get("type")):
        return None
    if not error.get("should_retry", error["category"] in RETRYABLE):
        return None
    asked = error.get("retry_after")
    if asked is None:
        return float(min(cap, base * 2 ** min(attempt - 1, 60)) * jitter)
    return asked if asked <= longest else None


@middleware
def retry(
    request: Request,
    attempts: int = 3,
    base: float = 0.5,
    cap: float = 8.0,
    longest: float = 120.0,
    jitter: Callable[[], float] = random.random,
) -> Flow:
    """At most ``attempts`` attempts, each after an exponential wait of ``base`` to ``cap`` seconds with full jitter.

    A wait that the server names is taken as it is, unless it is over ``longest``; no wait passes the deadline.
    A stream is sent again only while none of its bytes has arrived.  What failed attempts used is in the response too,
    as ``paid`` and in ``usage``, and as ``unsure`` the number of those whose cost nobody knows.  A request that comes
    with ``attempts`` of its own has these at most, and one with an ``attempt`` counts on from there.
    """
    made, due, first = 0, request.get("due"), request.get("attempt", 1)
    attempts = request.get("attempts", attempts)
    paid: list[Paid] = []
    unsure = 0
    response: Any = None
    try:
        for attempt in range(1, attempts + 1):
            answer: Response = yield {**request, "attempt": first + made}
            if response is not None:
                paid += paid_of(request, response)
                unsure += unsure_of(response)
            response = answer
            made += response.get("attempts", 1)
            error = response.get("error")
            if error is None:
                break
            wait = backoff(attempt, error, jitter(), attempts=attempts, base=base, cap=cap, longest=longest)
            if wait is None or (due is not None and (yield NOW) + wait >= due):
                break
            yield Sleep(wait)
    except WoundDown:
        if response is None:
            raise
        response = {**response, "unfinished": True}
    response = {**response, "attempts": made}
    whole: Response = with_paid(with_unsure(response, unsure), paid) if paid or unsure else response
    return whole
