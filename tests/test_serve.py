"""The served API: what goes over the wire, and what a server must withstand."""

from __future__ import annotations

import gc
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from types import SimpleNamespace, TracebackType
from typing import Any
from urllib.parse import quote, urlsplit
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
import requests
from cheroot.makefile import MakeFile
from rawserver import answer, raw_server, stream

import chatfn
from chatfn.errors import ChatError, failure
from chatfn.middleware.codec import codec
from chatfn.serve import app, gateway, serve, served
from chatfn.serve.application import phrase
from chatfn.serve.leaving import Connection
from chatfn.serve.outgoing import wire_error
from chatfn.serve.running import interrupt, url_at
from chatfn.spec import Request, Response
from chatfn.transports.echo import echo

WAIT = 10.0  # seconds that anything may take
PARAMS: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Where was it played?"}]}
BODY = json.dumps(PARAMS).encode()
STREAM = json.dumps({**PARAMS, "stream": True}).encode()
ROUTE = "/v1/chat/completions"
EVENTS = [
    {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
    for text in ("one", "two")
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(gateway({"transport": "echo"})) as found:
        yield found


def echoed(request: Request) -> Response:
    """A handler whose completion is what it knows of the request."""
    found = {key: value for key, value in request.items() if key != "cancelled"}
    return {"status": 200, "headers": {}, "body": {"request": found}}


def answering(**response: Any) -> Any:
    return lambda request: {"status": 200, "headers": {}, "body": {}, **response}


def raising(exc: BaseException) -> Any:
    def handler(request: Request) -> Response:
        raise exc

    return handler


def call(
    application: Any, method: str = "POST", path: str = ROUTE, body: bytes = BODY, **environ: Any
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request to a WSGI application, both held to the standard."""
    errors = environ.pop("errors", None)
    asked: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        **environ,
    }
    asked = {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body)), **asked}
    asked = {name: value for name, value in asked.items() if value is not None}
    setup_testing_defaults(asked)
    if errors is not None:
        asked["wsgi.errors"] = errors
    told: list[Any] = []

    def start(
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None = None,
    ) -> Any:
        told.extend((int(status.split()[0]), dict(headers)))
        return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the validator knows no method but those of 1997
        chunks = validator(application)(asked, start)
        try:
            data = b"".join(chunks)
        finally:
            chunks.close()  # type: ignore[attr-defined]  # the validator's iterator has it
    return told[0], told[1], data


def error_of(data: bytes) -> dict[str, Any]:
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def data_of(raw: bytes) -> list[str]:
    return [block.removeprefix("data: ") for block in raw.decode().strip("\n").split("\n\n")]


def options_for(impl: str, url: str, **options: Any) -> Any:
    return {
        "impl": impl,
        "api_endpoint": url.removesuffix("/v1") if impl == "azure" else url,
        "api_key": "k",
        **options,
    }


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT)


# Calls over real HTTP.


@pytest.mark.parametrize("options", [{}, {"api_version": "v1"}, {"deployment": "a/b c?"}])
@pytest.mark.parametrize("impl", ["openai", "azure"])
@pytest.mark.parametrize("extra", [{}, {"n": 2}, {"logprobs": True}])
def test_a_call_over_http_is_a_call_in_the_process(
    url: str, impl: str, options: dict[str, Any], extra: dict[str, Any]
) -> None:
    params = {**PARAMS, **extra}
    there = chatfn.create_chat_completion(params, options_for(impl, url, **options))
    model = options.get("deployment", "m") if impl == "azure" else "m"
    assert there == chatfn.create_chat_completion({**params, "model": model}, {"transport": "echo"})
    streamed = chatfn.create_chat_completion({**params, "stream": True}, options_for(impl, url, **options))
    assert chatfn.collect(streamed)["choices"] == there["choices"]


def test_a_stream_over_http_has_the_very_events(url: str) -> None:
    params = {**PARAMS, "stream": True, "stream_options": {"include_usage": True}}
    here = list(chatfn.create_chat_completion(params, {"transport": "echo"}))
    assert list(chatfn.create_chat_completion(params, options_for("openai", url))) == here


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503, 529])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_over_http_is_the_error_in_the_process(url: str, status: int, streamed: bool) -> None:
    params = {"model": "m", "messages": [{"role": "user", "content": f"!error {status} so it is"}], "stream": streamed}
    found = []
    where: list[Any] = [{"transport": "echo"}, options_for("openai", url)]
    for options in where:
        options["middleware"] = ()
        with pytest.raises(ChatError) as caught:
            chatfn.create_chat_completion(params, options)
        found.append(caught.value.error)
    keys = ("category", "message", "status", "type", "code", "param", "retry_after")
    here, there = [{key: error.get(key) for key in keys} for error in found]
    assert there == here


def test_a_stream_that_breaks_is_an_error_in_the_stream(url: str) -> None:
    params = {"model": "m", "messages": [{"role": "user", "content": "!break 3 a b c d"}], "stream": True}
    with pytest.raises(ChatError) as caught:
        list(chatfn.create_chat_completion(params, options_for("openai", url)))
    assert "the stream broke" in caught.value.error["message"]
    assert chatfn.text_of(caught.value.error["partial"]) == "a b"


def test_a_connection_is_used_again_after_answers_streams_and_errors(url: str) -> None:
    connection = connect(url)
    connection.request("POST", ROUTE, STREAM)
    connection.getresponse().read()
    socket = connection.sock
    for path, body in [(ROUTE, BODY), (ROUTE, STREAM), (ROUTE, b"{"), ("/v1/none", BODY), (ROUTE, BODY)]:
        connection.request("POST", path, body)
        connection.getresponse().read()
        assert connection.sock is socket
    connection.close()


def test_an_event_arrives_before_the_next_is_made() -> None:
    seen = threading.Event()

    def events() -> Iterator[Any]:
        yield EVENTS[0]
        assert seen.wait(WAIT)
        yield EVENTS[1]

    with served(lambda request: {"status": 200, "headers": {}, "body": events()}) as found:
        connection = connect(found)
        connection.request("POST", ROUTE, STREAM)
        response = connection.getresponse()
        assert json.loads(response.readline().removeprefix(b"data: ")) == EVENTS[0]
        seen.set()
        assert data_of(response.read()) == [json.dumps(EVENTS[1], separators=(",", ":")), "[DONE]"]
        connection.close()


def test_a_client_that_leaves_closes_the_handlers_stream() -> None:
    closed = threading.Event()

    def events() -> Iterator[Any]:
        try:
            for _ in range(1_000):
                yield EVENTS[0]
                closed.wait(0.02)
        finally:
            closed.set()

    with served(lambda request: {"status": 200, "headers": {}, "body": events()}) as found:
        connection = connect(found)
        connection.request("POST", ROUTE, STREAM)
        response = connection.getresponse()
        response.readline()
        response.close()
        connection.close()
        assert closed.wait(WAIT)


def test_of_a_client_that_leaves_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 and later tell of an error in the last close of a file, in which cheroot still writes."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = SimpleNamespace(peercreds_enabled=False, peercreds_resolve_enabled=False)
        connection: Any = Connection(server, ours, MakeFile)
    with suppress(OSError):
        connection.wfile.write(b"data: one")
    del connection
    gc.collect()
    assert said == []


def test_requests_are_answered_at_the_same_time() -> None:
    together = threading.Barrier(8, timeout=WAIT)

    def handler(request: Request) -> Response:
        return {"status": 200, "headers": {}, "body": {"turn": together.wait()}}

    with served(handler) as found:
        answers: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    requests.post(f"{found}/chat/completions", BODY, timeout=WAIT).json()["turn"]
                )
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert sorted(answers) == list(range(8))


def test_a_body_in_chunks_is_read(url: str) -> None:
    response = requests.post(f"{url}/chat/completions", iter([BODY[:9], BODY[9:]]), timeout=WAIT)
    assert response.json()["choices"][0]["message"]["content"] == "Where was it played?"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_in_words(chunked: bool) -> None:
    data = b" " * 150_000
    with served(echoed, max_body=100_000) as found:
        response = requests.post(f"{found}/chat/completions", iter([data]) if chunked else data, timeout=WAIT)
        assert (response.status_code, error_of(response.content)["message"]) == (
            413,
            "the body is over the limit of 100000 bytes",
        )
        assert requests.post(f"{found}/chat/completions", BODY.ljust(100_000), timeout=WAIT).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # cheroot's writer, closed twice
def test_a_server_that_stops_ends_its_streams_in_words() -> None:
    more = threading.Event()

    def events() -> Iterator[Any]:
        for _ in range(1_000):
            yield EVENTS[0]
            more.wait(0.02)

    with served(lambda request: {"status": 200, "headers": {}, "body": events()}) as found:
        connection = connect(found)
        connection.request("POST", ROUTE, STREAM)
        response = connection.getresponse()
        response.readline()
    assert json.loads(data_of(response.read())[-1])["error"]["message"] == "the server is stopping"
    connection.close()


@pytest.mark.filterwarnings("ignore:.*socket")  # cheroot leaves the socket that it could not bind to the collector
def test_a_port_that_is_taken_is_an_error_at_once(url: str) -> None:
    with pytest.raises(OSError, match="in use"), served(echoed, port=urlsplit(url).port or 0):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_though_an_answer_hangs(number: int) -> None:
    code = (
        "import threading\nfrom chatfn.serve import running as module\nmodule.GRACE = 0.5\n"
        "def events():\n    yield {}\n    threading.Event().wait(60)\n"
        "module.serve(lambda r: {'status': 200, 'headers': {}, 'body': events()}, port=0, ready=lambda u: print(u, flush=True))\n"
        "print('ended')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    connection = connect(process.stdout.readline().strip())
    connection.request("POST", ROUTE, STREAM)
    response = connection.getresponse()
    assert response.readline() == b"data: {}\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=3 * WAIT)
    assert (process.returncode, out, err) == (0, "ended\n", "")
    response.close()
    connection.close()


def test_serving_ends_and_gives_the_signals_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, urls = signal.getsignal(signal.SIGTERM), []

    def ready(url: str) -> None:
        urls.append(url)
        interrupt(15, None)

    serve(echoed, port=0, ready=ready)
    assert urls
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=serve, args=(echoed, "127.0.0.1", 0), kwargs={"ready": ready}, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_a_url_leads_to_the_server() -> None:
    assert url_at("", 1) == "http://127.0.0.1:1/v1"
    assert url_at("::", 1) == "http://[::1]:1/v1"
    assert url_at("example.com", 1) == "http://example.com:1/v1"


def test_without_the_server_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cheroot.wsgi", None)
    with pytest.raises(ValueError, match=r"pip install 'chatfn\[serve\]'"), served(echoed):
        pass


# What a handler is given.


@pytest.mark.parametrize(
    "path",
    [ROUTE, "/chat/completions", "/openai/v1/chat/completions", "/a/b/c/chat/completions", "/ä/chat/completions"],
)
def test_every_path_to_chat_completions_is_a_route(path: str) -> None:
    status, _, data = call(app(echoed), path=path.encode().decode("latin-1"))
    assert (status, json.loads(data)["request"]["url"]) == (200, f"http://127.0.0.1{quote(path)}")


def test_the_request_map_is_the_clients_request_without_its_secrets() -> None:
    secrets: Any = {
        "HTTP_AUTHORIZATION": "Bearer sk-hidden",
        "HTTP_API_KEY": "sk-hidden",
        "HTTP_COOKIE": "session=sk-hidden",
        "HTTP_PROXY_AUTHORIZATION": "Basic sk-hidden",
        "QUERY_STRING": "api-version=2024-10-21&subscription-key=sk-hidden",
    }
    _, _, data = call(
        app(echoed),
        CONTENT_TYPE="application/json",
        HTTP_HOST="h.example:8080",
        HTTP_X_REQUEST_ID="r1",
        SCRIPT_NAME="/up",
        **secrets,
    )
    assert b"sk-hidden" not in data
    assert json.loads(data)["request"] == {
        "operation": "create_chat_completion",
        "method": "POST",
        "url": "http://h.example:8080/up/v1/chat/completions?api-version=2024-10-21",
        "headers": {"x-request-id": "r1", "content-type": "application/json"},
        "body": PARAMS,
        "stream": False,
        "timeout": [5.0, 600.0],
        "deadline": 900.0,
        "bounds": {"body": 2**26, "event": 2**24, "headers": 2**16},
    }


@pytest.mark.parametrize("host", ["user:sk@h", "h/../x", "h\\x", "h h", ""])
def test_a_host_that_is_none_is_the_servers_own(host: str) -> None:
    _, _, data = call(app(echoed), HTTP_HOST=host, SERVER_NAME="real", SERVER_PORT="81")
    assert json.loads(data)["request"]["url"] == "http://real:81/v1/chat/completions"


@pytest.mark.parametrize(("given", "model"), [({}, "my/gpt"), ({"model": None}, "my/gpt"), ({"model": "m"}, "m")])
def test_the_deployment_is_the_model_of_a_body_that_has_none(given: dict[str, Any], model: str) -> None:
    body = json.dumps({"messages": [], **given, "stream": True}).encode()
    seen: list[Request] = []

    def handler(request: Request) -> Response:
        seen.append(request)
        return {"status": 200, "headers": {}, "body": {}}

    call(app(handler, cancelled=bool), path="/openai/deployments/my/gpt/chat/completions", body=body)
    assert seen[0]["body"]["model"] == model
    assert seen[0]["url"] == "http://127.0.0.1/openai/deployments/my%2Fgpt/chat/completions"
    assert (seen[0]["stream"], seen[0]["deadline"], seen[0]["cancelled"]()) == (True, None, False)


# What is refused, and how.


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (404, {"path": "/"}),
        (404, {"path": "/v1/models"}),
        (404, {"path": "/v1/chat/completions/"}),
        (405, {"method": "GET", "body": b""}),
        (405, {"method": "DELETE"}),
        (405, {"method": "OPTIONS", "body": b""}),
        (400, {"body": b""}),
        (400, {"body": b"{"}),
        (400, {"body": b"[]"}),
        (400, {"body": b'"text"'}),
        (400, {"body": b"null"}),
        (400, {"body": b"\xff"}),
        (400, {"body": b'{"temperature": NaN}'}),
        (400, {"body": b'{"user": "\\ud800"}'}),
        (400, {"body": b"[" * 100_000}),
        (400, {"body": b'{"a":' * 300 + b"1" + b"}" * 300}),
        (400, {"body": b'{"n": ' + b"1" * 10_000 + b"}"}),
        (400, {"CONTENT_LENGTH": "999"}),
        (413, {"CONTENT_LENGTH": "9" * 30}),
        (400, {"CONTENT_LENGTH": None}),
        (411, {"CONTENT_LENGTH": None, "HTTP_TRANSFER_ENCODING": "chunked"}),
        (403, {"HTTP_SEC_FETCH_SITE": "cross-site"}),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_the_apis_form(status: int, asked: dict[str, Any]) -> None:
    found, headers, data = call(app(raising(AssertionError("not called"))), **asked)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert error_of(data)["message"]
    assert headers.get("allow") == ("POST" if status == 405 else None)


class Broken(BytesIO):
    """A body whose transfer breaks."""

    def __init__(self, exc: Exception) -> None:
        super().__init__()
        self.exc = exc

    def read(self, size: int | None = -1, /) -> bytes:
        raise self.exc


@pytest.mark.parametrize(("exc", "status"), [(TimeoutError(), 408), (ConnectionResetError(), 400), (ValueError(), 400)])
def test_a_body_that_does_not_arrive_is_the_clients_error(exc: Exception, status: int) -> None:
    broken: Any = {"wsgi.input": Broken(exc)}
    found, _, data = call(app(echoed), **broken)
    assert (found, error_of(data)["message"]) == (status, "the body did not arrive")


def test_a_length_that_is_no_number_is_refused() -> None:
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": ROUTE, "CONTENT_LENGTH": "-1"}
    setup_testing_defaults(environ)
    told: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        told.append(status)

    data = app(echoed)(environ, start)
    assert told == ["400 Bad Request"]
    assert error_of(b"".join(data))["message"] == "the header content-length is no number"


def test_a_body_without_length_is_read_to_its_end_and_no_further_than_the_limit() -> None:
    terminated: Any = {"CONTENT_LENGTH": None, "wsgi.input_terminated": True}
    assert call(app(echoed), **terminated)[0] == 200
    assert call(app(echoed, max_body=len(BODY)), **terminated)[0] == 200
    assert call(app(echoed, max_body=len(BODY) - 1), **terminated)[0] == 413


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 401),
        ({"HTTP_AUTHORIZATION": "Bearer sk-1"}, 200),
        ({"HTTP_AUTHORIZATION": "bearer  sk-1"}, 200),
        ({"HTTP_AUTHORIZATION": "Basic sk-1"}, 401),
        ({"HTTP_AUTHORIZATION": "Bearer sk-12"}, 401),
        ({"HTTP_AUTHORIZATION": "Bearer \xe4"}, 401),
        ({"HTTP_API_KEY": "sk-1"}, 200),
        ({"HTTP_API_KEY": ""}, 401),
        ({"HTTP_API_KEY": "sk-1", "HTTP_SEC_FETCH_SITE": "cross-site"}, 200),
    ],
)
def test_the_key_is_asked_for(given: dict[str, Any], status: int) -> None:
    found, headers, data = call(app(echoed, key="sk-1"), **given)
    assert found == status
    assert b"sk-1" not in data
    if status == 401:
        assert headers["www-authenticate"] == "Bearer"
        assert error_of(data)["code"] == "invalid_api_key"


def test_a_key_or_a_handler_that_cannot_work_is_an_error_at_once() -> None:
    async def handler(request: Request) -> Response:
        return failure("fault", "")

    with pytest.raises(ValueError, match="line break") as caught:
        app(echoed, key="sk-hidden\n")
    assert "sk-hidden" not in str(caught.value)
    with pytest.raises(TypeError, match="asynchronous"):
        app(handler)  # type: ignore[arg-type]  # that is the test


# What a handler answers, and what the client gets.


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"status": 0, "category": "unavailable"}, 502),
        ({"status": 0, "category": "interrupted"}, 504),
        ({"status": 0, "category": "forbidden"}, 502),
        ({"category": "incorrect"}, 400),
        ({"category": "busy"}, 503),
        ({"status": 200, "category": "fault"}, 502),
        ({"status": 302, "category": "incorrect"}, 400),
        ({"status": 529, "category": "fault"}, 529),
        ({"status": 429, "category": "busy"}, 429),
    ],
)
def test_an_error_has_the_status_that_tells_a_client_of_it(error: Any, status: int) -> None:
    whole: Any = {"message": "so it is", **error}
    response = {"status": error.get("status", 0), "headers": {}, "body": None, "error": whole}
    for handler in (answering(**response), raising(ChatError(whole))):
        found, _, data = call(app(handler))
        assert (found, error_of(data)["message"]) == (status, "so it is")
        assert error_of(data)["type"] == ("server_error" if status >= 500 else "invalid_request_error")


def test_an_error_says_when_to_come_again() -> None:
    error = {"category": "busy", "message": "slow down", "status": 429, "retry_after": 0.25, "should_retry": True}
    _, headers, _ = call(app(answering(status=429, error=error)))
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("1", "250", "true")
    _, headers, _ = call(app(answering(status=429, error=error, headers={"retry-after": "7"})))
    assert headers["retry-after"] == "7"
    assert "retry-after-ms" not in headers


def test_only_headers_that_say_something_to_the_client_are_passed_on() -> None:
    headers = {
        "x-request-id": "r1",
        "x-ratelimit-remaining-requests": "9",
        "set-cookie": "a=b",
        "content-length": "9",
        "content-encoding": "gzip",
        "retry-after": "1\r\nx: y",
    }
    _, found, _ = call(app(answering(headers=headers)))
    assert found == {
        "x-request-id": "r1",
        "x-ratelimit-remaining-requests": "9",
        "content-type": "application/json",
        "content-length": "2",
    }


def test_an_exception_is_a_500_without_its_words() -> None:
    for exc in (RuntimeError("sk-hidden"), KeyError("sk-hidden"), UnicodeError("sk-hidden")):
        errors = Log()
        status, _, data = call(app(raising(exc)), errors=errors)
        assert (status, error_of(data)["message"]) == (500, "the server failed at this request")
        assert b"sk-hidden" not in data
        assert type(exc).__name__ in errors.text
        assert "sk-hidden" not in errors.text


class Log:
    """The error stream of a WSGI server."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def writelines(self, lines: list[str]) -> None:
        self.text += "".join(lines)

    def flush(self) -> None:
        """Nothing is held back."""


@pytest.mark.parametrize("exc", [ValueError("messages: give a list"), TypeError("messages: give a list")])
def test_what_the_caller_did_wrong_is_a_400_with_its_words(exc: Exception) -> None:
    status, _, data = call(app(raising(exc)))
    assert (status, error_of(data)["message"]) == (400, "messages: give a list")


@pytest.mark.parametrize("body", [{"a": {1}}, {"a": float("nan")}, object()])
def test_what_is_no_json_is_an_error(body: Any) -> None:
    assert call(app(answering(body=body)))[0] >= 400


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"a": "\ud800é"}, b'{"a":"\\ud800\\u00e9"}'),
        ({"a": (1, 2)}, b'{"a":[1,2]}'),
        (b'{"a": 1}', b'{"a": 1}'),
        (iter([b'{"a"', b": 1}"]), b'{"a": 1}'),
    ],
)
def test_a_whole_body_is_data_or_bytes(body: Any, text: bytes) -> None:
    status, headers, data = call(app(answering(body=body)))
    assert (status, data) == (200, text)
    assert headers["content-length"] == str(len(text))


def test_a_body_in_bytes_has_its_own_status_and_type() -> None:
    response = {"status": 429, "headers": {"content-type": "text/plain"}, "body": b"slow down"}
    status, headers, data = call(app(answering(**response)))
    assert (status, headers["content-type"], data) == (429, "text/plain", b"slow down")
    assert call(app(answering(status=0)))[0] == 502


def test_a_completion_is_streamed_and_a_stream_is_completed_as_asked() -> None:
    completion = chatfn.create_chat_completion(PARAMS, {"transport": "echo"})
    _, headers, data = call(app(answering(body=completion)), body=STREAM)
    *events, done = data_of(data)
    assert headers["content-type"].startswith("text/event-stream")
    assert chatfn.collect(map(json.loads, events)) == completion
    assert done == "[DONE]"
    _, _, data = call(app(answering(body=chatfn.events_of(completion))))
    assert json.loads(data) == completion


def test_bytes_of_a_stream_go_on_as_they_are() -> None:
    status, _, data = call(app(answering(body=iter([b"data: 1\n\n", b"data: [DONE]\n\n"]))), body=STREAM)
    assert (status, data) == (200, b"data: 1\n\ndata: [DONE]\n\n")
    assert call(app(answering(body=iter([]))), body=STREAM)[2] == b"data: [DONE]\n\n"


def breaking(closed: list[bool], *steps: Any) -> Iterator[Any]:
    try:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step
    finally:
        closed.append(True)


def test_a_stream_that_breaks_says_so_and_is_not_done() -> None:
    error: Any = {"category": "busy", "message": "slow down", "status": 429, "code": "x", "partial": {"a": "hidden"}}
    for exc, said in ((ChatError(error), "slow down"), (RuntimeError("hidden"), "the server failed in this stream")):
        closed: list[bool] = []
        status, _, data = call(app(answering(body=breaking(closed, *EVENTS, exc))), body=STREAM)
        *events, last = data_of(data)
        assert (status, [json.loads(event) for event in events]) == (200, EVENTS)
        assert error_of(last.encode())["message"] == said
        assert b"hidden" not in data
        assert closed == [True]
    status, _, data = call(app(answering(body=breaking([], b"data: {", ChatError(error)))), body=STREAM)
    assert data.startswith(b'data: {\n\ndata: {"error":')


def test_a_stream_that_breaks_before_its_first_event_has_a_status() -> None:
    error: Any = {"category": "busy", "message": "slow down", "status": 429}
    for exc, wanted in ((ChatError(error), 429), (RuntimeError(), 500)):
        closed: list[bool] = []
        assert call(app(answering(body=breaking(closed, exc))), body=STREAM)[0] == wanted
        assert closed == [True]


def test_a_stream_that_nobody_reads_is_closed() -> None:
    closed: list[bool] = []
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": ROUTE, "CONTENT_LENGTH": str(len(STREAM))}
    environ["wsgi.input"] = BytesIO(STREAM)
    setup_testing_defaults(environ)
    chunks = app(answering(body=breaking(closed, *EVENTS)))(environ, lambda *told: lambda data: None)
    assert closed == []
    chunks.close()  # type: ignore[attr-defined]  # as servers do
    assert closed == [True]
    body = breaking(closed, *EVENTS)
    next(body)
    assert call(app(answering(status=503, body=body, error={"category": "busy", "message": ""})), body=STREAM)[0] == 503
    assert closed == [True, True]


def test_an_error_in_the_apis_form_has_four_members() -> None:
    assert wire_error({"category": "fault", "message": "m", "status": 0, "code": 7, "type": "t"}) == {
        "error": {"message": "m", "type": "t", "param": None, "code": 7}
    }


def test_a_status_has_a_phrase() -> None:
    assert (phrase(200), phrase(299), phrase(529)) == ("OK", "OK", "Error")


# A gateway.


def test_a_transport_is_served_through_the_codec() -> None:
    status, _, data = call(app(codec()(echo)), path="/openai/deployments/gpt/chat/completions", body=BODY)
    assert (status, json.loads(data)["choices"][0]["message"]["content"]) == (200, "Where was it played?")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_gateway_sends_its_own_key_and_not_its_clients(streamed: bool) -> None:
    reply = stream("Arl", "ington") if streamed else answer({"choices": [{"message": {"content": "Arlington"}}]})
    with raw_server([reply]) as upstream:
        handler = gateway({"api_endpoint": upstream.url, "api_key": "sk-upstream"})
        with served(handler, key="sk-client") as found:
            options: Any = {"api_endpoint": found, "api_key": "sk-client"}
            got = chatfn.create_chat_completion({**PARAMS, "stream": streamed}, options)
            assert chatfn.text_of(chatfn.collect(got) if streamed else got) == "Arlington"
        assert upstream.requests[0]["headers"]["authorization"] == "Bearer sk-upstream"
        assert "sk-client" not in str(upstream.requests)
        assert len(upstream.requests) == 1


def test_a_gateway_makes_one_attempt() -> None:
    with raw_server([answer({"error": {"message": "down"}}, 503)]) as upstream:
        status, _, data = call(app(gateway({"api_endpoint": upstream.url, "api_key": "sk-upstream"})))
        assert (status, error_of(data)["message"], len(upstream.requests)) == (503, "down", 1)


def test_a_gateway_that_cannot_work_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def transport(request: Request) -> Response:
        return failure("fault", "")

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        gateway({})
    with pytest.raises(ValueError, match="asynchronous"):
        gateway({"transport": transport})
    with pytest.raises(TypeError, match="give a mapping"):
        gateway([])  # type: ignore[arg-type]  # that is the test
    with pytest.raises(ValueError, match="no name of a header"):
        gateway({"transport": "echo", "request": {"headers": {"a b": "c"}}})
