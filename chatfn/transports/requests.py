"""The default transport: requests, with one pooled session per process and origin.

What does not change from call to call is done once per session: the settings of the environment, the TLS context, the
adapter.  A call then hands its bytes to the adapter and reads the answer within its attempt's bounds.
"""

from __future__ import annotations

import http.client
import math
import os
import ssl
import time
from collections.abc import Generator, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from pyrsistent import PMap, pmap
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectTimeout, ProxyError, SSLError
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout, create_urllib3_context

from chatfn.atom import Atom
from chatfn.core import wire_headers
from chatfn.errors import ChatError, failure
from chatfn.secret import Secret
from chatfn.spec import Category, Error, Request, Response
from chatfn.transports.connection import CURRENT, POOLS, Answer
from chatfn.transports.decoding import ACCEPTED, Inflate, inflater, too_large
from chatfn.transports.timed_socket import Attempt, Cancelled, HeadTooLarge, TimedSSLSocket

CONNECTIONS = 1_024  # kept open per origin, if so many were in use at once
ERROR_BYTES = 65_536
NETWORK_ERRORS = (requests.RequestException, HTTPError, http.client.HTTPException, OSError)

Session = tuple[requests.Session, dict[str, Any]]
SESSIONS: Atom[PMap[Any, Session]] = Atom(pmap())


def forget_sessions() -> None:
    """Start anew: connections do not survive a fork, and a lock may have been held by a thread that did not."""
    global SESSIONS
    SESSIONS = Atom(pmap())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_sessions)


class Adapter(HTTPAdapter):
    """An adapter of one TLS context, whose responses are ``Answer``s."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.context = context
        self.pool: Any = None
        super().__init__(pool_maxsize=CONNECTIONS)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **settings: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self.context, **settings)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **settings: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self.context, proxy_ssl_context=self.context, **settings)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = POOLS
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, False, None)
        return host, {} if self.context is None else {"cert_reqs": self.context.verify_mode}

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        self.pool = self.pool or super().get_connection_with_tls_context(request, verify, proxies, cert)
        return self.pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The context knows."""

    def build_response(self, req: Any, resp: Any) -> Any:
        return resp


def session_of(request: Request) -> Session:
    """The session of a request's origin and settings, and its keywords for ``Adapter.send``."""
    origin, proxies, verify, cert = settings_of(request)
    key = (origin, frozenset(proxies.items()), verify, cert)
    found = SESSIONS.deref().get(key)
    if found is None:
        made = new_session(origin, proxies, verify, cert)
        found = SESSIONS.swap(lambda table: table if key in table else table.set(key, made))[key]
    return found


def settings_of(request: Request) -> tuple[str, dict[str, str], bool | str, Any]:
    """What the connections of a request depend on: its origin, its proxies in the clear, ``verify`` and ``cert``."""
    url = urlsplit(request["url"])
    proxies = {
        name: proxy.reveal() if isinstance(proxy, Secret) else proxy
        for name, proxy in request.get("proxies", {}).items()
    }
    cert: Any = request.get("cert")
    cert = tuple(cert) if isinstance(cert, list) else cert
    return f"{url.scheme}://{url.netloc}", proxies, request.get("verify", True), cert


def new_session(origin: str, proxies: dict[str, str], verify: bool | str, cert: Any) -> Session:
    session = requests.Session()
    settings = session.merge_environment_settings(origin, proxies, True, verify, cert)
    session.mount(origin, Adapter(tls_context(settings["verify"], cert) if origin.startswith("https:") else None))
    return session, settings


def tls_context(verify: bool | str, cert: Any) -> ssl.SSLContext:
    """A context that verifies with certifi's roots, or with those of the path ``verify``."""
    context = create_urllib3_context()
    context.sslsocket_class = TimedSSLSocket
    try:
        if verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            path = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
            context.load_verify_locations(**{"capath" if os.path.isdir(path) else "cafile": path})
        if cert:
            context.load_cert_chain(*([cert] if isinstance(cert, str) else cert))
        return context
    except OSError as exc:
        problem = f"{type(exc).__name__}: {exc.strerror or exc}"
    raise ValueError(f"verify={verify!r} or cert in the option 'request' can't be used: {problem}")


def send(request: Request) -> Response:
    """The response of the server, its body whole or, of a stream, as it arrives; whatever fails is its ``error``."""
    session, settings = session_of(request)
    headers = {"accept-encoding": ACCEPTED, **wire_headers(request)}
    attempt = new_attempt(request)
    try:
        try:
            return exchange(session, settings, request, headers, attempt)
        except NETWORK_ERRORS:
            if not (attempt.reused and attempt.unsent and not attempt.received):
                raise
        # The server had closed the idle connection: the request never left whole, so nothing can have come of it.
        attempt = new_attempt(request)
        return exchange(session, settings, request, headers, attempt)
    except ChatError as exc:
        error = exc.error
    except NETWORK_ERRORS as exc:
        error = error_of(exc, request, attempt)
    return {**failure(error["category"], error["message"]), "error": error}


def new_attempt(request: Request) -> Attempt:
    """An attempt that begins now, of which nothing has been sent."""
    attempt = attempt_of(request)
    attempt.unsent = True
    return attempt


def attempt_of(request: Request) -> Attempt:
    """The bounds of an attempt that begins now."""
    now = time.monotonic()
    connect, silence = request["timeout"]
    due = request.get("due", math.inf)
    within = max(0.001, min(connect, due - now))
    return Attempt(due, silence, silence, within, request["bounds"]["headers"], request.get("cancelled"))


def exchange(
    session: requests.Session, settings: dict[str, Any], request: Request, headers: dict[str, str], attempt: Attempt
) -> Response:
    prepared = requests.PreparedRequest()
    prepared.method, prepared.url, prepared.body = request["method"], request["url"], request["body"]
    prepared.headers = cast(Any, {**headers, "Content-Length": str(len(request["body"]))})
    CURRENT.attempt = attempt
    adapter = session.get_adapter(request["url"])
    timeout = Timeout(connect=attempt.connect, read=request["timeout"][1])
    answer: Answer = cast(Any, adapter.send(prepared, timeout=cast(Any, timeout), **settings))
    return response_of(answer, request, attempt)


def response_of(answer: Answer, request: Request, attempt: Attempt) -> Response:
    """The response map of an answer whose headers have arrived."""
    ends = False
    try:
        head = headers_of(answer)
        good = 200 <= answer.status < 300
        inflate = inflater(head.pop("content-encoding", ""))
        if request["stream"] and good:
            ends = True
            attempt.begin_stream(request.get("due", math.inf))
            stream = stream_body(answer, inflate, request, attempt)
            next(stream)  # from here on close() gives the connection back, also before the first byte is taken
            return {"status": answer.status, "headers": head, "body": stream}
        body = whole_body(answer, inflate, request["bounds"]["body"] if good else ERROR_BYTES, good)
        return {"status": answer.status, "headers": head, "body": body}
    except ChatError as exc:
        error = {**exc.error, "status": answer.status}
    except NETWORK_ERRORS as exc:
        error = {**error_of(exc, request, attempt), "status": answer.status}
    finally:
        if not ends:
            release(answer, attempt)
    return {"status": answer.status, "headers": head, "body": None, "error": cast(Error, error)}


def headers_of(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in answer.headers.items():
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def whole_body(answer: Answer, inflate: Inflate, limit: int, good: bool) -> bytes:
    """The decoded body; of an error only as much as ``limit``."""
    pieces: list[bytes] = []
    size = 0
    for piece in decoded(answer, inflate):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            if good:
                raise too_large(limit)
            return b"".join(pieces)[:limit]
    return b"".join(pieces)


def decoded(answer: Answer, inflate: Inflate) -> Iterator[bytes]:
    while data := answer.some():
        yield from inflate(data, False)
    yield from inflate(b"", True)


def stream_body(
    answer: Answer, inflate: Inflate, request: Request, attempt: Attempt
) -> Generator[bytes, float | None, None]:
    """The decoded bytes as they arrive.  Sent a number of seconds, the rest has to come within them."""
    error: Error | None = None
    try:
        yield b""
        for piece in decoded(answer, inflate):
            seconds = yield piece
            if seconds is not None:
                attempt.until = min(attempt.until, time.monotonic() + seconds)
    except ChatError as exc:
        error = exc.error
    except NETWORK_ERRORS as exc:
        error = error_of(exc, request, attempt)
    finally:
        release(answer, attempt)
    if error is not None:
        raise ChatError({**error, "status": answer.status})


def release(answer: Answer, attempt: Attempt) -> None:
    """Give the connection back, or close it unless its answer was read to the very end, and was all that came."""
    connection = answer._connection
    if not answer.isclosed() or attempt.surplus or answer.status < 200:
        answer.close()
        connection.close()
    answer._pool._put_conn(connection)


def error_of(exc: BaseException, request: Request, attempt: Attempt) -> Error:
    """The error map of what requests, urllib3, http.client or the socket raised."""
    category, message = cause_of(exc, request, attempt)
    error: Error = {"category": category, "message": message, "status": 0}
    if attempt.unsent and not attempt.received:
        error = {**error, "sent": False}
    return {**error, "should_retry": False} if any(isinstance(e, HeadTooLarge) for e in chain_of(exc)) else error


def cause_of(exc: BaseException, request: Request, attempt: Attempt) -> tuple[Category, str]:
    chain = chain_of(exc)
    host = urlsplit(request["url"]).netloc

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if has(HeadTooLarge):
        return "fault", f"the answer's headers are larger than bounds['headers'], {request['bounds']['headers']} bytes"
    if has(Cancelled):
        return "interrupted", "the call was cancelled"
    if time.monotonic() >= request.get("due", math.inf):
        return "interrupted", f"not done within the deadline of {request['deadline']:g} s (option 'deadline')"
    if has(ConnectTimeout):
        return "unavailable", f"no connection to {host} within {attempt.connect:g} s (timeout in the option 'request')"
    if has(TimeoutError, requests.Timeout):
        silence = request["timeout"][1]
        return "interrupted", f"no answer from {host} for {silence:g} s (timeout in the option 'request')"
    return http_cause_of(chain, host, attempt)


def http_cause_of(chain: list[BaseException], host: str, attempt: Attempt) -> tuple[Category, str]:
    """The same, of what is no bound of ours."""

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    words = worded(chain[-1])
    if has(ProxyError):
        return "unavailable", f"the proxy gave no connection to {host}: {words}"
    if has(SSLError, ssl.SSLError):
        return "unavailable", f"no TLS connection to {host}: {words}"
    if has(http.client.IncompleteRead):
        return "interrupted", "the answer was cut short"
    if has(http.client.RemoteDisconnected, ConnectionError) and attempt.received:
        return "interrupted", f"the connection to {host} broke in the middle of the answer"
    if has(http.client.RemoteDisconnected):
        return "unavailable", f"{host} closed the connection without an answer"
    if has(http.client.HTTPException):
        return "fault", f"the answer of {host} is not proper HTTP: {words}"
    return "unavailable", f"no connection to {host}: {words}"


def chain_of(exc: BaseException) -> list[BaseException]:
    """The exception and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    found: BaseException | None = exc
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    return chain


def worded(exc: BaseException) -> str:
    text = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return text[:200]
