"""No client at all: JSON and hand-cut HTTP on raw sockets, what any client must do at least; the server's ceiling."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import repeat

from tests.bench.contestants import Client, Params, Timed, has_text, params_of, text_of

PACKAGES: tuple[str, ...] = ()
REQUIRES: tuple[str, ...] = ()
IMPORT = ""
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")
END = b"0\r\n\r\n"


def client(endpoint: str) -> Client:
    host, path = endpoint.removeprefix("http://").split("/", 1)
    address = (host.partition(":")[0], int(host.partition(":")[2]))
    head = f"POST /{path}/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: ".encode()
    connections: list[socket.socket] = []

    def connected() -> socket.socket:
        connection = connections.pop() if connections else socket.create_connection(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(connection: socket.socket, params: Params) -> None:
        body = json.dumps(params).encode()
        connection.sendall(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    def answered(arrived: bytes) -> str | None:
        """The text of an answer, once it is whole; an empty one of a refusal."""
        top, blank, body = arrived.partition(b"\r\n\r\n")
        length = LENGTH.search(top)
        if not blank or not length or len(body) < int(length[1]):
            return None
        return text_of(json.loads(body)) if b" 200 " in top[:16] else ""

    def call(params: Params) -> str:
        connection, pieces = connected(), [b""]
        ask(connection, params)
        left = 1
        while left > 0:
            pieces.append(connection.recv(1 << 20))
            length = LENGTH.search(pieces[1])
            left = pieces[1].index(b"\r\n\r\n") + 4 + int(length[1] if length else 0) - sum(map(len, pieces))
        connections.append(connection)
        return answered(b"".join(pieces)) or ""

    def stream(params: Params) -> int:
        connection, rest, counted = connected(), b"", 0
        ask(connection, params)
        while not rest.endswith(END):
            *blocks, rest = (rest + connection.recv(1 << 16)).split(b"\n\n")
            found = (block.partition(b"data: ")[2] for block in blocks)
            counted += sum(has_text(json.loads(data)) for data in found if data[:1] == b"{")
        connections.append(connection)
        return counted

    def answers(source: Iterator[tuple[str, Params]], at_once: int) -> Iterator[tuple[str, str, float]]:
        """Names, texts and seconds of all calls; what is refused is asked again."""
        with selectors.DefaultSelector() as selector:
            running = 0
            for _, (name, params) in zip(range(at_once), source, strict=False):
                connection = connected()
                ask(connection, params)
                state = [name, params, time.perf_counter(), b""]
                selector.register(connection, selectors.EVENT_READ, state)
                running += 1
            while running:
                for key, _ in selector.select():
                    connection, state = key.fileobj, key.data  # type: ignore[assignment]  # a socket was registered
                    state[3] += connection.recv(1 << 16)
                    text = answered(state[3])
                    if text is None:
                        continue
                    if text:
                        yield state[0], text, time.perf_counter() - state[2]
                        following = next(source, None)
                        if following is None:
                            selector.unregister(connection)
                            connections.append(connection)
                            running -= 1
                            continue
                        state[:2] = following
                    state[2:] = time.perf_counter(), b""
                    ask(connection, state[1])

    def flight(params: Params, count: int, at_once: int) -> Iterable[Timed]:
        return [(text, seconds) for _, text, seconds in answers(iter(repeat(("", params), count)), at_once)]

    def mapped(questions: Iterable[str], at_once: int, journal: str) -> Iterator[tuple[str, str]]:
        source = ((question, params_of(question)) for question in questions)
        return ((question, text) for question, text, _ in answers(source, at_once))

    return Client(lambda params, count: map(call, repeat(params, count)), stream, flight, mapped=mapped)
