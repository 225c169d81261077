"""The transport ``curl`` over HTTP/2, with TLS and in the clear: it keeps the promises that it keeps over HTTP/1.1.

The server is ``http2server``, on the protocol's own implementation in Python, h2.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rawserver import answer as plain_answer
from rawserver import delta, event, raw_server

pytest.importorskip("pycurl")
pytest.importorskip("h2")

import pycurl
from http2server import (
    Answer,
    Server,
    Steps,
    Stream,
    answer,
    cut,
    end,
    forever,
    goaway,
    head,
    http2_server,
    reset,
    trailers,
    until,
)

from chatfn import ChatError, acreate_chat_completion, create_chat_completion, map_chat, responder
from chatfn.errors import RETRYABLE

pytestmark = pytest.mark.skipif(
    not pycurl.version_info()[4] & pycurl.VERSION_HTTP2, reason="this libcurl does not speak HTTP/2"
)

KEY = "sk-test-0123456789abcdef"
PARAMS = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**PARAMS, "stream": True}
QUICK = ["retry", {"attempts": 3, "base": 0.001}]
PRIOR = ["curl", {"http": "2-prior-knowledge"}]
STREAM_HEAD = head(content_type="text/event-stream")
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, CALM, HTTP_1_1 = 0, 2, 7, 8, 11, 13
CONNECTION_HEADERS = {"connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
PATIENCE = 20.0  # seconds that nothing here takes, on however busy a machine


class Peer(NamedTuple):
    """A way to speak HTTP/2: ``serve(*answers, **settings)`` is a server, and ``options`` are what a call needs."""

    serve: Callable[..., Any]
    options: dict[str, Any]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment in which the tests run."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def tls_context(certificates: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    if protocols:
        context.set_alpn_protocols([*protocols])
    return context


def in_the_clear() -> Peer:
    return Peer(http2_server, {"transport": PRIOR})


@pytest.fixture(params=["tls", "clear"])
def peer(request: pytest.FixtureRequest) -> Peer:
    if request.param == "clear":
        return in_the_clear()
    certificates = request.getfixturevalue("certificates")

    def serve(*answers: Answer, **settings: Any) -> Any:
        return http2_server(*answers, context=tls_context(certificates), **settings)

    return Peer(serve, {"transport": "curl", "request": {"verify": str(certificates / "ca.pem")}})


def options_of(peer: Peer, server: Any, **options: Any) -> Any:
    """No retries."""
    asked = {"timeout": PATIENCE, **peer.options.get("request", {}), **options.pop("request", {})}
    return {
        "api_key": KEY,
        "api_endpoint": server.url,
        "middleware": [],
        "deadline": PATIENCE,
        **peer.options,
        "request": asked,
        **options,
    }


class Outcome(NamedTuple):
    id: Any  # of the completion
    texts: list[str]  # of a stream's events; of one that comes whole, all in one
    error: Any
    headers: dict[str, str]  # where the call shows them


Call = Callable[..., Outcome]  # (params, options) to what comes of it


def blocking(params: Any, options: Any) -> Outcome:
    response: Any = responder(options)(params)
    if "error" in response or not params.get("stream"):
        return Outcome((response["body"] or {}).get("id"), [], response.get("error"), response["headers"])
    texts: list[str] = []
    try:
        for each in response["body"]:
            texts.append(text_of(each))
    except ChatError as exc:
        return Outcome(None, texts, exc.error, response["headers"])
    return Outcome(None, texts, None, response["headers"])


async def following(params: Any, options: Any) -> Outcome:
    texts: list[str] = []
    try:
        found = await acreate_chat_completion(params, options)
        if not params.get("stream"):
            return Outcome(found["id"], [], None, {})
        async for each in found:
            texts.append(text_of(each))
    except ChatError as exc:
        return Outcome(None, texts, exc.error, {})
    return Outcome(None, texts, None, {})


def mapped(params: Any, options: Any) -> Outcome:
    (row,) = map_chat([{"params": params}], options)
    found = row.get("response") or row.get("error", {}).get("partial") or {"choices": []}
    texts = [choice["message"]["content"] or "" for choice in found["choices"]]
    return Outcome(found.get("id"), texts, row.get("error"), {})


@pytest.fixture(params=["blocking", "awaited", "mapped"])
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    if request.param == "awaited":
        with asyncio.Runner() as runner:
            yield lambda params, options: runner.run(following(params, options))
    else:
        yield blocking if request.param == "blocking" else mapped


def text_of(event: Any) -> str:
    return str(event["choices"][0]["delta"].get("content", ""))


def good(name: str = "a") -> Steps:
    return answer({"id": name, "choices": []})


def stream(*texts: str) -> Steps:
    """A whole, proper event stream: the last line has no end."""
    return [STREAM_HEAD, *(event(delta(text)) for text in texts), event(delta("", "stop")), b"data: [DONE]", end]


def saying(text: str) -> Any:
    return {**PARAMS, "messages": [{"role": "user", "content": text}]}


def said(request: Any) -> str:
    return str(json.loads(request["body"])["messages"][0]["content"])


def scripted(**answers: Steps) -> Callable[[Any], Steps]:
    """An answer by what is said; to all else that its own words."""
    return lambda request: answers.get(said(request)) or good(said(request))


def soon(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def together(count: int, gone: float = PATIENCE) -> Callable[[Stream], Any]:
    """A step: wait until so many requests have come."""

    async def step(stream: Stream) -> None:
        until = time.monotonic() + gone
        while len(stream.connection.server.requests) < count and time.monotonic() < until:
            await asyncio.sleep(0.002)

    return step


def resets(server: Server) -> list[int]:
    """The streams that the client has reset."""
    return [number for connection in server.connections for number in connection.resets]


def proper(server: Server) -> bool:
    """Whether the client has kept to the protocol on all of its connections."""
    return not any(connection.violation for connection in server.connections)


# What is sent


def test_a_request_is_the_same_as_over_http_1_1(peer: Peer, call: Call) -> None:
    """Method, path, headers and body; header names in lower case, none that belongs to a connection."""
    params = {**PARAMS, "x": [1, {"b": 1, "a": "é"}]}
    with peer.serve(good()) as server, raw_server([plain_answer({"id": "a", "choices": []})]) as plain:
        assert call(params, options_of(peer, server)).id == "a"
        assert call(params, options_of(peer, plain, transport="curl")).id == "a"
    (request,), (known,) = server.requests, plain.requests
    assert (request["method"], request["path"], request["body"]) == (known["method"], known["path"], known["body"])
    names = [name for name, _ in request["headers"]]
    assert sorted(names[:4]) == [":authority", ":method", ":path", ":scheme"]
    assert len(set(names)) == len(names)
    assert names == [name.lower() for name in names]
    assert not CONNECTION_HEADERS & set(names)
    assert dict(request["headers"][4:]) == {k: v for k, v in known["headers"].items() if k != "host"}
    found = dict(request["headers"])
    assert (found[":scheme"], found[":authority"]) == tuple(server.url.removesuffix("/v1").split("://"))
    assert found["authorization"] == f"Bearer {KEY}"
    assert proper(server)


def test_bodies_of_any_size_pass_both_ways(peer: Peer, call: Call) -> None:
    """Larger than each window of flow control."""
    with peer.serve(answer({"id": "a", "choices": [], "pad": "y" * 2_000_000})) as server:
        params = {**PARAMS, "pad": "x" * 1_000_000}
        assert call(params, options_of(peer, server)).id == "a"
    assert json.loads(server.requests[0]["body"]) == params
    assert proper(server)


# Whole answers


def test_calls_one_after_another_share_a_connection(peer: Peer) -> None:
    async def several(options: Any) -> list[str]:
        return [(await acreate_chat_completion(PARAMS, options))["id"] for _ in range(5)]

    names = "abcde"
    with peer.serve(*map(good, names * 3)) as server:
        options = options_of(peer, server)
        assert "".join(create_chat_completion(PARAMS, options)["id"] for _ in names) == names
        assert "".join(asyncio.run(several(options))) == names
        rows = map_chat([{"params": PARAMS}] * 5, options, concurrency=1)
        assert "".join(row["response"]["id"] for row in rows) == names
    assert [request["connection"] for request in server.requests] == [0] * 5 + [1] * 5 + [2] * 5
    assert [request["stream"] for request in server.requests] == [1, 3, 5, 7, 9] * 3


def test_statuses_and_headers_are_read(peer: Peer, call: Call) -> None:
    error = answer({"error": {"message": "slow down"}}, 429, retry_after="7", x_request_id="r1")
    with peer.serve(error, answer({"error": {"message": "no"}}, 400)) as server:
        busy = call(PARAMS, options_of(peer, server)).error
        assert (busy["category"], busy["message"]) == ("busy", "slow down")
        assert (busy["status"], busy["retry_after"], busy["request_id"]) == (429, 7.0, "r1")
        assert call(STREAM, options_of(peer, server)).error["category"] == "incorrect"
    with peer.serve(answer({}, 429, retry_after="0"), good("b")) as server:
        assert call(PARAMS, options_of(peer, server, middleware=[QUICK])).id == "b"
        assert len(server.connections) == 1 or call is mapped


def test_interim_answers_and_trailers_are_no_part_of_an_answer(peer: Peer, call: Call) -> None:
    early = [head(103, link="</a>; rel=preload"), head(100)]
    late = trailers(x_late="1", content_type="text/html")
    body = b'{"id": "a", "choices": []}'
    with peer.serve([*early, *good()], [head(x_a="1"), body, late], [*early, *stream("b")[:-1], late]) as server:
        assert call(PARAMS, options_of(peer, server)).id == "a"
        found = call(PARAMS, options_of(peer, server))
        assert (found.id, found.headers) == ("a", {"x-a": "1"} if call is blocking else {})
        found = call(STREAM, options_of(peer, server))
        assert ("".join(found.texts), found.error) == ("b", None)


def test_what_was_asked_for_is_decoded(peer: Peer, call: Call) -> None:
    packed = gzip.compress(b'{"id": "c", "choices": []}')
    with peer.serve(answer(packed, content_encoding="gzip"), answer(packed[:-9], content_encoding="gzip")) as server:
        assert call(PARAMS, options_of(peer, server)).id == "c"
        assert call(PARAMS, options_of(peer, server)).error["category"] == "interrupted"


# Streams


def test_a_stream_is_read_event_by_event(peer: Peer, call: Call) -> None:
    with peer.serve(stream("a", "b", "é")) as server:
        for _ in range(3):
            found = call(STREAM, options_of(peer, server))
            assert found.error is None
            assert found.texts == (["abé"] if call is mapped else ["a", "b", "é", ""])


def test_each_event_is_given_as_it_comes(peer: Peer) -> None:
    gates = [threading.Event() for _ in range(3)]
    steps = [step for name, gate in zip("abc", gates, strict=True) for step in (event(delta(name)), until(gate))]
    with peer.serve([STREAM_HEAD, *steps, event(delta("", "stop")), b"data: [DONE]", end]) as server:
        events = create_chat_completion(STREAM, options_of(peer, server))
        for name, gate in zip("abc", gates, strict=True):
            assert text_of(next(events)) == name
            gate.set()
        assert len(list(events)) == 1

        async def main() -> None:
            events = await acreate_chat_completion(STREAM, options_of(peer, server))
            for gate in gates:
                gate.clear()
            for name, gate in zip("abc", gates, strict=True):
                assert text_of(await anext(events)) == name
                gate.set()
            assert len([each async for each in events]) == 1

        asyncio.run(main())


# Many on one connection


def test_the_calls_of_a_map_share_a_connection(peer: Peer) -> None:
    """All are in flight before the first is answered."""
    with peer.serve(lambda request: [together(60), *good(said(request))]) as server:
        rows = [{"id": str(n), "params": saying(str(n))} for n in range(60)]
        found = list(map_chat(rows, options_of(peer, server), concurrency=60))
    assert [row["response"]["id"] for row in found] == [row["id"] for row in rows]
    assert [connection.most for connection in server.connections] == [60]
    assert proper(server)


def test_a_map_of_more_has_a_connection_for_each_64(peer: Peer) -> None:
    with peer.serve(lambda request: [together(150), *good(said(request))]) as server:
        rows = [{"id": str(n), "params": saying(str(n))} for n in range(150)]
        found = list(map_chat(rows, options_of(peer, server), concurrency=150))
    assert [row["response"]["id"] for row in found] == [row["id"] for row in rows]
    assert sorted(connection.most for connection in server.connections) == [22, 64, 64]


def test_the_streams_of_a_map_share_a_connection(peer: Peer) -> None:
    with peer.serve([together(40), *stream("a", "b")]) as server:
        found = list(map_chat([{"params": STREAM}] * 40, options_of(peer, server), concurrency=40))
    assert [row["response"]["choices"][0]["message"]["content"] for row in found] == ["ab"] * 40
    assert len(server.connections) == 1


def test_awaited_calls_share_a_connection(peer: Peer) -> None:
    async def main(options: Any) -> list[Any]:
        return await asyncio.gather(*(acreate_chat_completion(saying(str(n)), options) for n in range(60)))

    with peer.serve(lambda request: [together(60), *good(said(request))]) as server:
        assert [found["id"] for found in asyncio.run(main(options_of(peer, server)))] == [str(n) for n in range(60)]
        assert len(server.connections) == 1


@pytest.mark.parametrize("limit", [1, 10])
def test_the_servers_limit_of_streams_is_obeyed(peer: Peer, limit: int) -> None:
    """From the moment on when it is known; whoever has no place on a connection gets one on another."""
    answers = [good("first"), lambda request: [0.01, *good(said(request))]]

    async def main(options: Any) -> list[Any]:
        await acreate_chat_completion(PARAMS, options)
        return await asyncio.gather(*(acreate_chat_completion(saying(str(n)), options) for n in range(30)))

    with peer.serve(*answers, limit=limit) as server:
        assert [found["id"] for found in asyncio.run(main(options_of(peer, server)))] == [str(n) for n in range(30)]
        assert 1 <= server.connections[0].most <= limit
        assert proper(server)
    with peer.serve(*answers[1:], limit=limit) as server:
        rows = [{"id": str(n), "params": saying(str(n))} for n in range(60)]
        found = list(map_chat(rows, options_of(peer, server), concurrency=20))
        assert [row["response"]["id"] for row in found] == [row["id"] for row in rows]
        assert proper(server)
        assert len(server.requests) == 60


def test_what_a_server_refuses_before_its_limit_is_known_is_not_sent_again_by_the_transport(peer: Peer) -> None:
    """It has not been answered, and may be tried again."""
    with peer.serve(lambda request: [0.05, *good(said(request))], limit=10, refuses=True) as server:
        rows = [{"id": str(n), "params": saying(str(n))} for n in range(40)]
        found = list(map_chat(rows, options_of(peer, server), concurrency=40))
        refused = sum(connection.refused for connection in server.connections)
    answered = [row["id"] for row in found if row.get("response", {}).get("id") == row["id"]]
    assert sorted(map(said, server.requests)) == sorted(answered)
    assert {row["error"]["category"] for row in found if "error" in row} <= {"unavailable"}
    assert (len(found), refused) == (40, 40 - len(answered))
    assert proper(server)


def test_a_slow_reader_of_one_stream_does_not_hold_up_the_others(peer: Peer) -> None:
    """Its server has to wait, on the same connection."""
    sent = [0]

    async def flood(stream: Stream) -> None:
        piece = event(delta("x" * 100_000))
        for _ in range(1_000):
            await stream.send(piece)
            sent[0] = stream.sent

    async def main(options: Any) -> None:
        events = await acreate_chat_completion(STREAM, options)
        await anext(events)
        before, still = -1, 0
        for _ in range(500):
            await asyncio.sleep(0.01)
            assert (await acreate_chat_completion(PARAMS, options))["id"] == "a"
            still = still + 1 if sent[0] == before else 0
            before = sent[0]
            if still == 10:
                break
        assert 0 < sent[0] < 50_000_000
        for _ in range(20):
            assert text_of(await anext(events)) == "x" * 100_000
        await events.aclose()
        assert (await acreate_chat_completion(PARAMS, options))["id"] == "a"

    def answer_to(request: Any) -> Steps:
        return [STREAM_HEAD, flood] if b'"stream"' in request["body"] else good()

    with peer.serve(answer_to) as server:
        asyncio.run(asyncio.wait_for(main(options_of(peer, server)), 3 * PATIENCE))
        assert len(server.connections) == 1
        assert resets(server) == [1]


# Failures


def raw(data: bytes) -> Callable[[Stream], None]:
    """A step: bytes as they are; ``%c`` in them is the stream's number."""
    return lambda stream: stream.connection.transport.write(data.replace(b"%c", bytes([stream.number])))


SILENT: dict[str, Steps] = {  # what breaks before a head: nothing was answered
    "no error": [reset(NO_ERROR)],
    "internal error": [reset(INTERNAL_ERROR)],
    "refused": [reset(REFUSED_STREAM)],
    "cancelled": [reset(CANCEL)],
    "calm": [reset(CALM)],
    "http/1.1 required": [reset(HTTP_1_1)],
    "goaway": [goaway(NO_ERROR, 0)],
    "goaway and cut": [goaway(NO_ERROR, 0), 0.02, cut],
    "goaway of an error": [goaway(INTERNAL_ERROR, 0), cut],
    "cut": [cut],
}
BROKEN: dict[str, Steps] = {  # what breaks later, or is no answer by the rules of HTTP/2
    "reset after the head": [head(), reset(INTERNAL_ERROR)],
    "reset in the body": [head(), b'{"id":', reset(INTERNAL_ERROR)],
    "refused in the body": [head(), b'{"id":', reset(REFUSED_STREAM)],
    "cancelled in the body": [head(), b'{"id": "a"}', reset(CANCEL)],
    "no error, but short": [head(content_length=99), b'{"id": "a"}', reset(NO_ERROR)],
    "goaway in the body": [head(), b'{"id":', goaway(INTERNAL_ERROR), cut],
    "cut after the head": [head(), cut],
    "cut in the body": [head(content_length=99), b'{"id": "a"}', cut],
    "cut at the end of a body": [head(), b'{"id": "a"}', cut],
    "shorter than its length": [head(content_length=99), b'{"id": "a"}', end],
    "longer than its length": [head(content_length=2), b'{"id": "a"}', end],
    "no body, but a length": [head(content_length=99), end],
    "two lengths": [head(content_length="2, 3"), b"{} ", end],
    "no number of a length": [head(content_length="x"), b"{}", end],
    "a header of connections": [head(connection="close"), b'{"id": "a"}', end],
    "transfer-encoding": [head(transfer_encoding="chunked"), b'{"id": "a"}', end],
    "an upper-case name": [head(**{"X-A": "b"}), b'{"id": "a"}', end],
    "a status of two digits": [head(99), b'{"id": "a"}', end],
    "switching protocols": [head(101), b'{"id": "a"}', end],
    "data before a head": [raw(b"\0\0\2\0\1\0\0\0%c{}")],
    "no frame": [head(), b"{", raw(b"\xff" * 99)],
}


@pytest.mark.parametrize("name", SILENT)
def test_what_breaks_before_an_answer_is_unavailable_and_sent_once(call: Call, name: str) -> None:
    """Though libcurl would send some of it again by itself; the next call gets its own answer."""
    peer = in_the_clear()
    with peer.serve(SILENT[name], good("b"), SILENT[name], stream("c")) as server:
        assert call(PARAMS, options_of(peer, server)).error["category"] == "unavailable"
        assert len(server.requests) == 1
        assert call(PARAMS, options_of(peer, server)).id == "b"
        assert call(STREAM, options_of(peer, server)).error["category"] == "unavailable"
        assert len(server.requests) == 3
        assert "".join(call(STREAM, options_of(peer, server)).texts) == "c"


@pytest.mark.parametrize("name", ["refused", "goaway", "cut", "internal error"])
def test_a_retry_sends_again_what_broke_before_an_answer(peer: Peer, call: Call, name: str) -> None:
    with peer.serve(SILENT[name], good("b"), SILENT[name], stream("c")) as server:
        options = options_of(peer, server, middleware=[QUICK])
        assert call(PARAMS, options).id == "b"
        assert "".join(call(STREAM, options).texts) == "c"
        assert len(server.requests) == 4


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_answer_is_an_error_and_the_next_call_gets_its_own(call: Call, name: str) -> None:
    peer = in_the_clear()
    with peer.serve(BROKEN[name], good("b"), BROKEN[name], stream("c")) as server:
        for params, more in ((PARAMS, PARAMS), (STREAM, STREAM)):
            error: Any = call(params, options_of(peer, server)).error
            assert error["category"] in RETRYABLE
            assert len(error["message"]) <= 2_000
            found = call(more, options_of(peer, server))
            assert found.error is None
            assert found.id == "b" or "".join(found.texts) == "c"
        assert len(server.requests) == 4


CUTS: dict[str, Steps] = {
    "reset": [reset(INTERNAL_ERROR)],
    "cancelled": [reset(CANCEL)],
    "refused": [reset(REFUSED_STREAM)],
    "no error": [reset(NO_ERROR)],
    "end": [end],
    "trailers": [trailers(x_a="b")],
    "cut": [cut],
    "goaway": [goaway(INTERNAL_ERROR), cut],
    "no frame": [raw(b"\xff" * 99)],
}


@pytest.mark.parametrize("name", CUTS)
def test_a_stream_that_breaks_keeps_what_had_arrived(call: Call, name: str) -> None:
    """It is not tried again."""
    peer = in_the_clear()
    steps = [STREAM_HEAD, event(delta("a")), event(delta("b")), 0.02, *CUTS[name]]
    with peer.serve(steps, stream("c")) as server:
        found = call(STREAM, options_of(peer, server, middleware=[QUICK]))
        assert found.error["category"] == "interrupted"
        assert found.error["partial"]["choices"][0]["message"]["content"] == "ab"
        assert "".join(found.texts) == "ab"
        assert len(server.requests) == 1
        assert "".join(call(STREAM, options_of(peer, server)).texts) == "c"


STALLS: dict[str, Steps] = {
    "no head": [forever],
    "interim": [head(103), forever],
    "half a body": [head(content_length=99), b"{", forever],
    "stream": [STREAM_HEAD, event(delta("a")), forever],
}
BOUNDS = pytest.mark.parametrize(
    "bound", [{"request": {"timeout": 0.4}}, {"deadline": 0.4}], ids=["timeout", "deadline"]
)


def stalled(name: str) -> Any:
    """Params to be answered by a stall of that name."""
    return {**saying(name), "stream": name == "stream"}


def broke(error: Any, name: str) -> bool:
    said = error.get("partial", {}).get("choices") or [{"message": {"content": ""}}]
    found = (error["category"], said[0]["message"]["content"])
    return found == ("interrupted", "a" if name == "stream" else "")


@BOUNDS
def test_stalls_are_bounded_and_reset_their_streams_alone(bound: Any) -> None:
    """The connection goes on: an answer that takes longer comes, and the next call's too."""
    peer = in_the_clear()

    async def main(server: Server) -> None:
        options, bounded = options_of(peer, server), options_of(peer, server, **bound)
        assert (await following(saying("first"), options)).id == "first"
        slow = asyncio.ensure_future(following(saying("slow"), options))
        found = await asyncio.gather(*(following(stalled(name), bounded) for name in STALLS))
        assert all(broke(outcome.error, name) for outcome, name in zip(found, STALLS, strict=True))
        assert [(await slow).id, (await following(saying("next"), options)).id] == ["slow", "next"]

    with peer.serve(scripted(**STALLS, slow=[0.6, *good("slow")])) as server:
        asyncio.run(main(server))
        assert soon(lambda: len(resets(server)) == len(STALLS))
        assert len(server.connections) == 1


@BOUNDS
def test_stalls_of_a_map_are_bounded_and_reset_their_streams_alone(bound: Any) -> None:
    peer = in_the_clear()
    with peer.serve(scripted(**STALLS)) as server:
        rows = [{"id": name, "params": stalled(name)} for name in (*"abc", *STALLS)]
        found = list(map_chat(rows, options_of(peer, server, **bound), concurrency=10))
        assert [row["response"]["id"] for row in found[:3]] == [*"abc"]
        assert all(broke(row["error"], row["id"]) for row in found[3:])
        assert len(server.connections) == 1


@BOUNDS
def test_a_stall_of_a_call_is_bounded_and_resets_its_stream_alone(bound: Any) -> None:
    peer, name = in_the_clear(), "stream"
    with peer.serve(scripted(**STALLS)) as server:
        options = options_of(peer, server)
        assert blocking(saying("a"), options).id == "a"
        assert broke(blocking(stalled(name), options_of(peer, server, **bound)).error, name)
        assert blocking(saying("b"), options).id == "b"
        assert soon(lambda: resets(server) == [3])
        assert len(server.connections) == 1


def test_a_stream_that_has_said_done_is_not_waited_for(call: Call) -> None:
    peer = in_the_clear()
    with peer.serve([*stream("a")[:-2], event(b"[DONE]"), forever], stream("b")) as server:
        assert "".join(call(STREAM, options_of(peer, server)).texts) == "a"
        assert soon(lambda: resets(server) == [1])
        assert "".join(call(STREAM, options_of(peer, server)).texts) == "b"


# One stream's failure, and the others of its connection


def in_flight(peer: Peer, server: Server, texts: list[str], **options: Any) -> dict[str, Any]:
    """What comes of calls at once, by their texts: the id of the completion, or the category of the error.

    One was answered before, so that all find its connection.
    """

    async def one(text: str, given: Any) -> Any:
        try:
            return (await acreate_chat_completion(saying(text), given))["id"]
        except ChatError as exc:
            return exc.error["category"]

    async def main() -> dict[str, Any]:
        given = options_of(peer, server, **options)
        await one("first", given)
        return dict(zip(texts, await asyncio.gather(*(one(text, given) for text in texts)), strict=True))

    return asyncio.run(main())


LARGE = {f"x-{n}": "y" * 1_000 for n in range(70)}
ALONE: dict[str, tuple[Steps, str]] = {  # what ends one stream, and nothing else
    "reset": ([reset(INTERNAL_ERROR)], "unavailable"),
    "reset in the body": ([head(), b"{", reset(INTERNAL_ERROR)], "interrupted"),
    "refused": ([reset(REFUSED_STREAM)], "unavailable"),
    "too short": ([head(content_length=9), b"{", end], "interrupted"),
    "an upper-case name": ([head(**{"X-A": "b"}), b"{}", end], "interrupted"),
    "a large head": ([head(**LARGE), b"{}", end], "fault"),
    "a large head and no body": ([head(**dict(list(LARGE.items())[:30])), end], "fault"),
    "an unknown encoding": ([head(content_encoding="br"), b"{}", end], "fault"),
    "an unknown encoding of nothing": ([head(content_encoding="br"), end], "fault"),
    "a body without end": ([head(), b" " * 50_000, forever], "fault"),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_wrong_with_one_stream_harms_no_other(name: str) -> None:
    peer = in_the_clear()
    steps, category = ALONE[name]
    wait: Steps = [together(6), 0.05]
    texts = ["a", "b", "bad", "c", "d"]

    def answer_to(request: Any) -> Steps:
        if said(request) == "first":
            return good("first")
        return [together(6), *steps] if said(request) == "bad" else [*wait, *good(said(request))]

    with peer.serve(answer_to) as server:
        bounds = {"headers": 65_536 if name == "a large head" else 20_000, "body": 40_000}
        found = in_flight(peer, server, texts, bounds=bounds)
        assert found == {**{text: text for text in texts}, "bad": category}
        assert [request["connection"] for request in server.requests] == [0] * 6


def test_a_closed_stream_is_reset_and_the_others_go_on(peer: Peer) -> None:
    gate = threading.Event()
    steps = [STREAM_HEAD, event(delta("a")), until(gate), event(delta("b", "stop")), b"data: [DONE]", end]

    async def main(server: Server) -> None:
        options: Any = options_of(peer, server)
        first, second, third = [await acreate_chat_completion(STREAM, options) for _ in range(3)]
        for events in (first, second, third):
            assert text_of(await anext(events)) == "a"
        await second.aclose()
        assert await asyncio.to_thread(soon, lambda: resets(server) == [3])
        gate.set()
        for events in (first, third):
            assert [text_of(each) async for each in events] == ["b"]

    with peer.serve(steps) as server:
        asyncio.run(main(server))
        assert (len(server.connections), resets(server)) == (1, [3])


def test_a_closed_stream_is_reset_at_once_and_its_connection_used_again(peer: Peer) -> None:
    """Of a blocking call, which leaves nothing behind that would work on."""
    with peer.serve([STREAM_HEAD, event(delta("a")), forever], good("b")) as server:
        events = create_chat_completion(STREAM, options_of(peer, server))
        next(events)
        events.close()
        assert soon(lambda: resets(server) == [1])
        assert create_chat_completion(PARAMS, options_of(peer, server))["id"] == "b"
        assert len(server.connections) == 1


def test_a_cancelled_call_resets_its_stream_and_the_others_go_on(peer: Peer) -> None:
    gate = threading.Event()
    answer_to = scripted(bad=[forever], b=[until(gate), *good("b")])

    async def main(server: Server) -> None:
        options = options_of(peer, server)
        tasks = [asyncio.ensure_future(acreate_chat_completion(saying(text), options)) for text in ("bad", "b")]
        assert await asyncio.to_thread(soon, lambda: len(server.requests) == 2)
        tasks[0].cancel()
        assert await asyncio.to_thread(soon, lambda: len(resets(server)) == 1)
        gate.set()
        assert (await tasks[1])["id"] == "b"
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    with peer.serve(answer_to) as server:
        asyncio.run(main(server))
        assert len(server.connections) == 1


def test_a_map_that_is_closed_ends_what_is_in_flight(peer: Peer) -> None:
    with peer.serve(good("a"), [forever]) as server:
        rows: Any = map_chat([{"params": PARAMS}] * 50, options_of(peer, server), concurrency=10)
        assert next(rows)["response"]["id"] == "a"
        assert soon(lambda: len(server.requests) >= 10)
        rows.close()
        assert soon(lambda: not any(connection.open for connection in server.connections))


# A connection's end


def last_of(count: int) -> Callable[[Stream], None]:
    """A step: GOAWAY that refuses so many of the newest streams."""
    return lambda stream: goaway(NO_ERROR, max(stream.connection.playing) - 2 * count)(stream)


def test_goaway_ends_what_it_refuses_and_nothing_else(peer: Peer) -> None:
    """RFC 9113, 6.8: streams above the last one that it names were not processed."""
    texts = [str(n) for n in range(8)]

    def answer_to(request: Any) -> Steps:
        name = said(request)
        leaves = [last_of(3)] if request["stream"] == 3 else []
        return [together(9), *leaves, 0.1, *good(name)] if name != "first" else good(name)

    with peer.serve(answer_to) as server:
        found = in_flight(peer, server, texts)
        assert len(server.requests) == 9
        refused = {said(request) for request in server.requests if request["stream"] > 2 * 6}
        assert found == {text: "unavailable" if text in refused else text for text in texts}
        assert len(refused) == 3


@pytest.mark.parametrize("steps", [[last_of(3), 0.1], [cut], [goaway(INTERNAL_ERROR, 0), cut]])
def test_a_retry_completes_what_a_connections_end_has_broken(peer: Peer, steps: Steps) -> None:
    """Each request is sent once, or once more."""

    def answer_to(request: Any) -> Steps:
        if request["connection"]:
            return good(said(request))
        return [together(8), *(steps if request["stream"] == 1 else [0.1]), *good(said(request))]

    with peer.serve(answer_to) as server:
        rows = [{"id": str(n), "params": saying(str(n))} for n in range(8)]
        found = list(map_chat(rows, options_of(peer, server, middleware=[QUICK]), concurrency=8))
    assert [row["response"]["id"] for row in found] == [row["id"] for row in rows]
    sent = [said(request) for request in server.requests]
    assert [row["attempts"] for row in found] == [sent.count(row["id"]) for row in found]
    assert {sent.count(row["id"]) for row in rows} <= {1, 2}


FAREWELLS: dict[str, Steps] = {
    "goaway and end": [goaway(NO_ERROR), cut],
    "goaway, later the end": [goaway(NO_ERROR), 0.02, cut],
    "end": [cut],
}


@pytest.mark.parametrize("name", FAREWELLS)
def test_a_connection_that_was_ended_while_idle_is_replaced_without_a_word(peer: Peer, name: str) -> None:
    with peer.serve(*([*good(text), 0.01, *FAREWELLS[name]] for text in "abc")) as server:
        options = options_of(peer, server, full_response=True)
        for number, text in enumerate("abc"):
            response = create_chat_completion(PARAMS, options)
            assert (response["body"]["id"], response["attempts"]) == (text, 1)
            assert soon(lambda: not server.connections[-1].playing)
            assert len(server.connections) == number + 1


def test_a_connection_that_was_told_to_end_is_left_by_the_next_try(peer: Peer) -> None:
    """Its server waits for the client to go, and refuses what comes before it has."""
    with peer.serve(*([*good(name), 0.01, goaway(NO_ERROR)] for name in "abcd")) as server:
        options = options_of(peer, server, middleware=[QUICK], full_response=True)
        for _ in range(3):
            response = create_chat_completion(PARAMS, options)
            assert (response["status"], response["attempts"] <= 2) == (200, True)
            time.sleep(0.05)


def test_a_connection_that_speaks_while_idle_is_kept(peer: Peer) -> None:
    """Servers of HTTP/2 ask for signs of life, and say how much may be sent."""

    def ping(stream: Stream) -> None:
        stream.h2.ping(b"hi there")

    with peer.serve(*([*good(name), 0.01, ping] for name in "abcd")) as server:
        for name in "abcd":
            assert create_chat_completion(PARAMS, options_of(peer, server))["id"] == name
            assert soon(lambda: not server.connections[-1].playing)
            time.sleep(0.02)
        assert len(server.connections) == 1


# Without HTTP/2


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)])
def test_a_server_that_does_not_offer_it_is_spoken_to_in_http_1_1(
    certificates: Path, protocols: tuple[str, ...]
) -> None:
    peer = Peer(raw_server, {"transport": "curl", "request": {"verify": str(certificates / "ca.pem")}})
    good = plain_answer({"id": "a", "choices": []})
    with raw_server([good], context=tls_context(certificates, *protocols)) as server:
        assert blocking(PARAMS, options_of(peer, server)).id == "a"
        assert asyncio.run(following(PARAMS, options_of(peer, server))).id == "a"
        rows = list(map_chat([{"params": PARAMS}] * 8, options_of(peer, server), concurrency=4))
        assert [row["response"]["id"] for row in rows] == ["a"] * 8
        assert len(server.requests) == 10


def test_a_setting_keeps_from_it_where_it_is_offered(certificates: Path) -> None:
    peer = Peer(raw_server, {"request": {"verify": str(certificates / "ca.pem")}})
    with raw_server([plain_answer({"id": "a"})], context=tls_context(certificates, "h2", "http/1.1")) as server:
        options = options_of(peer, server, transport=["curl", {"http": "1.1"}])
        assert create_chat_completion(PARAMS, options)["id"] == "a"


def test_threads_of_blocking_calls_have_their_own_connections(peer: Peer) -> None:
    """What is read on one does not wait for another."""
    with peer.serve(lambda request: [together(4), *good(said(request))]) as server, ThreadPoolExecutor(4) as pool:
        options = options_of(peer, server)
        found = pool.map(lambda n: create_chat_completion(saying(n), options)["id"], "abcd")
        assert "".join(found) == "abcd"
        assert sorted(request["connection"] for request in server.requests) == [0, 1, 2, 3]
