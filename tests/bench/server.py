"""A loopback chat endpoint that is not the bottleneck: raw sockets, a thread a connection, answers made beforehand.

It prints its port, and ends when its standard input closes (its parent is gone) or after ``SECONDS``.
A request with ``"stream": true`` gets ``max_tokens`` events, each in an HTTP chunk of its own, as the API sends them;
many of them go into one write, as they arrive at a client that is slower than its server.  A request to ``/size/N/…``
gets a text of N characters.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

SECONDS = 7_200
CONNECTIONS = 32
REQUEST_BYTES = 1 << 25
EVENTS = 10_000_000
EVENTS_A_WRITE = 64
SIZE = re.compile(rb"[A-Z]+ /size/(\d+)/")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

TEXT = (
    "A transducer turns one reducing function into another: it composes with others of its kind, it builds no "
    "collection of results in between, and it knows nothing of where its data comes from or where it is going to in "
    "the end."
)
WORD = " transducer"
# Of the length and number of those that api.openai.com sends, because a client pays for each header.
HEADERS = b"""HTTP/1.1 200 OK\r
date: Thu, 01 Jan 2026 00:00:00 GMT\r
openai-organization: user-0123456789abcdef\r
openai-processing-ms: 412\r
openai-version: 2020-10-01\r
x-ratelimit-limit-requests: 10000\r
x-ratelimit-limit-tokens: 10000000\r
x-ratelimit-remaining-requests: 9999\r
x-ratelimit-remaining-tokens: 9999970\r
x-ratelimit-reset-requests: 6ms\r
x-ratelimit-reset-tokens: 0s\r
x-request-id: req_0123456789abcdef0123456789abcdef\r
"""


def chat_map(kind: str, choice: dict[str, Any], **more: Any) -> bytes:
    common = {"id": "chatcmpl-Bx0123456789abcdefghijklmnop", "object": kind, "created": 1767225600}
    choices = [{"index": 0, **choice, "logprobs": None}]
    known = {**common, "model": "gpt-4o-mini-2024-07-18", "choices": choices, "service_tier": "default", **more}
    return json.dumps({**known, "system_fingerprint": "fp_0123456789"}, separators=(",", ":")).encode()


def completion() -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": []}
    said = ("reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
    usage = {"prompt_tokens": 19, "completion_tokens": 43, "total_tokens": 62}
    details = {"completion_tokens_details": dict.fromkeys(said, 0)}
    details["prompt_tokens_details"] = {"cached_tokens": 0, "audio_tokens": 0}
    return chat_map("chat.completion", {"message": message, "finish_reason": "stop"}, usage={**usage, **details})


def event(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    return chunk(chat_map("chat.completion.chunk", {"delta": delta, "finish_reason": finish_reason}))


def whole(head: bytes, body: bytes) -> bytes:
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def chunk(data: bytes) -> bytes:
    line = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


COMPLETION = completion()
WHOLE = whole(HEADERS, COMPLETION)
STREAM = HEADERS + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = event({"role": "assistant", "content": "", "refusal": None})
EVENT = event({"content": WORD})
LAST = event({}, "stop") + chunk(b"[DONE]")
END = b"0\r\n\r\n"


def stream(count: int) -> Iterator[bytes]:
    """What to write for a stream of ``count`` events with text, one before and one after them."""
    many = EVENT * EVENTS_A_WRITE
    yield STREAM + FIRST
    yield from (many for _ in range(count // EVENTS_A_WRITE))
    yield EVENT * (count % EVENTS_A_WRITE) + LAST + END


def requests(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Heads and bodies of the requests that arrive one after another; none is pipelined, each has its content-length."""
    while piece := connection.recv(1 << 20):
        head, blank, body = piece.partition(b"\r\n\r\n")
        while not blank and (piece := connection.recv(1 << 16)):
            head, blank, body = (head + piece).partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        left = min(int(length[1] if length else 0), REQUEST_BYTES) - len(body)
        if left > 0 and b"100-continue" in head:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces = [body]
        while left > 0 and (piece := connection.recv(1 << 20)):
            pieces.append(piece)
            left -= len(piece)
        yield head, b"".join(pieces)


@cache
def sized(size: int) -> bytes:
    """An answer with a text of so many characters."""
    text = (TEXT * (size // len(TEXT) + 1))[:size]
    return whole(HEADERS, COMPLETION.replace(TEXT.encode(), text.encode()))


def answer(head: bytes, body: bytes) -> Iterable[bytes]:
    """What to write: for a path with ``/size/N/`` a text of N characters, else a whole answer or a stream."""
    size = SIZE.match(head)
    if size:
        return (sized(int(size[1])),)
    params = json.loads(body)
    return stream(min(params["max_tokens"], EVENTS)) if params.get("stream") else (WHOLE,)


def converse(connection: socket.socket, slots: threading.Semaphore) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with slots, connection, contextlib.suppress(ConnectionError):  # a client may leave in the middle
        for head, body in requests(connection):
            for piece in answer(head, body):
                connection.sendall(piece)


def accept(listener: socket.socket) -> None:
    slots = threading.BoundedSemaphore(CONNECTIONS)
    while True:
        threading.Thread(target=converse, args=(listener.accept()[0], slots), daemon=True).start()


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        select.select([sys.stdin], [], [], SECONDS)


if __name__ == "__main__":
    main()
