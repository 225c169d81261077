"""Who may send a call: what its file has of it, and the right to send it, which is a row in state ``sent``.

A unique index allows one such row for a key.  Whoever finds it asks whether its claimant is alive: in this process the
``Claim`` itself, in others the lock of their run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

from chatfn.journal import JournalError, locks
from chatfn.journal.files import DISAGREE
from chatfn.journal.rows import (
    CLAIM,
    FIND,
    FIND_ERROR,
    LOST,
    Answer,
    answer_of,
    claim_values,
    data_of,
    given_back,
    run_with,
)
from chatfn.spec import Request

TRIES = 100  # to claim calls: others may be quicker now and then, but not again and again


@dataclass(eq=False, slots=True, weakref_slot=True)
class Claim:
    """The right to send a call.  It ends with its outcome; one that is dropped without is a call of unknown outcome."""

    id: int
    opening: object
    reader: object = None  # who was given its stream to read


class Asked(NamedTuple):
    """A call that is to be answered or claimed."""

    key: str
    request: Request
    keep_errors: bool


class Held(NamedTuple):
    """Another has the call in flight; ``reader``: who of this process was given its stream."""

    reader: object


class Ours(NamedTuple):
    """A run of this process on the journal at ``path``, and its claims by their calls."""

    path: str
    run: int
    opening: object
    claims: WeakValueDictionary[int, Claim]


def claimed(db: sqlite3.Connection, ours: Ours, asked: Sequence[Asked]) -> dict[str, Any]:
    """By their keys what calls have: a tuple of their row, a ``Claim`` or ``Held``."""
    found: dict[str, Any] = {}
    for _ in range(TRIES):
        rows = run_with(db, FIND, [(one.key,) for one in asked]).fetchall()
        check_keys([row[0] for row in rows], asked)
        for key, *row in rows:
            found[key] = seen(db, ours, *row)
        missing = [one for one in asked if found.get(one.key) is None]
        for one in missing:
            old = db.execute(FIND_ERROR, (one.key,)).fetchone() if one.keep_errors else None
            if old is not None:
                check_keys([old[0]], [one])
                _, number, error, attempts, rest = old
                found[one.key] = (number, attempts, None, None, rest, error)
        asked = [one for one in missing if found.get(one.key) is None]
        if not asked:
            return found
        claims = new_claims(db, ours, asked)
        found.update(claims)
        asked = [one for one in asked if one.key not in claims]  # others were quicker
        if not asked:
            return found
    raise sqlite3.DatabaseError(DISAGREE)


def seen(db: sqlite3.Connection, ours: Ours, number: int, state: str, run: int, *answer: Any) -> Any:
    """What a row says of its call; None if it was lost."""
    if state == "answered":
        return number, *answer, None
    mine = ours.claims.get(number) if run == ours.run else None
    if mine is not None or (run != ours.run and locks.alive(ours.path, run)):
        return Held(mine and mine.reader)
    db.execute(LOST, (number,))
    return None


def new_claims(db: sqlite3.Connection, ours: Ours, asked: Sequence[Asked]) -> dict[str, Claim]:
    """Claims of calls that nobody had; fewer, if others were quicker."""
    done = run_with(db, CLAIM, [claim_values(one.key, ours.run, one.request) for one in asked])
    last = done.lastrowid or 0
    if done.rowcount == len(asked):
        numbers = dict(zip((one.key for one in asked), range(last - len(asked) + 1, last + 1), strict=True))
    else:
        rows = run_with(db, FIND, [(one.key,) for one in asked]).fetchall()
        numbers = {row[0]: row[1] for row in rows if row[3] == ours.run and row[1] not in ours.claims}
    claims = {key: Claim(number, ours.opening) for key, number in numbers.items()}
    ours.claims.update((claim.id, claim) for claim in claims.values())
    return claims


def told(path: str, found: dict[str, Any], one: Asked, problem: JournalError | None) -> Any:
    """What one of those who asked is told of what was ``found``: of equal ones the first has the claim."""
    if one.key not in found:
        return JournalError(*cast(JournalError, problem).args)
    row = found[one.key]
    if type(row) is Claim:
        found[one.key] = Held(None)
    if type(row) is not tuple:
        return row
    number, attempts, crc, response, rest, error = row
    try:
        more = given_back(path, number, rest)
        if error is None:
            return answer_of(path, number, crc, response, attempts, more)
        return Answer(None, data_of(path, number, error), attempts, more)
    except JournalError as exc:
        return exc


def check_keys(found: Sequence[str], asked: Sequence[Asked]) -> None:
    """Raise if a row was found that is of another call, or is found for two."""
    if len(set(found)) < len(found) or not {one.key for one in asked}.issuperset(found):
        raise sqlite3.DatabaseError(DISAGREE)
