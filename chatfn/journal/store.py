"""The calls of one file: what has an answer, who may send, and what came of it.

A process has one connection to a journal, behind a lock; each write is a transaction of its own, for that is what
makes it safe against the end of the process, and may be that of many calls.  A call is claimed by a row in state
``sent``, which a unique index allows once for a key.  Whoever finds such a row asks whether its claimant is alive: in
this process the ``Claim`` itself, in others the lock of their run.  Before a fork the connection is closed, for
SQLite's does not survive one; it is opened again at the next use.  So are journals that others have followed and that
have nothing in flight: a process that goes from job to job keeps the files of the last few open.
"""

from __future__ import annotations

import atexit
import os
import platform
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

from toolz import groupby, partition_all

from chatfn.journal import JournalError, locks
from chatfn.journal.files import DISAGREE, connect, damaged, is_damage
from chatfn.journal.rows import (
    AT_ONCE,
    CLAIM,
    FIND,
    FIND_ERROR,
    LOST,
    Answer,
    Outcome,
    answer_of,
    claim_values,
    data_of,
    given_back,
    run_with,
)
from chatfn.spec import Request

TRIES = 100  # to claim calls: others may be quicker now and then, but not again and again
MOST_OPEN = 32  # journals, of four descriptors each
COUNTED = 1_000  # answers from the file between two notes of their number


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
        return [self.told(found, one, problem) for one in asked]

    def told(self, found: dict[str, Any], one: Asked, problem: JournalError | None) -> Any:
        """What one of those who asked is told: of equal ones the first has the claim."""
        if one.key not in found:
            return JournalError(*cast(JournalError, problem).args)
        row = found[one.key]
        if type(row) is Claim:
            found[one.key] = Held(None)
        if type(row) is not tuple:
            return row
        number, attempts, crc, response, rest, error = row
        try:
            more = given_back(self.path, number, rest)
            if error is None:
                return answer_of(self.path, number, crc, response, attempts, more)
            return Answer(None, data_of(self.path, number, error), attempts, more)
        except JournalError as exc:
            return exc

    def claimed(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """By their keys what calls have: a tuple of their row, a ``Claim`` or ``Held``."""
        db = self.db if self.db is not None and self.run else self.connected()
        if self.unkept:
            self.keep_at_last(db)
        found: dict[str, Any] = {}
        for _ in range(TRIES):
            rows = run_with(db, FIND, [(one.key,) for one in asked]).fetchall()
            check_keys([row[0] for row in rows], asked)
            for key, *row in rows:
                found[key] = self.seen(db, *row)
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
            claims = self.new_claims(db, asked)
            found.update(claims)
            asked = [one for one in asked if one.key not in claims]  # others were quicker
            if not asked:
                return found
        raise sqlite3.DatabaseError(DISAGREE)

    def seen(self, db: sqlite3.Connection, number: int, state: str, run: int, *answer: Any) -> Any:
        """What a row says of its call; None if it was lost."""
        if state == "answered":
            return number, *answer, None
        mine = self.claims.get(number) if run == self.run else None
        if mine is not None or (run != self.run and locks.alive(self.path, run)):
            return Held(mine and mine.reader)
        db.execute(LOST, (number,))
        return None

    def new_claims(self, db: sqlite3.Connection, asked: Sequence[Asked]) -> dict[str, Claim]:
        """Claims of calls that nobody had; fewer, if others were quicker."""
        done = run_with(db, CLAIM, [claim_values(one.key, self.run, one.request) for one in asked])
        last = done.lastrowid or 0
        if done.rowcount == len(asked):
            numbers = dict(zip((one.key for one in asked), range(last - len(asked) + 1, last + 1), strict=True))
        else:
            rows = run_with(db, FIND, [(one.key,) for one in asked]).fetchall()
            numbers = {row[0]: row[1] for row in rows if row[3] == self.run and row[1] not in self.claims}
        claims = {key: Claim(number, self.opening) for key, number in numbers.items()}
        self.claims.update((claim.id, claim) for claim in claims.values())
        return claims

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


def check_keys(found: Sequence[str], asked: Sequence[Asked]) -> None:
    """Raise if a row was found that is of another call, or is found for two."""
    if len(set(found)) < len(found) or not {one.key for one in asked}.issuperset(found):
        raise sqlite3.DatabaseError(DISAGREE)


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
            try:
                store.open(full)
            except BaseException:
                store.close()
                raise
            stores.pop(real, None)
            stores[real] = paths[name] = store  # the last of them
            opened = [other for other in stores.values() if other.db is not None]
            for other in opened[:-MOST_OPEN]:
                other.rest()
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
