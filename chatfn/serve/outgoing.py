"""A response map as it goes over the wire."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from json import JSONEncoder
from typing import Any

from chatfn.chunks import DONE, collect
from chatfn.errors import ChatError
from chatfn.plain import plain
from chatfn.secret import problem_of
from chatfn.spec import Category, Error, Json, Request, Response
from chatfn.sse import encode
from chatfn.transports import close
from chatfn.unfold import events_of

Cancelled = Callable[[], bool]
PASSED_ON = re.compile(
    r"(x-|apim-|x-ms-)request-id|(x-ms-)?retry-after(-ms)?|x-should-retry|x-ratelimit-.*|content-type"
)
BY_CATEGORY: Mapping[Category, int] = {"interrupted": 504, "incorrect": 400, "busy": 503}  # else 502
# ASCII, so that whatever a string holds, lone surrogates too, can be sent.
json_text = JSONEncoder(separators=(",", ":"), allow_nan=False, default=plain).encode


def wire_response(request: Request, response: Response, cancelled: Cancelled) -> Response:
    """A handler's response as it goes over the wire."""
    body, headers = response["body"], passed_on(response["headers"])
    if "error" in response:
        close(body)
        return error_response({"status": response["status"], **response["error"]}, headers)
    status = response["status"] if 200 <= response["status"] < 600 else 502
    if request["stream"] and isinstance(body, Mapping) and status < 300:
        body = events_of(body)
    if isinstance(body, Iterable) and not isinstance(body, (bytes, Mapping, list, str)):
        if request["stream"]:
            return {"status": status, "headers": streaming(headers), "body": stream_of(iter(body), cancelled)}
        body = whole(body)
    headers = {"content-type": "application/json", **headers} if isinstance(body, bytes) else as_json(headers)
    data = body if isinstance(body, bytes) else json_text(body).encode()
    return {"status": status, "headers": headers, "body": data}


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a handler's headers says something to the client, and can be sent."""
    return {name: value for name, value in headers.items() if PASSED_ON.fullmatch(name) and problem_of(value) is None}


def as_json(headers: Mapping[str, str]) -> dict[str, str]:
    return {**headers, "content-type": "application/json"}


def streaming(headers: Mapping[str, str]) -> dict[str, str]:
    # Proxies such as nginx hold an event stream back unless they are told.
    return {**headers, "content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


def whole(body: Iterable[Any]) -> Any:
    """One body of a stream that was not asked for."""
    try:
        parts = list(body)
    finally:
        close(body)
    return b"".join(parts) if parts and all(isinstance(part, bytes) for part in parts) else collect(parts)


def stream_of(body: Iterator[Any], cancelled: Cancelled) -> Iterator[bytes]:
    """The bytes of a stream, one event each.  Its first event is awaited here, so that an error has its own status."""
    try:
        first = list(islice(body, 1))
    except BaseException:
        close(body)
        raise
    chunks = chunks_of(chain(first, body), body, cancelled)
    next(chunks)  # from here on close() closes the body, also before the first event is taken
    return chunks


def chunks_of(events: Iterator[Any], body: Iterator[Any], cancelled: Cancelled) -> Iterator[bytes]:
    """``b""``, then the bytes of each event, and ``[DONE]`` after the last map; or, should they break, the error."""
    error: Error | None = None
    kept: Any = {}
    try:
        yield b""
        for kept in events:
            yield kept if isinstance(kept, bytes) else encode(json_text(kept))
            if cancelled():
                error = {"category": "interrupted", "message": "the server is stopping"}
                break
        else:
            if not isinstance(kept, bytes):  # bytes bring their own
                yield encode(DONE)
    except ChatError as exc:
        error = exc.error
    except Exception:
        error = {"category": "fault", "message": "the server failed in this stream"}
    finally:
        close(body)
    if error is not None:
        cut = b"\n\n" if isinstance(kept, bytes) else b""  # ends the event that the bytes may have broken off in
        yield cut + encode(json_text(wire_error(error)))


def wire_error(error: Error) -> Json:
    """An error in the API's form.

    >>> wire_error({"category": "incorrect", "message": "no such role", "status": 400, "param": "messages"})
    {'error': {'message': 'no such role', 'type': 'invalid_request_error', 'param': 'messages', 'code': None}}
    """
    kind = error.get("type") or ("server_error" if status_of(error) >= 500 else "invalid_request_error")
    found = {"message": error["message"], "type": kind, "param": error.get("param"), "code": error.get("code")}
    return {"error": found}


def status_of(error: Error) -> int:
    """The status that tells a client of an error, the server's own if it has one."""
    status = error.get("status", 0)
    return status if 400 <= status < 600 else BY_CATEGORY.get(error["category"], 502)


def error_response(error: Error, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a failed request: its error in the API's form, and when to come again."""
    status, found = status_of(error), dict(headers or {})
    wait = error.get("retry_after")
    if wait is not None and not any("retry-after" in name for name in found):
        found |= {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
    if "should_retry" in error:
        found["x-should-retry"] = str(error["should_retry"]).lower()
    if status == 401:
        found["www-authenticate"] = "Bearer"
    if status == 405:
        found["allow"] = "POST"
    return {"status": status, "headers": as_json(found), "body": json_text(wire_error(error)).encode()}
