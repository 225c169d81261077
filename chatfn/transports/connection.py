"""HTTP/1.1 over urllib3's connections, as strict as an answer that was paid for deserves.

http.client takes a 103 for an answer, a length that is no number for none, and forgets bytes that come after a body.
Here interim answers are skipped (RFC 9110, 15.2), framing that is not plain is an error (RFC 9112, 6.3), and a
connection on which anything unexpected arrived is marked, so that it is closed and not used again.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from typing import Any, ClassVar, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from chatfn.transports.timed_socket import NO_ATTEMPT, Attempt, HeadTooLarge, Timed, timed

READ = 65_536
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[^\r\n]*)?\r?\n")
CUT_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{0,15}[ \t]*(;[^\r\n]*)?\r?")
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
        if hasattr(socket, name)
    ),
]


class Head:
    """The lines of a head, bounded in all, and none of them cut short."""

    def __init__(self, fp: Any, limit: int, begun: bool = False) -> None:
        self.fp, self.left, self.begun = fp, limit, begun
        self.close, self.flush, self.peek = fp.close, fp.flush, fp.peek

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self.fp.readline(size)
        self.left -= len(line)
        if self.left < 0:
            raise HeadTooLarge
        if not line.endswith(b"\n") and (line or self.begun) and len(line) != size:
            raise http.client.IncompleteRead(b"")
        self.begun = True
        return line


class Answer(http.client.HTTPResponse):
    """An answer as it comes: ``some`` gives the bytes of its body."""

    retries: Any = None  # these three are what urllib3's pool asks of a response
    version_string = "HTTP/1.1"
    length_remaining = None
    _pool: HTTPConnectionPool
    _connection: Any

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = sock.makefile("rb", READ)
        self.sock = sock
        self.attempt: Attempt = getattr(sock, "attempt", NO_ATTEMPT)

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 102 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)

    def begin(self) -> None:
        if self.headers is not None:
            return
        body, self.fp = self.fp, cast(Any, Head(self.fp, self.attempt.head))
        super().begin()
        self.fp = body
        coding = self.headers.get("transfer-encoding")
        lengths = {part.strip() for value in self.headers.get_all("content-length", []) for part in value.split(",")}
        if self.headers.defects:
            raise http.client.HTTPException("its headers are malformed")
        if coding is not None and not self.chunked:
            raise http.client.HTTPException("its transfer coding is unknown")
        if not self.chunked and (len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths)):
            raise http.client.HTTPException("its content-length is no number")
        if self.chunked and lengths:
            self.attempt.surplus = True  # both framings at once: read by the one, and never trusted again

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(4_096)
        found = CHUNK_SIZE.fullmatch(line)
        if found is None:
            self.close()
            if not line.endswith(b"\n") and CUT_CHUNK_SIZE.fullmatch(line):
                raise http.client.IncompleteRead(b"")
            raise http.client.HTTPException("its chunks are malformed")
        return int(found[1], 16)

    def _safe_read(self, amt: int) -> bytes:
        """What ``read1`` reads between two chunks: http.client does not look at it."""
        data: bytes = super()._safe_read(amt)  # type: ignore[misc]  # not in typeshed
        if data != b"\r\n":
            raise http.client.HTTPException("its chunks are malformed")
        return data

    def _read_and_discard_trailer(self) -> None:
        body, self.fp = self.fp, cast(Any, Head(self.fp, self.attempt.head, begun=True))
        super()._read_and_discard_trailer()  # type: ignore[misc]  # not in typeshed
        self.fp = body

    def _close_conn(self) -> None:
        self.note_surplus()
        super()._close_conn()  # type: ignore[misc]  # not in typeshed

    def buffered(self) -> bytes:
        """What is in the buffer, without a read from the socket; it stays there."""
        if self.fp is None or not isinstance(self.sock, Timed):
            return b""
        self.sock.peeking = True
        try:
            return self.fp.peek(1)
        finally:
            self.sock.peeking = False

    def note_surplus(self) -> None:
        """Mark the attempt if bytes beyond the body are in the buffer, which would be forgotten with it."""
        try:
            self.attempt.surplus |= bool(self.buffered())
        except OSError:
            self.attempt.surplus = True

    def buffered_chunks(self) -> bytes:
        """The data of the whole chunks that are in the buffer: a stream's events come one a chunk, many at once."""
        if self.chunk_left != 0:  # 0 is before the end of a chunk's line
            return b""
        data, at = self.buffered(), 2
        found = []
        while data.startswith(b"\r\n", at - 2):
            line = CHUNK_SIZE.match(data, at)
            size = int(line[1], 16) if line else 0
            end = line.end() + size if line and size else len(data)
            if line is None or not data.startswith(b"\r\n", end):
                break
            found.append(data[line.end() : end])
            at = end + 2
        if found:
            self.fp.read(at - 2)
        return b"".join(found)

    def some(self) -> bytes:
        """The next bytes of the body, as soon as there are any; none at its end.  Raises if the body is cut short."""
        if self.fp is None:
            return b""
        if self.chunked:
            return self.read1(READ) + self.buffered_chunks()
        data = self.fp.read1(READ if self.length is None else min(READ, self.length)) if self.length != 0 else b""
        if self.length is not None:
            if self.length and not data:
                raise http.client.IncompleteRead(b"", self.length)
            self.length -= len(data)
        if not data or self.length == 0:
            self._close_conn()
        return data


class Reused:
    """Mixed into urllib3's connections: each request on its socket is one ``Attempt``."""

    sock: Any
    timeout: Any
    attempt = NO_ATTEMPT
    default_socket_options: ClassVar[Any] = [*HTTPConnection.default_socket_options, *KEEPALIVE]
    response_class: Any = Answer

    def _new_conn(self) -> socket.socket:
        sock = timed(super()._new_conn())  # type: ignore[misc]  # of the connection class beside it
        sock.settimeout(self.timeout)
        sock.attempt = self.attempt
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]  # of the connection class beside it
        if isinstance(self.sock, Timed):
            self.sock.attempt = self.attempt
            self.attempt.reused = self.sock.requests > 0
            self.sock.held = []
        super().request(*args, **kwargs)  # type: ignore[misc]  # of the connection class beside it
        if isinstance(self.sock, Timed):
            self.sock.requests += 1
            self.sock.send_held()

    def getresponse(self) -> Any:
        self.attempt.begin_answer()
        return http.client.HTTPConnection.getresponse(self)  # type: ignore[arg-type]  # it is mixed into one

    @property
    def is_connected(self) -> bool:
        """Whether the socket is open and has nothing to say; a TLS socket may hold bytes that ``select`` can't see."""
        held = getattr(self.sock, "pending", int)()
        return held == 0 and super().is_connected  # type: ignore[misc]  # of the connection class beside it


class Connection(Reused, HTTPConnection):
    """A plain connection."""


class TLSConnection(Reused, HTTPSConnection):
    """A connection under TLS."""


class CurrentAttempt(threading.local):
    """The attempt that this thread is about to make; urllib3 has no place to hand it through."""

    attempt = NO_ATTEMPT


CURRENT = CurrentAttempt()


class Pooled:
    """Mixed into urllib3's pools: a connection learns of its attempt as it is taken."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]  # of the pool class beside it
        connection.attempt = CURRENT.attempt
        return connection


class Pool(Pooled, HTTPConnectionPool):
    """Plain connections."""

    ConnectionCls: Any = Connection


class TLSPool(Pooled, HTTPSConnectionPool):
    """Connections under TLS."""

    ConnectionCls: Any = TLSConnection


POOLS = {"http": Pool, "https": TLSPool}
