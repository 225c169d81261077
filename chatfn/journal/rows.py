"""A call as a row of the journal: the SQL, and maps to values and back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import crc32

from chatfn.journal import JournalError
from chatfn.journal.files import damaged
from chatfn.secret import SHORTEST_IN_ANSWERS, mask_all, secrets_of
from chatfn.spec import Error, Json, Request

FIND = "SELECT id, state, run, crc, response FROM calls WHERE key = ? AND live = 1"
FIND_ERROR = "SELECT id, error, attempts FROM calls WHERE key = ? AND state = 'failed' ORDER BY id DESC LIMIT 1"
CLAIM = (
    "INSERT INTO calls (key, state, live, run, sent, model, url, request) VALUES (?, 'sent', 1, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING"
)
ANSWERED = (
    "UPDATE calls SET state = 'answered', status = ?, attempts = ?, prompt_tokens = ?, completion_tokens = ?,"
    " total_tokens = ?, ended = ?, crc = ?, response = ?, model = coalesce(model, ?) WHERE id = ? AND state = 'sent'"
)
FAILED = (
    "UPDATE calls SET state = ?, live = NULL, status = ?, category = ?, attempts = ?, ended = ?, error = ?"
    " WHERE id = ? AND state = 'sent'"
)
LOST = "UPDATE calls SET state = 'unknown', live = NULL WHERE id = ? AND state = 'sent'"
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class Answer(NamedTuple):
    """What the file has for a key: a completion, or, where errors are kept, an error."""

    completion: dict[str, Any] | None
    error: Error | None = None
    attempts: int = 0


class Outcome(NamedTuple):
    """What came of a call: a statement, and its values but for the last, the call's id."""

    statement: str
    values: tuple[Any, ...]


def claim_values(key: str, run: int, request: Request) -> tuple[Any, ...]:
    """The values of ``CLAIM``: no header, no credential, nor its text, should the body have it."""
    names = ("method", "url", "body", "sample")
    data = {name: request[name] for name in names if name in request}  # type: ignore[literal-required]  # names are keys
    text = json_text(data)
    secrets = secrets_of(request)
    if any(len(secret) >= SHORTEST_IN_ANSWERS and json_text(secret)[1:-1] in text for secret in secrets):
        data = mask_all(data, secrets, SHORTEST_IN_ANSWERS)
        text = json_text(data)
    return key, run, time.time(), model_of(data["body"]), data["url"], text


def answer_outcome(completion: Json, status: int, attempts: int) -> Outcome:
    """A whole, good answer."""
    usage = completion.get("usage")
    tokens = [integer(usage.get(name)) for name in TOKENS] if isinstance(usage, Mapping) else [None] * 3
    text = json_text(completion)
    crc = crc32(text.encode())
    return Outcome(ANSWERED, (status, attempts, *tokens, time.time(), crc, text, model_of(completion)))


def error_outcome(state: str, error: Json, attempts: int | None) -> Outcome:
    """A call that ``failed``, or whose outcome is ``unknown``."""
    status, category = integer(error.get("status")), error.get("category")
    return Outcome(FAILED, (state, status, category, attempts, time.time(), json_text(error)))


def answer_of(path: str, number: int, crc: int | None, text: str) -> Answer:
    """A completion as it was written; raises ``JournalError`` if it is not."""
    if crc is None or crc32(text.encode()) == crc:
        return Answer(data_of(path, number, text))
    raise JournalError(damaged(path, f"the response of call {number} is not what was written"))


def data_of(path: str, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError) as exc:
        problem = damaged(path, f"call {number}: {exc}")
    raise JournalError(problem)


def json_text(data: Any) -> str:
    """Compact JSON that UTF-8 can hold: what has half of a character in it is written in ASCII."""
    text = encode(data)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return json.dumps(data, separators=(",", ":"))
    return text


def model_of(data: Any) -> str | None:
    model = data.get("model") if isinstance(data, Mapping) else None
    return model if isinstance(model, str) else None


def integer(value: Any) -> int | None:
    """An integer that SQLite can hold, or None."""
    return value if type(value) is int and abs(value) < 2**63 else None
