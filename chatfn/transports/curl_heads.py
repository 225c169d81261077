"""The heads of messages: a request's as libcurl takes it, an answer's as it gives it."""

from __future__ import annotations

import http.client
import re

from chatfn.core import wire_headers
from chatfn.spec import Request
from chatfn.transports.decoding import ACCEPTED

STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?: |\r|\n|$)")
END = re.compile(rb"\n\r?\n")


def header_lines(request: Request) -> list[str]:
    """The headers as libcurl takes them; a name without a value is one that it must not add of its own."""
    headers = {"accept-encoding": ACCEPTED, **wire_headers(request)}
    own = [f"{name}:" for name in ("accept", "content-type", "expect") if name not in headers]
    return own + [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()]


def head_of(text: bytes) -> tuple[int, dict[str, str]]:
    """The status and the headers of an answer's head; 0 and none if it has not arrived whole.

    ``text``: what came apart from the body: interim heads, which are passed over, the head, and perhaps trailers.
    """
    start = 0
    while end := END.search(text, start):
        first = STATUS.match(text, start)
        if first is None or first[1] == b"101":  # nobody asked for another protocol
            raise http.client.HTTPException("its status is none that was asked for")
        if first[1] >= b"200":
            return int(first[1]), fields_of(text[start : end.start()])
        start = end.end()
    return 0, {}


def fields_of(text: bytes) -> dict[str, str]:
    """The headers in the lines of a head after its first."""
    found: dict[str, str] = {}
    lines = text.decode("latin-1").split("\n")[1:]
    for line in lines:
        name, _, value = line.partition(":")
        found[name.lower()] = value.strip()
    if len(found) < len(lines):  # some came more than once
        fields = [line.partition(":") for line in lines]
        for known in found:
            found[known] = ", ".join([value.strip() for name, _, value in fields if name.lower() == known])
    return found


def check_framing(head: dict[str, str]) -> None:
    """Raise unless it is plain where the body ends (RFC 9112, 6.3)."""
    if "transfer-encoding" in head and head["transfer-encoding"].lower() != "chunked":
        raise http.client.HTTPException("its transfer coding is unknown")
    length = head.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        lengths = {part.strip() for part in length.split(",")}
        if len(lengths) > 1 or not all(n.isascii() and n.isdigit() for n in lengths):
            raise http.client.HTTPException("its content-length is no number")
