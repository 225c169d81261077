"""A handler on a WSGI server, and the handler that answers by a call of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from chatfn.client import check_credential, resolved
from chatfn.core import requester
from chatfn.middleware import is_async
from chatfn.options import BOUNDS
from chatfn.sealing import sealed
from chatfn.secret import Secret, seal
from chatfn.serve.application import app
from chatfn.spec import Handler, Json, Options, Request, Response
from chatfn.stack import handler_of
from chatfn.transports import transport_of

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

THREADS = 64  # answers at once; each holds a thread while it lasts
GRACE = 3.0  # seconds that answers under way are given when the server stops
IDLE = 60  # seconds until a silent connection is closed
START = 30.0  # seconds; a server that does not listen by then is broken


def gateway(options: Json | Options) -> Handler:
    """A handler that answers each request by a call of its own with ``options``: their impl, transport and credential.

    It makes one attempt, for its clients have their own policy, unless ``options`` name ``middleware``.
    Raises ``ValueError`` and ``TypeError`` now for options that can't work, and not at the first request.

    >>> call = app(gateway({"transport": "echo"}))
    """
    options = sealed(options)
    whole_options = resolved({"middleware": (), **options} if isinstance(options, Mapping) else options)
    name = whole_options.get("transport", "requests")
    transport = transport_of(name)
    if is_async(transport):
        raise ValueError(f"the transport {name!r} is asynchronous; give a blocking one")
    check_credential(whole_options, name)
    request_of = requester(whole_options)
    request_of({"model": "model", "messages": []})
    stack = handler_of(whole_options, transport)

    def answer_by_call(request: Request) -> Response:
        sent = request_of(request["body"])
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

        from chatfn.serve.leaving import Connection
    except ModuleNotFoundError:
        lacking = True
    else:
        lacking = False
    if lacking:
        raise ValueError("serving needs the package 'cheroot': pip install 'chatfn[serve]'")
    server: Any = Server((host, port), application, numthreads=threads, request_queue_size=128, timeout=IDLE)
    server.ConnectionClass = Connection
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
