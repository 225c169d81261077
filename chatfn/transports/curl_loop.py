"""libcurl's multi interface on one thread: any number of requests in flight, and no thread for any of them.

A loop waits in one ``epoll`` for all its sockets.  libcurl looks for a free connection one by one, so that each of its
multi handles is given no more than ``CROWD`` requests; a loop has as many of them as it needs.
"""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pycurl

from chatfn.spec import Request, Response
from chatfn.transports import Done
from chatfn.transports.curl_exchange import Exchange
from chatfn.transports.curl_outcome import outcome, trusted
from chatfn.transports.curl_poller import READ, WRITE
from chatfn.transports.curl_process import LOOPS, make_room
from chatfn.transports.curl_settings import Way, found_way, new_handle, way_of
from chatfn.transports.curl_shard import CROWD, Shard
from chatfn.transports.curl_sockets import Sockets, sever
from chatfn.transports.timed_socket import SLICE, Cancelled

ROOM = 4  # crowds more than there are, for which files may be open
LONGEST = 3_600.0  # seconds


class Loop:
    """Requests in flight, for the one thread that calls ``work``."""

    def __init__(self, http: str = "2", wakeable: bool = False) -> None:
        self.http = http
        self.sockets = Sockets()
        self.counted: set[str] = set()  # URLs whose answers came with their length
        self.waiting: list[Exchange] = []  # those that are to begin
        self.shards: list[Shard] = []
        self.exchanges: dict[Any, Exchange] = {}  # by libcurl's handle
        self.idle: dict[Way, list[Exchange]] = {}
        self.active: set[Exchange] = set()
        self.multiplexes = http != "1.1"
        self.soonest = self.look = math.inf
        self.rung = self.closed = self.forgotten = False
        self.finished = 0  # how much was done: whoever waits for something looks again when it moves
        self.calls: deque[Callable[[], object]] = deque()  # from other threads
        self.bells: tuple[socket.socket, ...] = socket.socketpair() if wakeable else ()  # the second rings the first
        for bell in self.bells:
            bell.setblocking(False)
        if self.bells:
            self.sockets.poller.register(self.bells[0].fileno(), READ)
        LOOPS.add(self)

    def send(self, request: Request, done: Done | None = None, opened: Any = None) -> Exchange:
        """Begin to send a request.

        Inside ``work``, ``done`` is called with its response map; without it the exchange has that as its ``response``.
        """
        if "proxies" in request or "cert" in request:
            way, origin = way_of(request)
        else:
            way, origin = found_way(request["url"], (), request.get("verify", True), ())
        idle = self.idle.get(way)
        exchange = idle.pop() if idle else self.new_exchange(way)
        try:
            exchange.begin(request, origin, done, opened)
        except BaseException:
            self.idle[way].append(exchange)
            raise
        self.active.add(exchange)
        self.waiting.append(exchange)
        if exchange.until < self.soonest:
            self.soonest = exchange.until
        if self.look == math.inf and (self.multiplexes or "cancelled" in request):
            self.look = exchange.until - exchange.within + SLICE
        return exchange

    def new_exchange(self, way: Way) -> Exchange:
        self.idle.setdefault(way, [])
        if not self.shards or self.shards[-1].handles >= CROWD:
            make_room(CROWD * (len(self.shards) + ROOM))
            self.shards.append(Shard(self.sockets))
        shard = self.shards[-1]
        shard.handles += 1
        exchange = Exchange(new_handle(way, self.http), way, shard, self)
        self.exchanges[exchange.curl] = exchange
        return exchange

    def work(self, seconds: float | None) -> None:
        """Carry what is in flight until something is done, a call comes from another thread, or the time is over."""
        now = time.monotonic()
        end = math.inf if seconds is None else now + seconds
        finished, used, happened = self.finished, self.sockets.used, []
        while True:
            left = 0.0 if self.waiting or self.calls else min(end, self.due(now)) - now
            for fd, events in self.sockets.poller.poll(min(left, LONGEST) if left > 0 else 0.0):
                if fd in used:
                    happened.append((used[fd], fd, pycurl.CSELECT_IN if events == READ else action_of(events)))
                else:
                    self.aside(fd)
            if self.waiting:
                self.start()
            now = time.monotonic()
            for shard in self.shards:
                if shard.asked:
                    shard.heed(now)
                if shard.due <= now:
                    shard.due = math.inf
                    happened.append((shard, pycurl.SOCKET_TIMEOUT, 0))
            if happened:
                self.act(happened)
                happened.clear()
            if now >= self.soonest or now >= self.look:
                self.scan(now)
            if self.rung or self.calls:
                return self.take_calls()
            if self.finished != finished or now >= end or self.closed:
                return None

    def aside(self, fd: int) -> None:
        """A socket that no transfer uses has something to say."""
        if self.bells and fd == self.bells[0].fileno():
            self.rung = True
            with suppress(BlockingIOError):
                self.bells[0].recv(4_096)
        elif any(exchange.holds(fd) for exchange in self.active):
            self.sockets.mute(fd)
        else:
            self.sockets.leave(fd)

    def take_calls(self) -> None:
        self.rung = False
        while self.calls:
            self.calls.popleft()()

    def act(self, happened: list[tuple[Shard, int, int]]) -> None:
        """Let libcurl do what can be done, and finish the transfers that end by it."""
        for shard, fd, action in happened:
            if self.closed:
                return
            _, running = shard.multi.socket_action(fd, action)
            if running < shard.running:
                ended: Any = shard.multi.info_read()
                for curl in ended[1]:
                    self.finish(self.exchanges[curl])
                for curl, code, words in ended[2]:
                    self.finish(self.exchanges[curl], code, words)

    def start(self) -> None:
        """Begin what waits to begin, on connections that nothing is known against."""
        waiting, self.waiting = self.waiting, []
        for exchange in waiting:
            shard = exchange.shard
            if shard.stale or exchange.fresh:
                exchange.avoid(shard.stale.get(exchange.origin, 0.0) > time.monotonic())
            exchange.started = True
            shard.running += 1
            shard.multi.add_handle(exchange.curl)

    def due(self, now: float) -> float:
        """When ``work`` is to be called if nothing happens."""
        if self.waiting:
            return 0.0
        due = min(self.soonest, self.look)
        for shard in self.shards:
            if shard.asked:
                shard.heed(now)
            if shard.due < due:
                due = shard.due
        return due

    def finish(self, exchange: Exchange, code: int = 0, words: str = "", exc: Exception | None = None) -> None:
        """A transfer is over: by its end, by libcurl's ``code``, or because of ``exc``."""
        if self.closed:
            return
        if exchange.plain and code == 0 and exc is None:
            response: Response = {
                "status": exchange.status,
                "headers": exchange.head or {},
                "body": b"".join(exchange.pieces),
            }
        else:
            response = outcome(exchange, code, words, exc)
            if exc is None and code == 0 and not trusted(exchange):
                self.part(exchange)
        self.release(exchange)
        self.finished += 1
        if exchange.done is not None:
            exchange.done(response, None)
        elif exchange.stream is not None:
            exchange.stream.end(response.get("error"))
        else:
            exchange.response = response

    def part(self, exchange: Exchange) -> None:
        """End the connection of a finished transfer, which libcurl has kept; not one of HTTP/2, which others share."""
        fd = exchange.curl.getinfo(pycurl.ACTIVESOCKET)
        if fd >= 0 and exchange.curl.getinfo(pycurl.INFO_HTTP_VERSION) < pycurl.CURL_HTTP_VERSION_2_0:
            sever(fd)
            exchange.shard.distrust(exchange.origin)

    def release(self, exchange: Exchange) -> None:
        """Take a handle back.  A transfer that is not over ends here, and its connection with it."""
        if self.closed or self.forgotten:
            return
        if exchange.started:
            try:
                exchange.shard.multi.remove_handle(exchange.curl)
            except pycurl.error:  # it was collected before: at the end of the interpreter
                return
            exchange.shard.running -= 1
        else:
            self.waiting.remove(exchange)
        exchange.pieces.clear()
        self.active.discard(exchange)
        self.idle[exchange.way].append(exchange)

    def scan(self, now: float) -> None:
        """End what is out of time, or cancelled, and have libcurl look at the sockets that streams share: when their
        session breaks it forgets those that wait."""
        self.soonest = self.look = math.inf
        for exchange in tuple(self.active):
            if exchange not in self.active:  # ended by what another one's ``done`` did
                continue
            cancelled = exchange.request.get("cancelled")
            exc: Exception | None = None
            if cancelled is not None:
                self.look = now + SLICE
                exc = Cancelled() if cancelled() else None
            if exc is None and exchange.until <= now:
                exc = exchange.expire(now)
            if exc is not None:
                self.finish(exchange, 0, "", exc)
            elif exchange.until < self.soonest:
                self.soonest = exchange.until
        if self.multiplexes and self.active:
            self.look = now + SLICE
            self.act(self.sockets.shared())

    def wake(self) -> None:
        """Make ``work`` return, from any thread."""
        with suppress(OSError):  # it is full, and will ring anyway, or closed
            self.bells[1].send(b"\0")

    def close(self) -> None:
        """End what is in flight, and close all connections."""
        if self.closed:
            return
        self.closed = True
        if not self.forgotten:
            for shard in self.shards:
                shard.multi.close()
            for curl in self.exchanges:
                curl.close()
        for kept in (self.active, self.idle, self.shards, self.waiting):
            kept.clear()
        self.sockets.close()
        for bell in self.bells:
            bell.close()


def action_of(events: int) -> int:
    """What ``epoll`` says of a socket, in libcurl's terms."""
    return (
        (events & READ and pycurl.CSELECT_IN)
        | (events & WRITE and pycurl.CSELECT_OUT)
        | (events & ~(READ | WRITE) and pycurl.CSELECT_ERR)
    )
