"""What the transport ``curl`` does beyond what every transport of the network does (see ``test_transports``)."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from typing import Any

import pytest
from rawserver import (
    CLOSE,
    STREAM_HEAD,
    answer,
    chunked,
    delta,
    endless,
    event,
    raw_server,
    stream,
    until_gone,
)

pytest.importorskip("pycurl")

from chatfn import ChatError, acreate_chat_completion, build_request, create_chat_completion
from chatfn.core import encode
from chatfn.transports import Driver, transport_of
from chatfn.transports.curl import curl, driver
from chatfn.transports.curl_heads import check_framing, head_of
from chatfn.transports.curl_loop import Loop
from chatfn.transports.curl_poller import READ, WRITE, Selected

PARAMS = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**PARAMS, "stream": True}


def options_of(url: str, **options: Any) -> Any:
    return {"api_key": "k", "api_endpoint": url, "transport": "curl", "middleware": [], **options}


def request_to(url: str, params: Any = PARAMS, **options: Any) -> Any:
    """A request map as a transport is given it."""
    return encode(build_request(params, options_of(url, **options)))


def good(name: str) -> bytes:
    return answer({"id": name, "choices": []})


def echoing(request: dict[str, Any]) -> list[Any]:
    """The path of a request as the id of its answer, after a while."""
    return [0.02, good(request["path"].rpartition("/")[2])]


@contextmanager
def stadium(size: int) -> Iterator[str]:
    """A server that ends no stream before so many of them have begun."""
    begun: list[Any] = []

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if data.startswith(b"POST"):
                self.transport.write(STREAM_HEAD + chunked(event(delta("a")))[:-5])
                begun.append(self.transport)
                if len(begun) == size:
                    for other in begun:
                        other.write(chunked(event(delta("", "stop")), event(b"[DONE]")))

    async def listen() -> Any:
        return await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=size)

    with ThreadPoolExecutor(1) as thread, asyncio.Runner() as runner:
        server = runner.run(listen())
        running = thread.submit(runner.get_loop().run_forever)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            runner.get_loop().call_soon_threadsafe(runner.get_loop().stop)
            running.result(10)
            for transport in begun:
                transport.abort()
            server.close()


@pytest.fixture
def carrier() -> Iterator[Driver]:
    made = driver()
    yield made
    made.close()


def carried(carrier: Driver, *requests: Any, seconds: float = 20.0) -> list[Any]:
    """What the driver says of requests, in the order in which they were given: response maps or exceptions."""
    found: dict[int, Any] = {}

    def done(number: int, response: Any, exc: Any) -> None:
        assert number not in found
        found[number] = response if exc is None else exc

    for number, request in enumerate(requests):
        carrier.send(request, partial(done, number))
    assert not found, "done is called inside wait"
    end = time.monotonic() + seconds
    while len(found) < len(requests) and time.monotonic() < end:
        carrier.wait(1.0)
    return [found[number] for number in range(len(requests))]


def soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# The driver


def test_many_requests_on_one_thread_each_get_their_own_answer(carrier: Driver) -> None:
    """More than one of libcurl's multi handles is given; twice, so that connections are used again."""
    threads = threading.active_count()
    with raw_server(echoing) as server:
        for _ in range(2):
            requests = [{**request_to(server.url), "url": f"{server.url}/{n}"} for n in range(150)]
            before = threading.active_count()
            bodies = [response["body"] for response in carried(carrier, *requests)]
            assert [f'"id": "{n}"' in body.decode() for n, body in enumerate(bodies)] == [True] * 150
            assert before >= threads
        assert len(server.connections) <= 150


def test_a_request_that_cannot_be_sent_is_an_exception_of_its_own(carrier: Driver) -> None:
    with raw_server([good("a")]) as server:
        request = request_to(server.url)
        unread = {**request, "url": "https://127.0.0.1:9/v1", "verify": "/no/such/file.pem"}
        first, second = carried(carrier, unread, request)
    assert isinstance(first, ValueError)
    assert second["status"] == 200


def test_a_request_without_its_credential_is_an_exception_and_its_handle_goes_on(carrier: Driver) -> None:
    with raw_server([good("a")]) as server:
        request = request_to(server.url)
        lacking = encode(build_request(PARAMS, {"api_endpoint": server.url}))
        first, second, third = carried(carrier, lacking, request, lacking)
        assert (type(first), second["status"], type(third)) == (ValueError, 200, ValueError)


def test_each_request_has_its_own_method_headers_and_url(carrier: Driver) -> None:
    """Though they are sent with one handle, on one connection."""
    with raw_server([good("a")]) as server:
        request = request_to(server.url)
        other = {**request, "method": "PUT", "headers": {"x-a": "b"}, "url": server.url + "/other", "body": b"1"}
        for each in (request, other, request):
            assert carried(carrier, each)[0]["status"] == 200
    assert [(r["method"], r["path"], "x-a" in r["headers"]) for r in server.requests] == [
        ("POST", "/v1/chat/completions", False),
        ("PUT", "/v1/other", True),
        ("POST", "/v1/chat/completions", False),
    ]
    assert len(server.connections) == 1


def test_a_function_that_blocks_is_called_elsewhere_and_done_in_wait(carrier: Driver) -> None:
    def leave() -> None:
        raise SystemExit(3)

    found: list[Any] = []

    def done(value: Any, exc: Any) -> None:
        found.append((value, type(exc), threading.current_thread() is threading.main_thread()))

    for function in (lambda: 7, lambda: 1 / 0, leave):
        carrier.call(function, done)
        assert soon(lambda: carrier.wait(0.05) or bool(found))
        assert found[-1][2]
    assert [pair[:2] for pair in found] == [(7, type(None)), (None, ZeroDivisionError), (None, RuntimeError)]


def test_wait_returns_in_time_and_when_it_is_woken(carrier: Driver) -> None:
    began = carrier.now()
    carrier.wait(0.05)
    assert 0.04 <= carrier.now() - began < 10
    threading.Timer(0.05, carrier.wake).start()
    carrier.wait(30)
    assert carrier.now() - began < 10


def test_after_close_nothing_is_done_and_connections_are_gone() -> None:
    made, found = driver(), []
    with raw_server([until_gone]) as server:
        made.send(request_to(server.url), lambda *args: found.append(args))
        assert soon(lambda: made.wait(0.01) or bool(server.requests))
        made.close()
        assert soon(lambda: not server.open)
        made.close()
        made.wake()
    assert not found


def test_done_may_close_its_driver() -> None:
    made = driver()
    with raw_server([good("a")]) as server:
        for _ in range(3):
            made.send(request_to(server.url), lambda *args: made.close())
        made.wait(10)
        assert soon(lambda: not server.open)


def test_a_cancelled_request_ends_soon(carrier: Driver) -> None:
    stop = threading.Event()
    with raw_server([until_gone]) as server:
        threading.Timer(0.1, stop.set).start()
        (response,) = carried(carrier, {**request_to(server.url), "cancelled": stop.is_set})
        assert response["error"]["category"] == "interrupted"
        assert soon(lambda: not server.open)


def test_each_request_has_its_own_time(carrier: Driver) -> None:
    """A short one is not held up by a long one, nor by one that began after it."""
    with raw_server([until_gone]) as server:
        times = [9.0, 0.2, 5.0, 0.3]
        requests = [request_to(server.url, request={"timeout": time}) for time in times]
        found: list[float] = []
        for seconds, request in zip(times, requests, strict=True):
            carrier.send(request, lambda response, exc, seconds=seconds: found.append(seconds))
        began = time.monotonic()
        while len(found) < 2 and time.monotonic() - began < 4.5:
            carrier.wait(1)
        assert found == [0.2, 0.3]


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ([endless(b"HTTP/1.1 103 X\r\nx: y\r\n\r\n" * 99)], {}),
        ([b"HTTP/1.1 200 OK\r\n", endless(b"x: y\r\n" * 99)], {}),
        ([b"HTTP/1.1 103 X\r\nx: y\r\n\r\n" * 99 + good("a"), until_gone], {"bounds": {"headers": 2_000}}),
        ([b"HTTP/1.1 204 X\r\n" + b"x: y\r\n" * 999 + b"\r\n", until_gone], {"bounds": {"headers": 2_000}}),
    ],
    ids=["interim", "one", "interim and whole", "no body"],
)
@pytest.mark.parametrize("params", [PARAMS, STREAM], ids=["whole", "stream"])
def test_heads_are_bounded_in_all(carrier: Driver, params: Any, steps: Any, options: Any) -> None:
    with raw_server(steps) as server:
        (response,) = carried(carrier, request_to(server.url, params, **options))
        assert soon(lambda: not server.open)
    assert response["error"]["category"] == "fault"
    assert "bounds['headers']" in response["error"]["message"]


@pytest.mark.parametrize("chunk", [b"", chunked(b" " * 9)[:-5]], ids=["no body", "a body"])
def test_trailers_are_bounded(carrier: Driver, chunk: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with raw_server([head + chunk + b"0\r\n", endless(b"x-y: z\r\n" * 999)]) as server:
        (response,) = carried(carrier, request_to(server.url))
        assert soon(lambda: not server.open)
    assert response["error"]["category"] in ("fault", "interrupted", "unavailable")


def test_a_head_that_is_wrong_and_has_no_body_ends_its_connection(carrier: Driver) -> None:
    wrong = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-encoding: br\r\n\r\n"
    with raw_server([wrong], [good("b")]) as server:
        (first,) = carried(carrier, request_to(server.url))
        (second,) = carried(carrier, request_to(server.url))
        assert len(server.connections) == 2
    assert (first["status"], first["error"]["category"], second["status"]) == (200, "fault", 200)


def test_a_head_before_a_silence_is_heeded(carrier: Driver) -> None:
    """Though the answer breaks: what it has said of itself is known."""
    with raw_server([b"HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 9\r\n\r\n", until_gone]) as server:
        (response,) = carried(carrier, request_to(server.url, request={"timeout": 0.2}))
    assert (response["status"], response["headers"]["x-a"]) == (200, "b")
    assert response["error"]["category"] == "interrupted"


def test_a_stream_is_given_whole(carrier: Driver) -> None:
    with raw_server([stream("a", "b")]) as server:
        (response,) = carried(carrier, request_to(server.url, STREAM))
        (again,) = carried(carrier, request_to(server.url, STREAM))
        assert len(server.connections) == 1
    assert response["arrived"]
    assert response["headers"]["content-type"] == "text/event-stream"
    assert b"".join(response["body"]) == b"".join(again["body"])


@pytest.mark.parametrize(
    ("steps", "options", "category"),
    [
        ([STREAM_HEAD + chunked(event(delta("a")))[:-5], CLOSE], {}, "interrupted"),
        ([STREAM_HEAD + chunked(event(delta("a")))[:-5], until_gone], {"request": {"timeout": 0.3}}, "interrupted"),
        ([STREAM_HEAD, endless(chunked(b": hi\n\n")[:-5], 0.02)], {"request": {"timeout": 0.3}}, "interrupted"),
        ([STREAM_HEAD, endless(chunked(event(delta("a")))[:-5])], {"bounds": {"body": 9_999}}, "fault"),
        ([STREAM_HEAD, endless(chunked(event(delta("a")))[:-5], 0.01)], {"due": 0.3}, "interrupted"),
    ],
    ids=["cut", "silent", "comments", "too large", "too late"],
)
def test_a_stream_that_breaks_gives_what_had_arrived_and_then_the_error(
    carrier: Driver, steps: Any, options: Any, category: str
) -> None:
    due = {"due": time.monotonic() + options.pop("due"), "deadline": 0.3} if "due" in options else {}
    with raw_server(steps) as server:
        (response,) = carried(carrier, {**request_to(server.url, STREAM, **options), **due})
        assert soon(lambda: not server.open)
    with pytest.raises(ChatError) as caught:
        for piece in response["body"]:
            assert piece.startswith((b"data", b": hi", b"\n"))
    assert (caught.value.error["category"], caught.value.error["status"]) == (category, 200)


def test_a_stream_that_has_said_done_is_not_waited_for(carrier: Driver) -> None:
    with raw_server([stream("a")[:-5], until_gone]) as server:
        (response,) = carried(carrier, request_to(server.url, STREAM, request={"timeout": 60}))
        assert b"".join(response["body"]).endswith(b"data: [DONE]\n\n")
        assert soon(lambda: not server.open)


def test_what_comes_after_done_is_not_read(carrier: Driver) -> None:
    with raw_server([stream("a")[:-5], endless(chunked(event(delta("b")))[:-5], 0.01)]) as server:
        (response,) = carried(carrier, request_to(server.url, STREAM, request={"timeout": 60}))
        assert b"".join(response["body"]).endswith(b"data: [DONE]\n\n")
        assert soon(lambda: not server.open)


def test_a_thousand_streams_at_once_on_one_thread(carrier: Driver) -> None:
    with stadium(1_000) as url:
        bodies = [r["body"] for r in carried(carrier, *[request_to(url, STREAM)] * 1_000, seconds=60)]
    assert {b"".join(body).count(b"data: ") for body in bodies} == {3}


# Calls


def test_what_may_have_arrived_is_not_sent_again_by_the_transport() -> None:
    """libcurl would, when a kept connection is closed without an answer: that is the retry's to decide."""
    with raw_server([good("a")], [CLOSE], [good("c")]) as server:
        assert create_chat_completion(PARAMS, options_of(server.url))["id"] == "a"
        with pytest.raises(ChatError) as caught:
            create_chat_completion(PARAMS, options_of(server.url))
        assert (caught.value.error["category"], len(server.requests)) == ("unavailable", 2)
        assert create_chat_completion(PARAMS, options_of(server.url))["id"] == "c"


@pytest.mark.parametrize("params", [PARAMS, STREAM], ids=["whole", "stream"])
def test_an_interrupt_passes_at_once_and_ends_the_transfer(params: Any) -> None:
    steps = [until_gone] if params is PARAMS else [STREAM_HEAD + chunked(event(delta("a")))[:-5], until_gone]
    with raw_server(steps) as server:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            for _ in create_chat_completion(params, options_of(server.url)):
                pass
        assert time.monotonic() - began < 10
        assert soon(lambda: not server.open)


def test_a_slow_reader_does_not_hold_up_other_calls_of_its_event_loop() -> None:
    flood = endless(chunked(event(delta("x" * 10_000)))[:-5])

    async def main(url: str, other: str) -> None:
        events = await acreate_chat_completion(STREAM, options_of(url))
        await anext(events)
        for _ in range(20):
            await asyncio.sleep(0.02)
            assert (await acreate_chat_completion(PARAMS, options_of(other)))["id"] == "b"
        for _ in range(200):
            assert (await anext(events))["choices"][0]["delta"]["content"] == "x" * 10_000
        await events.aclose()

    with raw_server([STREAM_HEAD, flood]) as server, raw_server([good("b")]) as other:
        asyncio.run(asyncio.wait_for(main(server.url, other.url), 30))
        assert soon(lambda: not server.open)


def test_a_stream_that_waited_for_its_reader_leaves_its_connection_in_use() -> None:
    async def main(url: str) -> None:
        for _ in range(3):
            events = await acreate_chat_completion(STREAM, options_of(url))
            await anext(events)
            await asyncio.sleep(0.1)
            assert [event async for event in events][-1]["choices"][0]["finish_reason"] == "stop"

    with raw_server([stream(*["x" * 10_000] * 300)]) as server:
        asyncio.run(asyncio.wait_for(main(server.url), 30))
        assert len(server.connections) == 1
        for _ in range(3):
            assert len(list(create_chat_completion(STREAM, options_of(server.url)))) == 301
        assert len(server.connections) == 2


def test_awaited_calls_need_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(url: str) -> list[Any]:
        return await asyncio.gather(*(acreate_chat_completion(PARAMS, options_of(url)) for _ in range(20)))

    monkeypatch.setattr("chatfn.transports.threads.executor", None)
    with raw_server([good("a")]) as server:
        assert {found["id"] for found in asyncio.run(main(server.url))} == {"a"}


def test_an_event_loop_that_watches_no_descriptors_calls_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise NotImplementedError

    async def main(url: str) -> Any:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse, raising=False)
        return await acreate_chat_completion(PARAMS, options_of(url))

    with raw_server([good("a")]) as server, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.get_loop()
        assert runner.run(main(server.url))["id"] == "a"


def test_too_many_open_files_are_named() -> None:
    """A process raises its own limit as far as it may; beyond that the error says what is lacking."""
    script = """if True:
        import resource, sys
        from chatfn import build_request
        from chatfn.core import encode
        from chatfn.transports.curl import driver
        soft, hard = map(int, sys.argv[2:])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        request = encode(build_request({"model": "m"}, {"api_key": "k", "api_endpoint": sys.argv[1]}))
        carrier, found = driver(), []
        for _ in range(100):
            carrier.send(request, lambda response, exc: found.append(response))
        while len(found) < 100:
            carrier.wait(10)
        print(len([r for r in found if r["status"] == 200]), *{r["error"]["message"] for r in found if "error" in r})
    """
    with raw_server([0.2, good("a")]) as server:
        for limits in ((60, 4_000), (60, 60)):
            run = subprocess.run(
                [sys.executable, "-c", script, server.url, *map(str, limits)],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            sent, _, words = run.stdout.strip().partition(" ")
            assert (sent == "100") == (limits[1] > 60), run
            assert ("too many open files" in words) == (limits[1] == 60)


# HTTP/2

HEADERS, DATA, RST_STREAM, SETTINGS = 1, 0, 3, 4
ALL, ACK = 1, 1


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


def head(number: int, **fields: str) -> bytes:
    """A frame with the status 200 and some more headers, all of them without compression (RFC 7541)."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)
    return frame(HEADERS, 4, number, b"\x88" + block)


def frames(connection: Any) -> Iterator[tuple[int, int, int]]:
    """Kind, flags and stream of each frame that arrives."""
    with connection.makefile("rb") as file:
        assert file.read(24) in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"")
        while len(start := file.read(9)) == 9:
            file.read(int.from_bytes(start[:3], "big"))
            yield start[3], start[4], int.from_bytes(start[5:], "big")


@contextmanager
def http_2(size: int, answer_to: Callable[[int], bytes]) -> Iterator[tuple[str, list[int]]]:
    """A server that answers by ``answer_to`` (a stream's number) when so many streams have come on one connection.
    Its URL, and how many streams each connection had."""
    counts: list[int] = []

    def serve(connection: Any, index: int) -> None:
        with connection, suppress(OSError):
            connection.sendall(frame(SETTINGS, 0, 0))
            waiting: list[int] = []
            for kind, flags, number in frames(connection):
                if kind == SETTINGS and not flags & ACK:
                    connection.sendall(frame(SETTINGS, ACK, 0))
                if kind in (HEADERS, DATA) and flags & ALL:
                    counts[index] += 1
                    waiting.append(number)
                if len(waiting) == size:
                    connection.sendall(b"".join(map(answer_to, waiting)))
                    waiting.clear()

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                counts.append(0)
                threading.Thread(target=serve, args=(connection, len(counts) - 1), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", counts
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def second() -> Iterator[Driver]:
    """A driver that speaks HTTP/2 at once."""
    made = driver("2-prior-knowledge")
    yield made
    made.close()


def test_requests_of_http_2_share_a_connection(second: Driver) -> None:
    def answer_to(number: int) -> bytes:
        body = f"n{number}".encode()
        return head(number, content_type="text/plain") + frame(DATA, 0, number, body) + frame(DATA, ALL, number, b"!")

    with http_2(20, answer_to) as (url, counts):
        for turn in range(2):
            found = carried(second, *[request_to(url)] * 20)
            assert {response["body"] for response in found} == {b"n%d!" % (40 * turn + 2 * n + 1) for n in range(20)}
            assert found[0]["headers"] == {"content-type": "text/plain"}
            time.sleep(0.05)
    assert counts == [40]


def test_a_stream_of_http_2_is_given_whole(second: Driver) -> None:
    events = event(delta("a", "stop")) + event(b"[DONE]")
    with http_2(1, lambda n: head(n, content_type="text/event-stream") + frame(DATA, ALL, n, events)) as (url, _):
        (response,) = carried(second, request_to(url, STREAM))
    assert b"".join(response["body"]) == events


@pytest.mark.parametrize(
    "broken",
    [
        lambda n: head(n) + frame(DATA, 0, n, b"{}") + frame(RST_STREAM, 0, n, b"\0\0\0\2"),
        lambda n: head(n, content_length="9") + frame(DATA, ALL, n, b"{}"),
        lambda n: head(n) + frame(DATA, 0, n, b"{}") + b"\xff" * 99,
        lambda n: frame(RST_STREAM, 0, n, b"\0\0\0\7"),
    ],
    ids=["reset", "too short", "no frame", "refused"],
)
def test_what_breaks_in_http_2_is_an_error_that_may_be_tried_again(second: Driver, broken: Any) -> None:
    with http_2(1, broken) as (url, counts):
        (response,) = carried(second, request_to(url, request={"timeout": 2}))
        assert response["error"]["category"] in ("interrupted", "unavailable")
        assert sum(counts) == 1


# Heads


def test_a_header_that_comes_more_than_once_is_one() -> None:
    text = b"HTTP/1.1 201 Made\r\nA: 1\r\nX-Empty:\r\na:2 \r\nB: x: y\r\n\r\n"
    assert head_of(text.splitlines(True)) == (201, {"a": "1, 2", "x-empty": "", "b": "x: y"})


def test_a_head_is_read_without_the_interim_ones_before_it_and_the_trailers_after_it() -> None:
    early, late = b"HTTP/1.1 103 Early\r\na: 0\r\n\r\nHTTP/1.1 100\n\n", b"HTTP/1.1 200 OK\na: 1\r\n\r\n"
    assert head_of((early + late + b"b: 2\r\n\r\n").splitlines(True)) == (200, {"a": "1"})
    for cut in range(1, len(late)):
        assert head_of((early + late)[:-cut].splitlines(True)) == (0, {})


@pytest.mark.parametrize(
    "text", [b"HTTP/1.1 101 X\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 20\r\n\r\n", b"x\r\n\r\n"]
)
def test_a_head_that_is_no_answers_is_refused(text: bytes) -> None:
    with pytest.raises(HTTPException):
        head_of(text.splitlines(True))


@pytest.mark.parametrize(
    "head",
    [
        {"transfer-encoding": "gzip, chunked"},
        {"content-length": "1, 2"},
        {"content-length": "-1"},
        {"content-length": ""},
    ],
)
def test_a_body_without_a_plain_end_is_refused(head: dict[str, str]) -> None:
    with pytest.raises(HTTPException):
        check_framing(head)
    check_framing({"content-length": "3, 3"})
    check_framing({"transfer-encoding": "Chunked"})


# Settings


def test_settings_choose_the_version_of_http() -> None:
    with raw_server([good("a")]) as server:
        options = options_of(server.url, transport=["curl", {"http": "1.1"}])
        assert create_chat_completion(PARAMS, options)["id"] == "a"
        with pytest.raises(ValueError, match="2-prior-knowledge"):
            create_chat_completion(PARAMS, options_of(server.url, transport=["curl", {"http": "4"}]))


def test_a_server_that_is_known_not_to_speak_http_2_is_an_error() -> None:
    with raw_server([b"HTTP/1.1 400 no\r\ncontent-length: 0\r\n\r\n", CLOSE]) as server:
        options = options_of(server.url, transport=["curl", {"http": "2-prior-knowledge"}], deadline=5)
        with pytest.raises(ChatError):
            create_chat_completion(PARAMS, options)


def test_without_pycurl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("chatfn.transports.curl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycurl", None)
    with pytest.raises(ValueError, match=r"chatfn\[curl\]"):
        transport_of("curl")


# Other systems


@pytest.mark.parametrize("kind", [selectors.SelectSelector, selectors.PollSelector])
def test_a_selector_does_in_place_of_epoll(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatfn.transports.curl_sockets.new_poller", lambda: Selected(kind()))
    monkeypatch.setattr("chatfn.transports.curl.IDLE", {"2": []})
    with raw_server([good("a")], [good("b"), 0.02, CLOSE], [good("c")], [stream("d")]) as server:
        for name in "abc":
            assert create_chat_completion(PARAMS, options_of(server.url))["id"] == name
            time.sleep(0.05)
        assert len(list(create_chat_completion(STREAM, options_of(server.url)))) == 2
    with raw_server([good("e")]) as server:
        assert asyncio.run(acreate_chat_completion(PARAMS, options_of(server.url)))["id"] == "e"
    with raw_server([until_gone]) as server:
        made = driver()
        made.send(request_to(server.url), print)
        made.wait(0.05)
        made.close()


def test_a_selector_says_what_epoll_says() -> None:
    back, forth = os.pipe()
    poller = Selected(selectors.SelectSelector())
    poller.register(forth, WRITE)
    assert poller.poll(0) == [(forth, WRITE)]
    poller.register(forth, READ)
    assert poller.poll(0) == []
    with pytest.raises(OSError, match="not registered"):
        poller.modify(back, READ)
    poller.unregister(back)
    with pytest.raises(NotImplementedError):
        poller.fileno()
    poller.close()
    for fd in (back, forth):
        os.close(fd)


def test_a_loop_that_is_closed_takes_nothing_back() -> None:
    loop = Loop()
    with raw_server([until_gone]) as server:
        exchange = loop.send(request_to(server.url), print)
        loop.close()
        loop.release(exchange)
        assert loop.closed
    assert curl.__name__ == "curl"


@pytest.mark.parametrize(("wrong", "right"), [(1, True), (0, False)])
def test_a_setting_that_can_not_be_does_not_stand_in_for_the_one_that_equals_it(wrong: int, right: bool) -> None:
    options: Any = {"api_endpoint": "https://127.0.0.1:1/v1", "api_key": "k", "transport": "curl", "middleware": []}
    with pytest.raises(TypeError):
        create_chat_completion({"model": "m"}, {**options, "request": {"verify": wrong}})
    with pytest.raises(ChatError):
        create_chat_completion({"model": "m"}, {**options, "request": {"verify": right, "timeout": 2}})
