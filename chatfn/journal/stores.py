"""The journals that this process has open: one store for a file, by whatever names it goes.

Before a fork the connections are closed, for SQLite's do not survive one; they are opened again at the next use.  So
are journals that others have followed and that have nothing in flight: a process that goes from job to job keeps the
files of the last few open.
"""

from __future__ import annotations

import atexit
import os
from threading import RLock

from chatfn.journal.store import Store, identity

MOST_OPEN = 32  # journals, of four descriptors each
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
