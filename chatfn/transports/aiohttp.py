"""The asynchronous transport: aiohttp, with one session per event loop, process, origin and settings.

The same maps, bounds and errors as the default transport's.  A session lives in an asynchronous generator, which the
event loop closes as it shuts down.
"""

from __future__ import annotations

import asyncio
import atexit
import http.client
import io
import math
import os
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, cast

import aiohttp
import requests
from aiohttp.http_exceptions import HttpProcessingError
from pyrsistent import PMap, pmap
from requests.exceptions import ConnectTimeout, ProxyError
from requests.utils import prepend_scheme_if_needed, select_proxy
from yarl import URL

from chatfn.atom import Atom
from chatfn.core import wire_headers
from chatfn.errors import ChatError, failure
from chatfn.spec import Error, Request, Response
from chatfn.transports.aiohttp_connection import CURRENT, Connector, Scoped, loop_time
from chatfn.transports.decoding import ACCEPTED, Inflate, inflater, too_large
from chatfn.transports.requests import ERROR_BYTES, attempt_of, error_of, settings_of, tls_context

DIRECT = 65_536  # bytes of a request that are written at once; aiohttp warns of more than 1 MiB
OWN_HEADERS = ("accept", "accept-encoding", "content-type", "user-agent")  # aiohttp's, where the request has none


NO_SOCKS = (
    "the proxy is a SOCKS proxy, which the transport 'aiohttp' can't use; "
    'give the option {"transport": "requests"}, or another proxy in the option \'request\''
)


class Pool(NamedTuple):
    session: aiohttp.ClientSession
    proxy: URL | None
    context: ssl.SSLContext | bool
    keeper: AsyncGenerator[None, None]


POOLS: Atom[PMap[Any, Pool]] = Atom(pmap())


def pool_of(request: Request) -> Pool:
    """The pool of a request's origin and settings on the running event loop."""
    loop = asyncio.get_running_loop()
    origin, proxies, verify, cert = settings_of(request)
    key = (loop, origin, frozenset(proxies.items()), verify, cert)
    found = POOLS.deref().get(key)
    if found is None:
        for other, pool in POOLS.deref().items():
            if other[0].is_closed():
                finish(pool)
        found = new_pool(key, origin, proxies, verify, cert)
        POOLS.swap(lambda table: table.set(key, found))
    return found


def new_pool(key: Any, origin: str, proxies: dict[str, str], verify: bool | str, cert: Any) -> Pool:
    settings = requests.Session().merge_environment_settings(origin, proxies, True, verify, cert)
    proxy = select_proxy(origin, settings["proxies"])
    context = context_of(settings["verify"], cert) if origin.startswith("https:") else True
    connector = Connector()
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=OWN_HEADERS,
        trust_env=False,
    )
    keeper = keep(key, session, connector)
    with suppress(StopIteration):
        anext(keeper).__await__().send(None)
    return Pool(session, URL(prepend_scheme_if_needed(proxy, "http")) if proxy else None, context, keeper)


context_of = lru_cache(16)(tls_context)


async def keep(key: Any, session: aiohttp.ClientSession, connector: Connector) -> AsyncGenerator[None, None]:
    """Hold a session until the event loop shuts down its generators, or the process forgets it."""
    process = os.getpid()
    try:
        yield
    finally:
        POOLS.swap(lambda table: table.discard(key))
        session.detach()
        if os.getpid() == process:  # a fork's connections, and the event loop that knows of them, are its parent's
            connector.shut()


def finish(pool: Pool) -> None:
    """End what holds a session, which waits for nothing."""
    with suppress(StopIteration, RuntimeError):  # RuntimeError: its event loop is just closing it
        pool.keeper.aclose().__await__().send(None)


def forget_pools() -> None:
    """Start anew: connections do not survive a fork, and a lock may have been held by a thread that did not."""
    global POOLS
    pools, POOLS = POOLS, Atom(pmap())
    for pool in pools.deref().values():
        finish(pool)


def finish_all() -> None:
    for pool in POOLS.deref().values():
        finish(pool)


atexit.register(finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_pools)


async def send(request: Request) -> Response:
    """The response of the server, its body whole or, of a stream, as it arrives; whatever fails is its ``error``."""
    wire_headers(request)  # a credential that can't be had is the caller's to know, as roots that can't be read
    pool = pool_of(request)
    if pool.proxy is not None and pool.proxy.scheme.startswith("socks"):
        return failure("unsupported", NO_SOCKS)
    attempt = scoped(request)
    try:
        try:
            return await exchange(pool, request, attempt)
        except Exception:
            if not (attempt.reused and attempt.unsent and not attempt.received):
                raise
        # The server had closed the idle connection: the request never left whole, so nothing can have come of it.
        attempt = scoped(request)
        return await exchange(pool, request, attempt)
    except ChatError as exc:
        error = exc.error
    except asyncio.CancelledError as exc:
        raise exc.with_traceback(None) from None  # without aiohttp's frames, which hold the key
    except Exception as exc:  # aiohttp's own have no common class, and its state may break with any
        error = error_of(translated(exc), request, attempt)
    return {**failure(error["category"], error["message"]), "error": error}


def scoped(request: Request) -> Scoped:
    plain = attempt_of(request)
    attempt = Scoped(plain.until, plain.silence, plain.whole, plain.connect, plain.head)
    attempt.unsent = True
    return attempt


async def exchange(pool: Pool, request: Request, attempt: Scoped) -> Response:
    body: Any = request["body"] if len(request["body"]) <= DIRECT else io.BytesIO(request["body"])
    most = request["bounds"]["headers"]
    token = CURRENT.set(attempt)
    try:
        async with asyncio.timeout_at(loop_time(attempt.until)) as attempt.scope:
            answer = await pool.session.request(
                request["method"],
                URL(request["url"], encoded=True),
                headers={"accept-encoding": ACCEPTED, **wire_headers(request)},
                data=body,
                allow_redirects=False,
                proxy=pool.proxy,
                ssl=pool.context,
                timeout=aiohttp.ClientTimeout(total=None, connect=attempt.connect, ceil_threshold=1e9),
                max_line_size=most,
                max_field_size=most,
            )
    finally:
        attempt.scope = None
        CURRENT.reset(token)
    return await response_of(answer, request, attempt)


async def response_of(answer: aiohttp.ClientResponse, request: Request, attempt: Scoped) -> Response:
    """The response map of an answer whose headers have arrived."""
    head: dict[str, str] = {}
    lasts = False
    try:
        head = headers_of(answer)
        check_framing(head)
        good = 200 <= answer.status < 300
        inflate = inflater(head.pop("content-encoding", ""))
        if request["stream"] and good:
            lasts = True
            attempt.begin_stream(request.get("due", math.inf))
            body = stream_body(answer, inflate, request, attempt)
            await anext(body)  # from here on aclose() closes the connection, also before the first byte is taken
            return {"status": answer.status, "headers": head, "body": body}
        attempt.until = min(attempt.until, time.monotonic() + attempt.silence)  # what is no stream has its time in all
        limit = request["bounds"]["body"] if good else ERROR_BYTES
        return {
            "status": answer.status,
            "headers": head,
            "body": await whole_body(answer, inflate, limit, good, attempt),
        }
    except ChatError as exc:
        error = exc.error
    except Exception as exc:  # as in ``send``
        error = error_of(translated(exc), request, attempt)
    finally:
        if not lasts:
            answer.close()
    return {"status": answer.status, "headers": head, "body": None, "error": {**error, "status": answer.status}}


def headers_of(answer: aiohttp.ClientResponse) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in answer.raw_headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def check_framing(head: dict[str, str]) -> None:
    """Raise unless it is plain where the body ends (RFC 9112, 6.3)."""
    lengths = {part.strip() for part in head.get("content-length", "0").split(",")}
    if head.get("transfer-encoding", "chunked").lower() != "chunked":
        raise http.client.HTTPException("its transfer coding is unknown")
    if len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths):
        raise http.client.HTTPException("its content-length is no number")


async def some(answer: aiohttp.ClientResponse, attempt: Scoped) -> bytes:
    """The next bytes of the body, as soon as there are any; none at its end.  Raises if the body is cut short.

    What had arrived before the connection broke comes first, which aiohttp would forget.
    """
    body = answer.content
    broken = body.exception()
    if broken is not None:
        body.set_exception(cast(Any, None))
    data = body.read_nowait()
    if broken is not None:
        body.set_exception(broken)
        if not data:
            raise broken
    if data or body.at_eof():
        return data
    async with asyncio.timeout_at(loop_time(min(attempt.until, time.monotonic() + attempt.silence))):
        return await body.readany()


async def whole_body(
    answer: aiohttp.ClientResponse, inflate: Inflate, limit: int, good: bool, attempt: Scoped
) -> bytes:
    """The decoded body; of an error only as much as ``limit``."""
    pieces: list[bytes] = []
    size, ended = 0, False
    while not ended:
        data = await some(answer, attempt)
        ended = not data
        for piece in inflate(data, ended):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                if good:
                    raise too_large(limit)
                return b"".join(pieces)[:limit]
    return b"".join(pieces)


async def stream_body(
    answer: aiohttp.ClientResponse, inflate: Inflate, request: Request, attempt: Scoped
) -> AsyncGenerator[bytes, float | None]:
    """The decoded bytes as they arrive.  Sent a number of seconds, the rest has to come within them."""
    error: Error | None = None
    ended = False
    try:
        yield b""
        while not ended:
            data = await some(answer, attempt)
            ended = not data
            for piece in inflate(data, ended):
                seconds = yield piece
                if seconds is not None:
                    attempt.until = min(attempt.until, time.monotonic() + seconds)
    except ChatError as exc:
        error = exc.error
    except Exception as exc:  # as in ``send``
        error = error_of(translated(exc), request, attempt)
    finally:
        answer.close()
    if error is not None:
        raise ChatError({**error, "status": answer.status})


def translated(exc: Exception) -> Exception:
    """The same failure in the terms of requests and http.client, as far as aiohttp has terms of its own."""
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return ConnectTimeout()
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return ProxyError(f"it answered {exc.status}")
    if isinstance(exc, aiohttp.ClientProxyConnectionError):
        return ProxyError(exc.os_error.strerror or type(exc.os_error).__name__)
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return http.client.RemoteDisconnected("")
    if isinstance(exc, aiohttp.ClientPayloadError):
        return http.client.IncompleteRead(b"")
    if isinstance(exc, (aiohttp.ClientResponseError, HttpProcessingError)):
        return http.client.HTTPException(exc.message.partition("\n")[0])
    return exc
