"""The calls of one file: what has an answer, who may send, and what came of it.

A process has one connection to a journal, behind a lock; each write is a transaction of its own, for that is what makes
it safe against the end of the process.  A call is claimed by a row in state ``sent``, which a unique index allows once
for a key.  Whoever finds such a row asks whether its claimant is alive: in this process the ``Claim`` itself, in others
the lock of their run.  Before a fork the connection is closed, for SQLite's does not survive one; it is opened again
at the next use.
"""

from __future__ import annotations

import atexit
import os
import platform
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from chatfn.journal import JournalError, locks
from chatfn.journal.files import connect, damaged, is_damage
from chatfn.journal.rows import CLAIM, FIND, FIND_ERROR, LOST, Answer, Outcome, answer_of, claim_values, data_of
from chatfn.spec import Request

COUNTED = 1_000  # answers from the file between two notes of their number


@dataclass(eq=False, slots=True, weakref_slot=True)
class Claim:
    """The right to send a call.  It ends with its outcome; one that is dropped without is a call of unknown outcome."""

    id: int
    opening: object
    reader: object = None  # who was given its stream to read


class Held(NamedTuple):
    """Another has the call in flight; ``reader``: who of this process was given its stream."""

    reader: object


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
        self.cached = 0
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

    def claim(self, key: str, request: Request, keep_errors: bool) -> Answer | Claim | Held:
        """The answer to a call; or the right to send it, once the intent is written; or that another has it."""
        with self.lock:
            found = self.attempt(lambda: self.claimed(key, request, keep_errors))
        if isinstance(found, (Claim, Held)):
            return found
        number, crc, response, error, attempts = found
        if error is None:
            return answer_of(self.path, number, crc, response)
        return Answer(None, data_of(self.path, number, error), attempts)

    def claimed(self, key: str, request: Request, keep_errors: bool) -> Any:
        db = self.db if self.db is not None and self.run else self.connected()
        if self.unkept:
            self.keep_at_last(db)
        while True:
            row = db.execute(FIND, (key,)).fetchone()
            if row is None:
                old = db.execute(FIND_ERROR, (key,)).fetchone() if keep_errors else None
                if old is not None:
                    self.count(db)
                    return old[0], None, None, old[1], old[2]
                claim = self.new_claim(db, key, request)
                if claim is not None:
                    return claim
                continue  # another was quicker
            number, state, run, crc, response = row
            if state == "answered":
                self.count(db)
                return number, crc, response, None, 0
            mine = self.claims.get(number) if run == self.run else None
            if mine is not None or (run != self.run and locks.alive(self.path, run)):
                return Held(mine and mine.reader)
            db.execute(LOST, (number,))

    def new_claim(self, db: sqlite3.Connection, key: str, request: Request) -> Claim | None:
        done = db.execute(CLAIM, claim_values(key, self.run, request))
        if done.rowcount != 1 or done.lastrowid is None:
            return None
        claim = Claim(done.lastrowid, self.opening)
        self.claims[claim.id] = claim
        return claim

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """Write what came of a call.  Raises ``JournalError`` if that can't be written; it is tried again later."""
        with self.lock:
            if claim.opening is not self.opening:
                return  # of another process, or of another file
            try:
                self.attempt(lambda: self.write(self.db or self.connected(), claim.id, outcome))
            except JournalError:
                self.unkept[claim.id] = outcome
                raise
            finally:
                self.claims.pop(claim.id, None)

    def write(self, db: sqlite3.Connection, number: int, outcome: Outcome) -> None:
        db.execute(outcome.statement, (*outcome.values, number))

    def keep_at_last(self, db: sqlite3.Connection) -> None:
        """Write what could not be written before; until that is done no call is claimed."""
        for number, outcome in list(self.unkept.items()):
            self.write(db, number, outcome)
            del self.unkept[number]

    def count(self, db: sqlite3.Connection) -> None:
        self.cached += 1
        if self.cached % COUNTED == 0:
            self.note(db)

    def note(self, db: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):  # a number of interest, and not worth a call
            db.execute("UPDATE runs SET cached = ? WHERE id = ?", (self.cached, self.run))

    def close(self) -> None:
        """Close the connection; the run goes on, and the next use opens it again."""
        with self.lock:
            if self.db is None:
                return
            with suppress(sqlite3.Error):  # it was reported when it could not be written
                self.keep_at_last(self.db)
            if self.cached:
                self.note(self.db)
            self.db.close()
            self.db = None


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


stores: dict[str, Store] = {}  # real path -> store
paths: dict[str, Store] = {}  # path as it was given, made absolute -> store
opening = RLock()


def store_of(path: str | os.PathLike[str], full: bool) -> Store:
    """The store of a path, open; one for a file, by whatever names it goes.

    Raises ``ValueError`` for a path that can't be a journal, and ``JournalError`` if the file can't be written.
    """
    name = os.path.abspath(os.fsdecode(path))
    with opening:
        store = paths.get(name)
        if store is None or store.db is None or store.full < full or identity(name) != store.file:
            real = os.path.realpath(name)
            store = stores.get(real) or Store(real, full)
            store.open(full)
            stores[real] = paths[name] = store
    return store


def close_all() -> None:
    for store in list(stores.values()):
        store.close()


def before_fork() -> None:
    opening.acquire()
    for store in stores.values():
        store.lock.acquire()
        store.close()


def after_fork() -> None:
    for store in stores.values():
        store.lock.release()
    opening.release()


def after_fork_in_child() -> None:
    for store in stores.values():
        store.forget()
    after_fork()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=before_fork, after_in_parent=after_fork, after_in_child=after_fork_in_child)
