"""One journal in this process: its connection and its run, who is answered or may send, and what came of it.

A process has one connection to a journal, behind a lock; each write is a transaction of its own, for that is what
makes it safe against the end of the process, and may be that of many calls.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

from toolz import groupby, partition_all

from chatfn.journal import JournalError, locks
from chatfn.journal.claims import Asked, Claim, Held, Ours, claimed, told
from chatfn.journal.files import connect, damaged, is_damage
from chatfn.journal.rows import AT_ONCE, Answer, Outcome, run_with

COUNTED = 1_000  # answers from the file between two notes of their number


class Store:
    """One journal in this process."""

    def __init__(self, path: str, full: bool) -> None:
        self.path, self.full, self.lock = path, full, RLock()
        self.db: sqlite3.Connection | None = None
        self.file: tuple[int, int] | None = None  # device and inode
        self.forget()

    def forget(self) -> None:
        """Begin anew: this is another process, or that is another file."""
        self.opening = object()
        self.run = 0
        self.cached = self.noted = 0
        self.claims: WeakValueDictionary[int, Claim] = WeakValueDictionary()
        self.unkept: dict[int, Outcome] = {}  # what could not be written yet

    def open(self, full: bool = False) -> None:
        """Open the file, if it is not; another one, if it was replaced.  Raises ``ValueError`` and ``JournalError``."""
        with self.lock:
            if self.file is not None and identity(self.path) != self.file:
                self.close()
                self.forget()
                locks.forget(self.path)
            if full and not self.full:
                self.close()
            self.full = self.full or full
            self.attempt(self.connected)

    def connected(self) -> sqlite3.Connection:
        if self.db is None:
            self.db = connect(self.path, self.full)
            self.file = identity(self.path)
        while not self.run:
            self.run = self.begun(self.db)
        return self.db

    def begun(self, db: sqlite3.Connection) -> int:
        """The number of a new run; 0 if its lock is taken, by one that had it in an earlier file of this name."""
        values = (os.getpid(), platform.node(), time.time())
        run = db.execute("INSERT INTO runs (pid, host, began) VALUES (?, ?, ?)", values).lastrowid or 0
        for pause in (0.0, 0.001, 0.01):  # another may just have asked whether it is held
            time.sleep(pause)
            if locks.hold(self.path, run):
                return run
        return 0

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns; raises ``JournalError`` for what goes wrong with the file."""
        try:
            return work()
        except sqlite3.Error as exc:
            problem = words_of(self.path, exc)
        except OSError as exc:
            problem = f"the journal {self.path} can't be used: {exc}"
        raise JournalError(problem)

    def claim(self, asked: list[Asked]) -> list[Answer | Claim | Held | Exception]:
        """For each call its answer; or the right to send it, once the intent is written; or that another has it.  A
        ``JournalError`` for those for which the file can't be read or written."""
        with self.lock:
            found: dict[str, Any] = {}
            problem: JournalError | None = None
            try:
                for several in partition_all(AT_ONCE, {one.key: one for one in asked}.values()):
                    found.update(self.attempt(partial(self.claimed, several)))
            except JournalError as exc:
                problem = exc
            self.cached += sum(type(found.get(one.key)) is tuple for one in asked)
            if self.cached - self.noted >= COUNTED:
                self.note()
        return [told(self.path, found, one, problem) for one in asked]

    def claimed(self, asked: Sequence[Asked]) -> dict[str, Any]:
        db = self.db if self.db is not None and self.run else self.connected()
        if self.unkept:
            self.keep_at_last(db)
        return claimed(db, Ours(self.path, self.run, self.opening, self.claims), asked)

    def settle(self, items: list[tuple[Claim, Outcome]]) -> list[JournalError | None]:
        """Write what came of calls.  What can't be written is a ``JournalError`` for each, and tried again later."""
        with self.lock:
            outcomes = {claim.id: outcome for claim, outcome in items if claim.opening is self.opening}
            problem = None
            try:
                self.attempt(lambda: self.write(self.db or self.connected(), outcomes))
            except JournalError as exc:
                self.unkept.update(outcomes)
                problem = exc
            for number in outcomes:
                self.claims.pop(number, None)
        return [problem and JournalError(*problem.args) for _ in items]

    def write(self, db: sqlite3.Connection, outcomes: Mapping[int, Outcome]) -> None:
        for statement, several in groupby(lambda item: item[1].statement, outcomes.items()).items():
            for some in partition_all(AT_ONCE, several):
                run_with(db, statement, [(number, *outcome.values) for number, outcome in some])

    def keep_at_last(self, db: sqlite3.Connection) -> None:
        """Write what could not be written before; until that is done no call is claimed."""
        self.write(db, self.unkept)
        self.unkept = {}

    def note(self) -> None:
        self.noted = self.cached
        with suppress(sqlite3.Error):  # a number of interest, and not worth a call
            self.connected().execute("UPDATE runs SET cached = ? WHERE id = ?", (self.cached, self.run))

    def close(self) -> None:
        """Close the connection; the run goes on, and the next use opens it again."""
        with self.lock:
            if self.db is None:
                return
            with suppress(sqlite3.Error):  # it was reported when it could not be written
                self.keep_at_last(self.db)
            if self.cached:
                self.note()
            self.db.close()
            self.db = None

    def rest(self) -> None:
        """Let go of the file, unless it is in use here; the next use is another run."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if self.db is not None and not self.claims and not self.unkept:
                self.close()
                self.forget()
                locks.forget(self.path)
        finally:
            self.lock.release()


def identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def words_of(path: str, exc: sqlite3.Error) -> str:
    if is_damage(exc):
        return damaged(path, exc)
    return f"the journal {path} can't be written: {exc}; once there is room, or it is mended, run the same again"
