"""The transport of many: libcurl, whose multi interface carries any number of requests on one thread.

A blocking call borrows a loop of its own and works on it until its answer is there: no thread, no hand-over.  Awaited
calls share one loop that hangs on their event loop's.  A map's engine has one by ``driver``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from chatfn.spec import Request, Response
from chatfn.transports import CallDone, Done, Driver
from chatfn.transports.curl_loop import Loop
from chatfn.transports.curl_settings import HTTP
from chatfn.transports.curl_streams import Stream, read

IDLE: dict[str, list[Loop]] = {http: [] for http in HTTP}  # loops that nobody uses, the last one used at the end
if hasattr(os, "register_at_fork"):
    for idle in IDLE.values():
        os.register_at_fork(after_in_child=idle.clear)


def configured(http: str = "2") -> Any:
    """The transport with settings.

    ``http``: ``"2"`` where a server offers it over TLS, ``"1.1"`` alone, or ``"2-prior-knowledge"``.
    """
    if http not in HTTP:
        raise ValueError(f"the setting 'http' of the transport 'curl' is {http!r}; give one of {', '.join(HTTP)}")

    def curl(request: Request) -> Response:
        """The response of the server, its body whole or, of a stream, as it arrives; whatever fails is its
        ``error``."""
        try:
            loop = IDLE[http].pop()  # which has the freshest connections
        except IndexError:
            loop = Loop(http)
        try:
            exchange = loop.send(request, None, partial(Stream, loop) if request["stream"] else None)
            while exchange.response is None and exchange.stream is None:
                loop.work(None)
        except BaseException:
            loop.close()
            raise
        if exchange.response is None:
            return streamed(exchange.stream, partial(give_back, loop))
        response, exchange.response = exchange.response, None
        give_back(loop)
        return response

    async def awaited(request: Request) -> Response:
        """The same, awaited."""
        from chatfn.transports.curl_async import asend

        return await asend(request, http, curl)

    transport: Any = curl
    transport.awaited = awaited
    transport.driver = partial(driver, http)
    transport.configured = configured
    return transport


def streamed(stream: Stream, leave: Callable[[], object]) -> Response:
    """The response map of a stream that has begun."""
    body = read(stream, leave)
    next(body)  # from here on close() ends the transfer, also before the first byte is taken
    return {"status": stream.status, "headers": stream.head or {}, "body": body}


def give_back(loop: Loop) -> None:
    if not loop.closed and not loop.forgotten:
        IDLE[loop.http].append(loop)


def driver(http: str = "2") -> Driver:
    """What carries the requests of a map, on the thread that calls its ``wait``; a stream is whole when it is given."""
    loop = Loop(http, wakeable=True)

    def begin(request: Request, done: Done) -> None:
        try:
            loop.send(request, done)
        except Exception as exc:
            loop.calls.append(partial(done, None, exc))

    def call(function: Callable[[], Any], done: CallDone) -> None:
        from chatfn.transports.threads import executor

        def run() -> None:
            try:
                answer = partial(done, function(), None)
            except Exception as exc:
                answer = partial(done, None, exc)
            except BaseException as exc:  # of a caller's own function: its row must not get lost
                answer = partial(done, None, RuntimeError(f"{type(exc).__name__}: {exc}"))
            loop.calls.append(answer)
            loop.wake()

        executor().submit(run)

    return Driver(begin, call, loop.work, loop.wake, monotonic, loop.close)


curl = configured()
