"""Content encodings, undone in small steps, so that a few bytes cannot become a full memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from chatfn.errors import ChatError
from chatfn.spec import Category

ACCEPTED = "gzip, deflate"
STEP = 65_536
Inflate = Callable[[bytes, bool], Iterator[bytes]]  # (bytes, whether they are the last) to decoded bytes


def inflater(encoding: str) -> Inflate:
    """A function of encoded bytes to decoded ones, of at most 64 KiB each; ``ChatError`` for what is not so encoded.

    ``encoding``: the header ``content-encoding``.

    >>> import gzip
    >>> b"".join(inflater("gzip")(gzip.compress(b"hello"), True))
    b'hello'
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return as_it_is
    if name in ("gzip", "x-gzip"):
        return zlib_inflater(16 + zlib.MAX_WBITS)
    if name == "deflate":
        return zlib_inflater(None)
    raise broken("fault", f"the answer came in an encoding that was not asked for: {name[:80]}")


def as_it_is(data: bytes, last: bool) -> Iterator[bytes]:
    if data:
        yield data


def zlib_inflater(window: int | None) -> Inflate:
    """``window``: of ``zlib.decompressobj``; None for a deflate that may come with its zlib header or without."""
    state = None if window is None else zlib.decompressobj(window)

    def inflate(data: bytes, last: bool) -> Iterator[bytes]:
        nonlocal state
        while data:
            if state is None:
                state = zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
            elif state.eof:  # RFC 1952: a gzip file may be several, one after the other
                if window is None:
                    raise broken("fault", "bytes after the end of a deflated answer")
                state = zlib.decompressobj(window)
            try:
                piece = state.decompress(data, STEP)
            except zlib.error as exc:
                problem = str(exc)
            else:
                problem = ""
            if problem:
                raise broken("fault", f"the answer's compression is broken: {problem}")
            data = state.unconsumed_tail or state.unused_data
            if piece:
                yield piece
        if last and state is not None and not state.eof:
            raise broken("interrupted", "the compressed answer was cut short")

    return inflate


def broken(category: Category, message: str) -> ChatError:
    return ChatError({"category": category, "message": message, "status": 0})


def too_large(limit: int) -> ChatError:
    message = f"the answer's body is larger than bounds['body'], {limit} bytes; give a larger bound"
    return ChatError({"category": "fault", "message": message, "status": 0, "should_retry": False})
