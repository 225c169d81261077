"""A transport for tests: answers from literal maps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from chatfn.chunks import DONE
from chatfn.spec import Handler, Request, Response
from chatfn.sse import encode


def scripted(responses: Iterable[Any]) -> Handler:
    """A transport that answers the first request with the first of ``responses``, and so on.

    A response is a response map, whose ``status`` is 200 and ``headers`` are empty unless given, and whose ``body`` is
    data, bytes, or, for a stream, a list of events; or a map without ``status`` and ``error``, which is the body of a
    200; or an exception, which is raised; or a function of the request that returns one of these.
    More requests than responses are a ``LookupError``.

    >>> transport = scripted([{"status": 429, "body": {"error": {"message": "slow down"}}}, {"id": "c"}])
    >>> transport({})["status"], transport({})["body"]
    (429, b'{"id": "c"}')
    """
    waiting, lock = iter(responses), Lock()

    def send(request: Request) -> Response:
        with lock:
            answer = next(waiting, None)
        if answer is None:
            raise LookupError("the script has no response for this request")
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, BaseException):
            raise answer
        return response_of(answer)

    return send


def response_of(answer: Mapping[str, Any]) -> Response:
    if not answer.keys() & {"status", "error", "body"}:
        answer = {"body": answer}
    body = answer.get("body")
    found: dict[str, Any] = {"status": 200, "headers": {}, **answer, "body": wire_body(body)}
    if isinstance(body, (list, tuple)):
        found["headers"] = {"content-type": "text/event-stream", **found["headers"]}
    response: Response = found  # type: ignore[assignment]  # built key by key
    return response


def wire_body(body: Any) -> Any:
    """A body as it would come over the wire: bytes, or an iterator of them for a list of events."""
    if isinstance(body, Mapping):
        return json.dumps(dict(body)).encode()
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (list, tuple)):
        chunks = [item if isinstance(item, bytes) else encode(json.dumps(item)) for item in body]
        whole = any(isinstance(item, bytes) for item in body)
        return iter(chunks if whole else [*chunks, encode(DONE)])
    return body
