"""libcurl's multi interface on one thread: any number of requests in flight, and no thread for any of them.

A loop waits in one ``epoll`` for all its sockets.  libcurl looks for a free connection one by one, so that each of its
multi handles is given no more than ``CROWD`` requests; a loop has as many of them as it needs.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pycurl

from chatfn.spec import Request
from chatfn.transports import Done
from chatfn.transports.curl_exchange import Exchange
from chatfn.transports.curl_poller import READ, WRITE, new_poller
from chatfn.transports.curl_process import LOOPS, make_room
from chatfn.transports.curl_settings import Way, new_handle, way_of
from chatfn.transports.curl_shard import CROWD, Shard
from chatfn.transports.timed_socket import SLICE, Cancelled

ROOM = 4  # crowds more than there are, for which files may be open
LONGEST = 3_600.0  # seconds


class Loop:
    """Requests in flight, for the one thread that calls ``work``."""

    def __init__(self, http: str = "2", wakeable: bool = False) -> None:
        self.http = http
        self.poller = new_poller()
        self.watched: dict[int, tuple[Shard, int, bool]] = {}  # by socket: what for, and whether for a transfer
        self.counted: set[str] = set()  # URLs whose answers came with their length
        self.multiplexed: set[str] = set()  # origins that speak HTTP/2
        self.connections: dict[int, tuple[str, int]] = {}  # by socket to a server: its origin, and the socket's inode
        self.waiting: list[Exchange] = []  # those that are to begin
        self.shards: list[Shard] = []
        self.idle: dict[Way, list[Exchange]] = {}
        self.active: set[Exchange] = set()
        self.soonest = self.look = math.inf
        self.rung = self.closed = self.forgotten = False
        self.finished = 0  # how much was done: whoever waits for something looks again when it moves
        self.calls: deque[Callable[[], object]] = deque()  # from other threads
        self.bells: tuple[socket.socket, ...] = socket.socketpair() if wakeable else ()  # the second rings the first
        for bell in self.bells:
            bell.setblocking(False)
        if self.bells:
            self.poller.register(self.bells[0].fileno(), READ)
        LOOPS.add(self)

    def send(self, request: Request, done: Done, opened: Any = None) -> Exchange:
        """Begin to send a request; ``done`` is called with its response map, inside ``work``."""
        way, origin = way_of(request)
        idle = self.idle.setdefault(way, [])
        exchange = idle.pop() if idle else self.new_exchange(way)
        try:
            exchange.begin(request, origin, done, opened)
        except BaseException:
            idle.append(exchange)
            raise
        self.active.add(exchange)
        self.waiting.append(exchange)
        if exchange.until < self.soonest:
            self.soonest = exchange.until
        if self.look == math.inf and "cancelled" in request:
            self.look = 0.0
        return exchange

    def new_exchange(self, way: Way) -> Exchange:
        if not self.shards or self.shards[-1].handles >= CROWD:
            make_room(CROWD * (len(self.shards) + ROOM))
            self.shards.append(Shard(self))
        shard = self.shards[-1]
        shard.handles += 1
        return Exchange(new_handle(way, self.http), way, shard)

    def connected(self, fd: int, origin: str) -> None:
        """A new socket: whatever had its number before is gone."""
        self.watched.pop(fd, None)
        self.connections[fd] = (origin, os.fstat(fd).st_ino)

    def watch(self, shard: Shard, fd: int, mask: int) -> None:
        """A socket waits for something."""
        if fd not in self.watched or not self.modified(fd, mask):
            self.poller.register(fd, mask)
        self.watched[fd] = (shard, mask, True)

    def modified(self, fd: int, mask: int) -> bool:
        try:
            self.poller.modify(fd, mask)
        except OSError:  # it is another socket of that number
            return False
        return True

    def rest(self, shard: Shard, fd: int) -> None:
        """A socket waits for nothing.  It is watched on: what an idle connection says is that it is of no more use."""
        if self.watched[fd][1] == READ or self.modified(fd, READ):
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
                if fd in self.watched and not self.closed:
                    mask = (events & READ and 1) | (events & WRITE and 2) | (events & ~(READ | WRITE) and 4)
                    self.act(self.watched[fd][0], fd, mask)
            now = time.monotonic()
            for shard in self.shards:
                if shard.due <= now and not self.closed:
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
        if self.bells and fd == self.bells[0].fileno():
            self.rung = True
            with suppress(BlockingIOError):
                self.bells[0].recv(4_096)
            return True
        origin, _ = self.connections.get(fd, ("", 0))
        if shard is not None and origin and origin not in self.multiplexed:
            shard.distrust(origin)
        self.watched.pop(fd, None)
        with suppress(OSError):  # it is closed
            self.poller.unregister(fd)
        return True

    def act(self, shard: Shard, fd: int, mask: int) -> None:
        _, running = shard.multi.socket_action(fd, mask)
        if running < shard.running:
            _, good, failed = shard.multi.info_read()
            for curl in good:
                self.finish(cast(Any, curl).exchange)
            for curl, code, words in failed:
                self.finish(cast(Any, curl).exchange, code, words)

    def finish(self, exchange: Exchange, code: int = 0, words: str = "", exc: Exception | None = None) -> None:
        """A transfer is over: by its end, by libcurl's ``code``, or because of ``exc``."""
        if self.closed:
            return
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
            try:
                exchange.shard.multi.remove_handle(exchange.curl)
            except pycurl.error:  # it was collected before: at the end of the interpreter
                return
            exchange.shard.running -= 1
        else:
            self.waiting.remove(exchange)
        self.active.discard(exchange)
        self.idle[exchange.way].append(exchange)

    def scan(self, now: float) -> None:
        """End what is out of time, or cancelled."""
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
            for exchanges in (self.active, *self.idle.values()):
                for exchange in exchanges:
                    exchange.curl.close()
        for kept in (self.active, self.idle, self.watched, self.shards, self.waiting):
            kept.clear()
        self.poller.close()
        for bell in self.bells:
            bell.close()
