"""A loopback chat endpoint that is as far away as a real one: each answer takes its time, many at once cost little.

``python -m tests.bench.remote LATENCY [faults]``: LATENCY in seconds.  One thread and one selector: as every answer
takes as long, those that are due stand in the order in which they were asked for.  A stream has ``max_tokens`` events,
one each LATENCY.

With ``faults`` the answer to a question is the question and ``TEXT``, and two of a hundred questions fail at their first
try, by the number that they end in: 429 with a short Retry-After, and 500.  A GET is answered with how many requests were
asked, and how many answers were paid for.

It prints its port, and ends when its standard input closes (its parent is gone).
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from tests.bench.limits import many_files
from tests.bench.server import COMPLETION, END, EVENT, FIRST, HEADERS, LAST, LENGTH, SECONDS, STREAM, TEXT, WHOLE, whole

BUSY, DOWN = 7, 57  # of a hundred
BEFORE, AFTER = COMPLETION.split(TEXT.encode())
REFUSALS = {
    BUSY: b"HTTP/1.1 429 Too Many Requests\r\nretry-after-ms: 50\r\nretry-after: 0.05\r\n",
    DOWN: b"HTTP/1.1 500 Internal Server Error\r\n",
}
REFUSED = b'{"error": {"message": "not now", "type": "server_error", "code": null, "param": null}}'
BACKLOG = 8_192

Answer = Callable[[bytes], Sequence[bytes]]  # a body to what is written, a piece each LATENCY


def answer_to(question: str) -> str:
    """The text that a question is answered with."""
    return f"{question}: {TEXT}"


def plain(body: bytes) -> Sequence[bytes]:
    """The same answer to all, or a stream."""
    if b'"stream"' not in body:
        return (WHOLE,)
    return (STREAM + FIRST, *[EVENT] * json.loads(body)["max_tokens"], LAST + END)


def faulty() -> Answer:
    """Answers to each question its own, some at the second try."""
    failed: set[str] = set()
    asked = paid = 0

    def answer(body: bytes) -> Sequence[bytes]:
        nonlocal asked, paid
        if not body:
            return (whole(b"HTTP/1.1 200 OK\r\n", json.dumps({"asked": asked, "paid": paid}).encode()),)
        asked += 1
        question = json.loads(body)["messages"][-1]["content"]
        kind = int(question.rpartition(" ")[2]) % 100
        if kind in REFUSALS and question not in failed:
            failed.add(question)
            return (whole(REFUSALS[kind], REFUSED),)
        failed.discard(question)
        paid += 1
        return (whole(HEADERS, BEFORE + json.dumps(answer_to(question))[1:-1].encode() + AFTER),)

    return answer


def body_of(arrived: bytes) -> bytes | None:
    """The body of a request, once all of it has arrived."""
    head, blank, body = arrived.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return body if blank and len(body) >= int(length[1] if length else 0) else None


def send(connection: socket.socket, piece: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # a client may leave in the middle
        if connection.send(piece) < len(piece):
            raise RuntimeError("an answer did not fit into a socket's buffer")


def receive(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionError):
        return connection.recv(1 << 16)
    return b""


def serve(listener: socket.socket, latency: float, answer: Answer) -> None:
    """Answer until standard input closes."""
    arrived: dict[socket.socket, bytes] = {}
    due: deque[tuple[float, socket.socket, Sequence[bytes], int]] = deque()
    selector = selectors.DefaultSelector()

    def accept() -> None:
        connection = listener.accept()[0]
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, partial(take, connection))
        arrived[connection] = b""

    def take(connection: socket.socket) -> None:
        piece = receive(connection)
        if not piece:
            selector.unregister(connection)
            del arrived[connection]
            connection.close()
            return
        arrived[connection] += piece
        body = body_of(arrived[connection])
        if body is not None:
            arrived[connection] = b""
            due.append((time.monotonic() + latency, connection, answer(body), 0))

    selector.register(listener, selectors.EVENT_READ, accept)
    selector.register(sys.stdin, selectors.EVENT_READ, sys.exit)
    while True:
        while due and due[0][0] <= time.monotonic():
            when, connection, pieces, place = due.popleft()
            if connection in arrived:
                send(connection, pieces[place])
                if place + 1 < len(pieces):
                    due.append((when + latency, connection, pieces, place + 1))
        for key, _ in selector.select(max(0.0, due[0][0] - time.monotonic()) if due else SECONDS):
            key.data()


def main(latency: str, *faults: str) -> None:
    many_files()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        print(listener.getsockname()[1], flush=True)
        serve(listener, float(latency), faulty() if faults else plain)


if __name__ == "__main__":
    main(*sys.argv[1:])
