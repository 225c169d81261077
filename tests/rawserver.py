"""A server on a raw socket, for what a well-behaved one cannot do.

It answers requests by a script, byte by byte: each connection's requests are read to their end, and answered by the
next answer of the script (the last one again and again).  An answer is a list of steps: bytes are sent, a number is
seconds to wait (less when the server closes), ``CLOSE`` closes the connection, ``RESET`` resets it, and a function is
called with the connection and an event that is set when the server closes.  A function of the request to such a list is
an answer too.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

CLOSE = "close"
RESET = "reset"
Steps = Sequence[Any]
Answer = Steps | Callable[[dict[str, Any]], Steps]
LONGEST = 60.0  # seconds that a connection of the server lives at most


class Server(NamedTuple):
    url: str  # with the path /v1
    requests: list[dict[str, Any]]  # method, path, headers, body, connection
    connections: list[int]
    open: set[int]  # connections that the client has not closed


def answer(body: Any = b"", status: int = 200, **headers: Any) -> bytes:
    """A whole, proper HTTP answer; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": len(data)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def delta(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}],
    }


def stream(*texts: str) -> bytes:
    """A whole, proper event stream: one event a text, the end, ``[DONE]``."""
    events = [event(delta(text)) for text in texts]
    return STREAM_HEAD + chunked(*events, event(delta("", "stop")), event(b"[DONE]"))


@contextmanager
def raw_server(*answers: Answer, context: Any = None) -> Iterator[Server]:
    """A server that answers by ``answers`` until the block ends.  ``context``: an SSL context."""
    listener = socket.create_server(("127.0.0.1", 0))
    scheme = "https" if context else "http"
    server = Server(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1", [], [], set())
    stopped, lock, turn = threading.Event(), threading.Lock(), iter(range(10**9))

    def serve(connection: socket.socket, number: int) -> None:
        try:
            connection.settimeout(LONGEST)
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            while (request := read_request(connection)) is not None:
                with lock:
                    server.requests.append({**request, "connection": number})
                    steps = answers[min(next(turn), len(answers) - 1)]
                if not play(connection, steps(request) if callable(steps) else steps, stopped):
                    break
        except OSError:
            pass  # the client went away, which some of the tests are about
        finally:
            server.open.discard(number)
            connection.close()

    def accept() -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            number = len(server.connections)
            server.connections.append(number)
            server.open.add(number)
            threading.Thread(target=serve, args=(connection, number), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        stopped.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        listener.close()


def readable(file: Any, seconds: float) -> bool:
    """Whether there is something to read within seconds; for descriptors of any number, as ``select`` is not."""
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def until_gone(connection: socket.socket, stopped: threading.Event) -> None:
    """A step: wait until the client closes the connection."""
    connection.settimeout(0.1)
    while not stopped.is_set():
        try:
            if not connection.recv(65_536):
                break
        except TimeoutError:
            continue
    raise ConnectionError("the client is gone")


def endless(piece: bytes, pause: float = 0.0) -> Callable[[socket.socket, threading.Event], None]:
    """A step: send ``piece`` again and again, until the client closes the connection."""

    def step(connection: socket.socket, stopped: threading.Event) -> None:
        while not stopped.wait(pause):
            connection.sendall(piece)

    return step


def dripped(data: bytes, pause: float = 0.05) -> list[Any]:
    """Steps: the bytes of ``data`` one by one."""
    return [step for byte in data for step in (bytes([byte]), pause)]


def tunnel(host: str, port: int) -> Callable[[socket.socket, threading.Event], None]:
    """A step: what a proxy does when it is asked to CONNECT."""

    def pipe(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def step(connection: socket.socket, stopped: threading.Event) -> None:
        with socket.create_connection((host, port)) as target:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pipe, args=(target, connection), daemon=True)
            back.start()
            pipe(connection, target)
            back.join(5)

    return step


def play(connection: socket.socket, steps: Steps, stopped: threading.Event) -> bool:
    """Carry out the steps of an answer; whether the connection goes on."""
    for step in steps:
        if step == CLOSE:
            return False
        if step == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if isinstance(step, bytes):
            connection.sendall(step)
        elif callable(step):
            step(connection, stopped)
        elif stopped.wait(min(step, LONGEST)):
            return False
    return True


def read_request(connection: socket.socket) -> dict[str, Any] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65_536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        more = connection.recv(65_536)
        if not more:
            return None
        body += more
    return {"method": method, "path": path, "headers": headers, "body": body, "lines": lines}
