"""Calls kept as JSON lines, and answered from them: ``record`` and ``replay``."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from chatfn.core import data_of
from chatfn.errors import ChatError, failure
from chatfn.secret import mask, mask_all, secrets_of
from chatfn.spec import Error, Handler, Request, Response
from chatfn.transports import close, transport_of

KEPT = ("operation", "method", "url", "headers", "stream")


def record(path: str | os.PathLike[str], transport: Any = "requests") -> Handler:
    """A transport that sends with ``transport`` and appends each request and response map to ``path``.

    A line is ``{"request": …, "response": …}``, without secrets; a stream is kept when it has ended, with all its bytes
    as they came.  The file is created readable by its owner alone.
    """
    send_on, lock = transport_of(transport), Lock()

    def keep(request: Request, response: Response, body: bytes | None, error: Error | None) -> None:
        secrets = secrets_of(request)
        line = {
            "request": {**{key: request[key] for key in KEPT}, "body": data_of(request["body"])},  # type: ignore[literal-required]  # KEPT are its keys
            "response": mask_all(
                {"status": response["status"], "headers": dict(response["headers"]), **stored(body, secrets)}, secrets
            ),
        }
        if error is not None:
            line["response"]["error"] = mask_all(error, secrets)
        text = json.dumps(line, ensure_ascii=False, default=str) + "\n"
        with lock, open(path, "a", encoding="utf-8", errors="surrogateescape", opener=private) as out:
            out.write(text)

    def send(request: Request) -> Response:
        response: Response = send_on(request)
        body = response["body"]
        if hasattr(body, "__next__"):
            return {**response, "body": recorded(body, lambda data, error: keep(request, response, data, error))}
        keep(request, response, body, response.get("error"))
        return response

    return send


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def stored(body: bytes | None, secrets: list[str]) -> dict[str, Any]:
    """A body in a line: its text, or base64 if it is not UTF-8."""
    if body is None:
        return {"body": None}
    try:
        return {"body": mask(body.decode(), secrets)}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def recorded(body: Iterator[bytes], keep: Any) -> Generator[bytes, float | None, None]:
    pieces: list[bytes] = []
    error: Error | None = None
    seconds: float | None = None
    try:
        while True:
            chunk = next(body, None) if seconds is None else body.send(seconds)  # type: ignore[attr-defined]  # drained
            if chunk is None:
                break
            pieces.append(chunk)
            seconds = yield chunk
            seconds = seconds if hasattr(body, "send") else None
    except StopIteration:
        pass
    except ChatError as exc:
        error = exc.error
    finally:
        close(body)
        keep(b"".join(pieces), error)
    if error is not None:
        raise ChatError(error)


def replay(path: str | os.PathLike[str]) -> Handler:
    """A transport that answers from the lines of ``path``, and sends nothing.

    A request is known by its method, URL and body.  Equal ones are answered in the order in which they were recorded,
    and then by the last.  A request that was not recorded is an error, ``not_found``.
    """
    tapes: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        try:
            kept = json.loads(line)
            tapes.setdefault(key_of(kept["request"]), []).append(kept["response"])
        except (ValueError, KeyError, TypeError):
            kept = None
        if kept is None:
            raise ValueError(f"line {number} of {path} is no recorded call")
    lock = Lock()

    def send(request: Request) -> Response:
        with lock:
            tape = tapes.get(key_of({**request, "body": data_of(request["body"])}), [])
            kept = tape.pop(0) if len(tape) > 1 else tape[0] if tape else None
        if kept is None:
            return failure("not_found", f"{path} has no recording of this request to {request['url']}")
        return response_of(kept)

    return send


def key_of(request: Any) -> str:
    return json.dumps([request["method"], request["url"], request["body"]], sort_keys=True)


def response_of(kept: dict[str, Any]) -> Response:
    body = base64.b64decode(kept["body_base64"]) if "body_base64" in kept else kept["body"]
    data = body.encode() if isinstance(body, str) else body
    response: Response = {"status": kept["status"], "headers": kept["headers"], "body": data}
    streams = kept["headers"].get("content-type", "").startswith("text/event-stream")
    if streams and data is not None:
        return {**response, "body": played(data, kept.get("error"))}
    return {**response, "error": kept["error"]} if "error" in kept else response


def played(data: bytes, error: Error | None) -> Iterator[bytes]:
    yield data
    if error is not None:
        raise ChatError(error)
