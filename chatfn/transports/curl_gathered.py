"""Streams that are given whole: bytes gathered as they arrive, decoded when they are read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from chatfn.errors import ChatError
from chatfn.spec import Error
from chatfn.transports.decoding import Inflate, as_it_is, too_large

if TYPE_CHECKING:
    from chatfn.transports.curl_exchange import Exchange

DRAIN = 0.25  # seconds that a stream which has said [DONE] has to end
DONE = re.compile(rb"(?:^|\n)data: ?\[DONE\]\s*$")


class Gathered:
    """What has arrived of a stream that nobody reads before its end."""

    __slots__ = ("exchange", "pieces")
    paused = False

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.pieces: list[bytes] = []
        exchange.end_by(time.monotonic() + exchange.request["timeout"][1])

    def put(self, data: bytes) -> int | None:
        """Keep a piece; -1 ends the transfer.  A comment is no progress; after the last event the rest is not waited
        for long."""
        exchange, pieces = self.exchange, self.pieces
        if exchange.cut:
            return -1 if data.strip() else None
        pieces.append(data)
        if exchange.size > exchange.limit:
            exchange.failed = too_large(exchange.limit)
            return -1
        if exchange.inflate is not as_it_is or b"data" in data:
            exchange.end_by(time.monotonic() + exchange.request["timeout"][1])
        if data.endswith(b"\n") and DONE.search(b"".join(pieces[-2:])[-32:]):
            exchange.cut = True
            exchange.end_by(time.monotonic() + DRAIN)
        return None

    def body(self, error: Error | None) -> Iterator[bytes]:
        """The decoded bytes, and at their end what broke the stream."""
        return decoded(self.pieces, self.exchange.inflate, self.exchange.status, error)


def decoded(pieces: list[bytes], inflate: Inflate, status: int, error: Error | None) -> Iterator[bytes]:
    try:
        for data in pieces:
            yield from inflate(data, False)
        if error is None:
            yield from inflate(b"", True)
    except ChatError as exc:
        error = {**exc.error, "status": status}
    if error is not None:
        raise ChatError(error)
