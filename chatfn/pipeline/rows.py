"""One row of a map: the flow of its call, and what the row is with what came of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from chatfn.chunks import collector
from chatfn.errors import ChatError
from chatfn.journal import JournalError
from chatfn.middleware import Call, Flow, WoundDown
from chatfn.plain import MAPPINGS, without
from chatfn.spec import Error, Json, Request, Response
from chatfn.transports import close
from chatfn.usage import usage_of

RESULTS = ("response", "error", "attempts", "usage", "cached")

Row = dict[str, Any]


def row_flow(
    request_of: Callable[[Json], Request],
    params_of: Callable[[Any], Json] | None,
    cancelled: Callable[[], bool],
    task: tuple[int, Any],
) -> Flow:
    """The flow of one row: its request, and of a stream what its events fold to."""
    response: Response = yield request_in(task[1], request_of, params_of, cancelled)
    body = response["body"]
    if "error" in response or isinstance(body, (dict, bytes, list, str)):
        return response
    fold = Call(partial(fold_body, body, cancelled), blocks="arrived" not in response)
    folded: Response = {**response, **(yield fold)}
    return folded


def request_in(
    row: Any,
    request_of: Callable[[Json], Request],
    params_of: Callable[[Any], Json] | None,
    cancelled: Callable[[], bool],
) -> Request:
    """The request of a row."""
    request: Any = request_of(params_in(row, params_of))
    request["cancelled"] = cancelled
    if isinstance(row, MAPPINGS) and row.get("sample") is not None:
        request["sample"] = row["sample"]
    found: Request = request
    return found


def params_in(row: Any, params_of: Callable[[Any], Json] | None) -> Json:
    """The params of a row: its own, or those that ``params_of`` makes of it."""
    if params_of is not None:
        return params_of(row)
    if not isinstance(row, MAPPINGS):
        raise TypeError(f"the row is {type(row).__name__}; give a mapping with 'params', or the function params_of")
    params: Json = row["params"]
    return params


def fold_body(body: Any, cancelled: Callable[[], bool]) -> Any:
    """What the events of a stream come to: a ``body``, or an ``error``."""
    if hasattr(body, "__anext__"):
        return afold_body(body)
    fold = collector()
    try:
        for event in body:
            fold.add(event)
            if cancelled():
                close(body)
                break
    except ChatError as exc:
        return {"body": None, "error": exc.error}
    return {"body": fold.completion()}


async def afold_body(body: Any) -> Json:
    fold = collector()
    try:
        async for event in body:
            fold.add(event)
    except ChatError as exc:
        return {"body": None, "error": exc.error}
    return {"body": fold.completion()}


def fatal_of(got: Any) -> Exception | None:
    """What ends the whole map: a journal that can't be written, before a request was sent or after it was answered, or
    the ``stop`` of a response, a budget's that is used up."""
    if isinstance(got, JournalError):
        return got
    if not isinstance(got, dict):
        return None
    if got.get("stop"):
        return ChatError(got["error"])
    unkept = got.get("unkept")
    return None if unkept is None else JournalError(unkept)


def is_unsent(got: Any) -> bool:
    """Whether nothing came of a row, for it was not sent."""
    return isinstance(got, (JournalError, WoundDown)) or (isinstance(got, dict) and bool(got.get("stop")))


def outcome(row: Any, got: Any) -> Row:
    """The row with its ``response``, or with its ``error``.

    >>> outcome({"id": 1}, {"status": 200, "headers": {}, "body": {"id": "c", "usage": None}, "attempts": 2})
    {'id': 1, 'response': {'id': 'c', 'usage': None}, 'attempts': 2, 'usage': None}
    """
    kept = without(row, *RESULTS) if isinstance(row, MAPPINGS) else {"row": row}
    if isinstance(got, Exception):
        category = "incorrect" if isinstance(got, (TypeError, ValueError, KeyError)) else "fault"
        words = f"no params in the row: {got}" if isinstance(got, KeyError) else str(got) or type(got).__name__
        error: Error = {"category": cast(Any, category), "message": words[:2_000], "status": 0}
        return {**kept, "error": error, "attempts": 0, "usage": None}
    result = {"error": got["error"]} if "error" in got else {"response": got["body"]}
    more = {name: got[name] for name in ("cached", "target", "cost") if got.get(name)}
    return {**kept, **result, "attempts": got.get("attempts", 1), "usage": usage_of(got), **more}
