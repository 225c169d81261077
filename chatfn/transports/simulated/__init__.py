"""A server that is not there: latencies, limits and faults as data, on a clock that no one waits for.

A map on this transport runs in the thread of who asks for its rows: the transport's ``driver`` moves a virtual clock
from one event to the next, so that hours take seconds, and the same rows, options and ``seed`` give the same run.
A single call is answered at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from threading import Lock
from typing import Any, cast

from chatfn.plain import without
from chatfn.spec import Handler, Request, Response
from chatfn.transports import CallDone, Done, Driver
from chatfn.transports.simulated.server import Event, Server, server_of
from chatfn.transports.simulated.settings import settings_of


def simulated(**settings: Any) -> Handler:
    """A transport that answers as a server with such ``settings`` would, on a virtual clock.

    - latency, token_latency: seconds until the first token, and of each; output_tokens: how many there are. Each is a
      number, ``{"median": 1.2, "p99": 8}`` (lognormal), ``{"uniform": [1, 2]}``, or a list of numbers.
    - limits: ``rpm``, ``tpm``; ``window``: "bucket" or "fixed", of ``period`` seconds; ``burst``: the part of a limit
      that a bucket holds; ``counted``: the tokens "used", or "asked" for; ``headers``, ``retry_after``: whether the
      server says them; ``punish``: whether refused requests count.
    - capacity: how many requests it bears at once; with more, each takes longer in proportion.
    - faults: maps with a ``rate`` and a ``status`` or a ``kind`` ("timeout", "unavailable", "cut", "broken", "crash");
      ``from``, ``until``: when, in virtual seconds; ``seconds`` until it shows; ``headers``, ``code``, ``message``;
      ``url``: a part of the URLs of the requests.
    - bytes_per_token: of the request's body.  seed: of all chance.

    Of the transport ``report()`` tells what has happened.  Raises ``ValueError`` and ``TypeError`` for settings.

    >>> transport = simulated(latency=2, output_tokens=5)
    >>> response = transport({"body": b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'})
    >>> response["status"], transport.report()["seconds"], transport.report()["tokens"]
    (200, 2.0, {'m': {'prompt': 16, 'completion': 5}})
    """
    server = server_of(settings_of(settings))
    lock = Lock()

    def send(request: Request) -> Response:
        """Answer at once; the clock moves by the seconds that it would have taken, and by those of a named wait."""
        with lock:
            ended = server.arrive(cast(Request, without(request, "due")))  # which is a time on another clock
            server.leave(ended.how)
            server.move(ended.at + float(ended.response["headers"].get("retry-after-ms", 0)) / 1_000)
        return ended.response

    transport: Any = send
    transport.driver, transport.inline, transport.report = partial(driver_of, server), True, server.report
    return cast(Handler, transport)


def driver_of(server: Server) -> Driver:
    """A driver on the clock of a server: only ``wait`` moves it, from one event to the next."""
    heap: list[Event] = []
    called: list[tuple[CallDone, Any, Exception | None]] = []
    numbers = count()
    now, move, arrive, leave = server.now, server.move, server.arrive, server.leave
    server.heaps.append(heap)

    def send(request: Request, done: Done) -> None:
        at, how, response = arrive(request)
        heappush(heap, (at, next(numbers), done, response, how))

    def call(function: Callable[[], Any], done: CallDone) -> None:
        try:
            called.append((done, function(), None))
        except Exception as exc:
            called.append((done, None, exc))

    def wait(seconds: float | None) -> None:
        until = inf if seconds is None else now() + seconds
        if called:
            while called:
                done, answer, problem = called.pop(0)
                done(answer, problem)
        elif heap and heap[0][0] <= until:
            move(heap[0][0])
            time = now()
            while heap and heap[0][0] <= time:
                _, _, done, response, how = heappop(heap)
                leave(how)
                done(response, None)
        elif seconds is not None:
            move(until)

    def close() -> None:
        server.drop(len(heap))
        heap.clear()
        server.heaps[:] = [other for other in server.heaps if other is not heap]

    return Driver(send, call, wait, wake=lambda: None, now=now, close=close)
