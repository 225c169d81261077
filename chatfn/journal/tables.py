"""The tables of a journal: their SQL, and what becomes of files that were made before there was a column."""

from __future__ import annotations

import sqlite3

APPLICATION = 0x6368666E  # "chfn", of PRAGMA application_id
VERSION = 1  # of PRAGMA user_version; the form of keys is part of it

SCHEMA = """\
-- A journal of chatfn, version 1: PRAGMA application_id 0x6368666e, user_version 1, journal_mode WAL.
-- Times are seconds since 1970 UTC.  JSON is text.  Beside it stand -wal and -shm (SQLite's) and -lock (who is alive).

CREATE TABLE calls (              -- every call that was about to be sent, in that order
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,            -- SHA-256 of the request's canonical form, 64 hexadecimal digits
    state TEXT NOT NULL           -- sent: no outcome yet (or none ever, if its run is over); unknown: nor will be
        CHECK (state IN ('sent', 'answered', 'failed', 'unknown')),
    live INTEGER,                 -- 1: sent or answered, null: failed or unknown, so that it may be sent again
    run INTEGER NOT NULL,         -- runs.id
    sent REAL NOT NULL,           -- when it was about to be sent
    ended REAL,                   -- when its outcome was written
    model TEXT,                   -- as asked for; if the body names none, as answered
    url TEXT NOT NULL,            -- where it was to be sent; with a target, the URL of that
    target TEXT,                  -- which target of a fallback or a balance answered, or failed last
    status INTEGER,               -- of HTTP; 0: no response arrived
    category TEXT,                -- of the error
    attempts INTEGER,             -- how many requests it took
    unsure INTEGER,               -- of how many of them but the last nobody knows what they cost; null: of none
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    total_tokens INTEGER,
    paid TEXT,                    -- what attempts before the last used: their usages, models, URLs; null: nothing
    crc INTEGER,                  -- CRC-32 of response, in UTF-8; null: not checked
    request TEXT NOT NULL,        -- {"method", "url", "body"} and, if there is one, "sample"
    error TEXT,                   -- the error map; of a broken stream with what had arrived, as "partial"
    response TEXT                 -- the completion; of a stream, what it folds to
);
CREATE TABLE runs (               -- processes that had the journal open to write
    id INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    began REAL NOT NULL,
    cached INTEGER NOT NULL DEFAULT 0  -- how many calls it was spared, as counted from time to time
);
-- Equal calls are sent once:
CREATE UNIQUE INDEX claimed ON calls (key) WHERE live = 1;
CREATE INDEX failed ON calls (key) WHERE state = 'failed';
"""
ADDED = {"unsure": "INTEGER", "target": "TEXT", "paid": "TEXT"}  # columns that the first files of this version lack


def schema() -> str:
    """The SQL that makes a journal, with what each column holds.

    >>> print(schema()[:49])
    -- A journal of chatfn, version 1: PRAGMA applica
    """
    return SCHEMA


def is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def make_tables(db: sqlite3.Connection) -> None:
    """Make the tables of a file that has none."""
    if is_empty(db):  # another process may have been first
        for statement in SCHEMA.split(";\n")[:-1]:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")


def lacking(db: sqlite3.Connection) -> list[str]:
    """The columns of calls that a file does not have, for it was made before there were any."""
    known = {row[1] for row in db.execute("PRAGMA main.table_info(calls)")}
    return [name for name in ADDED if name not in known]


def add_columns(db: sqlite3.Connection) -> None:
    """Give a file the columns that it lacks; who has it open meanwhile, or an older chatfn, does not mind them."""
    for name in lacking(db):  # another process may have been first
        db.execute(f"ALTER TABLE calls ADD COLUMN {name} {ADDED[name]}")


def show_columns(db: sqlite3.Connection) -> None:
    """Let a connection that only reads see the columns that its file lacks, empty as they are."""
    missing = lacking(db)
    if missing:
        empty = ", ".join(f"NULL AS {name}" for name in missing)
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"CREATE TEMP VIEW calls AS SELECT *, {empty} FROM main.calls")  # noqa: S608  # our own names
