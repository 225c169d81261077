"""One of libcurl's multi handles, and the part of a loop's requests that it carries."""

from __future__ import annotations

import math
import time
from functools import partial

import pycurl

from chatfn.transports.curl_sockets import Sockets

CROWD = 64  # requests at once: libcurl looks for a free connection one by one
PRUNED = 1.25  # seconds after which libcurl has noticed for certain that an idle connection is closed


class Shard:
    """A multi handle of libcurl, and when it wants to be called."""

    __slots__ = ("__weakref__", "asked", "due", "handles", "multi", "running", "stale")

    def __init__(self, sockets: Sockets) -> None:
        self.due, self.handles, self.running = math.inf, 0, 0
        self.asked: list[int] = []  # milliseconds after which to call, the last one counts; negative for never
        self.stale: dict[str, float] = {}  # origins to which an idle connection is not to be used, and until when
        self.multi = pycurl.CurlMulti()
        self.multi.setopt(pycurl.M_SOCKETFUNCTION, partial(sockets.watch, self))
        self.multi.setopt(pycurl.M_TIMERFUNCTION, self.asked.append)
        self.multi.setopt(pycurl.M_MAXCONNECTS, 2 * CROWD)
        self.multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)

    def heed(self, now: float) -> None:
        """Take note of what was asked."""
        milliseconds = self.asked[-1]
        self.asked.clear()
        self.due = math.inf if milliseconds < 0 else now + milliseconds / 1000

    def distrust(self, origin: str) -> None:
        """One of the idle connections to an origin is of no more use, which libcurl is yet to see."""
        now = time.monotonic()
        self.stale = {known: until for known, until in self.stale.items() if until > now} | {origin: now + PRUNED}
