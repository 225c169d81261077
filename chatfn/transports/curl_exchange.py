"""One of libcurl's handles, and the request that it carries: what is set, and what arrives.

libcurl is strict where it frames a message, and lenient where it understands one: what its headers say of the body is
checked here again, as for every transport.  It sends a request a second time if a kept connection turns out to be
closed; that is refused, for the first may have been received, and whether to try again is for others to say.
"""

from __future__ import annotations

import http.client
import math
import time
from typing import TYPE_CHECKING, Any, cast

import pycurl
from requests.exceptions import ConnectTimeout

from chatfn.errors import ChatError
from chatfn.spec import Request, Response
from chatfn.transports import Done
from chatfn.transports.curl_gathered import Gathered
from chatfn.transports.curl_heads import check_framing, head_of, header_lines
from chatfn.transports.decoding import Inflate, as_it_is, inflater
from chatfn.transports.requests import ERROR_BYTES
from chatfn.transports.timed_socket import Expired, HeadTooLarge

if TYPE_CHECKING:
    from chatfn.transports.curl_loop import Loop
    from chatfn.transports.curl_settings import Way
    from chatfn.transports.curl_shard import Shard

SENT_AT_ONCE = 65_536  # bytes of a request that a socket takes without waiting
TAIL = 1_024  # bytes, which the end of a chunked body and its trailers are looked for in
EMPTY = (b"\r\n", b"\n")
REFUSE, GO_ON = 1, 0


class Exchange:
    """A handle.  It is used for one request after another; ``begin`` forgets the one before."""

    __slots__ = (
        "auth", "curl", "cut", "done", "due", "failed", "fresh", "head", "headed", "headers", "heard",
        "inflate", "limit", "lines", "loop", "method", "opened", "origin", "pieces", "plain", "reached", "request",
        "response", "sent", "shard", "size", "started", "status", "stream", "streams", "tail", "until",
        "url", "way", "within",
    )  # fmt: skip

    def __init__(self, curl: Any, way: Way, shard: Shard, loop: Loop) -> None:
        self.curl, self.way, self.shard, self.loop = curl, way, shard, loop
        self.lines: list[bytes] = []  # what libcurl says apart from the body, a head's lines first
        self.pieces: list[bytes] = []  # of a whole body
        self.headers: Any = None
        self.auth: Any = None
        self.url = self.origin = ""
        self.method = "POST"
        self.fresh = self.heard = self.streams = False
        curl.setopt(pycurl.HEADERFUNCTION, self.lines.append)
        curl.setopt(pycurl.DEBUGFUNCTION, self.overhear)
        curl.setopt(pycurl.WRITEFUNCTION, self.receive)
        curl.setopt(pycurl.PREREQFUNCTION, self.reach)
        curl.setopt(pycurl.SOCKOPTFUNCTION, self.connect)

    def begin(self, request: Request, origin: str, done: Done | None, opened: Any) -> None:
        """Set what is new in a request.

        ``done``: what takes the response map, or None if it is taken from here.  ``opened``: what takes the pieces of
        a stream, or None if all are kept.
        """
        curl, body, url, streams = self.curl, request["body"], request["url"], request["stream"]
        auth = request.get("auth")
        if request["headers"] is not self.headers or auth is not self.auth:
            self.headers = self.auth = None
            curl.setopt(pycurl.HTTPHEADER, header_lines(request))
            if auth is None or auth["secret"].kind == "value":
                self.headers, self.auth = request["headers"], auth
        if url != self.url:
            curl.setopt(pycurl.URL, url)
            self.url = url
        curl.setopt(pycurl.POSTFIELDS, body)
        if request["method"] != self.method:
            curl.setopt(pycurl.CUSTOMREQUEST, request["method"])
            self.method = request["method"]
        if streams is not self.streams:  # the head of a stream is wanted at once
            curl.setopt(pycurl.HEADERFUNCTION, self.hear if streams else self.lines.append)
            self.streams = streams
        listens = (streams or url not in self.loop.counted) and not self.loop.sockets.multiplexed.get(origin)
        if listens is not self.heard:
            curl.setopt(pycurl.VERBOSE, int(listens))
            self.heard = listens
        now = time.monotonic()
        self.until, self.due = now + request["timeout"][0], request.get("due", math.inf)
        if self.due < self.until:
            self.until = max(self.due, now + 0.001)
        self.within = self.until - now
        self.request, self.origin, self.done, self.opened = request, origin, done, opened
        self.sent = len(body) if len(body) <= SENT_AT_ONCE else 0
        self.lines.clear()
        self.size = self.status = self.headed = 0
        self.tail = b"\n"
        self.head: dict[str, str] | None = None
        self.started = self.reached = self.cut = self.plain = False
        self.stream: Any = None
        self.failed: Exception | None = None
        self.response: Response | None = None

    def avoid(self, stale: bool) -> None:
        """Whether the request is to begin on a new connection."""
        if stale is not self.fresh:
            self.fresh = stale
            self.curl.setopt(pycurl.FRESH_CONNECT, int(stale))

    def holds(self, fd: int) -> bool:
        """Whether a socket is the request's own, and not read for the time being."""
        paused = self.stream is not None and self.stream.paused
        return paused and bool(self.curl.getinfo(pycurl.ACTIVESOCKET) == fd)

    def connect(self, fd: int, purpose: int) -> int:
        """A socket is made for the request."""
        self.loop.sockets.connected(fd, self.origin)
        return 0

    def reach(self, *addresses: Any) -> int:
        """The request is about to be sent: its answer has its time from here."""
        if self.reached:
            return REFUSE
        self.reached = True
        self.until = until = min(self.due, time.monotonic() + self.request["timeout"][1])
        if until < self.loop.soonest:
            self.loop.soonest = until
        return GO_ON

    def end_by(self, until: float) -> None:
        """Be done by then, or by the call's deadline."""
        self.until = min(self.due, until)
        if self.until < self.loop.soonest:
            self.loop.soonest = self.until

    def hear(self, line: bytes) -> int | None:
        """Keep a line of a stream's head, which is read when it is whole; -1 if its body is of no use."""
        if self.head is None:
            self.lines.append(line)
            if len(line) < 3 and line in EMPTY:
                self.read_head()
                return None if self.failed is None else -1
        return None

    def overhear(self, kind: int, data: bytes) -> None:
        """Keep the end of what comes over the wire of a body."""
        if kind == pycurl.INFOTYPE_DATA_IN:
            self.tail = (self.tail + data)[-TAIL:]

    def receive(self, data: bytes) -> int | None:
        """Keep a piece of the body, or hand it on; -1 ends the transfer."""
        if self.head is None and not self.read_head():
            self.failed = self.failed or http.client.HTTPException("its head has no end")
            return -1
        if self.inflate is not as_it_is and self.stream is None:
            return self.decode(data)
        self.size += len(data)
        if self.stream is not None:
            return cast("int | None", self.stream.put(data))
        self.pieces.append(data)
        if self.size > self.limit:
            self.cut = True
            return -1
        return None

    def decode(self, data: bytes) -> int | None:
        """Keep a piece of an encoded body."""
        try:
            for piece in self.inflate(data, False):
                self.pieces.append(piece)
                self.size += len(piece)
                if self.size > self.limit:
                    self.cut = True
                    return -1
        except ChatError as exc:
            self.failed = exc
            return -1
        return None

    def read_head(self) -> bool:
        """Understand the head.  Whether it is one, whole and good."""
        lines = self.lines
        self.headed += sum(map(len, lines))
        try:
            if self.headed > self.request["bounds"]["headers"]:
                raise HeadTooLarge
            status, head = head_of(lines)
            if not status:
                lines.clear()
                return False
            self.status, self.head = status, head
            counted = "transfer-encoding" not in head and head.get("content-length", "").isdecimal()
            if not counted:
                check_framing(head)
            self.inflate: Inflate = inflater(head.pop("content-encoding")) if "content-encoding" in head else as_it_is
        except (ChatError, OSError, http.client.HTTPException) as exc:
            self.failed = exc
            return False
        self.loop.sockets.multiplexed[self.origin] = lines[0].startswith(b"HTTP/2")
        good = 200 <= status < 300
        self.limit = self.request["bounds"]["body"] if good else ERROR_BYTES
        if good and self.streams and self.opened is None:
            self.stream = Gathered(self)
        elif good and self.streams:
            self.stream, self.until = self.opened(self), math.inf
        else:
            self.plain = counted and self.inflate is as_it_is and not self.heard
        return True

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
