"""Sockets that know when their request must be over.

requests and urllib3 bound each read, never the whole: a server that sends a byte now and then holds a caller for ever.
These sockets, under urllib3's connections, bound every read and write by what is left of the attempt, count what
arrives, and can be told to stop from another thread.  They need no thread or signal of their own.
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Callable
from errno import EAGAIN
from typing import Any

SLICE = 0.25  # seconds between two looks at whether another thread has cancelled
WRITE = 262_144


class Attempt:
    """The bounds of one attempt, and what its socket saw of it.  Times are of the monotonic clock."""

    __slots__ = (
        "cancelled", "connect", "head", "received", "reused", "silence", "surplus", "unsent", "until", "whole"
    )  # fmt: skip

    def __init__(
        self,
        until: float,
        silence: float,
        whole: float,
        connect: float,
        head: int,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.until, self.silence, self.whole = until, silence, whole
        self.connect, self.head, self.cancelled = connect, head, cancelled
        self.received = 0
        self.reused = self.unsent = self.surplus = False

    def begin_answer(self) -> None:
        """The request is sent: from here on the answer has its time in all."""
        self.until = min(self.until, time.monotonic() + self.whole)

    def begin_stream(self, due: float) -> None:
        """The head is there: from here on each read has its silence, and all of them end with the call."""
        self.until = due


class Expired(TimeoutError):
    """The attempt is over; why is said by the transport, which knows its bounds."""


class Cancelled(TimeoutError):
    """Another thread has ended the call."""


class HeadTooLarge(OSError):
    """More bytes of headers than allowed."""


NO_ATTEMPT = Attempt(math.inf, 60.0, 60.0, 60.0, 2**62)


class Timed:
    """Mixed into a socket class: reads and writes within ``attempt``."""

    attempt = NO_ATTEMPT
    peeking = False
    held: list[bytes] | None = None
    requests = 0

    def recv_into(self, *args: Any) -> int:
        attempt = self.attempt
        if self.peeking:
            raise BlockingIOError(EAGAIN, "nothing more is read here")
        count: int = self.within(attempt, super().recv_into, *args)  # type: ignore[misc]  # of the socket class beside it
        attempt.received += count
        return count

    def recv(self, *args: Any) -> bytes:
        data: bytes = self.within(self.attempt, super().recv, *args)  # type: ignore[misc]  # as above
        return data

    def sendall(self, data: Any, *args: Any) -> None:
        if self.held is None:
            self.send_all(data)
        else:
            self.held.append(bytes(data))

    def send_held(self) -> None:
        """Send the head and the body of a request that were held, in one piece."""
        held, self.held = b"".join(self.held or ()), None
        self.send_all(held)

    def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        sent = 0
        self.attempt.unsent = True
        while sent < len(view):
            sent += self.within(self.attempt, super().send, view[sent : sent + WRITE])  # type: ignore[misc]  # as above
        self.attempt.unsent = False

    def within(self, attempt: Attempt, operation: Callable[..., Any], *args: Any) -> Any:
        silent_at = math.inf
        while True:
            now = time.monotonic()
            silent_at = min(silent_at, now + attempt.silence)
            left = min(attempt.until, silent_at) - now
            if left <= 0:
                raise Expired
            if attempt.cancelled is not None:
                if attempt.cancelled():
                    raise Cancelled
                left = min(left, SLICE)
            self.settimeout(min(left, 1e6))  # type: ignore[attr-defined]  # of the socket class beside it
            try:
                return operation(*args)
            except TimeoutError:
                continue


class TimedSocket(Timed, socket.socket):
    """A plain socket within an attempt."""


class TimedSSLSocket(Timed, ssl.SSLSocket):
    """A TLS socket within an attempt; ``SSLContext.sslsocket_class``."""


def timed(sock: socket.socket) -> TimedSocket:
    """The same connection as a ``TimedSocket``."""
    return TimedSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
