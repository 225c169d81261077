"""The file itself: made, opened, or refused with the reason and the way out."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chatfn.journal.tables import APPLICATION, VERSION, add_columns, is_empty, lacking, make_tables

DISAGREE = "its index and its rows disagree"
PATIENCE = 60.0  # seconds to wait for another process that writes
CACHE_KIB = 8_192
CHECKPOINT_PAGES = 4_000  # of the write-ahead log: fewer, and a page that is written often is copied often


def connect(path: str, full: bool) -> sqlite3.Connection:
    """A connection to the journal at ``path``, an absolute one, which is made if there is none.

    ``full``: flush every write to the disk.  Raises ``ValueError``, and ``sqlite3.Error`` for a full disk.
    """
    check_place(path)
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        problem = patiently(lambda: prepare(db, path, full))
    except sqlite3.DatabaseError as exc:
        if not is_damage(exc):
            db.close()
            raise
        problem = damaged(path, exc)
    if problem:
        db.close()
        raise ValueError(problem)
    return db


def patiently(work: Callable[[], str | None]) -> str | None:
    """What ``work`` returns: SQLite waits for others that write, but not for one that makes the file meanwhile."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as exc:
            if code_of(exc) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def check_place(path: str) -> None:
    """Raise for a path that can't be read and written; make the file if there is none, for its owner alone."""
    folder = os.path.dirname(path)
    problem = None
    if os.path.isdir(path):
        problem = f"the journal {path} is a folder; name a file in it, such as {os.path.join(path, 'run.db')}"
    elif not os.path.isdir(folder):
        problem = f"the folder {folder} of the journal {path} does not exist; make it first"
    elif not allowed(folder):
        problem = f"the folder {folder} of the journal {path} can't be written to; give a path in one that can"
    elif os.path.exists(path) and not (allowed(path) and stat.S_ISREG(os.stat(path).st_mode)):
        problem = f"the journal {path} can't be written to; make it writable, or give the path of a copy"
    elif not os.path.exists(path):  # one that exists is not opened: to close it would free the locks of its readers
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as exc:
            problem = f"the journal {path} can't be made: {exc.strerror}; give another path"
    if problem:
        raise ValueError(problem)


def allowed(path: str) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.R_OK | os.W_OK, effective_ids=effective)


def prepare(db: sqlite3.Connection, path: str, full: bool) -> str | None:
    """Settings, and the tables if there is nothing yet; what keeps the file from being a journal, or None."""
    empty = is_empty(db)
    if not empty:
        problem = problem_of(db, path)
        if problem:
            return problem
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        return f"the journal {path} stands where SQLite can't write ahead ({mode}); give a path on a local disk"
    db.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    if empty:
        with writing(db):
            make_tables(db)
    problem = problem_of(db, path)
    if problem is None and lacking(db):
        with writing(db):
            add_columns(db)
    return problem


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def problem_of(db: sqlite3.Connection, path: str) -> str | None:
    """Why an open SQLite file is no journal of this version, or None."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        return f"{path} is a SQLite file, but no journal of chatfn; give another path"
    if version > VERSION:
        return (
            f"the journal {path} is of version {version}, and this chatfn knows versions up to {VERSION}; "
            "take a newer one (pip install -U chatfn), or give another path"
        )
    if os.path.getsize(path) % db.execute("PRAGMA page_size").fetchone()[0] and not size_of(path + "-wal"):
        return damaged(path, "its last page is cut")  # with a log it would be mended from there
    db.execute("SELECT id FROM calls ORDER BY id DESC LIMIT 1").fetchone()  # raises if its end is cut off or garbled
    return None


def size_of(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether an error says that the file is not what SQLite wrote.  Text that is not UTF-8 has no code of its own."""
    words = str(exc)
    if words == DISAGREE or "decode to UTF-8" in words:
        return True
    return code_of(exc) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def code_of(exc: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for an error of Python's module itself."""
    code: int = getattr(exc, "sqlite_errorcode", 0)
    return code & 0xFF


def damaged(path: str, why: object) -> str:
    salvaged = str(Path(path).with_suffix(".salvaged.db"))
    return (
        f"{path} is no journal, or damaged ({why}); what can be salvaged of one goes into a new file by "
        f'sqlite3 "{path}" .recover | sqlite3 "{salvaged}"'
    )
