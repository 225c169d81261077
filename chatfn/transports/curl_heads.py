"""The heads of messages: a request's as libcurl takes it, an answer's as it gives it."""

from __future__ import annotations

import http.client

from chatfn.core import wire_headers
from chatfn.spec import Request
from chatfn.transports.decoding import ACCEPTED

VERSIONS = frozenset({b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2", b"HTTP/3"})


def header_lines(request: Request) -> list[str]:
    """The headers as libcurl takes them; a name without a value is one that it must not add of its own."""
    headers = {"accept-encoding": ACCEPTED, **wire_headers(request)}
    own = [f"{name}:" for name in ("accept", "content-type", "expect") if name not in headers]
    return own + [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()]


def head_of(lines: list[bytes]) -> tuple[int, dict[str, str]]:
    """The status and the headers of an answer's head; 0 and none if it has not arrived whole.

    ``lines``: what came apart from the body: interim heads, which are passed over, the head, and perhaps trailers.
    """
    if b"\n" in lines:
        lines = [b"\r\n" if line == b"\n" else line for line in lines]
    while b"\r\n" in lines:
        end = lines.index(b"\r\n")
        version, _, words = lines[0].partition(b" ")
        status = words[:3]
        if version not in VERSIONS or not status.isdigit() or not words[3:4].isspace():
            raise http.client.HTTPException("it has no status")
        if status == b"101":
            raise http.client.HTTPException("it speaks another protocol, which nobody asked for")
        if status >= b"200":
            return int(status), fields_of(lines[1:end])
        lines = lines[end + 1 :]
    return 0, {}


def fields_of(lines: list[bytes]) -> dict[str, str]:
    """The headers in the lines of a head."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        found[name.lower()] = value.strip()
    if len(found) < len(lines):  # some came more than once
        fields = [line.decode("latin-1").partition(":") for line in lines]
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
