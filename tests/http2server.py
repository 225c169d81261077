"""A server that speaks HTTP/2 (RFC 9113) by a script, stream by stream.

Each request is answered by the next answer of the script (the last one again and again), as soon as its body has come
whole.  An answer is a list of steps, or a function of the request to one: bytes are sent as data, as flow control lets
them; a number is seconds to wait; and a function is called with the stream, and what it returns awaited if it can be.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pytest

pytest.importorskip("h2")

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

Steps = Sequence[Any]
Answer = Steps | Callable[[dict[str, Any]], Steps]
LOOSE = H2Configuration(
    client_side=False, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
)


class Server(NamedTuple):
    url: str  # with the path /v1
    requests: list[dict[str, Any]]  # method, path, headers (pairs), body, connection, stream
    connections: list[Connection]


class Stream:
    """A request that is answered by steps."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number, self.h2 = connection, number, connection.h2
        self.sent = 0  # bytes of data

    async def send(self, data: bytes) -> None:
        while data:
            size = min(len(data), self.h2.local_flow_control_window(self.number), self.h2.max_outbound_frame_size)
            if size > 0:
                self.h2.send_data(self.number, data[:size])
                self.connection.flush()
                self.sent, data = self.sent + size, data[size:]
            else:
                self.connection.moved.clear()
                await self.connection.moved.wait()

    async def play(self, steps: Steps) -> None:
        for step in steps:
            if isinstance(step, bytes):
                await self.send(step)
            elif callable(step):
                done = step(self)
                if isinstance(done, Awaitable):
                    await done
                self.connection.flush()
            else:
                await asyncio.sleep(step)


class Connection(asyncio.Protocol):
    """A client's connection: what it asked, and which of its streams are open."""

    def __init__(self, server: Server, turn: Callable[[], Answer], limit: int | None, refuses: bool) -> None:
        self.server, self.turn, self.limit, self.refuses = server, turn, limit, refuses
        self.h2 = H2Connection(LOOSE)
        self.moved = asyncio.Event()  # a window is wider
        self.asked: dict[int, dict[str, Any]] = {}
        self.playing: dict[int, asyncio.Task[None]] = {}
        self.resets: dict[int, int] = {}  # streams that the client reset, and its codes
        self.goodbye = self.violation = ""
        self.most = self.refused = 0  # streams at once, and refused
        self.open, self.number = False, -1

    def connection_made(self, transport: Any) -> None:
        self.transport, self.open, self.number = transport, True, len(self.server.connections)
        self.server.connections.append(self)
        tls = transport.get_extra_info("ssl_object")
        assert tls is None or tls.selected_alpn_protocol() == "h2"
        self.h2.initiate_connection()
        if self.limit is not None:  # it counts from the client's acknowledgement on
            self.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: self.limit})
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        for task in self.playing.values():
            task.cancel()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as exc:
            self.violation = repr(exc)
            events = []
        for event in events:
            self.on_event(event)
        self.flush()

    def on_event(self, event: Any) -> None:
        if isinstance(event, RequestReceived):
            self.asked[event.stream_id] = {"headers": event.headers, "body": b""}
        elif isinstance(event, DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.asked[event.stream_id]["body"] += event.data
        elif isinstance(event, WindowUpdated):
            self.moved.set()
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
            if event.stream_id in self.playing:
                self.playing.pop(event.stream_id).cancel()
        elif isinstance(event, ConnectionTerminated):
            self.goodbye = repr(event)
            if event.error_code:
                self.transport.close()
        elif isinstance(event, StreamEnded):
            self.begin(event.stream_id)

    def begin(self, number: int) -> None:
        if self.refuses and self.limit is not None and len(self.playing) >= self.limit:
            self.refused += 1
            self.h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        request = self.asked.pop(number)
        names = dict(request["headers"])
        request |= {"method": names[":method"], "path": names[":path"], "connection": self.number, "stream": number}
        self.server.requests.append(request)
        answer = self.turn()
        steps = answer(request) if callable(answer) else answer
        self.playing[number] = asyncio.ensure_future(self.answer(Stream(self, number), steps))
        self.most = max(self.most, len(self.playing))

    async def answer(self, stream: Stream, steps: Steps) -> None:
        try:
            with suppress(ProtocolError):  # the client has reset the stream, or left
                await stream.play(steps)
        finally:
            self.playing.pop(stream.number, None)


def head(status: Any = 200, **fields: Any) -> Callable[[Stream], None]:
    """A step: the head of an answer, or an interim one."""
    pairs = [(":status", str(status))]
    pairs += [(name.replace("_", "-"), str(value)) for name, value in fields.items() if value is not None]
    return lambda stream: stream.h2.send_headers(stream.number, pairs)


def trailers(**fields: str) -> Callable[[Stream], None]:
    """A step: headers after the data, which end a stream."""
    pairs = [(name.replace("_", "-"), value) for name, value in fields.items()]
    return lambda stream: stream.h2.send_headers(stream.number, pairs, end_stream=True)


def end(stream: Stream) -> None:
    """A step: no more data."""
    stream.h2.end_stream(stream.number)


def reset(code: int) -> Callable[[Stream], None]:
    """A step: RST_STREAM."""
    return lambda stream: stream.h2.reset_stream(stream.number, code)


def goaway(code: int = 0, last: int | None = None) -> Callable[[Stream], None]:
    """A step: GOAWAY; ``last`` is the last stream that is answered, by itself this one.  The connection stays open."""

    def step(stream: Stream) -> None:
        number = stream.number if last is None else last
        payload = number.to_bytes(4, "big") + int(code).to_bytes(4, "big")
        stream.connection.flush()
        stream.connection.transport.write(len(payload).to_bytes(3, "big") + b"\7\0" + bytes(4) + payload)

    return step


def cut(stream: Stream) -> None:
    """A step: close the connection without a word of HTTP/2."""
    transport = stream.connection.transport
    stream.connection.flush()
    transport.close()
    if transport.get_extra_info("ssl_object"):  # asyncio would wait for the client's farewell
        transport.get_extra_info("socket").shutdown(socket.SHUT_WR)


async def forever(stream: Stream) -> None:
    """A step: do nothing until the client resets the stream or leaves."""
    await asyncio.sleep(60)


def until(event: threading.Event) -> Callable[[Stream], Awaitable[None]]:
    """A step: wait for an event of another thread."""

    async def step(stream: Stream) -> None:
        for _ in range(4_000):
            if event.is_set():
                return
            await asyncio.sleep(0.005)

    return step


def answer(body: Any = b"", status: int = 200, **fields: Any) -> list[Any]:
    """A whole, proper answer; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [head(status, **{"content_type": "application/json", "content_length": len(data), **fields}), data, end]


@contextmanager
def http2_server(
    *answers: Answer, context: Any = None, limit: int | None = None, refuses: bool = False
) -> Iterator[Server]:
    """A server that answers by ``answers`` until the block ends.

    ``context``: an SSL context, whose ALPN is set.  ``limit``: of the streams at once on a connection; what comes above
    it before the client knows of it is answered, or refused if ``refuses``.
    """
    turns = iter(range(10**9))

    def turn() -> Answer:
        return answers[min(next(turns), len(answers) - 1)]

    async def listen() -> Any:
        make = lambda: Connection(server, turn, limit, refuses)  # noqa: E731
        return await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, ssl=context, backlog=200)

    async def leave() -> None:
        for connection in server.connections:
            connection.transport.abort()
        await asyncio.sleep(0)

    if context is not None:
        context.set_alpn_protocols(["h2"])
    with ThreadPoolExecutor(1) as thread, asyncio.Runner() as runner:
        server = Server("", [], [])
        listening = runner.run(listen())
        scheme = "https" if context else "http"
        port = listening.sockets[0].getsockname()[1]
        running = thread.submit(runner.get_loop().run_forever)
        try:
            yield server._replace(url=f"{scheme}://127.0.0.1:{port}/v1")
        finally:
            runner.get_loop().call_soon_threadsafe(runner.get_loop().stop)
            running.result(10)
            listening.close()
            runner.run(leave())
