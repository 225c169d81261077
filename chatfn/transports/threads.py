"""A blocking transport, awaited: each request on a thread of its own pool."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Event
from typing import Any

from chatfn.spec import AsyncHandler, Handler, Request, Response
from chatfn.transports import close

THREADS = 256
ENDED = object()


@cache
def executor() -> ThreadPoolExecutor:
    """The threads of this process; one is started only when all others are busy."""
    return ThreadPoolExecutor(THREADS, "chatfn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=executor.cache_clear)  # threads do not survive a fork


def threaded(transport: Handler) -> AsyncHandler:
    """The blocking ``transport`` as an asynchronous one.  A call that is cancelled ends its request soon after."""

    async def send(request: Request) -> Response:
        stop = Event()
        response: Response = await on_thread(stop, partial(transport, {**request, "cancelled": stop.is_set}))
        if hasattr(response["body"], "__next__"):
            return {**response, "body": awaited(response["body"], stop)}
        return response

    return send


async def on_thread(stop: Event, function: Any) -> Any:
    """What ``function`` returns, on a thread; if the waiting task is cancelled, ``stop`` is set."""
    future = asyncio.get_running_loop().run_in_executor(executor(), function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        future.add_done_callback(dispose)
        raise


def dispose(future: asyncio.Future[Any]) -> None:
    """Close what arrived for a call that nobody waits for."""
    if not future.cancelled() and future.exception() is None and isinstance(future.result(), dict):
        close(future.result().get("body"))


async def awaited(body: Iterator[bytes], stop: Event) -> AsyncGenerator[bytes, float | None]:
    """The chunks of a blocking body, each awaited; sent a number of seconds, it hands them on."""
    seconds: float | None = None
    try:
        while True:
            step = partial(next, body, ENDED) if seconds is None else partial(advance, body, seconds)
            chunk = await on_thread(stop, step)
            if chunk is ENDED:
                return
            seconds = yield chunk
    finally:
        stop.set()
        if not getattr(body, "gi_running", False):
            close(body)


def advance(body: Any, seconds: float) -> Any:
    try:
        return body.send(seconds) if hasattr(body, "send") else next(body)
    except StopIteration:
        return ENDED
