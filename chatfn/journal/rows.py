"""A call as a row of the journal: the SQL, and maps to values and back."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

from chatfn.fastjson import fast_loads
from chatfn.journal import JournalError
from chatfn.journal.files import damaged
from chatfn.secret import SHORTEST_IN_ANSWERS, mask_all, secrets_of
from chatfn.spec import Error, Json, Request

AT_ONCE = 64  # calls in a statement at most: in one statement, for each hands the interpreter to other threads
REST = (  # what few responses have, in one column, for each costs time
    "CASE WHEN coalesce(target, unsure, paid) IS NOT NULL"
    " THEN json_array(target, CASE WHEN target IS NOT NULL THEN url END, unsure, paid) END"
)
# The key is that of the row itself, not of the index that it was found by: one that is damaged may name another's.
FIND = (
    f"SELECT key, id, state, run, attempts, crc, response, {REST} FROM calls"  # noqa: S608  # our own columns
    " WHERE id IN (SELECT id FROM calls WHERE live = 1 AND key IN ({marks}))"
)
FIND_ERROR = (  # of those that were sent, and would not have been sent again
    f"SELECT key, id, error, attempts, {REST} FROM calls WHERE id = (SELECT id FROM calls"  # noqa: S608
    " WHERE key = ? AND state = 'failed' AND attempts > 0 ORDER BY id DESC LIMIT 1)"
)
CLAIM = (
    "INSERT INTO calls (key, state, live, run, sent, model, url, request)"
    " SELECT column1, 'sent', 1, column2, column3, column4, column5, column6 FROM (VALUES {marks})"
    " WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING"
)
ANSWERED = (
    "UPDATE calls SET state = 'answered', status = n.column2, attempts = n.column3, prompt_tokens = n.column4,"
    " completion_tokens = n.column5, total_tokens = n.column6, ended = n.column7, crc = n.column8,"
    " response = n.column9, model = coalesce(model, n.column10), target = n.column11,"
    " url = coalesce(n.column12, url), unsure = n.column13, paid = n.column14"
    " FROM (VALUES {marks}) AS n WHERE id = n.column1 AND state = 'sent'"
)
FAILED = (
    "UPDATE calls SET state = n.column2, live = NULL, status = n.column3, category = n.column4, attempts = n.column5,"
    " prompt_tokens = n.column6, completion_tokens = n.column7, total_tokens = n.column8, ended = n.column9,"
    " error = n.column10, target = n.column11, url = coalesce(n.column12, url), unsure = n.column13, paid = n.column14"
    " FROM (VALUES {marks}) AS n WHERE id = n.column1 AND state = 'sent'"
)
LOST = "UPDATE calls SET state = 'unknown', live = NULL WHERE id = ? AND state = 'sent'"
COLUMNS = {FIND: 1, CLAIM: 6, ANSWERED: 14, FAILED: 14}
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


NO_REST: Json = {}


class Answer(NamedTuple):
    """What the file has for a key: a completion, or, where errors are kept, an error."""

    completion: dict[str, Any] | None
    error: Error | None = None
    attempts: int = 0
    rest: Json = NO_REST


class Outcome(NamedTuple):
    """What came of a call: a statement, and its values but for the first, the call's id."""

    statement: str
    values: tuple[Any, ...]


@cache
def sized(statement: str, many: int) -> str:
    """A statement for ``many`` rows of values."""
    row = ", ".join("?" * COLUMNS[statement])
    return statement.format(marks=", ".join([row if statement == FIND else f"({row})"] * many))


def run_with(db: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> sqlite3.Cursor:
    """Execute a statement for at most ``AT_ONCE`` rows of values; few sizes of it, so that each is prepared once."""
    many = 1 << (len(rows) - 1).bit_length()
    nothing = (None,) * COLUMNS[statement]
    return db.execute(sized(statement, many), [*chain(*rows, *[nothing] * (many - len(rows)))])


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


def answer_outcome(completion: Json, attempts: int | None, usage: Any, response: Json) -> Outcome:
    """A whole, good answer; ``usage`` is that of all attempts, but for those of which the response is ``unsure``."""
    text = json_text(completion)
    crc, rest = crc32(text.encode()), rest_of(response)
    values = (response["status"], attempts, *tokens_of(usage), time.time(), crc, text, model_of(completion), *rest)
    return Outcome(ANSWERED, values)


def error_outcome(state: str, error: Json, attempts: int | None, usage: Any, response: Json) -> Outcome:
    """A call that ``failed``, or whose outcome is ``unknown``; ``response``: what there is of one."""
    status, category = integer(error.get("status")), error.get("category")
    rest = rest_of(response)
    values = (state, status, category, attempts, *tokens_of(usage), time.time(), json_text(error), *rest)
    return Outcome(FAILED, values)


def rest_of(response: Json) -> tuple[Any, ...]:
    """What few responses have: the target and its URL, attempts of unknown cost, and what earlier ones used."""
    target, paid = response.get("target"), response.get("paid")
    url = response.get("url") if target is not None else None
    return target, url, response.get("unsure"), json_text(paid) if paid else None


def given_back(path: str, number: int, rest: str | None) -> Json:
    """The members of a response that ``rest_of`` took from it."""
    if rest is None:
        return NO_REST
    target, url, unsure, paid = data_of(path, number, rest)
    found = {"target": target, "url": url, "unsure": unsure, "paid": paid and data_of(path, number, paid)}
    return {name: value for name, value in found.items() if value is not None}


def tokens_of(usage: Any) -> list[int | None]:
    return [integer(usage.get(name)) for name in TOKENS] if isinstance(usage, Mapping) else [None, None, None]


def answer_of(path: str, number: int, crc: int | None, text: str, attempts: int | None, rest: Json) -> Answer:
    """A completion as it was written; raises ``JournalError`` if it is not."""
    if crc is None or crc32(text.encode()) == crc:
        return Answer(data_of(path, number, text), None, attempts or 0, rest)
    raise JournalError(damaged(path, f"the response of call {number} is not what was written"))


def data_of(path: str, number: int, text: str) -> Any:
    try:
        return fast_loads(text) or json.loads(text)
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
