"""What a journal holds, read while runs go on: nothing here changes it, or leaves a file behind."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from chatfn.journal import JournalError, locks
from chatfn.journal.files import DISAGREE, PATIENCE, allowed, damaged, is_damage, problem_of
from chatfn.journal.rows import data_of
from chatfn.journal.tables import show_columns

SLOWEST = 5
STILL = "&immutable=1"  # so that SQLite looks for no other who writes; at the end it is asked whether there was one
PAGE = 1_000  # rows read at a time: a long reading would keep the write-ahead log from being used again
COUNTS = (
    "SELECT count(*), count(CASE state WHEN 'answered' THEN 1 END), sum(prompt_tokens), sum(completion_tokens),"
    " sum(total_tokens), min(sent), max(coalesce(ended, sent)) FROM calls"
)
FAILURES = (
    "SELECT category, count(*) FROM calls WHERE state = 'failed' GROUP BY category ORDER BY count(*) DESC, category"
)
OPEN = "SELECT id, key, sent, model, state, run FROM calls WHERE state IN ('sent', 'unknown') ORDER BY id"
SLOW = (
    "SELECT id, key, sent, model, ended - sent FROM calls WHERE state IN ('answered', 'failed')"
    " ORDER BY ended - sent DESC LIMIT ?"
)
TARGETS = "SELECT target, count(*) FROM calls WHERE target IS NOT NULL GROUP BY target ORDER BY count(*) DESC, target"
ANSWERS = (
    "SELECT id, request, response, target FROM calls"
    " WHERE id > ? AND id <= ? AND state = 'answered' ORDER BY id LIMIT ?"
)


def summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What became of the calls of a journal.

    ``calls``, ``answered``, ``in_flight``: numbers; ``failed``: a number for each category; ``targets``: one for each
    target of a ``fallback`` or ``balance``, of the calls that it answered, or failed last; ``unknown``: what was sent
    without its outcome becoming known, each with ``id``, ``key``, ``sent``, ``model``; ``cached``: how many calls were
    answered from the file; ``tokens``: ``prompt``, ``completion``, ``total`` of the answers; ``first``, ``last``:
    seconds since 1970, or None; ``slowest``: five calls, likewise, with their ``seconds``.  A call that failed and was
    sent again counts each time.
    Raises ``ValueError`` for what is no journal, ``JournalError`` for one that is damaged.
    """
    real = os.path.realpath(os.fsdecode(path))
    with reading(real) as db:
        calls, answers, prompt, completion, total, first, last = db.execute(COUNTS).fetchone()
        unknown, in_flight = [], 0
        for number, key, sent, model, state, run in db.execute(OPEN):
            if state == "sent" and locks.alive(real, run):
                in_flight += 1
            else:
                unknown.append({"id": number, "key": key, "sent": sent, "model": model})
        slowest = db.execute(SLOW, (SLOWEST,)).fetchall()
        return {
            "calls": calls,
            "answered": answers,
            "failed": dict(db.execute(FAILURES).fetchall()),
            "targets": dict(db.execute(TARGETS).fetchall()),
            "unknown": unknown,
            "in_flight": in_flight,
            "cached": db.execute("SELECT coalesce(sum(cached), 0) FROM runs").fetchone()[0],
            "tokens": {"prompt": prompt or 0, "completion": completion or 0, "total": total or 0},
            "first": first,
            "last": last,
            "slowest": [dict(zip(("id", "key", "sent", "model", "seconds"), row, strict=True)) for row in slowest],
        }


def export(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The answered calls of a journal, in the order in which they were sent, as ``{"params": …, "completion": …}``, and
    the ``target`` that answered, if it was one of a ``fallback`` or a ``balance``.

    Raises, at the first item, as ``summary`` does.
    """
    real = os.path.realpath(os.fsdecode(path))
    with reading(real) as db:
        for number, request, response, target in rows_of(db, ANSWERS):
            params = data_of(real, number, request)["body"]
            who = {} if target is None else {"target": target}
            yield {"params": params, "completion": data_of(real, number, response), **who}


def rows_of(db: sqlite3.Connection, statement: str) -> Iterator[tuple[Any, ...]]:
    """The rows of a statement over calls, a page of them at a time: those that there are now, by their id."""
    newest = db.execute("SELECT max(id) FROM calls").fetchone()[0] or 0
    after = 0
    while rows := db.execute(statement, (after, newest, PAGE)).fetchall():
        if rows[-1][0] <= after:  # in a file that is damaged, or written to meanwhile, there would be no end
            raise sqlite3.DatabaseError(DISAGREE)
        after = rows[-1][0]
        yield from rows


@contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, and leaves no file behind; raises for what is no journal."""
    problem: Exception | None = None
    if not os.path.isfile(path):
        raise ValueError(f"there is no journal at {path}")
    before, uri = stamp_of(path), uri_of(path)
    try:
        with closing(sqlite3.connect(uri, timeout=PATIENCE, isolation_level=None, uri=True)) as db:
            words = problem_of(db, path)
            if words is None:
                show_columns(db)
                db.execute("PRAGMA query_only = ON")
                yield db
            else:
                problem = ValueError(words)
    except sqlite3.Error as exc:
        problem = JournalError(f"the journal {path} can't be read: {exc}")
        if is_damage(exc):
            problem = ValueError(damaged(path, exc))
    if uri.endswith(STILL) and stamp_of(path) != before:
        problem = JournalError(f"the journal {path} was written to while it was read; read it again")
    if problem is not None:
        raise problem


def stamp_of(path: str) -> tuple[int, int]:
    """What tells a file from the same one after it was written to."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def uri_of(path: str) -> str:
    """How to open a journal to read it so that nothing stays beside it.

    SQLite takes its -wal and -shm away only if the last one who closes the file may write to it.  One who may not reads
    a journal that nobody has open without them: they would be his, and keep out those who may.
    """
    if allowed(path) and allowed(os.path.dirname(path)):
        return f"{Path(path).as_uri()}?mode=rw"
    still = not os.path.exists(path + "-wal")
    return f"{Path(path).as_uri()}?mode=ro{STILL if still else ''}"
