"""The heads of messages: a request's as libcurl takes it, an answer's as it gives it."""

from __future__ import annotations

import http.client
import re

from chatfn.core import wire_headers
from chatfn.spec import Request
from chatfn.transports.decoding import ACCEPTED

STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?: |\r|\n|$)")


def header_lines(request: Request) -> list[str]:
    """The headers as libcurl takes them; a name without a value is one that it must not add of its own."""
    headers = {"accept-encoding": ACCEPTED, **wire_headers(request)}
    own = [f"{name}:" for name in ("accept", "content-type", "expect") if name not in headers]
    return own + [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()]


def head_of(text: bytes) -> tuple[int, dict[str, str]]:
    """The status and the headers of a head."""
    first = STATUS.match(text)
    if first is None or first[1] == b"101":  # nobody asked for another protocol
        raise http.client.HTTPException("its status is none that was asked for")
    fields = [line.partition(":") for line in text.decode("latin-1").split("\n")[1:-2]]
    found = {name.lower(): value.strip() for name, _, value in fields}
    if len(found) < len(fields):  # some came more than once
        for known in found:
            found[known] = ", ".join([value.strip() for name, _, value in fields if name.lower() == known])
    return int(first[1]), found


def check_framing(head: dict[str, str]) -> None:
    """Raise unless it is plain where the body ends (RFC 9112, 6.3)."""
    if "transfer-encoding" in head and head["transfer-encoding"].lower() != "chunked":
        raise http.client.HTTPException("its transfer coding is unknown")
    length = head.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        lengths = {part.strip() for part in length.split(",")}
        if len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths):
            raise http.client.HTTPException("its content-length is no number")
