"""Every transport of the network keeps the same promises: each law is tested on all of them, over real HTTP.

The server is ``rawserver``, for what a well-behaved one cannot do.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import pickle
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from rawserver import (
    CLOSE,
    RESET,
    STREAM_HEAD,
    answer,
    chunked,
    delta,
    dripped,
    endless,
    event,
    raw_server,
    readable,
    stream,
    tunnel,
    until_gone,
)

from chatfn import ChatError, acreate_chat_completion, create_chat_completion
from chatfn.errors import RETRYABLE

KEY = "sk-test-0123456789abcdef"
PARAMS = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**PARAMS, "stream": True}
QUICK = ["retry", {"attempts": 3, "base": 0.001}]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
PLAIN_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
TRANSPORTS = ("requests", "threads", "aiohttp", "curl", "curl-awaited")
BLOCKING = ("requests", "curl")
CURL = pytest.param("curl", marks=pytest.mark.skipif(find_spec("pycurl") is None, reason="pycurl is not installed"))
AWAITED = ("requests", "aiohttp", CURL)


class Stream(NamedTuple):
    next: Callable[[], Any]
    close: Callable[[], None]


class Client(NamedTuple):
    """One way to call: blocking, on threads, or on an event loop.  ``options`` are laid over ``options_of(url)``."""

    call: Callable[..., dict[str, Any]]  # (url, params, **options) to a response map
    open: Callable[..., Stream]  # (url, **options) to a stream
    create: Callable[..., Any]  # (params, options) to what the call returns
    name: str


def options_of(url: str, **options: Any) -> Any:
    """No retries, and bounds that a test can wait for."""
    return {
        "api_key": KEY,
        "api_endpoint": url,
        "middleware": [],
        "deadline": 5,
        **options,
        "request": {"timeout": 1, **options.get("request", {})},
    }


def transport_of(name: str) -> str:
    """The transport of a client; the test is passed over where it can't be had."""
    transport = {"threads": "requests", "curl-awaited": "curl"}.get(name, name)
    if transport == "curl":
        pytest.importorskip("pycurl")
    return transport


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment in which the tests run."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=TRANSPORTS)
def http(request: pytest.FixtureRequest) -> Iterator[Client]:
    name: str = request.param
    transport = transport_of(name)
    with asyncio.Runner() as runner:

        def create(params: Any, options: Any) -> Any:
            options = {"transport": transport, **options}
            if name in BLOCKING:
                return create_chat_completion(params, options)
            return runner.run(acreate_chat_completion(params, options))

        def call(url: str, params: Any = PARAMS, **options: Any) -> Any:
            return create(params, options_of(url, full_response=True, **options))

        def opened(url: str, **options: Any) -> Stream:
            events = create(STREAM, options_of(url, **options))
            if name in BLOCKING:
                return Stream(lambda: next(events), events.close)

            async def following() -> Any:
                return await anext(events)

            return Stream(lambda: runner.run(following()), lambda: runner.run(events.aclose()))

        yield Client(call, opened, create, name)


def read(http: Client, url: str, **options: Any) -> tuple[list[str], Any]:
    """The texts of a stream's events, and the error that ended it, or None."""
    texts = []
    try:
        stream = http.open(url, **options)
        while True:
            texts.append(stream.next()["choices"][0]["delta"].get("content", ""))
    except (StopIteration, StopAsyncIteration):
        return texts, None
    except ChatError as exc:
        return texts, exc.error


def good(number: int) -> bytes:
    return answer({"id": f"c{number}", "choices": []})


def failed(response: dict[str, Any]) -> str:
    """The category of a failed response."""
    assert "error" in response, response
    return str(response["error"]["category"])


def soon(condition: Callable[[], bool], seconds: float = 1.5) -> bool:
    """Whether a condition comes true within seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# What is sent


def test_a_request_arrives_as_it_was_built(http: Client) -> None:
    """Method, path, body byte for byte; one credential, one content-length; nothing of the library's own."""
    with raw_server([good(1)]) as server:
        assert http.call(server.url + "/", {**PARAMS, "x": [1, {"b": 1, "a": "é"}]})["body"]["id"] == "c1"
    (request,) = server.requests
    assert (request["method"], request["path"]) == ("POST", "/v1/chat/completions")
    assert (
        request["body"]
        == json.dumps({**PARAMS, "x": [1, {"b": 1, "a": "é"}]}, separators=(",", ":"), ensure_ascii=False).encode()
    )
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["headers"]["user-agent"].startswith("chatfn/")
    names = [line.partition(":")[0].lower() for line in request["lines"]]
    assert sorted(names) == sorted(
        ["host", "accept", "accept-encoding", "content-type", "user-agent", "authorization", "content-length"]
    )
    assert request["headers"]["host"] == urlsplit(server.url).netloc


def test_a_path_is_sent_as_it_is_quoted(http: Client) -> None:
    with raw_server([good(1)]) as server:
        base = server.url.removesuffix("/v1")
        http.call(base, impl="azure", deployment="a/b?c#d%2e", api_version="2024-10-21")
    assert server.requests[0]["path"].startswith("/openai/deployments/a%2Fb%3Fc%23d%252e/chat/completions?")


def test_large_requests_are_sent_whole(http: Client) -> None:
    with raw_server([good(1)]) as server:
        params = {**PARAMS, "pad": "x" * 3_000_000}
        assert http.call(server.url, params)["status"] == 200
    assert json.loads(server.requests[0]["body"]) == params


def test_netrc_and_cookies_are_ignored(http: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    with raw_server([answer({"id": "c"}, set_cookie="a=b; Path=/")]) as server:
        http.call(server.url)
        http.call(server.url)
        http.call(server.url, api_key="ollama")
    assert [r["headers"]["authorization"] for r in server.requests] == [f"Bearer {KEY}"] * 2 + ["Bearer ollama"]
    assert not any("cookie" in r["headers"] for r in server.requests)


# Whole answers


def test_twenty_calls_use_one_connection(http: Client) -> None:
    with raw_server(*([good(n)] for n in range(20))) as server:
        assert [http.call(server.url)["body"]["id"] for _ in range(20)] == [f"c{n}" for n in range(20)]
    assert len(server.connections) == 1


def test_errors_leave_their_connection_in_use(http: Client) -> None:
    with raw_server([answer({"error": {"message": "no"}}, 400)]) as server:
        for _ in range(5):
            http.call(server.url)
    assert len(server.connections) == 1


LENGTH = answer({"id": "c", "choices": []})
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(b'{"id": "c",', b' "choices": []}')


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("end", [CLOSE, RESET])
def test_an_answer_cut_anywhere_is_an_error_and_the_next_call_gets_its_own(
    http: Client, whole: bytes, end: str
) -> None:
    cuts = [*range(len(whole))]
    script = [steps for cut in cuts for steps in ([whole[:cut], end], [good(cut)])]
    with raw_server(*script) as server:
        for cut in cuts:
            response = http.call(server.url)
            assert failed(response) in RETRYABLE, (cut, response)
            assert cut < 13 or failed(response) != "fault", (cut, response)
            assert http.call(server.url)["body"]["id"] == f"c{cut}"


def test_a_body_without_length_ends_with_its_connection(http: Client) -> None:
    """But not with one that is reset."""
    whole = HEAD + b'\r\n{"id": "c"}'
    with raw_server([whole, CLOSE], [whole[:-2], CLOSE], [whole, 0.05, RESET]) as server:
        assert http.call(server.url)["body"] == {"id": "c"}
        assert failed(http.call(server.url)) == "fault"
        assert failed(http.call(server.url)) == "interrupted"


def test_an_answer_may_come_byte_by_byte(http: Client) -> None:
    for whole in (LENGTH, CHUNKED):
        with raw_server(dripped(whole, 0.001)) as server:
            assert http.call(server.url)["body"]["id"] == "c"
            assert http.call(server.url)["body"]["id"] == "c"
        assert len(server.connections) == 1


NO_ANSWERS: dict[str, tuple[list[Any], str]] = {
    "close": ([CLOSE], "unavailable"),
    "reset": ([RESET], "unavailable"),
    "no answer in time": ([3.0], "interrupted"),
    "no http": ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n", CLOSE], "fault"),
    "empty": ([answer(b"")], "fault"),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], "fault"),
    "list": ([answer(b"[]")], "fault"),
    "string": ([answer(b'"hello"')], "fault"),
    "number": ([answer(b"1" * 1_000_000)], "fault"),
    "null": ([answer(b"null")], "fault"),
    "two documents": ([answer(b"{}{}")], "fault"),
    "html": ([answer(b"<html><body>Welcome</body></html>", content_type="text/html")], "fault"),
    "bad utf-8": ([answer(b'{"a": "\xff"}')], "fault"),
    "nested": ([answer(b"[" * 100_000)], "fault"),
    "an error in a 200": ([answer({"error": {"message": "no", "code": 503}})], "busy"),
    "br that nobody asked for": ([answer(b"\x0b\x02\x80{}\x03", content_encoding="br")], "fault"),
    "two encodings": ([answer(gzip.compress(b"{}"), content_encoding="gzip, gzip")], "fault"),
    "gzip that is none": ([answer(b'{"id": "c"}', content_encoding="gzip")], "fault"),
    "truncated gzip": ([answer(gzip.compress(b'{"id": "c"}')[:-9], content_encoding="gzip")], "interrupted"),
    "broken gzip checksum": ([answer(gzip.compress(b'{"id":"c"}')[:-8] + b"\0" * 8, content_encoding="gzip")], "fault"),
    "junk chunk size": ([HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 0.5], "fault"),
    "negative chunk size": ([HEAD + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", 0.5], "fault"),
    "huge chunk size": (
        [HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n", 0.5],
        "fault",
    ),
    "chunk longer than it says": ([HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", 0.5], "fault"),
    "chunk shorter than it says": (
        [HEAD + b"transfer-encoding: chunked\r\n\r\n9\r\n{}\r\n0\r\n\r\n", CLOSE],
        "interrupted",
    ),
    "chunk without its end": ([HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n", 0.5], "fault"),
    "chunk size without digits": ([HEAD + b"transfer-encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n", 0.5], "fault"),
    "unknown transfer coding": ([HEAD + b"transfer-encoding: gzip\r\n\r\n{}", CLOSE], "fault"),
    "two lengths": ([HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ", 0.5], "fault"),
    "no number of a length": ([HEAD + b"content-length: 2x\r\n\r\n{}", 0.5], "fault"),
    "negative length": ([HEAD + b"content-length: -2\r\n\r\n{}", 0.5], "fault"),
    "switching protocols": ([b"HTTP/1.1 101 X\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", 0.5], "fault"),
    "302": ([b"HTTP/1.1 302 Found\r\nlocation: /v2\r\ncontent-length: 0\r\n\r\n"], "incorrect"),
    "304": ([b"HTTP/1.1 304 Not Modified\r\n\r\n"], "incorrect"),
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_an_error_in_time_and_the_next_call_gets_its_own(http: Client, name: str) -> None:
    steps, category = NO_ANSWERS[name]
    began = time.monotonic()
    with raw_server(steps, [good(2)]) as server:
        response = http.call(server.url, request={"timeout": 0.4})
        assert failed(response) == category, response
        assert len(response["error"]["message"]) <= 2_000
        assert http.call(server.url)["body"]["id"] == "c2"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["close", "reset", "junk chunk size", "no http", "two lengths"])
def test_what_is_no_stream_is_an_error_too(http: Client, name: str) -> None:
    with raw_server(NO_ANSWERS[name][0], [stream("a")]) as server:
        texts, error = read(http, server.url)
        assert (texts, error["category"]) == ([], NO_ANSWERS[name][1])
        assert read(http, server.url) == (["a", ""], None)


GOOD_ENCODINGS = {
    "gzip": gzip.compress(b'{"id": "c"}'),
    "x-gzip": gzip.compress(b'{"id"') + gzip.compress(b': "c"}'),
    "deflate": zlib.compress(b'{"id": "c"}'),
    "Deflate": zlib.compress(b'{"id": "c"}', wbits=-15),
    "identity": b'{"id": "c"}',
}


@pytest.mark.parametrize("encoding", GOOD_ENCODINGS)
def test_what_was_asked_for_is_decoded(http: Client, encoding: str) -> None:
    """Also a gzip of two members, and a deflate without its header."""
    with raw_server([answer(GOOD_ENCODINGS[encoding], content_encoding=encoding)]) as server:
        response = http.call(server.url)
        assert response["body"] == {"id": "c"}
        assert "content-encoding" not in response["headers"]
        http.call(server.url)
    assert server.requests[0]["headers"]["accept-encoding"] == "gzip, deflate"
    assert len(server.connections) == 1


def test_interim_answers_are_passed_over(http: Client) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload\r\n\r\n"
    with raw_server([early + good(1)], [early, 0.05, good(2)], [early + stream("a")]) as server:
        assert [http.call(server.url)["body"]["id"] for _ in range(2)] == ["c1", "c2"]
        assert read(http, server.url) == (["a", ""], None)
    assert len(server.connections) == 1


SURPLUS = {
    "junk": b"junk",
    "an answer": answer({"id": "stranger"}),
    "half an answer": answer({"id": "stranger"})[:30],
    "a head": b"HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n",
    "an event": event(delta("stranger")),
}


@pytest.mark.parametrize("kind", SURPLUS)
@pytest.mark.parametrize("pause", [0, 0.05], ids=["at once", "later"])
def test_bytes_after_an_answer_never_reach_the_next_call(http: Client, kind: str, pause: float) -> None:
    for whole, more in ((good(1), good(2)), (CHUNKED, good(2))):
        steps = [whole, pause, SURPLUS[kind], 0.3] if pause else [whole + SURPLUS[kind], 0.3]
        with raw_server(steps, [more]) as server:
            assert http.call(server.url)["body"]["id"] in ("c", "c1")
            time.sleep(pause * 3)
            assert http.call(server.url)["body"]["id"] == "c2"
            assert len(server.connections) == 2


def test_bytes_after_a_stream_never_reach_the_next_call(http: Client) -> None:
    with raw_server([stream("a") + answer({"id": "stranger"})[:40], 0.3], [good(2)]) as server:
        assert read(http, server.url) == (["a", ""], None)
        assert http.call(server.url)["body"]["id"] == "c2"
        assert len(server.connections) == 2


def test_a_204_with_a_body_never_reaches_the_next_call(http: Client) -> None:
    with raw_server([b"HTTP/1.1 204 X\r\ncontent-length: 99\r\n\r\n" + good(9), 0.2], [good(2)]) as server:
        assert failed(http.call(server.url)) == "fault"
        assert http.call(server.url)["body"]["id"] == "c2"


def test_a_connection_that_was_closed_while_idle_is_replaced_without_a_word(http: Client) -> None:
    closing = answer({"id": "c"})
    with raw_server([closing, 0.02, CLOSE]) as server:
        for _ in range(4):
            response = http.call(server.url)
            assert (response["body"], response["attempts"]) == ({"id": "c"}, 1)
            time.sleep(0.05)
        assert len(server.connections) == 4


def test_connection_close_is_heeded(http: Client) -> None:
    with raw_server([answer({"id": "c"}, connection="close"), 0.5]) as server:
        http.call(server.url)
        http.call(server.url)
        assert len(server.connections) == 2


# Bounds


def test_a_dripped_answer_is_bounded_in_total(http: Client) -> None:
    """The bound is on the silence in all, not on each read; headers and body alike."""
    for steps in (dripped(answer(b" " * 100 + b"{}")), [LENGTH[:-9], *dripped(LENGTH[-9:], 0.3)]):
        with raw_server(steps) as server:
            began = time.monotonic()
            response = http.call(server.url, request={"timeout": 0.5})
            assert failed(response) == "interrupted"
            assert "timeout" in response["error"]["message"]
            assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("status", [200, 500])
def test_a_dripped_page_instead_of_a_stream_is_bounded_in_total(http: Client, status: int) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: text/html\r\n\r\n".encode()
    with raw_server([head, *dripped(b"<p>" + b"x" * 60)]) as server:
        began = time.monotonic()
        texts, error = read(http, server.url, request={"timeout": 0.5}, deadline=None)
        assert texts == []
        assert error["status"] == status
        assert time.monotonic() - began < 1.2


def test_a_server_that_does_not_read_is_bounded_by_silence(http: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        response = http.call(url, {**PARAMS, "pad": "x" * 20_000_000}, request={"timeout": 0.4}, deadline=None)
        assert failed(response) == "interrupted"
        assert time.monotonic() - began < 1.5


def test_an_answer_that_comes_before_the_request_is_sent_is_heard(http: Client) -> None:
    """As a 413 does; the connection is not used again."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(answer({"error": {"message": "too large"}}, 413, connection="close"))
            while connection.recv(1_000_000):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        response = http.call(url, {**PARAMS, "pad": "x" * 20_000_000})
        assert (response["status"], response["error"]["message"]) == (413, "too large")


def test_the_dripped_head_of_a_stream_is_bounded_by_silence(http: Client) -> None:
    with raw_server(dripped(STREAM_HEAD)) as server:
        began = time.monotonic()
        assert read(http, server.url, request={"timeout": 0.5})[1]["category"] == "interrupted"
        assert time.monotonic() - began < 1.0


def test_a_server_that_does_not_accept_is_bounded_by_the_connect_timeout(http: Client) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # fill its backlog
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        began = time.monotonic()
        response = http.call(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", request={"timeout": (0.3, 5)})
        took = time.monotonic() - began
        if took > 1.5 and "no answer" in response["error"]["message"]:
            pytest.skip("this system accepts more than a server does")
    assert failed(response) == "unavailable"
    assert "0.3 s" in response["error"]["message"]
    assert took < 1.0


def test_refused_connections_and_unknown_names_are_unavailable(http: Client) -> None:
    with raw_server([CLOSE]) as server:
        pass
    for url in (server.url, "http://chatfn.invalid/v1"):
        response = http.call(url, allow_http=True)
        assert failed(response) == "unavailable"
        assert urlsplit(url).netloc in response["error"]["message"]


def test_the_deadline_bounds_a_whole_call(http: Client) -> None:
    with raw_server([3.0]) as server:
        began = time.monotonic()
        response = http.call(server.url, deadline=0.3, request={"timeout": 2}, middleware=[QUICK])
        assert failed(response) == "interrupted"
        assert "deadline" in response["error"]["message"]
        assert time.monotonic() - began < 0.9


def test_the_deadline_spans_retries_and_their_waits(http: Client) -> None:
    with raw_server([answer({"error": "busy"}, 503, retry_after=0.2)]) as server:
        began = time.monotonic()
        response = http.call(server.url, deadline=0.5, middleware=[["retry", {"attempts": 9}]])
        assert failed(response) == "busy"
        assert response["attempts"] == len(server.requests) == 3
        assert time.monotonic() - began < 0.5


HEADER_BOMBS = {
    "one long line": b"x-a: " + b"a" * 200_000 + b"\r\n",
    "many lines": b"".join(b"x-%d: aaaaaaaaaaaaaaaaaaaa\r\n" % n for n in range(9_000)),
}


@pytest.mark.parametrize("bomb", HEADER_BOMBS)
def test_headers_are_bounded(http: Client, bomb: str) -> None:
    with raw_server([HEAD + HEADER_BOMBS[bomb] + b"\r\n{}", until_gone], [good(2)]) as server:
        response = http.call(server.url)
        assert failed(response) == "fault"
        assert http.call(server.url)["body"]["id"] == "c2"
    with raw_server([HEAD, endless(HEADER_BOMBS[bomb])]) as server:
        assert failed(http.call(server.url, middleware=[QUICK])) == "fault"
        assert soon(lambda: not server.open)


def test_interim_answers_are_bounded(http: Client) -> None:
    with raw_server([endless(b"HTTP/1.1 103 X\r\nx: y\r\n\r\n" * 100)]) as server:
        assert "error" in http.call(server.url, request={"timeout": 0.5})
        assert soon(lambda: not server.open)


def test_a_long_but_bounded_head_is_read(http: Client) -> None:
    head: dict[str, Any] = {f"x_{n}": "a" * 1_000 for n in range(50)}
    with raw_server([answer({"id": "c"}, **head)]) as server:
        assert http.call(server.url)["headers"]["x-49"] == "a" * 1_000


def test_the_bound_of_headers_counts_no_byte_of_a_body(http: Client) -> None:
    with raw_server([answer(b'{"id": "' + b"c" * 4_000 + b'"}')]) as server:
        assert http.call(server.url, bounds={"headers": 1_000})["status"] == 200


def test_bodies_are_bounded(http: Client) -> None:
    """A good body by ``bounds["body"]``; an error's is cut short at 64 KiB; neither connection is used again."""
    large = b'{"id": "' + b"c" * 200_000 + b'"}'
    with raw_server(
        [answer(large)], [answer(large, 500)], [HEAD + b"\r\n", endless(b" " * 9_999)], [good(4)]
    ) as server:
        response = http.call(server.url, bounds={"body": 100_000})
        assert failed(response) == "fault"
        assert "bounds['body']" in response["error"]["message"]
        response = http.call(server.url, bounds={"body": 100_000})
        assert (response["status"], len(response["body"])) == (500, 65_536)
        assert failed(http.call(server.url, bounds={"body": 100_000})) == "fault"
        assert http.call(server.url)["body"]["id"] == "c4"
        assert len(server.connections) == 4
        assert soon(lambda: len(server.open) == 1)


def test_a_compressed_error_page_is_cut_short_as_well(http: Client) -> None:
    page = gzip.compress(os.urandom(100_000).hex().encode())
    with raw_server([answer(page, 500, content_type="text/plain", content_encoding="gzip")], [good(2)]) as server:
        response = http.call(server.url)
        assert (response["status"], failed(response), len(response["body"])) == (500, "fault", 65_536)
        assert http.call(server.url)["body"]["id"] == "c2"


def test_a_gzip_bomb_is_bounded_in_memory(http: Client) -> None:
    """100 MiB in 100 KiB: refused when the bound is passed, long before it is unpacked."""
    squeeze = zlib.compressobj(9, wbits=31)
    bomb = b"".join(squeeze.compress(b" " * 2**20) for _ in range(100)) + squeeze.flush()
    with raw_server([answer(bomb, content_encoding="gzip")], [good(2)]) as server:
        tracemalloc.start()
        try:
            response = http.call(server.url, bounds={"body": 2**20})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert failed(response) == "fault"
        assert peak < 8 * 2**20
        assert http.call(server.url)["body"]["id"] == "c2"


def test_an_error_page_without_end_is_read_no_further_than_its_bound(http: Client) -> None:
    head = b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\n\r\n<html><h1>Bad gateway</h1>"
    with raw_server([head, endless(b"<p>sorry</p>" * 1_000)], [good(2)]) as server:
        response = http.call(server.url)
        assert (failed(response), response["error"]["message"][:11]) == ("unavailable", "Bad gateway")
        assert soon(lambda: not server.open)
        assert http.call(server.url)["body"]["id"] == "c2"


# Streams


def test_twenty_streams_in_turn_use_one_connection(http: Client) -> None:
    with raw_server([stream("a", "b", "é")]) as server:
        for _ in range(20):
            assert read(http, server.url) == (["a", "b", "é", ""], None)
    assert len(server.connections) == 1


def test_each_event_is_given_as_it_comes(http: Client) -> None:
    first, second = threading.Event(), chunked(event(delta("b", "stop")), event(b"[DONE]"))

    def wait(connection: Any, stopped: Any) -> None:
        first.wait(2)

    with raw_server([STREAM_HEAD + chunked(event(delta("a")))[:-5], wait, second]) as server:
        opened = http.open(server.url)
        assert opened.next()["choices"][0]["delta"]["content"] == "a"
        first.set()
        assert opened.next()["choices"][0]["delta"]["content"] == "b"
        opened.close()


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_compressed_stream_is_read_as_it_comes(http: Client, name: str) -> None:
    squeeze = zlib.compressobj(wbits=31 if name == "gzip" else 15)
    pieces = [
        squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        for data in (event(delta("a")), event(delta("b", "stop")), event(b"[DONE]"))
    ]
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: " + name.encode() + b"\r\n\r\n")
    parts = [step for piece in pieces for step in (chunked(piece)[:-5], 0.02)]
    with raw_server([head, *parts, chunked(squeeze.flush())]) as server:
        for _ in range(3):
            assert read(http, server.url) == (["a", "b"], None)
    assert len(server.connections) == 1


def test_a_stream_cut_anywhere_keeps_what_had_arrived(http: Client) -> None:
    """Never taken as whole before its last finish_reason; the next call gets its own answer."""
    whole = STREAM_HEAD + chunked(event(delta("a")), event(delta("b")), event(delta("", "stop")))
    told = whole.index(b'"stop"')
    cuts = [*range(0, told, 7), *range(told - 5, told)]
    for end in (CLOSE, RESET):
        script = [steps for cut in cuts for steps in ([whole[:cut], end], [good(cut)])]
        with raw_server(*script) as server:
            for cut in cuts:
                texts, error = read(http, server.url)
                arrived = [text for text in "ab" if b'"%s"' % text.encode() in whole[:cut].rpartition(b"\n\n")[0]]
                assert error is not None
                assert error["category"] in ("interrupted", "unavailable", *["fault"][: cut < 13])
                if end == CLOSE:
                    assert texts == arrived
                    partial = error.get("partial") or {"choices": []}
                    assert "".join(c["message"]["content"] or "" for c in partial["choices"]) == "".join(arrived)
                assert http.call(server.url)["body"]["id"] == f"c{cut}"


@pytest.mark.parametrize("ending", [[CLOSE], [RESET]])
def test_a_slow_reader_gets_what_had_arrived_before_the_break(http: Client, ending: list[Any]) -> None:
    body = STREAM_HEAD + chunked(*(event(delta(str(n))) for n in range(50)))[:-5]
    with raw_server([body, 0.05, *ending]) as server:
        opened = http.open(server.url)
        texts = [opened.next()["choices"][0]["delta"]["content"]]
        time.sleep(0.15)
        with pytest.raises(ChatError) as caught:
            while True:
                texts.append(opened.next()["choices"][0]["delta"]["content"])
        if ending == [CLOSE]:
            assert texts == [str(n) for n in range(50)]
        assert caught.value.error["category"] == "interrupted"
        assert caught.value.error["partial"]["choices"][0]["message"]["content"] == "".join(texts)


def test_a_stream_without_done_is_whole_if_every_choice_is_finished(http: Client) -> None:
    """With its chunks' end, or with the end of its connection; n counts."""
    events = event(delta("a")) + event(delta("", "stop"))
    two = event(delta("b", index=1)) + event(delta("", "stop", index=1))
    with raw_server(
        [STREAM_HEAD + chunked(events)], [PLAIN_STREAM + events, CLOSE], [STREAM_HEAD + chunked(events, two)]
    ) as server:
        assert read(http, server.url) == (["a", ""], None)
        assert read(http, server.url) == (["a", ""], None)
        assert read(http, server.url)[1] is None
    with raw_server([STREAM_HEAD + chunked(events)]) as server:
        options = options_of(server.url, on_next=lambda event: None)
        with pytest.raises(ChatError):
            http.create({**STREAM, "n": 2}, options)


def test_a_stream_without_end_is_bounded_by_the_deadline(http: Client) -> None:
    with raw_server([STREAM_HEAD, endless(chunked(event(delta("a")))[:-5], 0.01)]) as server:
        began = time.monotonic()
        texts, error = read(http, server.url, deadline=0.4)
        assert texts
        assert error["category"] == "interrupted"
        assert "deadline" in error["message"]
        assert time.monotonic() - began < 0.9
        assert soon(lambda: not server.open)


def test_comments_are_no_progress(http: Client) -> None:
    with raw_server([STREAM_HEAD, endless(chunked(b": keep-alive\n\n")[:-5], 0.02)]) as server:
        began = time.monotonic()
        texts, error = read(http, server.url, request={"timeout": 0.4}, deadline=None)
        assert (texts, error["category"]) == ([], "interrupted")
        assert time.monotonic() - began < 1.2
        assert soon(lambda: not server.open)


def test_a_silent_stream_is_bounded(http: Client) -> None:
    with raw_server([STREAM_HEAD + chunked(event(delta("a")))[:-5], until_gone]) as server:
        texts, error = read(http, server.url, request={"timeout": 0.3}, deadline=None)
        assert (texts, error["category"]) == (["a"], "interrupted")
        assert error["partial"]["choices"][0]["message"]["content"] == "a"
        assert soon(lambda: not server.open)


def test_a_stream_may_last_longer_than_its_silence(http: Client) -> None:
    parts = [step for text in "abcdef" for step in (chunked(event(delta(text)))[:-5], 0.1)]
    with raw_server([STREAM_HEAD, *parts, chunked(event(delta("", "stop")))]) as server:
        assert read(http, server.url, request={"timeout": 0.35}, deadline=None) == ([*"abcdef", ""], None)


def test_a_finished_stream_does_not_wait_for_its_connection(http: Client) -> None:
    """After [DONE] the rest is waited for briefly, and a connection that goes on is closed."""
    with raw_server([stream("a")[:-5], until_gone], [good(2)]) as server:
        began = time.monotonic()
        assert read(http, server.url) == (["a", ""], None)
        assert time.monotonic() - began < 0.8
        assert soon(lambda: not server.open)
    with raw_server([stream("a")[:-5], endless(chunked(b": more\n\n" * 1_000)[:-5])], [good(2)]) as server:
        assert read(http, server.url) == (["a", ""], None)
        assert soon(lambda: not server.open)
        assert http.call(server.url)["body"]["id"] == "c2"


def test_closing_a_stream_early_closes_its_connection(http: Client) -> None:
    with raw_server([STREAM_HEAD + chunked(event(delta("a")))[:-5], until_gone], [good(2)]) as server:
        opened = http.open(server.url)
        opened.next()
        opened.close()
        assert soon(lambda: not server.open)
        assert http.call(server.url)["body"]["id"] == "c2"


def test_an_exception_in_on_next_passes_and_closes_the_connection(http: Client) -> None:
    def on_next(event: Any) -> None:
        raise ZeroDivisionError

    with raw_server([STREAM_HEAD + chunked(event(delta("a")))[:-5], until_gone], [good(2)]) as server:
        with pytest.raises(ZeroDivisionError):
            http.create(STREAM, options_of(server.url, on_next=on_next))
        assert soon(lambda: not server.open)
        assert http.call(server.url)["body"]["id"] == "c2"


def test_on_next_gets_each_event_and_the_call_the_completion(http: Client) -> None:
    seen: list[Any] = []
    with raw_server([stream("a", "b")]) as server:
        whole = http.create(STREAM, options_of(server.url, on_next=seen.append))
    assert len(seen) == 3
    assert whole["choices"][0]["message"]["content"] == "ab"


def test_an_error_in_a_stream_ends_it_with_what_had_arrived(http: Client) -> None:
    said = {"error": {"message": "overloaded", "type": "server_error", "code": "busy"}}
    for broken in (event(said), b"event: error\n" + event({"message": "overloaded"})):
        with raw_server([STREAM_HEAD + chunked(event(delta("a")), broken)], [good(2)]) as server:
            texts, error = read(http, server.url)
            assert (texts, error["message"]) == (["a"], "overloaded")
            assert error["partial"]["choices"][0]["message"]["content"] == "a"
            assert http.call(server.url)["body"]["id"] == "c2"


@pytest.mark.parametrize(
    ("wrong", "category", "words"),
    [
        (answer({"error": {"message": "no credit", "code": "insufficient_quota"}}), "forbidden", "no credit"),
        (answer({"error": {"message": "bad model"}}, 400), "incorrect", "bad model"),
        (answer(b"<h1>Sign in</h1>", content_type="text/html"), "fault", "text/html"),
        (answer({"id": "c", "choices": []}), "fault", "application/json"),
        (answer(b"", content_type="text/plain"), "fault", "text/plain"),
    ],
    ids=["error in 200", "400", "html", "completion", "empty"],
)
def test_what_should_stream_and_does_not_is_an_error(http: Client, wrong: bytes, category: str, words: str) -> None:
    with raw_server([wrong], [good(2)]) as server:
        texts, error = read(http, server.url)
        assert (texts, error["category"]) == ([], category)
        assert words in error["message"]
        assert http.call(server.url)["body"]["id"] == "c2"


def test_a_stream_that_ends_before_its_first_byte_is_tried_again_and_later_never(http: Client) -> None:
    empty, broken = [STREAM_HEAD, CLOSE], [STREAM_HEAD + chunked(event(delta("a")))[:-5], CLOSE]
    with raw_server(empty, [CLOSE], [stream("b")]) as server:
        assert read(http, server.url, middleware=[QUICK]) == (["b", ""], None)
    with raw_server(broken, [stream("b")]) as server:
        texts, error = read(http, server.url, middleware=[QUICK])
        assert (texts, error["category"]) == (["a"], "interrupted")
    assert len(server.requests) == 1


def test_a_slow_reader_holds_the_server_back(http: Client) -> None:
    """Back-pressure: what is not read waits in the server, not in this process."""
    sent: list[int] = []
    piece = chunked(event(delta("x" * 10_000)))[:-5]

    def flood(connection: Any, stopped: Any) -> None:
        while not stopped.is_set():
            connection.sendall(piece)
            sent.append(len(piece))

    with raw_server([STREAM_HEAD, flood]) as server:
        opened = http.open(server.url)
        opened.next()
        time.sleep(0.3)
        before = sum(sent)
        time.sleep(0.2)
        assert sum(sent) - before < 100_000
        assert before < 32 * 2**20
        opened.close()
        assert soon(lambda: not server.open)


# Statuses, redirects, retry


@pytest.mark.parametrize(
    ("status", "category", "attempts"),
    [
        (400, "incorrect", 1),
        (401, "forbidden", 1),
        (403, "forbidden", 1),
        (404, "not_found", 1),
        (405, "unsupported", 1),
        (408, "interrupted", 3),
        (409, "conflict", 3),
        (413, "incorrect", 1),
        (422, "incorrect", 1),
        (429, "busy", 3),
        (500, "fault", 3),
        (501, "unsupported", 1),
        (502, "unavailable", 3),
        (503, "busy", 3),
        (504, "unavailable", 3),
        (529, "fault", 3),
    ],
)
def test_a_status_has_its_category_and_is_tried_again_or_not(
    http: Client, status: int, category: str, attempts: int
) -> None:
    failure = answer({"error": {"message": "m", "type": "t", "code": "c"}}, status, x_request_id="r1")
    with raw_server([failure]) as server:
        response = http.call(server.url, middleware=[QUICK])
        assert (response["status"], failed(response)) == (status, category)
        assert (response["attempts"], response["error"]["attempts"], len(server.requests)) == (attempts,) * 3
        assert (response["request_id"], response["error"]["request_id"]) == ("r1", "r1")
        assert [response["error"][name] for name in ("message", "type", "code")] == ["m", "t", "c"]
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    ("headers", "attempts", "least"),
    [
        ({"retry_after_ms": "60"}, 2, 0.06),
        ({"x_ms_retry_after_ms": "60"}, 2, 0.06),
        ({"retry_after": "0.06"}, 2, 0.06),
        ({"retry_after": formatdate(0, usegmt=True)}, 2, 0.0),
        ({"retry_after": "-5"}, 2, 0.0),
        ({"retry_after": "soon"}, 2, 0.0),
        ({"retry_after": "nan"}, 2, 0.0),
        ({"retry_after": "1e999"}, 2, 0.0),
        ({"retry_after": "3600"}, 1, 0.0),
        ({"retry_after": formatdate(time.time() + 9_000, usegmt=True)}, 1, 0.0),
        ({"x_should_retry": "false"}, 1, 0.0),
    ],
)
def test_the_server_says_when_to_come_again(http: Client, headers: Any, attempts: int, least: float) -> None:
    with raw_server([answer({"error": {"message": "m"}}, 429, **headers)], [good(2)]) as server:
        began = time.monotonic()
        response = http.call(server.url, middleware=[QUICK])
        assert least <= time.monotonic() - began < least + 0.5
        assert response["attempts"] == len(server.requests) == attempts
        if attempts == 1 and "retry_after" in headers:
            assert response["error"]["retry_after"] > 120


def test_x_should_retry_outranks_the_table(http: Client) -> None:
    with raw_server([answer({"error": "m"}, 400, x_should_retry="true")], [good(2)]) as server:
        assert http.call(server.url, middleware=[QUICK])["body"]["id"] == "c2"


def test_an_exhausted_quota_is_not_tried_again(http: Client) -> None:
    with raw_server([answer({"error": {"message": "m", "code": "insufficient_quota"}}, 429)]) as server:
        response = http.call(server.url, middleware=[QUICK])
        assert (failed(response), len(server.requests)) == ("forbidden", 1)


def test_breaks_before_an_answer_are_tried_again(http: Client) -> None:
    with raw_server([CLOSE], [RESET], [good(3)]) as server:
        response = http.call(server.url, middleware=[QUICK])
        assert (response["body"]["id"], response["attempts"]) == ("c3", 3)
        assert len(server.requests) == 3


def test_a_token_function_is_asked_for_each_attempt_and_again_after_a_401(http: Client) -> None:
    tokens = iter(f"token-{n}" for n in range(9))
    with raw_server([answer({"error": "old"}, 401)], [answer({"error": "m"}, 500)], [good(3)]) as server:
        response = http.call(server.url, api_key=lambda: next(tokens), middleware=[QUICK])
        assert (response["body"]["id"], response["attempts"]) == ("c3", 3)
    assert [r["headers"]["authorization"] for r in server.requests] == [f"Bearer token-{n}" for n in range(3)]
    with raw_server([answer({"error": "no"}, 401)]) as server:
        assert failed(http.call(server.url, api_key=lambda: "token", middleware=[QUICK])) == "forbidden"
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin_is_an_error_and_sends_it_nothing(http: Client, status: int) -> None:
    with raw_server([good(9)]) as other, raw_server([answer(b"", status, location=other.url + "/x")]) as server:
        response = http.call(server.url)
        assert (response["status"], failed(response)) == (status, "incorrect")
        assert not other.requests
        assert not other.connections


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_within_the_origin_is_followed_with_its_body(http: Client, status: int) -> None:
    with raw_server([answer(b"", status, location="/moved?a=1")], [good(2)]) as server:
        assert http.call(server.url)["body"]["id"] == "c2"
        assert [r["path"] for r in server.requests] == ["/v1/chat/completions", "/moved?a=1"]
        assert server.requests[0]["body"] == server.requests[1]["body"]
        assert server.requests[1]["headers"]["authorization"] == f"Bearer {KEY}"


def test_redirects_in_a_circle_end(http: Client) -> None:
    with raw_server([answer(b"", 307, location="/v1/again")]) as server:
        assert failed(http.call(server.url)) == "incorrect"
        assert len(server.requests) < 10


@pytest.mark.parametrize("location", ["", "http://[", "https://127.0.0.1/", "//evil.example/", "http://u:p@127.0.0.1/"])
def test_a_redirect_to_nowhere_is_an_error(http: Client, location: str) -> None:
    with raw_server([answer(b"", 308, location=location)]) as server:
        assert failed(http.call(server.url)) == "incorrect"
        assert len(server.requests) == 1


# Proxies and TLS


def test_a_proxy_of_the_environment_is_honoured(http: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server([good(1)]) as proxy:
        monkeypatch.setenv("http_proxy", "http://me:pass%20word@" + urlsplit(proxy.url).netloc)
        monkeypatch.delenv("no_proxy", raising=False)
        url = f"http://{http.name}.model.invalid/v1"
        assert http.call(url, allow_http=True)["body"]["id"] == "c1"
        assert http.call(url, allow_http=True)["body"]["id"] == "c1"
        monkeypatch.setenv("no_proxy", "unproxied.invalid")
        assert failed(http.call("http://unproxied.invalid/v1", allow_http=True)) == "unavailable"
    assert [r["path"] for r in proxy.requests] == [f"{url}/chat/completions"] * 2
    assert {r["headers"]["proxy-authorization"] for r in proxy.requests} == {"Basic bWU6cGFzcyB3b3Jk"}
    assert len(proxy.connections) == 1


def test_a_proxy_of_the_options_outranks_the_environment(http: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server([good(1)]) as proxy:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        proxies = {"http": "http://" + urlsplit(proxy.url).netloc}
        url = f"http://{http.name}.model.invalid/v1"
        assert http.call(url, allow_http=True, request={"proxies": proxies})["body"]["id"] == "c1"


def test_a_proxy_that_fails_is_said_without_its_password(http: Client) -> None:
    with raw_server([CLOSE]) as server:
        pass
    proxy = f"http://me:hunter22@{urlsplit(server.url).netloc}"
    response = http.call("http://model.invalid/v1", allow_http=True, request={"proxies": {"http": proxy}})
    assert failed(response) == "unavailable"
    assert "proxy" in response["error"]["message"]
    assert "hunter22" not in repr(response)


def test_a_socks_proxy_is_an_error_that_says_so(http: Client) -> None:
    proxies = {"http": "socks5://me:hunter22@127.0.0.1:9"}
    response = http.call("http://model.invalid/v1", allow_http=True, request={"proxies": proxies})
    assert "socks" in response["error"]["message"].lower()
    assert "hunter22" not in repr(response)


def server_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    return context


def test_tls_is_verified(http: Client, certificates: Path) -> None:
    """Known roots only; connections are kept, and their bytes bounded and checked as without TLS."""
    trusted = {"verify": str(certificates / "ca.pem")}
    script = ([good(1)], [stream("a")], [good(3) + b"junk", 0.2], [good(4)], [good(5)[:-3], CLOSE], [good(6)], [2.0])
    with raw_server(*script, context=server_context(certificates)) as server:
        refused = http.call(server.url)
        assert failed(refused) == "unavailable"
        assert "certificate" in refused["error"]["message"].lower()
        assert not server.requests
        before = len(server.connections)
        assert http.call(server.url, request=trusted)["body"]["id"] == "c1"
        assert read(http, server.url, request=trusted) == (["a", ""], None)
        assert http.call(server.url, request=trusted)["body"]["id"] == "c3"
        assert len(server.connections) - before == 1
        assert http.call(server.url, request=trusted)["body"]["id"] == "c4"
        assert failed(http.call(server.url, request=trusted)) == "interrupted"
        assert http.call(server.url, request=trusted)["body"]["id"] == "c6"
        assert failed(http.call(server.url, request={**trusted, "timeout": 0.3})) == "interrupted"
        assert len(server.requests) == 7


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_tls_to_another_name_is_refused(http: Client, certificates: Path) -> None:
    with raw_server([good(1)], context=server_context(certificates)) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        refused = http.call(url, request={"verify": str(certificates / "ca.pem")})
        assert failed(refused) == "unavailable"
        assert not server.requests
        assert http.call(url, request={"verify": False})["body"]["id"] == "c1"


def test_closing_a_stream_under_tls_closes_its_connection(http: Client, certificates: Path) -> None:
    steps = [STREAM_HEAD, endless(chunked(event(delta("a")))[:-5], 0.01)]
    with raw_server(steps, context=server_context(certificates)) as server:
        opened = http.open(server.url, request={"verify": str(certificates / "ca.pem")})
        opened.next()
        opened.close()
        assert soon(lambda: not server.open)


def test_tls_goes_through_a_proxy(http: Client, certificates: Path) -> None:
    trusted = {"verify": str(certificates / "ca.pem")}
    with raw_server([good(1)], context=server_context(certificates)) as server:
        address = urlsplit(server.url)
        assert address.hostname
        assert address.port
        with raw_server([tunnel(address.hostname, address.port)]) as proxy:
            proxies = {"https": "http://me:pass@" + urlsplit(proxy.url).netloc}
            for _ in range(2):
                assert http.call(server.url, request={**trusted, "proxies": proxies})["body"]["id"] == "c1"
        assert [r["method"] for r in proxy.requests] == ["CONNECT"]
        assert "authorization" not in proxy.requests[0]["headers"]
        assert proxy.requests[0]["headers"]["proxy-authorization"] == "Basic bWU6cGFzcw=="
        assert "proxy-authorization" not in server.requests[0]["headers"]
    with raw_server([b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"]) as proxy:
        proxies = {"https": "http://" + urlsplit(proxy.url).netloc}
        response = http.call(server.url, request={**trusted, "proxies": proxies})
        assert failed(response) == "unavailable"
        assert "407" in response["error"]["message"]


def test_roots_that_cannot_be_read_are_a_value_error(http: Client) -> None:
    with pytest.raises(ValueError, match="verify"):
        http.call("https://127.0.0.1:9/v1", request={"verify": "/no/such/file.pem"})


# Secrets


ECHOES = {
    "error": answer({"error": {"message": f"Incorrect API key provided: {KEY}"}}, 401, x_key=KEY),
    "string": answer({"error": f"bad {KEY}"}, 400),
    "html": answer(f"<html><p>{KEY}</p></html>".encode(), 502, content_type="text/html"),
    "status line": f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    "header line": HEAD + f"{KEY}\r\n\r\n".encode(),
    "no http": f"{KEY}\r\n\r\n".encode(),
    "transfer coding": HEAD + f"transfer-encoding: {KEY}\r\n\r\n".encode(),
    "content encoding": HEAD + f"content-encoding: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}".encode(),
    "chunk size": HEAD + f"transfer-encoding: chunked\r\n\r\n{KEY}\r\n".encode(),
    "cut": HEAD + f"x-key: {KEY}\r\ncontent-length: 9\r\n\r\n{{".encode(),
    "header": answer({"id": "c", "choices": []}, x_key=KEY),
    "header of a stream": STREAM_HEAD[:-2] + f"x-key: {KEY}\r\n\r\n".encode() + chunked(event(delta("a", "stop"))),
    "content": answer({"id": KEY, "choices": [{"index": 0, "message": {"content": f"<{KEY}>"}}]}),
    "event": STREAM_HEAD + chunked(event({"error": {"message": KEY}})),
    "no event": STREAM_HEAD + chunked(f"data: {KEY}\n\n".encode()),
    "no stream": answer(KEY.encode(), content_type="text/plain"),
    "delta": STREAM_HEAD + chunked(event(delta(KEY, "stop"))),
}


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_secret_shows_nowhere(http: Client, echo: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not in errors, traces, logs of any level, or what is pickled, even if the server echoes it."""
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []
    contexts: list[Any] = []
    for params in (PARAMS, STREAM):
        with raw_server([ECHOES[echo], CLOSE]) as server:
            options = options_of(server.url, trace=lambda *maps: seen.append(maps))
            try:
                response = http.call(server.url, params, trace=options["trace"])
                seen.append({**response, "body": repr(response["body"])})
                if params is PARAMS and "error" in response:
                    pickle.dumps(ChatError(response["error"]))
                    http.create(params, options)
                if params is STREAM:
                    seen.extend(read(http, server.url, trace=options["trace"]))
            except ChatError as exc:
                seen.extend([str(exc), repr(exc), exc.error, pickle.dumps(exc), exc.__cause__])
                contexts.append(exc.__context__)
    assert seen
    assert not any(contexts)
    assert KEY not in repr(seen)
    assert KEY[4:] not in repr(seen)
    assert KEY not in caplog.text
    assert "hi" not in caplog.text.split()


def shown_by(exc: BaseException) -> str:
    """What a traceback with the locals of its frames shows of an exception, but for those of this file."""
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__) if frame.f_code.co_filename != __file__]
    assert frames
    return repr([exc, exc.__cause__, *(frame.f_locals for frame in frames)])


def test_a_traceback_shows_no_secret(http: Client) -> None:
    with raw_server([CLOSE], [answer({"error": "m"}, 500)], [stream("a")[:-60], CLOSE]) as server:
        for params in (PARAMS, PARAMS, STREAM):
            with pytest.raises(ChatError) as caught:
                http.create({**params}, options_of(server.url, **{"on_next": print} if params is STREAM else {}))
            assert KEY not in shown_by(caught.value)


@pytest.mark.parametrize("transport", AWAITED)
def test_the_traceback_of_a_cancelled_call_shows_no_secret(transport: str) -> None:
    async def main(url: str) -> None:
        options = options_of(url, transport=transport)
        task = asyncio.ensure_future(acreate_chat_completion(PARAMS, options))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert KEY not in shown_by(caught.value)

    with raw_server([until_gone]) as server:
        asyncio.run(main(server.url))


def test_the_trace_sees_each_attempt(http: Client) -> None:
    seen: list[Any] = []
    with raw_server([answer({"error": "m"}, 500)], [CLOSE], [good(3)]) as server:
        http.call(server.url, middleware=[QUICK], trace=lambda request, response: seen.append((request, response)))
    assert [(request["attempt"], response["status"]) for request, response in seen] == [(1, 500), (2, 0), (3, 200)]


def test_a_header_that_is_a_credential_is_sent_and_not_shown(http: Client) -> None:
    seen: list[Any] = []
    headers = {"Authorization": "Token abcdefgh12345678", "X-Plain": "seen"}
    with raw_server([good(1)]) as server:
        http.call(server.url, request={"headers": headers}, trace=lambda *maps: seen.append(maps))
    assert server.requests[0]["headers"]["authorization"] == "Token abcdefgh12345678"
    assert server.requests[0]["headers"]["x-plain"] == "seen"
    assert "abcdefgh" not in repr(seen)


# Many at once


def echoing(request: dict[str, Any]) -> list[Any]:
    """The answer to a request: its ``user``, after a while."""
    return [0.005, answer({"id": json.loads(request["body"])["user"]})]


@pytest.mark.parametrize("transport", ["requests", CURL])
def test_many_threads_each_get_their_own_answer(transport: str) -> None:
    """A slow server: 16 threads, 200 calls, as many connections as threads."""
    with raw_server(echoing) as server:

        def one(number: int) -> bool:
            options = options_of(server.url, transport=transport)
            return bool(create_chat_completion({**PARAMS, "user": f"u{number}"}, options)["id"] == f"u{number}")

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, range(200)))


@pytest.mark.parametrize("transport", AWAITED)
def test_many_tasks_each_get_their_own_answer_though_some_are_cancelled(transport: str) -> None:
    async def one(url: str, number: int) -> bool:
        options = options_of(url, transport=transport)
        call = acreate_chat_completion({**PARAMS, "user": f"u{number}"}, options)
        if number % 3 == 0:
            try:
                await asyncio.wait_for(call, 0.004)
            except TimeoutError:
                return True
            return True
        return bool((await call)["id"] == f"u{number}")

    async def main(url: str) -> list[bool]:
        return [ok for _ in range(5) for ok in await asyncio.gather(*(one(url, n) for n in range(40)))]

    with raw_server(echoing) as server:
        assert all(asyncio.run(main(server.url)))


@pytest.mark.parametrize("transport", AWAITED)
def test_a_cancelled_call_closes_its_connection(transport: str) -> None:
    async def main(url: str, params: Any) -> None:
        task = asyncio.ensure_future(acreate_chat_completion(params, options_of(url, transport=transport)))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(soon, lambda: not server.open)

    for steps in ([until_gone], [HEAD, until_gone], [HEAD + b"content-length: 9\r\n\r\n{", until_gone]):
        with raw_server(steps) as server:
            asyncio.run(main(server.url, PARAMS))
    with raw_server([STREAM_HEAD, until_gone]) as server:
        asyncio.run(main(server.url, STREAM))


@pytest.mark.parametrize("transport", AWAITED)
def test_a_task_cancelled_in_a_stream_closes_its_connection(transport: str) -> None:
    async def follow(url: str, began: asyncio.Event) -> None:
        async for _ in await acreate_chat_completion(STREAM, options_of(url, transport=transport)):
            began.set()

    async def main(url: str) -> None:
        began = asyncio.Event()
        task = asyncio.ensure_future(follow(url, began))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(soon, lambda: not server.open)

    with raw_server([STREAM_HEAD + chunked(event(delta("a")))[:-5], until_gone]) as server:
        asyncio.run(main(server.url))


@pytest.mark.parametrize("transport", AWAITED)
def test_event_loops_one_after_the_other_are_quiet(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that ends with an open stream, and one that is closed without the farewell of asyncio.run."""

    async def leave(url: str) -> None:
        events = await acreate_chat_completion(STREAM, options_of(url, transport=transport))
        await anext(events)

    with warnings.catch_warnings(), raw_server([stream("a")]) as server:
        warnings.simplefilter("error")
        for _ in range(3):
            asyncio.run(leave(server.url))
        loop = asyncio.new_event_loop()
        try:
            for _ in range(2):
                loop.run_until_complete(leave(server.url))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
        asyncio.run(leave(server.url))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("transport", AWAITED)
def test_an_event_loop_may_be_left_as_it_is(transport: str) -> None:
    """A script that closes no loop, or none properly, ends without a word of ours."""
    script = """if True:
        import asyncio, sys
        from chatfn import acreate_chat_completion
        url, transport = sys.argv[1:]
        options = {"api_key": "k", "api_endpoint": url, "transport": transport}
        call = lambda: acreate_chat_completion({"model": "m", "messages": []}, options)
        first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
        print(first.run_until_complete(call())["id"])
        first.close()
        print(second.run_until_complete(call())["id"])
    """
    with raw_server([good(1)]) as server:
        run = subprocess.run(
            [sys.executable, "-c", script, server.url, transport],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert (run.stdout, run.stderr) == ("c1\nc1\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_has_its_own_connections(http: Client) -> None:
    """The child calls while the parent's pool holds a connection and an open stream; both go on undisturbed."""
    body = STREAM_HEAD + chunked(event(delta("a")))[:-5]
    with raw_server([good(1)], [body, 0.5, chunked(event(delta("b", "stop")))], [good(3)]) as server:
        assert http.call(server.url)["body"]["id"] == "c1"
        opened = http.open(server.url)
        opened.next()
        back, forth = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the server's, here
            child = os.fork()
        if child == 0:
            os.write(forth, in_child(http, server.url))
            os._exit(0)
        os.close(forth)
        with os.fdopen(back, "rb") as reader:
            said = reader.read() if readable(reader, 3) else b"nothing in time"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert said == b"c3"
        assert opened.next()["choices"][0]["delta"]["content"] == "b"
        assert http.call(server.url)["body"]["id"] == "c3"


def in_child(http: Client, url: str) -> bytes:
    """What a forked child says of a call of its own."""
    options = options_of(url, transport=transport_of(http.name))
    try:
        if http.name in BLOCKING:
            return str(create_chat_completion(PARAMS, options)["id"]).encode()
        asyncio.events._set_running_loop(None)
        return str(asyncio.run(acreate_chat_completion(PARAMS, options))["id"]).encode()
    except BaseException as exc:  # anything else would go on in the parent's tests
        return repr(exc).encode()
