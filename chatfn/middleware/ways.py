"""The ways to targets, for the flows that go them: the request rebuilt for a target, and what comes back.

What ``fallback`` and ``balance`` share.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast, get_args

from chatfn.core import requester
from chatfn.errors import ChatError
from chatfn.middleware import Call, Flow, Sleep
from chatfn.middleware.streams import BEGUN
from chatfn.middleware.targets import Target
from chatfn.options import nearest
from chatfn.plain import without
from chatfn.spec import Category, Error, Json, Request, Response
from chatfn.transports import aclose, close
from chatfn.usage import paid_of, unsure_of, with_paid, with_unsure

REBUILT = (
    *("operation", "method", "url", "headers", "auth", "body", "stream", "timeout", "bounds"),
    *("proxies", "verify", "cert", "model"),
)  # the members of a request map that follow from a service's options
NAMELESS = ("", ".", "..")
FILTERED = frozenset({"content_filter", "content_policy_violation"})
CONDITIONS = (*get_args(Category), "quota", "content_filter")


class Way(NamedTuple):
    name: str
    build: Callable[[Request], Request]


# --- settings -----------------------------------------------------------------------------------------------------


def ways_of(layer: str, targets: Sequence[Any]) -> tuple[Way, ...]:
    """The ways to the targets of a layer, the request as asked first."""
    if not targets or not all(isinstance(target, Target) for target in targets):
        raise TypeError(
            f"the targets of {layer!r} are made by the call: name it in the option 'middleware', "
            f"as [{layer!r}, {{'impls': […]}}]"
        )
    return tuple(
        Way(target.name, as_asked if target.own else partial(rebuilt, requester(target.options), target))
        for target in targets
    )


def conditions_of(layer: str, on: Any) -> frozenset[str]:
    """What a layer moves on at, checked."""
    if isinstance(on, str) or not isinstance(on, (Sequence, set, frozenset)):
        raise TypeError(f"'on' of {layer!r} is {on!r}; give a list, of {', '.join(CONDITIONS)}")
    for name in on:
        if name not in CONDITIONS:
            raise ValueError(
                f"unknown condition {name!r} in 'on' of {layer!r}{nearest(name, CONDITIONS)}; "
                f"known: {', '.join(CONDITIONS)}"
            )
    return frozenset(on)


def check_attempts(layer: str, attempts: Any) -> None:
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
        raise ValueError(f"'attempts' of {layer!r} is {attempts!r}; give a whole number greater than 0, or None")


# --- requests -----------------------------------------------------------------------------------------------------


def as_asked(request: Request) -> Request:
    return request


def asked_model(request: Request) -> str | None:
    """The model in the params of a request, whatever its impl made of it in the body."""
    found = request["model"] if "model" in request else request["body"].get("model")
    return cast("str | None", found)


def rebuilt(request_of: Callable[[Json], Request], target: Target, request: Request) -> Request:
    """The request for a target: its URL, headers, credential and body, and all else as it was asked."""
    name, body = target.model or asked_model(request), request["body"]
    params = without(body, "model")
    if name is not None:
        params = {**body, "model": name} if "model" in body else {"model": name, **params}
    kept = without(request, *REBUILT)
    limits = {} if target.limits is None else {"limits": target.limits}
    return cast(Request, {**kept, **request_of(params), **limits, "deadline": request["deadline"]})


def check_buildable(ways: Iterable[Way], request: Request) -> None:
    """Raise now, and not after something was sent, for params whose model is no name where a target needs one."""
    model = asked_model(request)
    if not isinstance(model, str) or model in NAMELESS:
        for way in ways:
            way.build(request)


# --- outcomes -----------------------------------------------------------------------------------------------------

Outcome = tuple[Request, Response]  # what was sent, and what came of it


def asked_of(request: Request, way: Way, outcomes: Sequence[Outcome], attempts: int | None) -> Request:
    """The request to send on a way: its attempts are counted on from those that were made, and are ``attempts`` at
    most."""
    number = request.get("attempt", 1) + attempts_of(outcomes)
    few = {} if attempts is None else {"attempts": attempts}
    return cast(Request, {**way.build(request), "attempt": number, **few})


def outcome_of(asked: Request, response: Response, way: Way) -> Outcome:
    """What came of a request, with the name of the target that it was sent to, and its URL, which prices depend on."""
    found: dict[str, Any] = {"url": asked["url"], **response, "target": way.name}
    if "error" in response:
        found["error"] = {**response["error"], "target": way.name}
    return asked, cast(Response, found)


def attempts_of(outcomes: Sequence[Outcome]) -> int:
    return sum(response.get("attempts", 1) for _, response in outcomes)


def concluded(outcomes: Sequence[Outcome]) -> Response:
    """The last response; or, if that failed, a completion before it, which the content filter had cut short.

    Its ``attempts`` are those of all, and what the others used is ``paid``.
    """
    index = len(outcomes) - 1
    if "error" in outcomes[index][1]:
        index = next((n for n, (_, response) in enumerate(outcomes) if "error" not in response), index)
    paid = [item for n, outcome in enumerate(outcomes) if n != index for item in paid_of(*outcome)]
    response: Response = {**outcomes[index][1], "attempts": attempts_of(outcomes)}
    unsure = sum(unsure_of(outcome[1]) for n, outcome in enumerate(outcomes) if n != index)
    return with_paid(with_unsure(response, unsure), paid)


def reasons(response: Response) -> frozenset[str]:
    """The conditions that a response fulfils: the category of its error, ``quota``, ``content_filter``.

    >>> sorted(reasons({"status": 429, "headers": {}, "body": None,
    ...     "error": {"category": "forbidden", "message": "", "code": "insufficient_quota"}}))
    ['forbidden', 'quota']
    """
    error = response.get("error")
    if error is None:
        body = response["body"]
        choices = body.get("choices") if isinstance(body, Mapping) else None
        ends = [choice.get("finish_reason") for choice in choices or () if isinstance(choice, Mapping)]
        return frozenset({"content_filter"} & set(ends))
    codes = {error.get("code"), error.get("type")}
    quota = {"quota"} if "insufficient_quota" in codes else set()
    return frozenset({error["category"], *quota, *({"content_filter"} if codes & FILTERED else ())})


def over(request: Request) -> Any:
    """Whether the caller waits no longer; a part of a flow."""
    due = request.get("due")
    return request.get("cancelled", bool)() or (due is not None and (yield Sleep(0)) >= due)


# --- streams ------------------------------------------------------------------------------------------------------


def begun(request: Request) -> Flow:
    """The response to a request; that of a stream once its first event is there, or the error in its place."""
    response: Response = yield request
    body = response["body"]
    if "error" in response or not (hasattr(body, "__next__") or hasattr(body, "__anext__")):
        return response
    event, error = yield Call(partial(first_event, body), blocks="arrived" not in response)
    if error is not None:
        return {**response, "body": None, "error": error}
    return response if event is None else {**response, "body": resumed(event, body)}


def first_event(body: Any) -> Any:
    """The first event of a stream, or None, and the error in its place, or None; awaited, of an asynchronous one."""
    if hasattr(body, "__anext__"):
        return afirst_event(body)
    try:
        return next(body, None), None
    except ChatError as exc:
        return None, exc.error


async def afirst_event(body: AsyncIterator[Any]) -> tuple[Any, Error | None]:
    try:
        return await anext(body, None), None
    except ChatError as exc:
        return None, exc.error


def resumed(event: Any, body: Any) -> Any:
    """A stream whose first event was read.  It is begun, so that to close it closes ``body``."""
    found: Any = (aresume if hasattr(body, "__anext__") else resume)(event, body)
    if hasattr(found, "__anext__"):
        with suppress(StopIteration):
            found.__anext__().send(None)
    else:
        next(found)
    return found


def resume(event: Any, body: Iterator[Any]) -> Iterator[Any]:
    try:
        yield BEGUN
        yield event
        yield from body
    finally:
        close(body)


async def aresume(event: Any, body: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        yield BEGUN
        yield event
        async for item in body:
            yield item
    finally:
        await aclose(body)
