"""HTTP/1.1 over aiohttp's connections, as strict as ``connection`` is over those of urllib3.

aiohttp gives a connection back as soon as its parser has seen the end of a body.  What comes after that end, in the
same packet or while the connection is idle, would be read as the beginning of the next answer; a break hides what had
arrived before it; a body whose chunks are malformed is never told.  Here a connection on which anything unexpected
arrived is closed, the head of an answer is bounded as a whole, and a body always learns how it ended.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from aiohttp import TCPConnector, ThreadedResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from urllib3.util.wait import wait_for_read

from chatfn.transports.connection import KEEPALIVE
from chatfn.transports.timed_socket import Attempt, HeadTooLarge

HEAD_END = re.compile(rb"\r?\n\r?\n")
IDLE = 600.0  # seconds that a connection may wait for its next request


class Scoped(Attempt):
    """An attempt whose time to the answer's head is a timeout of the event loop's."""

    __slots__ = ("scope",)

    scope: asyncio.Timeout | None


CURRENT: ContextVar[Scoped | None] = ContextVar("CURRENT", default=None)  # aiohttp has no place to hand it through


def loop_time(until: float) -> float | None:
    """A time of the monotonic clock on that of the running event loop; None for never."""
    left = until - time.monotonic()
    return asyncio.get_running_loop().time() + left if left < 1e6 else None


class Exchange(ResponseHandler):
    """A connection: each request on it is one ``Scoped`` attempt."""

    attempt: Scoped | None = None  # none while a proxy is asked for a tunnel
    requests = 0
    answer: Any = None  # aiohttp's parsed head, and the reader of its body

    def begin(self, attempt: Scoped) -> None:
        """The connection is about to carry a request."""
        attempt.reused = self.requests > 0
        attempt.unsent = True
        self.attempt = attempt
        self.requests += 1
        self.head = bytearray()
        self.head_left = attempt.head
        self.answer = None
        self.wire = 0  # bytes after the head
        self.end = b""  # the last four of them
        self.touch()

    def touch(self) -> None:
        """Something moved: from now on silence counts."""
        attempt = self.attempt
        if attempt is not None and attempt.scope is not None and not attempt.scope.expired():
            attempt.scope.reschedule(loop_time(min(attempt.until, time.monotonic() + attempt.silence)))

    def stale(self) -> bool:
        """Whether an idle connection is closed, or has something to say."""
        transport = self.transport
        sock = None if transport is None else transport.get_extra_info("socket")
        return self.should_close or sock is None or sock.fileno() < 0 or wait_for_read(sock, 0)

    def whole(self) -> bool:
        return self.answer is not None and bool(self.answer[1].is_eof())

    def start_timeout(self) -> None:
        """aiohttp's word that the request is sent."""
        super().start_timeout()
        if self.attempt is not None:
            self.attempt.unsent = False
            self.attempt.begin_answer()
            self.touch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.touch()

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A head is parsed; of those before the answer itself (RFC 9110, 15.2) aiohttp takes no notice."""
        if self.answer is None and not (100 <= data[0].code < 200 and data[0].code != 101):
            self.answer = data
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if self.attempt is None:
            super().data_received(data)
        elif data and self.whole():
            self.close()
        else:
            self.attempt.received += len(data)
            rest = self.head_received(data) if self.answer is None else data
            if rest or not data:
                self.wire += len(rest)
                self.end = (self.end + rest[-4:])[-4:]
                super().data_received(rest)
            self.settle()

    def head_received(self, data: bytes) -> bytes:
        """Parse heads until the answer's own is whole; what is left of ``data`` belongs to its body."""
        while data and self.answer is None and self.exception() is None:
            known = len(self.head)
            self.head += data
            found = HEAD_END.search(self.head, max(0, known - 3))
            cut = len(data) if found is None else found.end() - known
            self.head_left -= cut
            if self.head_left < 0:
                self.set_exception(HeadTooLarge())
                if self.transport is not None:
                    self.transport.abort()
                return b""
            if found is not None:
                self.head.clear()
            super().data_received(data[:cut])
            data = data[cut:]
        return data

    def settle(self) -> None:
        """Tell the body if its transfer is broken; close the connection if more came than its answer."""
        if self.answer is None:
            return
        message, body = self.answer
        broken = self.exception()
        if broken is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(broken)
        if body.is_eof() and (self.end != b"\r\n\r\n" if message.chunked else self.wire > body.total_bytes):
            self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """A body without a length ends with its connection, but not with one that breaks."""
        if exc is not None and self.answer is not None and not self.whole():
            self.answer[1].set_exception(exc)
        super().connection_lost(exc)

    def close(self) -> None:
        """Close at once: a transport's own ``close`` waits until everything is sent, and for TLS's farewell."""
        transport = self.transport
        super().close()
        if transport is not None:
            transport.abort()


def new_socket(address: Any) -> socket.socket:
    """A socket that notices a peer which is gone without a word."""
    family, kind, proto, _, _ = address
    sock = socket.socket(family, kind, proto)
    for option in KEEPALIVE:
        sock.setsockopt(*option)
    return sock


class Connector(TCPConnector):
    """A pool of ``Exchange``s; as many connections as there are calls."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE, resolver=ThreadedResolver(), socket_factory=new_socket)
        self._factory = self.exchange  # type: ignore[assignment]  # a function of no arguments, as aiohttp's partial
        self.exchanges: WeakSet[Exchange] = WeakSet()

    def exchange(self) -> Exchange:
        made = Exchange(self._loop)
        self.exchanges.add(made)
        return made

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Connection:
        """A connection for a request: a new one, or one that is still fresh."""
        attempt = CURRENT.get()
        while True:
            connection = await super().connect(req, traces, timeout)
            exchange = connection.protocol
            if isinstance(exchange, Exchange) and attempt is not None:
                if exchange.requests and exchange.stale():
                    connection.close()
                    continue
                exchange.begin(attempt)
            return connection

    def shut(self) -> None:
        """Close every connection, if there is an event loop to do it on."""
        if not self._loop.is_closed():
            for exchange in list(self.exchanges):
                exchange.close()

    def __del__(self, _warnings: Any = None) -> None:
        """Quiet: whoever closes an event loop need not know of this pool."""
