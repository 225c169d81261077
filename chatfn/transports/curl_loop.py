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
from typing import Any
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
READ, WRITE = select.EPOLLIN, select.EPOLLOUT
MASKS = {pycurl.POLL_IN: READ, pycurl.POLL_OUT: WRITE, pycurl.POLL_INOUT: READ | WRITE}


class Shard:
    """A multi handle of libcurl, and when it wants to be called."""

    __slots__ = ("__weakref__", "due", "handles", "loop", "multi", "running")

    def __init__(self, loop: Loop) -> None:
        self.loop, self.due, self.handles, self.running = loop, math.inf, 0, 0
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_SOCKETFUNCTION, self.watch)
        self.multi.setopt(pycurl.M_TIMERFUNCTION, self.call_at)
        self.multi.setopt(pycurl.M_MAXCONNECTS, 2 * CROWD)
        self.multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)

    def call_at(self, milliseconds: int) -> None:
        self.due = math.inf if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def watch(self, what: int, fd: int, multi: Any, data: Any) -> None:
        """libcurl's word on what a socket waits for.  One that waits for nothing is kept for its next request."""
        watched = self.loop.watched
        if what == pycurl.POLL_REMOVE:
            if fd in watched:
                watched[fd] = (None, watched[fd][1])
            return
        mask = MASKS[what]
        if watched.get(fd, (None, 0))[1]:
            try:
                if watched[fd] != (self, mask):
                    self.loop.poller.modify(fd, mask)
                watched[fd] = (self, mask)
                return
            except OSError:  # it is another socket of that number
                pass
        self.loop.poller.register(fd, mask)
        watched[fd] = (self, mask)


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
        self.watched: dict[int, tuple[Shard | None, int]] = {}
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
        way = way_of(request)
        idle = self.idle.get(way)
        exchange = idle.pop() if idle else self.new_exchange(way)
        exchange.begin(request, done, opened)
        self.active.add(exchange)
        exchange.shard.multi.add_handle(exchange.curl)
        exchange.shard.running += 1
        if exchange.until < self.soonest:
            self.soonest = exchange.until
        if self.look == math.inf and "cancelled" in request:
            self.look = 0.0
        return exchange

    def new_exchange(self, way: Way) -> Exchange:
        if not self.shards or self.shards[-1].handles >= CROWD:
            make_room(self.bell)
            self.shards.append(Shard(self))
        shard = self.shards[-1]
        shard.handles += 1
        curl = new_handle(way, self.http)
        curl.setopt(pycurl.SOCKOPTFUNCTION, self.opening)
        return Exchange(curl, way, shard)

    def opening(self, fd: int, purpose: int) -> int:
        """A new socket: whatever had its number before is gone."""
        self.watched.pop(fd, None)
        return 0

    def work(self, seconds: float | None) -> None:
        """Carry what is in flight until something is done, a call comes from another thread, or the time is over."""
        now = time.monotonic()
        end = math.inf if seconds is None else now + seconds
        finished = self.finished
        while True:
            soonest = min(end, self.soonest, self.look)
            for shard in self.shards:
                if shard.due <= now:
                    shard.due = math.inf
                    self.act(shard, pycurl.SOCKET_TIMEOUT, 0)
                if shard.due < soonest:
                    soonest = shard.due
            pause = 0.0 if self.finished != finished or self.calls else max(0.0, soonest - time.monotonic())
            for fd, events in self.poller.poll(min(pause, 3_600.0)):
                self.happened(fd, events)
            now = time.monotonic()
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
        return min(self.soonest, self.look, *(shard.due for shard in self.shards))

    def happened(self, fd: int, events: int) -> None:
        shard = self.watched.get(fd, (None, 0))[0]
        if shard is not None:
            self.act(shard, fd, (events & READ and 1) | (events & WRITE and 2) | (events & ~(READ | WRITE) and 4))
        elif fd == self.bell.fileno():
            self.rung = True
            with suppress(BlockingIOError):
                self.bell.recv(4_096)
        else:  # an idle connection has something to say, as a rule that it is closed; libcurl looks before it is used
            self.watched.pop(fd, None)
            with suppress(OSError):
                self.poller.unregister(fd)

    def act(self, shard: Shard, fd: int, mask: int) -> None:
        _, running = shard.multi.socket_action(fd, mask)
        if running < shard.running:
            _, good, failed = shard.multi.info_read()
            for curl, code, words in [*((curl, 0, "") for curl in good), *failed]:
                if not self.closed:
                    self.finish(curl.exchange, code, words)

    def finish(self, exchange: Exchange, code: int, words: str, exc: Exception | None = None) -> None:
        """A transfer is over: by its end, by libcurl's ``code``, or because of ``exc``."""
        response = exchange.outcome(code, words, exc)
        self.release(exchange)
        self.finished += 1
        exchange.done(response, None)

    def release(self, exchange: Exchange) -> None:
        """Take a handle back.  A transfer that is not over ends here, and its connection with it."""
        if self.closed or self.forgotten:
            return
        exchange.shard.multi.remove_handle(exchange.curl)
        exchange.shard.running -= 1
        self.active.discard(exchange)
        self.idle.setdefault(exchange.way, []).append(exchange)

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


def make_room(sock: socket.socket) -> None:
    """Raise this process's own limit of open files, as far as it may, if it leaves little room for more."""
    if resource is None:
        return
    with suppress(OSError, ValueError):
        next_fd = os.dup(sock.fileno())
        os.close(next_fd)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and next_fd + 4 * CROWD > soft:
            most = 1_048_576 if hard == resource.RLIM_INFINITY else hard
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2 * soft), hard))
