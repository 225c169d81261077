"""One of libcurl's handles, and the request that it carries: what is set, what arrives, what came of it.

libcurl is strict where it frames a message, and lenient where it understands one: what its headers say of the body is
checked here again, as for every transport.  It sends a request a second time if a kept connection turns out to be
closed; that is refused, for the first may have been received, and whether to try again is for others to say.
"""

from __future__ import annotations

import http.client
import math
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import pycurl
from requests.exceptions import ConnectTimeout

from chatfn.errors import ChatError, failure
from chatfn.spec import Error, Request, Response
from chatfn.transports import Done
from chatfn.transports.curl_errors import cause_of
from chatfn.transports.curl_heads import check_framing, head_of, header_lines
from chatfn.transports.curl_process import exhausted
from chatfn.transports.decoding import Inflate, as_it_is, inflater, too_large
from chatfn.transports.requests import ERROR_BYTES, error_of
from chatfn.transports.timed_socket import Attempt, Expired, HeadTooLarge

SENT_AT_ONCE = 65_536  # bytes of a request that a socket takes without waiting
DRAIN = 0.25  # seconds that a stream which has said [DONE] has to end
DONE = re.compile(rb"(?:^|\n)data: ?\[DONE\]\s*$")
LAST_CHUNK = re.compile(rb"\n0+[ \t]*(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n\Z")
TAIL = 1_024  # bytes, which the end of a chunked body and its trailers are looked for in
COUNTED = 1_024  # URLs that are known to answer with a length
EMPTY = (b"\r\n", b"\n")
REFUSE, GO_ON = 1, 0


class Exchange:
    """A handle.  It is used for one request after another; ``begin`` forgets the one before."""

    __slots__ = (
        "auth", "curl", "cut", "done", "due", "failed", "fresh", "gathers", "head", "headed", "headers", "heard",
        "inflate", "limit", "lines", "method", "opened", "origin", "pieces", "reached", "request", "sent", "shard",
        "size", "started", "status", "stream", "tail", "until", "url", "way", "within",
    )  # fmt: skip

    def __init__(self, curl: Any, way: Any, shard: Any) -> None:
        self.curl, self.way, self.shard = curl, way, shard
        self.lines: list[bytes] = []
        self.headers: Any = None
        self.auth: Any = None
        self.url = self.origin = ""
        self.method = "POST"
        self.fresh = self.heard = False
        curl.exchange = self
        curl.setopt(pycurl.HEADERFUNCTION, self.hear)
        curl.setopt(pycurl.DEBUGFUNCTION, self.overhear)
        curl.setopt(pycurl.WRITEFUNCTION, self.receive)
        curl.setopt(pycurl.PREREQFUNCTION, self.reach)
        curl.setopt(pycurl.SOCKOPTFUNCTION, self.connect)

    def begin(self, request: Request, origin: str, done: Done, opened: Any) -> None:
        """Set what is new in a request.  ``opened``: what takes the pieces of a stream, or None if all are kept."""
        curl, body = self.curl, request["body"]
        auth = request.get("auth")
        if request["headers"] is not self.headers or auth is not self.auth:
            self.headers = self.auth = None
            curl.setopt(pycurl.HTTPHEADER, header_lines(request))
            if auth is None or auth["secret"].kind == "value":
                self.headers, self.auth = request["headers"], auth
        if request["url"] != self.url:
            curl.setopt(pycurl.URL, request["url"])
            self.url = request["url"]
        curl.setopt(pycurl.POSTFIELDS, body)
        if request["method"] != self.method:
            curl.setopt(pycurl.CUSTOMREQUEST, request["method"])
            self.method = request["method"]
        self.within = request["timeout"][0]
        self.due = math.inf
        now = time.monotonic()
        if "due" in request:
            self.due = request["due"]
            self.within = max(0.001, min(self.within, self.due - now))
        self.until = now + self.within
        self.request, self.origin, self.done, self.opened = request, origin, done, opened
        self.sent = len(body) if len(body) <= SENT_AT_ONCE else 0
        self.lines.clear()
        self.pieces: list[bytes] = []
        self.size = self.status = self.headed = 0
        self.tail = b"\n"
        loop = self.shard.loop
        listens = self.origin not in loop.multiplexed and (request["stream"] or self.url not in loop.counted)
        if listens is not self.heard:
            curl.setopt(pycurl.VERBOSE, int(listens))
            self.heard = listens
        self.head: dict[str, str] | None = None
        self.started = self.reached = self.cut = self.gathers = False
        self.stream: Any = None
        self.failed: Exception | None = None

    def connect(self, fd: int, purpose: int) -> int:
        """A socket is made for the request."""
        self.shard.loop.connected(fd, self.origin)
        return 0

    def reach(self, *addresses: Any) -> int:
        """The request is about to be sent: its answer has its time from here."""
        if self.reached:
            return REFUSE
        self.reached = True
        self.end_by(time.monotonic() + self.request["timeout"][1])
        return GO_ON

    def end_by(self, until: float) -> None:
        """Be done by then, or by the call's deadline."""
        self.until = min(self.due, until)
        loop = self.shard.loop
        if self.until < loop.soonest:
            loop.soonest = self.until

    def hear(self, line: bytes) -> int | None:
        """Keep a line of a head.  The first empty one ends it, unless it was that of an interim answer."""
        if self.head is None:
            self.lines.append(line)
            if len(line) < 3 and line in EMPTY:
                return self.read_head()
        return None

    def overhear(self, kind: int, data: bytes) -> None:
        """Keep the end of what comes over the wire of a body."""
        if kind == pycurl.INFOTYPE_DATA_IN:
            self.tail = (self.tail + data)[-TAIL:]

    def trusted(self) -> bool:
        """Whether the connection may be used again.  libcurl forgets what follows a last chunk in one packet: nothing
        may.  To listen to it costs time, so that it is done for streams, and where a server has sent no length."""
        head = self.head or {}
        counted = self.shard.loop.counted
        if "transfer-encoding" not in head:
            if len(counted) < COUNTED:
                counted.add(self.url)
            return True
        counted.discard(self.url)
        return "content-length" not in head and LAST_CHUNK.search(self.tail) is not None

    def receive(self, data: bytes) -> int | None:
        """Keep a piece of the body, or hand it on; -1 ends the transfer."""
        if self.stream is not None:
            self.stream.put(data)
            return None
        if self.gathers:
            return self.gather(data)
        try:
            for piece in self.inflate(data, False) if self.inflate is not as_it_is else (data,):
                self.pieces.append(piece)
                self.size += len(piece)
                if self.size > self.limit:
                    self.cut = True
                    return -1
        except ChatError as exc:
            self.failed = exc
            return -1
        return None

    def gather(self, data: bytes) -> int | None:
        """Keep a piece of a stream.  A comment is no progress; after the last event the rest is not waited for long."""
        if self.cut:
            return -1 if data.strip() else None
        self.pieces.append(data)
        self.size += len(data)
        if self.size > self.limit:
            self.failed = too_large(self.limit)
            return -1
        if self.inflate is not as_it_is or b"data" in data:
            self.end_by(time.monotonic() + self.request["timeout"][1])
        if data.endswith(b"\n") and DONE.search(b"".join(self.pieces[-2:])[-32:]):
            self.cut = True
            self.end_by(time.monotonic() + DRAIN)
        return None

    def read_head(self) -> int | None:
        """Understand the head, all of which has arrived; -1 if its body is of no use."""
        text = b"".join(self.lines)
        self.headed += len(text)
        try:
            if self.headed > self.request["bounds"]["headers"]:
                raise HeadTooLarge
            status, head = head_of(text)
            if status < 200:
                self.lines.clear()
                return None
            self.status, self.head = status, head
            check_framing(head)
            self.inflate: Inflate = inflater(head.pop("content-encoding", ""))
        except (ChatError, OSError, http.client.HTTPException) as exc:
            self.failed = exc
            return -1
        if text.startswith(b"HTTP/2"):
            self.shard.loop.multiplexed.add(self.origin)
        good = 200 <= status < 300
        self.limit = self.request["bounds"]["body"] if good else ERROR_BYTES
        if good and self.request["stream"]:
            if self.opened is None:
                self.gathers = True
                self.end_by(time.monotonic() + self.request["timeout"][1])
            else:
                self.stream = self.opened(self)
                self.until = math.inf
        return None

    def expire(self, now: float) -> Exception | None:
        """Its time is over: what that means, or None if it has more."""
        request = self.request
        if now < self.due:
            if not self.reached:
                return ConnectTimeout()
            sent = self.curl.getinfo(pycurl.SIZE_UPLOAD_T) if self.sent < len(request["body"]) else 0
            if sent > self.sent:
                self.sent = sent
                self.end_by(now + request["timeout"][1])
                return None
        return Expired()

    def outcome(self, code: int, words: str, exc: Exception | None) -> Response:
        """The response map of what came: of libcurl's code, or of what ended the transfer here."""
        if self.gathers and self.cut:  # all was said
            code, exc = 0, None
        if exc is None and code == 0 and self.cut_short():
            exc = http.client.IncompleteRead(b"")
        if exc is None and code:
            exc = self.cause(code, words)
        if exc is None and self.stream is None and not self.gathers and not self.cut:
            exc = self.end_body()
        if self.head is None:
            error = self.error(exc or Expired())
            return {**failure(error["category"], error["message"]), "error": error}
        response: Response = {"status": self.status, "headers": self.head, "body": None}
        if self.gathers:
            broken: Error | None = None if exc is None else {**self.error(exc), "status": self.status}
            body = gathered(self.pieces, self.inflate, self.status, broken)
            return cast(Response, {**response, "body": body, "arrived": True})
        if exc is not None:
            return {**response, "error": {**self.error(exc), "status": self.status}}
        pieces = self.pieces
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {**response, "body": whole[: self.limit] if self.cut else whole}

    def cut_short(self) -> bool:
        """libcurl takes the end of a connection for that of a head, and for that of chunks if there was none."""
        if self.head is None:
            return True
        if self.size or self.stream is not None or "transfer-encoding" not in self.head:
            return False
        return LAST_CHUNK.search(self.tail) is None and (self.heard or 200 <= self.status < 300)

    def end_body(self) -> Exception | None:
        try:
            self.pieces.extend(() if self.inflate is as_it_is else self.inflate(b"", True))
        except ChatError as exc:
            return exc
        return None

    def cause(self, code: int, words: str) -> Exception | None:
        """libcurl's failure as an exception of the default transport's, which knows the words for it."""
        if self.cut:  # of an error's body as much as is of use
            return too_large(self.limit) if 200 <= self.status < 300 else None
        if self.failed is not None:
            return self.failed
        if code == pycurl.E_COULDNT_CONNECT and exhausted():
            return OSError("too many open files in this process: raise its limit (ulimit -n), or send fewer at once")
        return cause_of(code, words, self.way.proxy)

    def error(self, exc: Exception) -> Error:
        """The error map of what ended the transfer."""
        if isinstance(exc, ChatError):
            return exc.error
        request = self.request
        attempt = Attempt(self.due, request["timeout"][1], 0.0, self.within, 0)
        attempt.received = len(self.lines) + self.size
        return error_of(exc, request, attempt)


def gathered(pieces: list[bytes], inflate: Inflate, status: int, error: Error | None) -> Iterator[bytes]:
    """The decoded bytes of a stream that has arrived, and at their end what broke it."""
    try:
        for data in pieces:
            yield from inflate(data, False)
        if error is None:
            yield from inflate(b"", True)
    except ChatError as exc:
        error = {**exc.error, "status": status}
    if error is not None:
        raise ChatError(error)
