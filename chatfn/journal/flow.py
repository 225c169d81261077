"""The journal as a layer around the call: intent before the send, outcome after it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from chatfn.chunks import collector
from chatfn.errors import unsent
from chatfn.journal.claims import Asked, Claim, Held
from chatfn.journal.key import request_key
from chatfn.journal.rows import Answer, Outcome, answer_outcome, error_outcome
from chatfn.journal.store import Store
from chatfn.middleware import Call, Flow, Sleep, Stream, Together, WoundDown, middleware
from chatfn.middleware.streams import CLOSED, tapped, whoever
from chatfn.plain import without
from chatfn.secret import mask, secrets_of
from chatfn.spec import Error, Json, Request, Response
from chatfn.unfold import events_of
from chatfn.usage import usage_of, with_paid

SHORTEST_WAIT, LONGEST_WAIT = 0.005, 0.25  # seconds between two looks at a call that another has in flight
UNKEPT = (OSError, ValueError, TypeError, AttributeError, RecursionError)  # what may be wrong with an answer or a file
STUCK = 1.0  # seconds to wait for a stream that the waiting task itself would have to read


@middleware
def journaled(request: Request, store: Store, keep_errors: bool = False) -> Flow:
    """The answer that the store has; or the response, which it has from then on."""
    claim = Together(store.claim, Asked(request_key(request), request, keep_errors))
    found: Answer | Claim | Held = yield claim
    wait, waited, due = SHORTEST_WAIT, 0.0, request.get("due")
    while isinstance(found, Held):
        if waited >= STUCK and found.reader == whoever():
            return unsent("conflict", "an equal call is open as a stream here: read it to its end, or close it, first")
        now: float = yield Sleep(wait)
        if due is not None and now >= due:
            return unsent("interrupted", "an equal call in flight did not end within the deadline")
        waited, wait = waited + wait, min(2 * wait, LONGEST_WAIT)
        found = yield claim
    if isinstance(found, Claim):
        return (yield from sent(request, store, found))
    return (yield from answered(request, found))


def sent(request: Request, store: Store, claim: Claim) -> Flow:
    """Send a claimed call, and keep what comes of it."""
    try:
        response: Response = yield request
    except BaseException as exc:  # the end of the flow included: its caller went away
        abandon(request, store, claim, exc)
        raise
    body = response["body"]
    if "error" not in response and (hasattr(body, "__next__") or hasattr(body, "__anext__")):
        claim.reader = whoever()
        fold = collector()

        def add(event: dict[str, Any]) -> None:
            claim.reader = whoever()
            fold.add(event)

        return {**response, "body": tapped(body, add, partial(ended, request, store, claim, response, fold))}
    try:
        problem = yield Together(store.settle, (claim, outcome_of(response, body)))
    except UNKEPT as exc:
        problem = exc
    return response if problem is None else cast(Response, {**response, "unkept": warned(store, problem)})


def ended(request: Request, store: Store, claim: Claim, response: Response, fold: Any, error: Error | None) -> None:
    """Keep what a stream came to."""
    if error is None:
        kept(store, claim, response, fold.completion())
    elif error is CLOSED:
        abandon(request, store, claim, None, fold.completion())
    else:
        partial_of: Error = {"partial": fold.completion(), **error}
        kept(store, claim, {**response, "error": partial_of}, None)


def kept(store: Store, claim: Claim, response: Response, body: Any) -> None:
    """Keep a response at the end of a stream; what goes wrong with that is a warning, for it must not get lost."""
    problem: Exception | None
    try:
        (problem,) = store.settle([(claim, outcome_of(response, body))])
    except UNKEPT as exc:
        problem = exc
    if problem is not None:
        warned(store, problem)


def outcome_of(response: Response, body: Any) -> Outcome:
    early = "stop" in response or "unfinished" in response  # what has no attempts here is sent again
    attempts = None if early else response.get("attempts", 1)
    usage = usage_of({**response, "body": body}) if "paid" in response else response.get("usage")
    if "error" in response:
        return error_outcome("failed", response["error"], attempts, usage, response)
    return answer_outcome(body, attempts, usage or body.get("usage"), response)


def warned(store: Store, exc: Exception) -> str:
    problem = str(exc) if isinstance(exc, OSError) else f"the journal {store.path} can't hold the answer: {exc}"
    warnings.warn(problem, RuntimeWarning, stacklevel=3)
    return problem


def abandon(
    request: Request, store: Store, claim: Claim, exc: BaseException | None, partial_body: Json | None = None
) -> None:
    """Note that nobody knows what came of a call."""
    state, error = "unknown", cast(dict[str, Any], dict(CLOSED))
    if isinstance(exc, WoundDown):
        said = "not sent, for the run was ended"
        state, error = "failed", {"category": "interrupted", "message": said, "status": 0, "sent": False}
    elif isinstance(exc, Exception):
        error = {"category": "fault", "message": mask(f"{type(exc).__name__}: {exc}"[:2_000], secrets_of(request))}
    if partial_body is not None:
        error["partial"] = partial_body
    problem: Exception | None
    try:
        (problem,) = store.settle([(claim, error_outcome(state, error, None, None, {}))])
    except UNKEPT as exc:
        problem = exc
    if problem is not None:  # the row says "sent", which comes to the same when its claim is gone
        warned(store, problem)


def answered(request: Request, found: Answer) -> Flow:
    """The response of a call that the store has the outcome of."""
    body, error = cast(Any, found.completion), found.error
    status, attempts = 200 if error is None else error.get("status", 0), found.attempts
    if error is None and request["stream"]:
        body = yield Call(partial(Stream, spelled(body, request["body"])), blocks=False)
    response: Response = {"status": status, "headers": {}, "body": body, "attempts": attempts, "cached": True}
    if error is not None:
        response = {**response, "error": error}
    if found.rest:
        response = with_paid(cast(Response, {**response, **without(found.rest, "paid")}), found.rest.get("paid", ()))
    return response


def spelled(completion: dict[str, Any], body: Any) -> Iterator[dict[str, Any]]:
    """The events of a completion.  Unless an event of its own was asked for, the last one brings the usage too, for
    there are readers who look for a choice in each."""
    usage = completion.get("usage")
    options = body.get("stream_options") if isinstance(body, dict) else None
    if usage is None or (isinstance(options, dict) and options.get("include_usage")):
        yield from events_of(completion)
        return
    last: dict[str, Any] | None = None
    for event in events_of(without(completion, "usage")):
        if last is not None:
            yield last
        last = event
    if last is not None:
        yield {**last, "usage": usage}
