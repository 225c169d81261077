"""The reading of streams: the bytes of a body, and the events that they spell."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from chatfn.chunks import DONE, collector
from chatfn.errors import EXCERPT_CHARACTERS, ChatError, error_map
from chatfn.fastjson import fast_loads
from chatfn.middleware import Call
from chatfn.secret import SHORTEST_IN_ANSWERS, mask, mask_all
from chatfn.spec import Classify, Error, Request, Response
from chatfn.sse import decoder
from chatfn.transports import aclose, close

DRAIN_SECONDS = 0.25  # how long, and for how many bytes, a finished stream is read on for its connection's sake
DRAIN_BYTES = 65_536
raw_decode = json.JSONDecoder().raw_decode
StreamFlow = Generator[list[dict[str, Any]] | Call | None, Any, None]


class Read(NamedTuple):
    """One step of reading a body: bytes, the error that broke it, or None at its end."""

    chunk: bytes | Error | None
    waited: float  # seconds
    now: float


def read(body: Any) -> Any:
    """The next ``Read`` of a body; of an asynchronous one, to be awaited."""
    if hasattr(body, "__anext__"):
        return aread(body)
    chunk: bytes | Error | None = b""
    began = monotonic()
    try:
        while chunk == b"":
            chunk = next(body, None)
    except (ChatError, OSError) as exc:
        chunk = error_of(exc)
    now = monotonic()
    return Read(chunk, now - began, now)


async def aread(body: Any) -> Read:
    chunk: bytes | Error | None = b""
    began = monotonic()
    try:
        while chunk == b"":
            chunk = await body.__anext__()
    except StopAsyncIteration:
        chunk = None
    except (ChatError, OSError) as exc:
        chunk = error_of(exc)
    now = monotonic()
    return Read(chunk, now - began, now)


def drain(body: Any) -> Any:
    """Read a finished body to its end, so that its connection can be used again; briefly, and never for the caller.

    A body that is a generator may be sent a number of seconds: the rest has to come within them.
    """
    if hasattr(body, "asend"):
        return adrain(body)
    left = DRAIN_BYTES
    try:
        chunk = body.send(DRAIN_SECONDS) if hasattr(body, "send") else None
        while chunk is not None and left > 0:
            left -= len(chunk)
            chunk = next(body, None)
    except (StopIteration, ChatError, OSError):
        left = 0
    return left


async def adrain(body: Any) -> int:
    left = DRAIN_BYTES
    try:
        chunk = await body.asend(DRAIN_SECONDS)
        while chunk is not None and left > 0:
            left -= len(chunk)
            chunk = await anext(body, None)
    except (StopAsyncIteration, ChatError, OSError):
        left = 0
    return left


def leave(body: Any) -> Any:
    return aclose(body) if hasattr(body, "__anext__") else close(body)


def streamed(body: Any, got: Read, request: Request, due: float | None, reader: EventReader) -> StreamFlow:
    """The events of a body as its chunks come; raises ``ChatError`` with what had arrived, should it break.

    It yields lists of events, None for the next ``Read``, and a ``Call``."""
    silence = request["timeout"][1]
    quiet = 0.0  # seconds without an event: a comment is no progress
    while True:
        chunk, waited, now = got
        found, error, done = reader.feed(chunk if isinstance(chunk, bytes) else b"", chunk is None)
        if found:
            yield found
            quiet = 0.0
        else:
            quiet += waited
        if done:
            yield Call(partial(drain, body))
            return
        if error is None:
            if (chunk is None or isinstance(chunk, dict)) and reader.whole():
                return
            if quiet > silence:
                error = interrupted(f"no event for {silence:g} s (timeout in the option 'request')")
            elif due is not None and now > due:
                error = interrupted(f"not done within the deadline of {request['deadline']:g} s (option 'deadline')")
            elif chunk is None:
                error = interrupted("the stream ended without [DONE] and without a finish_reason for every choice")
            elif isinstance(chunk, dict):
                error = chunk
        if error is not None:
            raise ChatError(reader.fail(error))
        got = yield None


class EventReader(NamedTuple):
    """The reading of one stream, without its I/O."""

    feed: Callable[[bytes, bool], tuple[list[dict[str, Any]], Error | None, bool]]
    whole: Callable[[], bool]
    fail: Callable[[Error], Error]


def event_reader(request: Request, response: Response, secrets: list[str], classify: Classify) -> EventReader:
    """The reader of a stream: ``feed`` gives the events of a chunk, the error that they end in, and whether all is
    said."""
    body = request["body"]
    wanted = body.get("n") if isinstance(body, dict) else None
    decode_events = decoder(request["bounds"]["event"])
    fold = collector(wanted if isinstance(wanted, int) else 1)
    status, headers = response["status"], response["headers"]
    long_secrets = [value for value in secrets if len(value) >= SHORTEST_IN_ANSWERS]

    def refuse(data: Any, message: str | None = None) -> Error:
        error = error_map(status, headers, mask_all(data, secrets), classify)
        return {**error, "message": mask(message, secrets)} if message else error

    def feed(chunk: bytes, last: bool) -> tuple[list[dict[str, Any]], Error | None, bool]:
        found: list[dict[str, Any]] = []
        try:
            pairs = decode_events(chunk, last)
        except ChatError as exc:
            return found, {**exc.error, "status": status}, False
        add = fold.add
        for kind, text in pairs:
            if text == DONE:
                return found, None, True
            for secret in long_secrets:
                if secret in text:
                    text = mask(text, secrets)
            try:
                event = parse_event(text)
            except ValueError:
                excerpt = text[:EXCERPT_CHARACTERS]
                if last:  # what is left of an event that was cut short
                    return found, interrupted(f"the stream was cut off in an event: {excerpt}"), False
                return found, refuse(excerpt, f"an event that is no JSON map: {excerpt}"), False
            if kind == "error" or event.get("error"):
                return found, refuse(event), False
            add(event)
            found.append(event)
        return found, None, False

    def fail(error: Error) -> Error:
        attempts = request.get("attempt", 1)
        masked: Error = mask_all({"status": status, **error}, secrets)
        return {**masked, "attempts": attempts, "partial": fold.completion()}

    return EventReader(feed, fold.whole, fail)


def parse_event(text: str) -> dict[str, Any]:
    event = fast_loads(text)
    if type(event) is dict:
        return event
    text = text.lstrip()
    try:
        event, end = raw_decode(text)
    except RecursionError:
        event, end = None, 0
    if type(event) is not dict or (end != len(text) and text[end:].strip()):
        raise ValueError("no JSON map")
    return event


def interrupted(message: str) -> Error:
    return {"category": "interrupted", "message": message}


def error_of(exc: Exception) -> Error:
    """The error map of what a body raised: a transport's own, or an ``OSError`` of a caller's."""
    return exc.error if isinstance(exc, ChatError) else interrupted(worded(exc, []))


def worded(exc: Exception, secrets: list[str]) -> str:
    return mask(f"{type(exc).__name__}: {exc}", secrets)
