"""Which keys were there before: earlier in a plan, or in a journal.  Neither needs memory that grows with the rows."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from chatfn.journal.report import reading

CACHE_KIB = 16_384  # of the keys; what does not fit goes to a temporary file, which has no name
ANSWERED = "SELECT key FROM calls WHERE live = 1 AND state = 'answered' AND key IN ({})"
FAILED = "SELECT DISTINCT key FROM calls WHERE state = 'failed' AND key IN ({})"


class States(NamedTuple):
    """What a journal has of some keys."""

    answered: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


@contextmanager
def first_seen() -> Iterator[Callable[[int], bool]]:
    """A function that says of a number of 64 bits whether it is seen for the first time."""
    with closing(sqlite3.connect("", isolation_level=None)) as db:
        for setting in (f"cache_size = -{CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            db.execute(f"PRAGMA {setting}")
        db.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY)")
        db.execute("BEGIN")
        insert = db.execute

        def is_new(number: int) -> bool:
            return insert("INSERT OR IGNORE INTO seen VALUES (?)", (number,)).rowcount == 1

        yield is_new


@contextmanager
def journal_states(path: str | os.PathLike[str] | None) -> Iterator[Callable[[Sequence[str]], States]]:
    """A function of keys to what the journal at ``path`` has of them; nothing, if there is no such file yet.

    Raises ``ValueError`` for a file that is no journal.
    """
    real = None if path is None else os.path.realpath(os.fsdecode(path))
    if real is None or not os.path.exists(real) or not os.path.getsize(real):
        yield lambda keys: States()
        return
    with reading(real) as db:

        def states(keys: Sequence[str]) -> States:
            marks = ",".join("?" * len(keys))
            return States(*(frozenset(found(db, sql.format(marks), keys)) for sql in (ANSWERED, FAILED)))

        yield states


def found(db: sqlite3.Connection, sql: str, keys: Sequence[str]) -> Iterator[Any]:
    return (key for (key,) in db.execute(sql, keys))
