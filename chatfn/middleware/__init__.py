"""Middleware: handler to handler, each written once, as a flow, for blocking and awaitable handlers alike.

A *flow* is a generator over effects.  It yields a request map (send this: it is answered with the response map), a
``Sleep`` (wait: answered with the time afterwards), a ``Call`` (call this function: answered with what it returns,
awaited if need be) or a ``Together`` (the same for many flows at once), and returns the response map.  It does no I/O
and reads no clock, so it is tested with ``next`` and ``send``.  ``@middleware`` lifts a flow into Ring middleware; the
drivers below are all that knows of sync and async.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from functools import partial, wraps
from inspect import CO_COROUTINE, isawaitable, iscoroutinefunction
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from chatfn.spec import Middleware, Request, Response

P = ParamSpec("P")
E = TypeVar("E")


class Sleep(NamedTuple):
    """Wait so many seconds.  The answer is the time afterwards, in seconds of a monotonic clock: ``Sleep(0)`` asks for
    the time."""

    seconds: float


NOW = Sleep(0)


class Call(NamedTuple):
    """Call a function of no arguments, and await what it returns if that can be awaited.  Should it return a
    ``Stream``, the answer is its events as a body: their iterator, or, in an awaited call, an asynchronous one.

    ``blocks``: whether it may take long, so that one who drives many flows calls it on another thread.
    """

    function: Callable[[], Any]
    blocks: bool = True


class Together(NamedTuple):
    """Call a function of a list of items, which returns a list: the answer is what it has for this ``item``; if that is
    an exception, it is raised.  One who drives many flows calls it once for all that are due."""

    function: Callable[[list[Any]], list[Any]]
    item: Any


class WoundDown(Exception):
    """Raised in a flow in place of what it waits for, when nothing more is to be sent: it returns what it has."""


class Stream(NamedTuple):
    """Events that are at hand, and to be the body of a response."""

    events: Iterator[dict[str, Any]]


EFFECTS = frozenset({Sleep, Call, Together})
Step = Request | Sleep | Call | Together
Flow = Generator[Step, Any, Response]


def middleware(flow: Callable[Concatenate[Request, P], Flow]) -> Callable[P, Middleware]:
    """Middleware of a ``flow(request, *settings)``: called with the settings, it wraps a handler.

    >>> @middleware
    ... def asking_kindly(request, word):
    ...     response = yield {**request, "body": {**request["body"], "user": word}}
    ...     return {**response, "kind": True}
    >>> handler = asking_kindly("please")(lambda request: {"status": 200, "headers": {}, "body": request["body"]})
    >>> handler({"body": {}})
    {'status': 200, 'headers': {}, 'body': {'user': 'please'}, 'kind': True}
    """

    @wraps(flow)
    def make(*args: P.args, **kwargs: P.kwargs) -> Middleware:
        steps_of = bound(flow, args, kwargs)

        def wrap(handler: Any) -> Any:
            return partial(adrive if is_async(handler) else drive, steps_of, handler)

        wrap.flow = steps_of  # type: ignore[attr-defined]  # for those who compose flows, not handlers
        return wrap

    make.makes_layers = True  # type: ignore[attr-defined]  # for those who are given it uncalled
    return make


def bound(flow: Callable[..., Flow], args: tuple[Any, ...], settings: dict[str, Any]) -> Callable[[Request], Flow]:
    """A flow of a request alone."""
    if not args:
        return partial(flow, **settings) if settings else flow
    return lambda request: flow(request, *args, **settings)


def composed(flows: Sequence[Callable[[Request], Flow]]) -> Callable[[Request], Flow]:
    """One flow of several, outermost first: the requests that it yields are those of the innermost.

    >>> flow = composed([])({"url": "u"})
    >>> next(flow)
    {'url': 'u'}
    """
    return partial(nested, tuple(flows) or (sent,))


def sent(request: Request) -> Flow:
    response: Response = yield request
    return response


def nested(flows: Sequence[Callable[[Any], Flow]], request: Any) -> Flow:
    """One flow of several: a request that one of them yields begins the next, and what that returns is its answer."""
    begun = [flows[0](request)]
    answer: Any = None
    problem: Exception | None = None
    try:
        while True:
            try:
                step = begun[-1].send(answer) if problem is None else begun[-1].throw(problem)
            except StopIteration as stop:
                begun.pop()
                answer, problem = stop.value, None
                if begun:
                    continue
                response: Response = answer
                return response
            except Exception as exc:
                begun.pop()
                answer, problem = None, exc if begun else None
                if begun:
                    continue
                raise
            answer = problem = None
            try:
                if type(step) in EFFECTS or len(begun) == len(flows):
                    answer = yield step
                else:
                    begun.append(flows[len(begun)](step))
            except Exception as exc:
                problem = exc
    finally:
        for steps in reversed(begun):
            steps.close()


def is_async(handler: Any) -> bool:
    """Whether a handler is awaited: a coroutine function, or an object whose ``__call__`` is one."""
    code = getattr(handler, "__code__", None)
    if code is not None:
        return bool(code.co_flags & CO_COROUTINE)
    return iscoroutinefunction(handler) or iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def drive(flow: Callable[[Request], Flow], handler: Callable[[Any], Response], request: Request) -> Response:
    """The response of a flow to a request, on a blocking handler."""
    steps = flow(request)
    try:
        step = next(steps)
        while True:
            try:
                answer = perform(step) if type(step) in EFFECTS else handler(step)
            except Exception as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        response: Response = stop.value
        return response
    finally:
        steps.close()


async def adrive(
    flow: Callable[[Request], Flow], handler: Callable[[Any], Awaitable[Response]], request: Request
) -> Response:
    """The same, on an awaitable handler."""
    steps = flow(request)
    try:
        step = next(steps)
        while True:
            try:
                answer = await (aperform(step) if type(step) in EFFECTS else handler(step))
            except Exception as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        response: Response = stop.value
        return response
    finally:
        steps.close()


def perform(step: Step) -> Any:
    if type(step) is Sleep:
        if step.seconds > 0:
            time.sleep(step.seconds)
        return time.monotonic()
    if isinstance(step, Together):
        return alone(step)
    answer = cast(Call, step).function()
    if isawaitable(answer):
        getattr(answer, "close", bool)()
        raise TypeError("an asynchronous function in a blocking call; use acreate_chat_completion")
    return answer.events if isinstance(answer, Stream) else answer


def alone(step: Together) -> Any:
    """The answer to a flow that nobody else's is gathered with."""
    (answer,) = step.function([step.item])
    if isinstance(answer, Exception):
        raise answer
    return answer


async def aperform(step: Step) -> Any:
    if isinstance(step, Sleep):
        if step.seconds > 0:
            import asyncio  # here, for it doubles the time of ``import chatfn``

            await asyncio.sleep(step.seconds)
        return time.monotonic()
    if isinstance(step, Together):
        return alone(step)
    answer = cast(Call, step).function()
    if isinstance(answer, Stream):
        return awaited(answer.events)
    return await answer if isawaitable(answer) else answer


async def awaited(found: Iterator[E]) -> AsyncIterator[E]:
    for event in found:
        yield event
