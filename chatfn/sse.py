"""Server-sent events: bytes to events and back, incremental, without I/O.

Strategy, after https://html.spec.whatwg.org/multipage/server-sent-events.html (sections 9.2.5 and 9.2.6):

1. Line ends first.  LF, CR and CRLF all become LF, chunk by chunk; one flag remembers a chunk that ended in CR, so that
   the LF at the start of the next is not taken for a second line end.  A CR ends its line at once: nothing waits.
2. Then an event is what stands between blank lines.  A chunk is searched for its last LF LF only, from one byte before
   its start, and everything up to there is decoded as UTF-8 and split in one go.  LF is never part of a longer UTF-8
   sequence, so no character is ever cut, and replacement characters come out as the standard's decoder makes them.
3. What follows is kept in a bytearray, which grows in amortised constant time for each byte: every byte is searched
   once, however small the pieces are.
4. Nearly always every second line is a single ``data: `` and the others are blank: then the text is split at a blank
   line and the ``data: `` after it.  Anything else is split at the blank lines and read field by field.

Where this differs from the standard, and why:

- An event that the end of the body cuts off is discarded there; here ``last`` gives it out, because some servers leave
  out the last blank line, and what had arrived is not ours to lose.  Whether its JSON is whole is seen by who reads it.
- An event whose data is empty (``data:`` alone) is not given out: no user of this module has a use for it.
- ``id`` and ``retry`` are read over: a chat completion can't be resumed, and when to retry is the caller's policy.
- A type that is not given is ``""`` and not ``"message"``: one test for truth tells the common case.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Protocol

from chatfn.errors import ChatError

BOM = b"\xef\xbb\xbf"
BLANK = b"\n\n"
EVENT_BYTES = 16 * 1024 * 1024
LINE_END = re.compile("\r\n|\r|\n")

Event = tuple[str, str]


class Decode(Protocol):
    """``decode(chunk, last)``: the events that ``chunk`` completes, as pairs of type and data."""

    def __call__(self, chunk: bytes, last: bool = False) -> list[Event]: ...


def decoder(limit: int = EVENT_BYTES) -> Decode:
    """A function that is fed the chunks of one body, in order, and gives the events that each of them completes.

    An event is a pair: its type (``""`` if the server named none, the standard's ``message``) and its data, which is
    never empty.  ``last=True`` says that the body ended cleanly, with this chunk (which may be ``b""``): an event that
    still lacks its blank line is given out too.

    ``limit``: bytes of the longest event, comments and unfinished ones included.  A longer one raises ``ChatError``;
    events before it in the same chunk are given out first and the error is raised by the next call, unless ``last``.
    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

    >>> decode = decoder()
    >>> decode(b': hello\\n\\ndata: {"a":'), decode(b' 1}\\r\\n\\r'), decode(b'\\nevent: error\\ndata: x', last=True)
    ([], [('', '{"a": 1}')], [('error', 'x')])
    """
    pending = bytearray()  # begins with no LF
    after_cr = False
    opened = False  # past the place of a byte order mark
    broken = False

    def decode(chunk: bytes, last: bool = False) -> list[Event]:
        nonlocal after_cr, opened, broken
        if broken:
            raise too_long(limit)
        if after_cr or 13 in chunk:
            chunk, after_cr = with_lf(chunk, after_cr)
        if not opened:
            chunk = bytes(pending) + chunk
            pending.clear()
            opened = last or len(chunk) >= len(BOM) or not BOM.startswith(chunk)
            if not opened:
                pending.extend(chunk)
                return []
            chunk = chunk.removeprefix(BOM)
        if last:
            chunk += BLANK
        before, blank, rest = (bytes(pending[-1:]) + chunk if pending else chunk).rpartition(BLANK)
        if not blank:
            pending.extend(chunk if pending else chunk.lstrip(b"\n"))
            found = []
        else:
            blocks = bytes(pending[:-1]) + before if pending else before
            if pending or rest:
                pending[:] = rest
            if len(blocks) > limit:
                blocks, broken = within(blocks, limit)
            found = events_in(blocks.decode("utf-8", "replace"))
        if broken or (len(pending) > limit and len(pending) - pending.endswith(b"\n") > limit):
            broken = True
            pending.clear()
            if last or not found:
                raise too_long(limit)
        return found

    return decode


def with_lf(chunk: bytes, after_cr: bool) -> tuple[bytes, bool]:
    """``chunk`` with LF for every line end, and whether the bytes up to here end in CR."""
    if not chunk:
        return chunk, after_cr
    rest = chunk.removeprefix(b"\n") if after_cr else chunk
    return rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), chunk.endswith(b"\r")


def events_in(text: str) -> list[Event]:
    """The events of ``text``, whose lines end in LF and which lacks the blank line at its end."""
    if text.startswith("data: "):
        if "\n" not in text:
            return [("", text[6:])] if len(text) > 6 else []
        found = text[6:].split("\n\ndata: ")
        if "\n" not in "".join(found):
            return [("", data) for data in found if data]
    return [event for event in map(event_of, text.split("\n\n")) if event[1]]


def event_of(block: str) -> Event:
    """Type and data of the lines between two blank lines."""
    kind, data = "", []
    for line in block.split("\n"):
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            kind = value.removeprefix(" ")
    return kind, "\n".join(data)


def within(blocks: bytes, limit: int) -> tuple[bytes, bool]:
    """The blocks before the first that is longer than ``limit``, and whether there is one."""
    every = blocks.split(BLANK)
    short = list(takewhile(lambda block: len(block.strip(b"\n")) <= limit, every))
    return BLANK.join(short), len(short) < len(every)


def too_long(limit: int) -> ChatError:
    message = f'an event of the stream is longer than bounds["event"], {limit} bytes'
    return ChatError({"category": "fault", "message": message})


def encode(data: str, event: str = "") -> bytes:
    """The bytes of one event, for servers; ``data`` of several lines becomes several fields.

    A stream of events knows no line ends but its own: CR and CRLF in ``data`` arrive as LF.  Raises ``ValueError`` for
    an ``event`` that is more than one line, and for a lone surrogate, which UTF-8 does not have.

    >>> encode('{"a": 1}'), encode("two\\nlines", "note")
    (b'data: {"a": 1}\\n\\n', b'event: note\\ndata: two\\ndata: lines\\n\\n')
    """
    if LINE_END.search(event):
        raise ValueError(f"the type of an event is one line, not {event!r}")
    lines = [f"event: {event}"] if event else []
    lines += [f"data: {line}" for line in LINE_END.split(data)]
    return ("\n".join(lines) + "\n\n").encode()
