"""The clients that are compared, each a pair of functions, and the process that each runs in.

``whole(params)`` is the text of one answer; ``streamed(params)`` is the number of events with text in one stream.
Both read what a user would read.  A client is imported nowhere but in its own process.

``python -m tests.bench.contestants NAME PORT`` reads lines ``MEASURE COUNT`` and answers each with a line of JSON:
CPU and wall seconds, and the process's peak memory in bytes.  It ends when its standard input closes.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from tests.bench import server

Params = Mapping[str, Any]
Contestant = tuple[Callable[[Params], str], Callable[[Params], int]]

KEY = "k"
QUESTION = "What is a transducer, in one sentence?"
PARAMS = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
    "temperature": 0.2,
    "max_tokens": 100,
}
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def texts(events: Iterable[Any]) -> int:
    return sum(1 for event in events if event["choices"][0]["delta"].get("content"))


def with_chatfn(endpoint: str) -> Contestant:
    create = import_module("chatfn").create_chat_completion
    options = {"api_key": KEY, "api_endpoint": endpoint}

    def whole(params: Params) -> str:
        return str(create(params, options)["choices"][0]["message"]["content"])

    def streamed(params: Params) -> int:
        return texts(create(params, options))

    return whole, streamed


def with_requests(endpoint: str) -> Contestant:
    session = import_module("requests").Session()
    url, headers = f"{endpoint}/chat/completions", {"Authorization": f"Bearer {KEY}"}

    def whole(params: Params) -> str:
        return str(session.post(url, json=params, headers=headers).json()["choices"][0]["message"]["content"])

    def streamed(params: Params) -> int:
        with session.post(url, json=params, headers=headers, stream=True) as response:
            return texts(json.loads(line[6:]) for line in response.iter_lines() if line not in (b"", b"data: [DONE]"))

    return whole, streamed


def with_openai(endpoint: str) -> Contestant:
    create = import_module("openai").OpenAI(api_key=KEY, base_url=endpoint).chat.completions.create

    def whole(params: Params) -> str:
        return str(create(**params).choices[0].message.content)

    def streamed(params: Params) -> int:
        return sum(1 for event in create(**params) if event.choices[0].delta.content)

    return whole, streamed


def with_socket(endpoint: str) -> Contestant:
    """No client at all: what is left is the server's own speed."""
    origin = endpoint.removeprefix("http://").removesuffix("/v1")
    host, port = origin.split(":")
    connection = socket.create_connection((host, int(port)))

    def pieces(params: Params, end: bytes) -> Iterator[bytes]:
        body = json.dumps(params).encode()
        connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        piece = b""
        while not piece.endswith(end):
            piece = connection.recv(1 << 16)
            yield piece

    def whole(params: Params) -> str:
        return server.TEXT if b"".join(pieces(params, server.WHOLE[-20:])).endswith(server.COMPLETION) else ""

    def streamed(params: Params) -> int:
        counted, mark, rest = 0, b'"content":"' + server.WORD.encode(), b""
        for piece in pieces(params, server.END):
            counted += (rest + piece).count(mark)
            rest = piece[1 - len(mark) :]
        return counted

    return whole, streamed


CONTESTANTS: Mapping[str, Callable[[str], Contestant]] = {
    "chatfn": with_chatfn,
    "requests": with_requests,
    "openai": with_openai,
    "socket": with_socket,
}


def calls(contestant: Contestant, count: int) -> bool:
    """``count`` whole calls, one after another; whether all the answers were the server's."""
    whole, _ = contestant
    return all(whole(PARAMS) == server.TEXT for _ in range(count))


def events(contestant: Contestant, count: int) -> bool:
    """One stream of ``count`` events; whether all of them arrived."""
    _, streamed = contestant
    return streamed({**PARAMS, "max_tokens": count, "stream": True}) == count


def measured(contestant: Contestant, measure: str, count: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    if not (calls if measure == "calls" else events)(contestant, count):
        raise RuntimeError(f"{measure}: not what the server sent")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES
    return {"cpu": cpu, "wall": wall, "peak": peak}


def main(name: str, port: str) -> None:
    contestant = CONTESTANTS[name](f"http://127.0.0.1:{port}/v1")
    for line in sys.stdin:
        measure, count = line.split()
        print(json.dumps(measured(contestant, measure, int(count))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
