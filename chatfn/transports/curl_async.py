"""libcurl on an event loop: a loop of ours hangs on each, as one file descriptor and one timer."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, cast

from chatfn.spec import Request, Response
from chatfn.transports.curl_loop import Loop
from chatfn.transports.curl_streams import Stream, aread
from chatfn.transports.threads import threaded

HUNG: dict[Any, Hung] = {}  # by event loop and the setting "http"


class Hung:
    """A ``Loop`` on an event loop, until that shuts down its generators or the process forgets it."""

    def __init__(self, key: Any) -> None:
        self.key, self.events = key, key[0]
        self.loop = Loop(key[1])
        self.timer: asyncio.TimerHandle | None = None
        self.soon = False
        try:
            self.events.add_reader(self.loop.sockets.poller.fileno(), self.pump)
        except NotImplementedError:
            self.loop.close()
            raise
        self.keeper = self.keep()
        with suppress(StopIteration):
            anext(self.keeper).__await__().send(None)

    def pump(self) -> None:
        """Do what can be done now, and come again when there is more."""
        self.soon = False
        self.loop.work(0)
        self.arm()

    def arm(self) -> None:
        now = time.monotonic()
        due = self.loop.due(now)
        when = self.events.time() + max(0.0, due - now) if due < math.inf else math.inf
        if self.timer is not None and (self.timer.when() > when or self.timer.when() <= self.events.time()):
            self.timer.cancel()
            self.timer = None
        if self.timer is None and when < math.inf:
            self.timer = self.events.call_at(when, self.pump)

    def kick(self) -> None:
        """Something new is to be done: soon, and once for all that comes in the meantime."""
        if not self.soon:
            self.soon = True
            self.events.call_soon(self.pump)

    async def keep(self) -> AsyncGenerator[None, None]:
        process = os.getpid()
        try:
            yield
        finally:
            HUNG.pop(self.key, None)
            if self.timer is not None:
                self.timer.cancel()
            if os.getpid() == process:
                if not self.events.is_closed():
                    self.events.remove_reader(self.loop.sockets.poller.fileno())
                self.loop.close()

    def finish(self) -> None:
        """End what holds the loop, which waits for nothing."""
        with suppress(StopIteration, RuntimeError):  # RuntimeError: its event loop is just closing it
            self.keeper.aclose().__await__().send(None)


def hung_on(events: Any, http: str) -> Hung:
    key = (events, http)
    found = HUNG.get(key)
    if found is None:
        for other in [hung for hung in HUNG.values() if hung.events.is_closed()]:
            other.finish()
        found = HUNG[key] = Hung(key)
    return found


def forget() -> None:
    """Start anew: an event loop is its process's own."""
    found = list(HUNG.values())
    HUNG.clear()
    for hung in found:
        hung.finish()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


async def asend(request: Request, http: str, blocking: Any) -> Response:
    """The response of the server, its body whole or, of a stream, as it arrives; whatever fails is its ``error``."""
    events = asyncio.get_running_loop()
    try:
        hung = hung_on(events, http)
    except NotImplementedError:  # an event loop that watches no file descriptors
        return await threaded(blocking)(request)
    loop = hung.loop
    answer = events.create_future()
    streams: list[Stream] = []

    def done(response: Response | None, exc: Exception | None) -> None:
        if streams:
            streams[0].end(response and response.get("error"))
        elif not answer.done():
            answer.set_result(response)

    def opened(exchange: Any) -> Stream:
        streams.append(Stream(loop, exchange, asyncio.Event(), hung.kick))
        if not answer.done():
            answer.set_result(None)
        return streams[0]

    exchange = loop.send(request, done, opened)
    hung.kick()
    try:
        response = await answer
    except asyncio.CancelledError:
        if exchange.done is done and exchange in loop.active:
            loop.release(exchange)
            hung.kick()  # another may have waited for its place
        raise
    if response is not None:
        return cast(Response, response)
    body = aread(streams[0])
    await anext(body)  # from here on aclose() ends the transfer, also before the first byte is taken
    return {"status": streams[0].status, "headers": cast("dict[str, str]", streams[0].head), "body": body}
