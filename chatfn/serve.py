"""A handler as a server that speaks OpenAI's API: the chat routes of OpenAI and of Azure as a WSGI application.

``app`` is that application, for any WSGI server; ``serve`` and ``served`` run it; ``gateway`` is the handler that
answers by a call of its own, with given options.  Nothing of a request or an answer is logged.
"""

from __future__ import annotations

import hmac
import math
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from itertools import chain, islice
from json import JSONEncoder
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, urlencode

from chatfn.chunks import DONE, collect
from chatfn.client import check_credential, handler_of, resolved
from chatfn.core import parse, request_of
from chatfn.errors import MESSAGE_CHARACTERS, ChatError, category_of
from chatfn.middleware import is_async
from chatfn.options import BOUNDS, CREDENTIAL_HEADERS, DEADLINE, OWN_HEADERS, TIMEOUT, is_sensitive, sealed
from chatfn.plain import plain
from chatfn.secret import Secret, problem_of, seal
from chatfn.spec import Category, Error, Handler, Json, Options, Request, Response
from chatfn.sse import encode
from chatfn.transports import close, transport_of
from chatfn.unfold import events_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

Cancelled = Callable[[], bool]

ROUTE = re.compile(r"(?P<root>.*?)(/openai/deployments/(?P<deployment>.+))?/chat/completions", re.DOTALL)
SLASH = re.compile("%2f", re.IGNORECASE)  # cheroot leaves it encoded, other servers do not
HOST = re.compile(r"[A-Za-z0-9._~-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
PASSED_ON = re.compile(
    r"(x-|apim-|x-ms-)request-id|(x-ms-)?retry-after(-ms)?|x-should-retry|x-ratelimit-.*|content-type"
)
BY_CATEGORY: Mapping[Category, int] = {"interrupted": 504, "incorrect": 400, "busy": 503}  # else 502
OTHER_ORIGINS = ("cross-site", "same-site")
PIECE = 65_536
THREADS = 64  # answers at once; each holds a thread while it lasts
GRACE = 3.0  # seconds that answers under way are given when the server stops
IDLE = 60  # seconds until a silent connection is closed
START = 30.0  # seconds; a server that does not listen by then is broken

# ASCII, so that whatever a string holds, lone surrogates too, can be sent.
json_text = JSONEncoder(separators=(",", ":"), allow_nan=False, default=plain).encode


def app(
    handler: Handler,
    *,
    key: str | Secret | None = None,
    max_body: int = BOUNDS["body"],
    cancelled: Cancelled | None = None,
) -> WSGIApplication:
    """A WSGI application that answers chat completions from ``handler``, a handler above the codec.

    It answers POST on every path that ends in ``/chat/completions``; on Azure's
    ``/openai/deployments/{name}/chat/completions`` a body without ``model`` gets the name as its model.  The handler is
    given a request map whose headers and URL hold no credential of the client; the host in its URL is what the client
    says.  It returns a response map whose body is data, bytes, or an iterator of event maps or bytes; if the request
    and the body differ in being a stream, the one is made of the other.  Events are sent one by one; when the client
    goes away the iterator is closed.

    Errors have the API's form: those of the response map with their status (0: 502, or 504 if it was interrupted); a
    ``ValueError`` or ``TypeError`` says what is wrong with the request, 400; any other exception is a 500 without its
    words, which may be private.

    ``key``: what clients must give, as ``Authorization: Bearer …`` or ``api-key: …``.  Without one, web pages of other
    origins are refused, for a browser would let any page spend.  ``max_body``: bytes.  ``cancelled``: a function that
    says when to stop at once; the request map has it too.
    Source: https://peps.python.org/pep-3333/, https://platform.openai.com/docs/api-reference/chat

    >>> call = app(lambda request: {"status": 200, "headers": {}, "body": {"model": request["body"]["model"]}})
    >>> from io import BytesIO
    >>> from wsgiref.util import setup_testing_defaults
    >>> body = b'{"model": "m", "messages": []}'
    >>> environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/v1/chat/completions", "wsgi.input": BytesIO(body)}
    >>> environ["CONTENT_LENGTH"] = str(len(body))
    >>> setup_testing_defaults(environ)
    >>> b"".join(call(environ, lambda status, headers: print(status)))
    200 OK
    b'{"model":"m"}'
    """
    key = cast("Secret | None", seal(key))
    problem = problem_of(key.reveal()) if isinstance(key, Secret) else None
    if problem:
        raise ValueError(f"the key for clients {problem}")
    if is_async(handler):
        raise TypeError("the handler is asynchronous; give a blocking one")

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = answer(environ, handler, key, max_body, cancelled)
        status, body = response["status"], response["body"]
        sized = {"content-length": str(len(body))} if isinstance(body, bytes) else {"cache-control": "no-cache"}
        start_response(f"{status} {phrase(status)}", [*{**response["headers"], **sized}.items()])
        return [body] if isinstance(body, bytes) else cast("Iterator[bytes]", body)

    return application


def phrase(status: int) -> str:
    """The reason phrase of a status; some are in use that no standard names.

    >>> phrase(413), phrase(529)
    ('Request Entity Too Large', 'Error')
    """
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error" if status >= 400 else "OK"


def answer(
    environ: WSGIEnvironment, handler: Handler, key: Secret | None, max_body: int, cancelled: Cancelled | None
) -> Response:
    """The response map to send: its body bytes, or an iterator of bytes that is closed with its reader."""
    problem: Exception
    try:
        request = request_map(environ, key, max_body, cancelled)
        return wire_response(request, handler(request), cancelled or bool)
    except ChatError as exc:
        return error_response(exc.error)
    except Exception as exc:
        problem = exc
    if type(problem) not in (ValueError, TypeError):  # their subclasses (of JSON, of Unicode) say nothing to a client
        environ["wsgi.errors"].write(f"chatfn.serve: {where(problem)}\n")
        return error_response({"category": "fault", "message": "the server failed at this request", "status": 500})
    return error_response({"category": "incorrect", "message": str(problem)[:MESSAGE_CHARACTERS], "status": 400})


def where(exc: Exception) -> str:
    """The kind and the place of an exception, without its words.

    >>> where(KeyError("private"))
    'KeyError'
    """
    trace, name = exc.__traceback__, type(exc).__name__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return name if trace is None else f"{name} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


# Environ to request map.


def request_map(
    environ: WSGIEnvironment, key: Secret | None, max_body: int, cancelled: Cancelled | None = None
) -> Request:
    """The request map of a WSGI request; raises the ``ChatError`` of one that is not to be answered."""
    length = length_of(environ, max_body)
    check_client(environ, key)
    path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
    method = environ["REQUEST_METHOD"].upper()
    found = ROUTE.fullmatch(path)
    if found is None:
        raise refusal(404, f"Invalid URL ({method} {path[:200]}): the route is /v1/chat/completions", "unknown_url")
    if method != "POST":
        raise refusal(405, f"Not allowed to {method} on {path[:200]}: use POST", "method_not_supported")
    data = data_of(body_of(environ, length, max_body))
    deployment = SLASH.sub("/", found["deployment"] or "")
    if deployment and data.get("model") is None:
        data = {**data, "model": deployment}
    stream = bool(data.get("stream"))
    room = f"/openai/deployments/{quote(deployment, safe='')}" if deployment else ""
    request: dict[str, Any] = {
        "operation": "create_chat_completion",
        "method": method,
        "url": url_of(environ, f"{quote(found['root'])}{room}/chat/completions"),
        "headers": headers_of(environ),
        "body": data,
        "stream": stream,
        "timeout": TIMEOUT,
        "deadline": None if stream else DEADLINE,
        "bounds": BOUNDS,
    }
    return cast(Request, request if cancelled is None else {**request, "cancelled": cancelled})


def refusal(status: int, message: str, code: str | None = None) -> ChatError:
    return ChatError({"category": category_of(status, {}), "message": message, "status": status, "code": code})


def check_client(environ: WSGIEnvironment, key: Secret | None) -> None:
    """Raise unless the client may call."""
    if key is None:
        if environ.get("HTTP_SEC_FETCH_SITE", "").lower() in OTHER_ORIGINS:
            raise refusal(403, "a web page of another origin may not call a server that has no key")
        return
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    given = [environ.get("HTTP_API_KEY", ""), token.strip() if scheme.lower() == "bearer" else ""]
    wanted = key.reveal().encode()
    if not any(hmac.compare_digest(value.encode("utf-8", "replace"), wanted) for value in given):
        words = "the key is missing or wrong: give it as Authorization: Bearer or api-key"
        raise refusal(401, words, "invalid_api_key")


def length_of(environ: WSGIEnvironment, max_body: int) -> int | None:
    """Bytes of the body, or None if it ends where its stream ends.  First of all: no server may read on for ever."""
    text = environ.get("CONTENT_LENGTH") or ""
    if not text:
        if environ.get("wsgi.input_terminated"):
            return None
        if environ.get("HTTP_TRANSFER_ENCODING"):
            raise refusal(411, "this server needs the header content-length")
        return 0
    if not (text.isascii() and text.isdigit()):
        raise refusal(400, "the header content-length is no number")
    if len(text) > 18 or int(text) > max_body:
        raise too_large(environ, max_body)
    return int(text)


def too_large(environ: WSGIEnvironment, max_body: int) -> ChatError:
    """The refusal of a body; some of it is read, for a client that is still sending would not see the answer."""
    read(environ, max_body, keep=False)
    return refusal(413, f"the body is over the limit of {max_body} bytes")


def body_of(environ: WSGIEnvironment, length: int | None, max_body: int) -> bytes:
    data = read(environ, max_body + 1 if length is None else length)
    if len(data) > max_body:
        raise too_large(environ, max_body)
    if length is not None and len(data) < length:
        raise refusal(400, "the body was cut short")
    return data


def read(environ: WSGIEnvironment, most: int, keep: bool = True) -> bytes:
    """At most so many bytes of the request's body; without ``keep`` they are dropped."""
    pieces, left = [], most
    try:
        while left > 0 and (piece := environ["wsgi.input"].read(min(left, PIECE))):
            left -= len(piece)
            pieces += [piece] if keep else []
        return b"".join(pieces)
    except (OSError, ValueError) as exc:  # servers raise ValueError for broken chunks
        status = 408 if isinstance(exc, TimeoutError) else 400
    raise refusal(status, "the body did not arrive")


def data_of(body: bytes) -> dict[str, Any]:
    try:
        data = plain(parse(body))
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
    except ValueError as exc:
        problem = str(exc)
    else:
        if isinstance(data, dict):
            return data
        problem = f"it is {type(data).__name__}"
    raise refusal(400, f"We could not parse the JSON body of your request: it must be one JSON object; {problem}")


def url_of(environ: WSGIEnvironment, path: str) -> str:
    """The absolute URL, without what in its query may be a credential."""
    default = f"{environ.get('SERVER_NAME', 'localhost')}:{environ.get('SERVER_PORT', '80')}"
    host = environ.get("HTTP_HOST", "")
    root = quote(environ.get("SCRIPT_NAME", ""), encoding="latin-1")
    pairs = parse_qsl(environ.get("QUERY_STRING", "")[:PIECE], keep_blank_values=True)
    query = urlencode([pair for pair in pairs if not is_sensitive(pair[0])])
    origin = f"{environ['wsgi.url_scheme']}://{host if HOST.fullmatch(host) else default}"
    return f"{origin}{root}{path}" + (f"?{query}" if query else "")


def headers_of(environ: WSGIEnvironment) -> dict[str, str]:
    """The client's headers, lower-case, but for credentials and what belongs to its connection."""
    named = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        named["content-type"] = environ["CONTENT_TYPE"]
    dropped = CREDENTIAL_HEADERS | OWN_HEADERS
    return {name: value for name, value in named.items() if name not in dropped and not is_sensitive(name)}


# Response map to bytes.


def wire_response(request: Request, response: Response, cancelled: Cancelled) -> Response:
    """A handler's response as it goes over the wire."""
    body, headers = response["body"], passed_on(response["headers"])
    if "error" in response:
        close(body)
        return error_response({"status": response["status"], **response["error"]}, headers)
    status = response["status"] if 200 <= response["status"] < 600 else 502
    if request["stream"] and isinstance(body, Mapping) and status < 300:
        body = events_of(body)
    if isinstance(body, Iterable) and not isinstance(body, (bytes, Mapping, list, str)):
        if request["stream"]:
            return {"status": status, "headers": streaming(headers), "body": stream_of(iter(body), cancelled)}
        body = whole(body)
    headers = {"content-type": "application/json", **headers} if isinstance(body, bytes) else as_json(headers)
    data = body if isinstance(body, bytes) else json_text(body).encode()
    return {"status": status, "headers": headers, "body": data}


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a handler's headers says something to the client, and can be sent."""
    return {name: value for name, value in headers.items() if PASSED_ON.fullmatch(name) and problem_of(value) is None}


def as_json(headers: Mapping[str, str]) -> dict[str, str]:
    return {**headers, "content-type": "application/json"}


def streaming(headers: Mapping[str, str]) -> dict[str, str]:
    # Proxies such as nginx hold an event stream back unless they are told.
    return {**headers, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


def whole(body: Iterable[Any]) -> Any:
    """One body of a stream that was not asked for."""
    try:
        parts = list(body)
    finally:
        close(body)
    return b"".join(parts) if parts and all(isinstance(part, bytes) for part in parts) else collect(parts)


def stream_of(body: Iterator[Any], cancelled: Cancelled) -> Iterator[bytes]:
    """The bytes of a stream, one event each.  Its first event is awaited here, so that an error has its own status."""
    try:
        first = list(islice(body, 1))
    except BaseException:
        close(body)
        raise
    chunks = chunks_of(chain(first, body), body, cancelled)
    next(chunks)  # from here on close() closes the body, also before the first event is taken
    return chunks


def chunks_of(events: Iterator[Any], body: Iterator[Any], cancelled: Cancelled) -> Iterator[bytes]:
    """``b""``, then the bytes of each event, and ``[DONE]`` after the last map; or, should they break, the error."""
    error: Error | None = None
    kept: Any = {}
    try:
        yield b""
        for kept in events:
            yield kept if isinstance(kept, bytes) else encode(json_text(kept))
            if cancelled():
                error = {"category": "interrupted", "message": "the server is stopping"}
                break
        else:
            if not isinstance(kept, bytes):  # bytes bring their own
                yield encode(DONE)
    except ChatError as exc:
        error = exc.error
    except Exception:
        error = {"category": "fault", "message": "the server failed in this stream"}
    finally:
        close(body)
    if error is not None:
        cut = b"\n\n" if isinstance(kept, bytes) else b""  # ends the event that the bytes may have broken off in
        yield cut + encode(json_text(wire_error(error)))


def wire_error(error: Error) -> Json:
    """An error in the API's form.

    >>> wire_error({"category": "incorrect", "message": "no such role", "status": 400, "param": "messages"})
    {'error': {'message': 'no such role', 'type': 'invalid_request_error', 'param': 'messages', 'code': None}}
    """
    kind = error.get("type") or ("server_error" if status_of(error) >= 500 else "invalid_request_error")
    found = {"message": error["message"], "type": kind, "param": error.get("param"), "code": error.get("code")}
    return {"error": found}


def status_of(error: Error) -> int:
    """The status that tells a client of an error, the server's own if it has one."""
    status = error.get("status", 0)
    return status if 400 <= status < 600 else BY_CATEGORY.get(error["category"], 502)


def error_response(error: Error, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a failed request: its error in the API's form, and when to come again."""
    status, found = status_of(error), dict(headers or {})
    wait = error.get("retry_after")
    if wait is not None and not any("retry-after" in name for name in found):
        found |= {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
    if "should_retry" in error:
        found["x-should-retry"] = str(error["should_retry"]).lower()
    if status == 401:
        found["www-authenticate"] = "Bearer"
    if status == 405:
        found["allow"] = "POST"
    return {"status": status, "headers": as_json(found), "body": json_text(wire_error(error)).encode()}


# Running it.


def gateway(options: Json | Options) -> Handler:
    """A handler that answers each request by a call of its own with ``options``: their impl, transport and credential.

    It makes one attempt, for its clients have their own policy, unless ``options`` name ``middleware``.
    Raises ``ValueError`` and ``TypeError`` now for options that can't work, and not at the first request.

    >>> call = app(gateway({"transport": "echo"}))
    """
    options = sealed(options)
    whole_options = resolved({"middleware": (), **options} if isinstance(options, Mapping) else options)
    transport = transport_of(whole_options.get("transport", "requests"))
    if is_async(transport):
        raise ValueError(f"the transport {whole_options.get('transport')!r} is asynchronous; give a blocking one")
    check_credential(whole_options, whole_options.get("transport"))
    request_of({"model": "model", "messages": []}, whole_options)
    stack = handler_of(whole_options, transport)

    def answer_by_call(request: Request) -> Response:
        sent = request_of(request["body"], whole_options)
        if "cancelled" in request:
            sent = {**sent, "cancelled": request["cancelled"]}
        return cast(Response, stack(sent))

    return answer_by_call


@contextmanager
def served(
    handler: Handler,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    key: str | Secret | None = None,
    max_body: int = BOUNDS["body"],
    threads: int = THREADS,
) -> Iterator[str]:
    """The URL, to the ``/v1``, at which ``handler`` is served on threads of its own until the block ends.

    ``port`` 0 takes one that is free; ``OSError`` if it can't be had.  ``threads``: answers at once.
    At the end streams under way are told so, and answers under way have a few seconds.

    >>> with served(gateway({"transport": "echo"})) as url:
    ...     url.startswith("http://127.0.0.1:"), url.endswith("/v1")
    (True, True)
    """
    key = cast("Secret | None", seal(key))
    stopping = threading.Event()
    application = app(handler, key=key, max_body=max_body, cancelled=stopping.is_set)
    server = server_of(application, host, port, threads)
    began: Future[None] = Future()

    def run() -> None:
        try:
            server.prepare()
        except BaseException as exc:
            began.set_exception(exc)
        else:
            began.set_result(None)
            server.serve()

    # The server's threads inherit being daemons: an answer that hangs can't keep the process from ending.
    threading.Thread(target=run, name="chatfn-serve", daemon=True).start()
    began.result(START)
    try:
        yield url_at(host, server.bind_addr[1])
    finally:
        stopping.set()
        stopper = threading.Thread(target=server.stop, daemon=True)
        stopper.start()
        stopper.join(GRACE + 1)


def url_at(host: str, port: int) -> str:
    """
    >>> url_at("::1", 80), url_at("0.0.0.0", 80)
    ('http://[::1]:80/v1', 'http://127.0.0.1:80/v1')
    """
    reachable = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # it is compared
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}/v1"


def server_of(application: WSGIApplication, host: str, port: int, threads: int) -> Any:
    """The WSGI server, not yet listening.

    Cheroot, and not waitress: both send each event as it comes, but waitress closes the connection after every answer
    of unknown length, so that no stream's connection is used again, and it can't be stopped from another thread.
    """
    try:
        from cheroot.wsgi import Server
    except ModuleNotFoundError:
        lacking = True
    else:
        lacking = False
    if lacking:
        raise ValueError("serving needs the package 'cheroot': pip install 'chatfn[serve]'")
    server: Any = Server((host, port), application, numthreads=threads, request_queue_size=128, timeout=IDLE)
    server.shutdown_timeout = GRACE
    server.max_request_header_size = BOUNDS["headers"]
    server.keep_alive_conn_limit = 1_000
    server.server_name = "chatfn"
    server.error_log = silent
    return server


def silent(message: str = "", level: int = 20, traceback: bool = False) -> None:
    """In place of the server's own log, which prints a traceback when a client goes away."""


def serve(
    handler: Handler,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    key: str | Secret | None = None,
    max_body: int = BOUNDS["body"],
    threads: int = THREADS,
    ready: Callable[[str], object] = bool,
) -> None:
    """None, when Ctrl-C or SIGTERM has ended the serving of ``handler``; ``ready`` is given the URL once it listens."""
    key = cast("Secret | None", seal(key))
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        with served(handler, host, port, key=key, max_body=max_body, threads=threads) as url:
            ready(url)
            wait()
    except KeyboardInterrupt:
        return
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def wait() -> None:
    """Wait for a signal; in steps, since some platforms deliver none to a thread that waits for ever."""
    never = threading.Event()
    while not never.wait(1.0):
        continue
