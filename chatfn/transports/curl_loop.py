"""libcurl's multi interface on one thread: any number of requests in flight, and no thread for any of them.

A loop waits in one ``epoll`` for all its sockets.  libcurl looks for a free connection one by one, so that each of its
multi handles is given no more than ``CROWD`` requests; a loop has as many of them as it needs.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from weakref import WeakSet

import pycurl

from chatfn.spec import Request
from chatfn.transports import Done
from chatfn.transports.curl_exchange import Exchange
from chatfn.transports.curl_settings import Way, new_handle, way_of
from chatfn.transports.timed_socket import SLICE, Cancelled

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]  # as in the standard library

CROWD = 64
PRUNED = 1.25  # seconds after which libcurl has noticed for certain that an idle connection is closed
LONGEST = 3_600.0
ROOM = 4  # crowds more than there are, for which files may be open
MOST_FILES = 1_048_576
READ, WRITE = select.EPOLLIN, select.EPOLLOUT
MASKS = {pycurl.POLL_IN: READ, pycurl.POLL_OUT: WRITE, pycurl.POLL_INOUT: READ | WRITE}


class Shard:
    """A multi handle of libcurl, and when it wants to be called."""

    __slots__ = ("__weakref__", "due", "handles", "loop", "multi", "running", "stale")

    def __init__(self, loop: Loop) -> None:
        self.loop, self.due, self.handles, self.running = loop, math.inf, 0, 0
        self.stale: dict[str, float] = {}  # origins to which an idle connection is not to be used, and until when
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_SOCKETFUNCTION, self.watch)
        self.multi.setopt(pycurl.M_TIMERFUNCTION, self.call_at)
        self.multi.setopt(pycurl.M_MAXCONNECTS, 2 * CROWD)
        self.multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)

    def distrust(self, origin: str) -> None:
        """One of the idle connections to an origin is of no more use, which libcurl is yet to see."""
        now = time.monotonic()
        self.stale = {known: until for known, until in self.stale.items() if until > now} | {origin: now + PRUNED}

    def call_at(self, milliseconds: int) -> None:
        self.due = math.inf if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def watch(self, what: int, fd: int, multi: Any, data: Any) -> None:
        """libcurl's word on what a socket waits for.  One that waits for nothing is kept for its next request."""
        loop = self.loop
        if what == pycurl.POLL_REMOVE:
            if fd in loop.watched:
                loop.rest(fd, self)
            return
        mask = MASKS[what]
        if fd in loop.watched:
            with suppress(OSError):  # it is another socket of that number
                loop.poller.modify(fd, mask)
                loop.watched[fd] = (self, mask, True)
                return
        loop.poller.register(fd, mask)
        loop.watched[fd] = (self, mask, True)


LOOPS: WeakSet[Loop] = WeakSet()


def forget_loops() -> None:
    """Leave what a forked process has of its parent's alone, for good: to end it would say farewell on the connections
    that the parent still uses."""
    for loop in LOOPS:
        loop.forgotten = True
        for kept in (loop, *(shard.multi for shard in loop.shards)):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_loops)


class Loop:
    """Requests in flight, for the one thread that calls ``work``."""

    def __init__(self, http: str = "2") -> None:
        self.http = http
        self.poller = select.epoll()
        self.watched: dict[int, tuple[Shard, int, bool]] = {}  # by socket: what for, and whether for a transfer
        self.counted: set[str] = set()  # URLs whose answers came with their length
        self.multiplexed: set[str] = set()  # origins that speak HTTP/2
        self.connections: dict[int, str] = {}  # those of the sockets that go to servers: to which origin
        self.waiting: list[Exchange] = []  # those that are to begin
        self.shards: list[Shard] = []
        self.idle: dict[Way, list[Exchange]] = {}
        self.active: set[Exchange] = set()
        self.soonest = self.look = math.inf
        self.rung = self.closed = self.forgotten = False
        self.finished = 0  # how much was done: whoever waits for something looks again when it moves
        self.calls: deque[Callable[[], object]] = deque()  # from other threads
        self.bell, self.button = socket.socketpair()
        self.bell.setblocking(False)
        self.button.setblocking(False)
        self.poller.register(self.bell.fileno(), READ)
        LOOPS.add(self)

    def send(self, request: Request, done: Done, opened: Any = None) -> Exchange:
        """Begin to send a request; ``done`` is called with its response map, inside ``work``."""
        way, origin = way_of(request)
        idle = self.idle.setdefault(way, [])
        exchange = idle.pop() if idle else self.new_exchange(way)
        exchange.origin = origin
        exchange.begin(request, done, opened)
        self.active.add(exchange)
        self.waiting.append(exchange)
        if exchange.until < self.soonest:
            self.soonest = exchange.until
        if self.look == math.inf and "cancelled" in request:
            self.look = 0.0
        return exchange

    def new_exchange(self, way: Way) -> Exchange:
        if not self.shards or self.shards[-1].handles >= CROWD:
            make_room(self.bell, CROWD * (len(self.shards) + ROOM))
            self.shards.append(Shard(self))
        shard = self.shards[-1]
        shard.handles += 1
        return Exchange(new_handle(way, self.http), way, shard)

    def connected(self, fd: int, origin: str) -> None:
        """A new socket: whatever had its number before is gone."""
        self.watched.pop(fd, None)
        self.connections[fd] = origin

    def rest(self, fd: int, shard: Shard) -> None:
        """A socket waits for nothing.  An idle connection is watched on: what it says is that it is of no more use."""
        _, mask, _ = self.watched[fd]
        with suppress(OSError):
            if fd not in self.connections:
                del self.watched[fd]
                self.poller.unregister(fd)
                return
            if mask != READ:
                self.poller.modify(fd, READ)
        self.watched[fd] = (shard, READ, False)

    def start(self) -> None:
        """Begin what waits to begin, on connections that nothing is known against."""
        now = time.monotonic()
        waiting, self.waiting = self.waiting, []
        for exchange in waiting:
            shard = exchange.shard
            fresh = bool(shard.stale) and shard.stale.get(exchange.origin, 0.0) > now
            if fresh is not exchange.fresh:
                exchange.fresh = fresh
                exchange.curl.setopt(pycurl.FRESH_CONNECT, int(fresh))
            exchange.started = True
            shard.running += 1
            shard.multi.add_handle(exchange.curl)

    def work(self, seconds: float | None) -> None:
        """Carry what is in flight until something is done, a call comes from another thread, or the time is over."""
        now = time.monotonic()
        end = math.inf if seconds is None else now + seconds
        finished = self.finished
        while True:
            pause = 0.0 if self.waiting or self.calls else min(max(0.0, min(end, self.due()) - now), LONGEST)
            happened = [(fd, events) for fd, events in self.poller.poll(pause) if not self.aside(fd)]
            if self.waiting:
                self.start()
            for fd, events in happened:
                if fd in self.watched:
                    mask = (events & READ and 1) | (events & WRITE and 2) | (events & ~(READ | WRITE) and 4)
                    self.act(self.watched[fd][0], fd, mask)
            now = time.monotonic()
            for shard in self.shards:
                if shard.due <= now:
                    shard.due = math.inf
                    self.act(shard, pycurl.SOCKET_TIMEOUT, 0)
            if now >= self.soonest or now >= self.look:
                self.scan(now)
            if self.rung or self.calls:
                self.rung = False
                while self.calls:
                    self.calls.popleft()()
                return
            if self.finished != finished or now >= end or self.closed:
                return

    def due(self) -> float:
        """When ``work`` is to be called if nothing happens."""
        if self.waiting:
            return 0.0
        due = min(self.soonest, self.look)
        for shard in self.shards:
            if shard.due < due:
                due = shard.due
        return due

    def aside(self, fd: int) -> bool:
        """Whether what happened is no matter of a transfer.

        An idle connection that has something to say is closed, or about to, or says what nobody asked for.  libcurl
        looks for that once a second; until it has done so, what begins there begins on a new connection.
        """
        shard, _, used = self.watched.get(fd, (None, 0, False))
        if used:
            return False
        if fd == self.bell.fileno():
            self.rung = True
            with suppress(BlockingIOError):
                self.bell.recv(4_096)
            return True
        if shard is not None and self.connections[fd] not in self.multiplexed:
            shard.distrust(self.connections[fd])
        self.watched.pop(fd, None)
        with suppress(OSError):
            self.poller.unregister(fd)
        return True

    def act(self, shard: Shard, fd: int, mask: int) -> None:
        _, running = shard.multi.socket_action(fd, mask)
        if running < shard.running:
            _, good, failed = shard.multi.info_read()
            for curl, code, words in [*((curl, 0, "") for curl in good), *failed]:
                if not self.closed:
                    self.finish(cast(Any, curl).exchange, code, words)

    def finish(self, exchange: Exchange, code: int, words: str, exc: Exception | None = None) -> None:
        """A transfer is over: by its end, by libcurl's ``code``, or because of ``exc``."""
        response = exchange.outcome(code, words, exc)
        if exc is None and code == 0 and not exchange.trusted():
            self.part(exchange)
        self.release(exchange)
        self.finished += 1
        exchange.done(response, None)

    def part(self, exchange: Exchange) -> None:
        """End the connection of a finished transfer, which libcurl has kept."""
        fd = exchange.curl.getinfo(pycurl.ACTIVESOCKET)
        if fd >= 0:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)
            exchange.shard.distrust(exchange.origin)

    def release(self, exchange: Exchange) -> None:
        """Take a handle back.  A transfer that is not over ends here, and its connection with it."""
        if self.closed or self.forgotten:
            return
        if exchange.started:
            exchange.shard.multi.remove_handle(exchange.curl)
            exchange.shard.running -= 1
        else:
            self.waiting.remove(exchange)
        self.active.discard(exchange)
        self.idle[exchange.way].append(exchange)

    def scan(self, now: float) -> None:
        """End what is out of time, or cancelled."""
        self.soonest = self.look = math.inf
        for exchange in tuple(self.active):
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

    def exhausted(self) -> bool:
        """Whether this process may open no more files, which libcurl does not tell."""
        try:
            os.close(os.dup(self.bell.fileno()))
        except OSError:
            return True
        return False

    def wake(self) -> None:
        """Make ``work`` return, from any thread."""
        with suppress(OSError):  # it is full, and will ring anyway, or closed
            self.button.send(b"\0")

    def close(self) -> None:
        """End what is in flight, and close all connections."""
        if self.closed:
            return
        self.closed = True
        if not self.forgotten:
            for shard in self.shards:
                shard.multi.close()
            for exchanges in (self.active, *self.idle.values()):
                for exchange in exchanges:
                    exchange.curl.close()
        self.active.clear()
        self.idle.clear()
        self.poller.close()
        self.bell.close()
        self.button.close()


def make_room(sock: socket.socket, more: int) -> None:
    """Raise this process's own limit of open files, as far as it may, if it leaves no room for so many more."""
    if resource is None:
        return
    with suppress(OSError, ValueError):
        next_fd = os.dup(sock.fileno())
        os.close(next_fd)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and next_fd + more > soft:
            most = MOST_FILES if hard == resource.RLIM_INFINITY else hard
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 2 * (next_fd + more))), hard))
