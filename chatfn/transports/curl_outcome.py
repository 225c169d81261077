"""What came of a request: of what arrived, of libcurl's code, or of what ended the transfer here."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, cast

import pycurl

from chatfn.errors import ChatError, failure
from chatfn.spec import Error, Response
from chatfn.transports.curl_errors import cause_of
from chatfn.transports.curl_gathered import Gathered
from chatfn.transports.curl_process import exhausted
from chatfn.transports.decoding import as_it_is, too_large
from chatfn.transports.requests import error_of
from chatfn.transports.timed_socket import Attempt, Expired

if TYPE_CHECKING:
    from chatfn.transports.curl_exchange import Exchange

LAST_CHUNK = re.compile(rb"\n0+[ \t]*(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n\Z")
COUNTED = 1_024  # URLs that are known to answer with a length


def outcome(exchange: Exchange, code: int, words: str, exc: Exception | None) -> Response:
    """The response map of what came: of libcurl's code, or of what ended the transfer here."""
    if exchange.head is None and exchange.lines and exchange.failed is None:
        exchange.read_head()
    gathered = exchange.stream if isinstance(exchange.stream, Gathered) else None
    if exchange.failed is not None:
        exc = exchange.failed
    elif gathered and exchange.cut:  # all was said
        exc = None
    elif exc is None:
        exc = cause(exchange, code, words) if code else lack(exchange)
    if exchange.head is None:
        error = failure_of(exchange, exc or Expired())
        return {**failure(error["category"], error["message"]), "error": error}
    response: Response = {"status": exchange.status, "headers": exchange.head, "body": None}
    if gathered:
        broken: Error | None = None if exc is None else {**failure_of(exchange, exc), "status": exchange.status}
        return cast(Response, {**response, "body": gathered.body(broken), "arrived": True})
    if exc is not None:
        return {**response, "error": {**failure_of(exchange, exc), "status": exchange.status}}
    return {**response, "body": b"".join(exchange.pieces)[: exchange.limit]}


def lack(exchange: Exchange) -> Exception | None:
    """What a transfer lacks that ended well for libcurl, which takes the end of a connection for that of a head,
    and for that of chunks if there was none."""
    if exchange.head is None:
        return http.client.IncompleteRead(b"")
    endless = not exchange.size and "transfer-encoding" in exchange.head and LAST_CHUNK.search(exchange.tail) is None
    if endless and (exchange.heard or 200 <= exchange.status < 300):
        return http.client.IncompleteRead(b"")
    if exchange.inflate is not as_it_is and exchange.stream is None:
        try:
            exchange.pieces.extend(exchange.inflate(b"", True))
        except ChatError as exc:
            return exc
    return None


def cause(exchange: Exchange, code: int, words: str) -> Exception | None:
    """libcurl's failure as an exception of the default transport's, which knows the words for it."""
    if exchange.cut:  # of an error's body as much as is of use
        return too_large(exchange.limit) if 200 <= exchange.status < 300 else None
    if code == pycurl.E_COULDNT_CONNECT and exhausted():
        return OSError("too many open files in this process: raise its limit (ulimit -n), or send fewer at once")
    return cause_of(code, words, exchange.way.proxy)


def failure_of(exchange: Exchange, exc: Exception) -> Error:
    """The error map of what ended the transfer."""
    if isinstance(exc, ChatError):
        return exc.error
    request = exchange.request
    attempt = Attempt(exchange.due, request["timeout"][1], 0.0, exchange.within, 0)
    attempt.received = exchange.headed + len(exchange.lines) + exchange.size
    return error_of(exc, request, attempt)


def trusted(exchange: Exchange) -> bool:
    """Whether the connection may be used again.  libcurl forgets what follows a last chunk in one packet: nothing
    may.  To listen to it costs time, so that it is done for streams, and where a server has sent no length."""
    head, counted = exchange.head, exchange.loop.counted
    if head is None or exchange.failed is not None:
        return False
    if "transfer-encoding" not in head:
        if len(counted) < COUNTED:
            counted.add(exchange.url)
        return True
    counted.discard(exchange.url)
    return "content-length" not in head and LAST_CHUNK.search(exchange.tail) is not None
