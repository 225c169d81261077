"""Bodies of streams: read by the thread that carries them, or awaited on its event loop."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from typing import Any

import pycurl

from chatfn.errors import ChatError
from chatfn.spec import Error, Request
from chatfn.transports.curl_exchange import Exchange
from chatfn.transports.curl_loop import Loop
from chatfn.transports.requests import attempt_of, error_of
from chatfn.transports.timed_socket import SLICE, Cancelled, Expired

FULL = 262_144  # bytes that wait for their reader before the server has to


class Stream:
    """What has arrived of a stream, and is not read yet."""

    __slots__ = (
        "arrival", "ended", "error", "exchange", "head", "inflate", "loop", "paused", "pieces", "request", "resumed",
        "size", "status",
    )  # fmt: skip

    def __init__(
        self, loop: Loop, exchange: Exchange, arrival: Any = None, resumed: Callable[[], object] = bool
    ) -> None:
        self.loop, self.resumed = loop, resumed
        self.arrival = arrival  # an ``asyncio.Event`` or None: set when something has arrived
        self.exchange: Exchange | None = exchange
        self.request, self.inflate = exchange.request, exchange.inflate
        self.status, self.head = exchange.status, exchange.head
        self.pieces: list[bytes] = []
        self.size = 0
        self.ended = self.paused = False
        self.error: Error | None = None
        loop.finished += 1

    def put(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)
        self.loop.finished += 1
        if self.size >= FULL and not self.paused and self.exchange is not None:
            self.paused = True
            self.exchange.curl.pause(pycurl.PAUSE_RECV)
        if self.arrival is not None:
            self.arrival.set()

    def end(self, error: Error | None) -> None:
        self.ended, self.error, self.exchange = True, error, None
        if self.arrival is not None:
            self.arrival.set()

    def take(self) -> bytes:
        """All that has arrived; the server may go on."""
        data = b"".join(self.pieces)
        self.pieces.clear()
        self.size = 0
        if self.paused:
            self.loop.calls.append(self.resume)
            self.resumed()
        return data

    def resume(self) -> None:
        self.paused = False
        if self.exchange is not None:
            self.exchange.curl.pause(pycurl.PAUSE_CONT)

    def close(self) -> None:
        """End the transfer, if it is not over."""
        exchange, self.exchange = self.exchange, None
        self.ended = True
        if exchange is not None:
            self.loop.release(exchange)

    def broken(self, exc: Exception) -> Error:
        """The error map of what ended the reading."""
        return {**error_of(exc, self.request, attempt_of(self.request)), "status": self.status}


class Clock:
    """How long the next piece may take."""

    __slots__ = ("cancelled", "due", "silence", "until")

    def __init__(self, request: Request) -> None:
        self.due = self.until = request.get("due", math.inf)
        self.silence = request["timeout"][1]
        self.cancelled = request.get("cancelled")

    def left(self, silent_at: float) -> float:
        """Seconds to wait for at most; raises if there are none."""
        left = min(self.until, silent_at) - time.monotonic()
        if left <= 0:
            raise Expired
        if self.cancelled is None:
            return left
        if self.cancelled():
            raise Cancelled
        return min(left, SLICE)

    def shorten(self, seconds: float | None) -> None:
        if seconds is not None:
            self.until = min(self.until, time.monotonic() + seconds)


def read(stream: Stream, leave: Callable[[], object]) -> Generator[bytes, float | None, None]:
    """The decoded bytes as they arrive.  Sent a number of seconds, the rest has to come within them."""
    clock = Clock(stream.request)
    error: Error | None = None
    try:
        yield b""
        while True:
            silent_at = time.monotonic() + clock.silence
            left = clock.left(silent_at)
            while not stream.pieces and not stream.ended:
                stream.loop.work(left)
                left = clock.left(silent_at)
            ended, data = stream.ended, stream.take()
            for piece in stream.inflate(data, ended and stream.error is None):
                clock.shorten((yield piece))
            if ended:
                break
        error = stream.error
    except ChatError as exc:
        error = {**exc.error, "status": stream.status}
    except (Expired, Cancelled) as exc:
        error = stream.broken(exc)
    except GeneratorExit:
        raise
    except BaseException:  # Ctrl-C, wherever it came
        stream.loop.close()
        raise
    finally:
        stream.close()
        leave()
    if error is not None:
        raise ChatError(error)


async def aread(stream: Stream) -> AsyncGenerator[bytes, float | None]:
    """The same, awaited."""
    import asyncio  # here, for blocking streams do without

    clock = Clock(stream.request)
    error: Error | None = None
    try:
        yield b""
        while True:
            silent_at = time.monotonic() + clock.silence
            left = clock.left(silent_at)
            while not stream.pieces and not stream.ended:
                stream.arrival.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await stream.arrival.wait()
                left = clock.left(silent_at)
            ended, data = stream.ended, stream.take()
            for piece in stream.inflate(data, ended and stream.error is None):
                clock.shorten((yield piece))
            if ended:
                break
        error = stream.error
    except ChatError as exc:
        error = {**exc.error, "status": stream.status}
    except (Expired, Cancelled) as exc:
        error = stream.broken(exc)
    finally:
        stream.close()
    if error is not None:
        raise ChatError(error)
