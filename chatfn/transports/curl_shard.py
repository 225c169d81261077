"""One of libcurl's multi handles, and the part of a loop's requests that it carries."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import pycurl

from chatfn.transports.curl_poller import READ, WRITE

if TYPE_CHECKING:
    from chatfn.transports.curl_loop import Loop

CROWD = 64  # requests at once: libcurl looks for a free connection one by one
PRUNED = 1.25  # seconds after which libcurl has noticed for certain that an idle connection is closed
MASKS = {pycurl.POLL_IN: READ, pycurl.POLL_OUT: WRITE, pycurl.POLL_INOUT: READ | WRITE}


class Shard:
    """A multi handle of libcurl, and when it wants to be called."""

    __slots__ = ("__weakref__", "due", "handles", "loop", "multi", "running", "stale")

    def __init__(self, loop: Loop) -> None:
        self.loop, self.due, self.handles, self.running = loop, math.inf, 0, 0
        self.stale: dict[str, float] = {}  # origins to which an idle connection is not to be used, and until when
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_SOCKETFUNCTION, self.watch)
        self.multi.setopt(pycurl.M_TIMERFUNCTION, self.call_at)
        self.multi.setopt(pycurl.M_MAXCONNECTS, 2 * CROWD)
        self.multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)

    def distrust(self, origin: str) -> None:
        """One of the idle connections to an origin is of no more use, which libcurl is yet to see."""
        now = time.monotonic()
        self.stale = {known: until for known, until in self.stale.items() if until > now} | {origin: now + PRUNED}

    def call_at(self, milliseconds: int) -> None:
        self.due = math.inf if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def watch(self, what: int, fd: int, multi: Any, data: Any) -> None:
        """libcurl's word on what a socket waits for.  One that waits for nothing is kept for its next request."""
        if what != pycurl.POLL_REMOVE:
            self.loop.watch(self, fd, MASKS[what])
        elif fd in self.loop.watched:
            self.loop.rest(self, fd)
