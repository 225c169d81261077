"""Which runs are alive: each holds a lock on the byte of its number in a file beside the journal.

The system gives such a lock back when its process ends, however it ends.  It also gives it back when the process closes
*any* descriptor of the file, so there is one for each file, which stays open.  Where there is no ``fcntl`` (Windows) no
run but one's own is taken for alive: two runs at once may pay for a call twice there.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from typing import Any

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
SUFFIX = "-lock"
files: dict[str, int] = {}  # journal -> descriptor of its lock file
own: set[tuple[str, int]] = set()  # journals and runs whose locks this process has
guard = Lock()


def hold(path: str, run: int) -> bool:
    """Hold the lock of a run of the journal at ``path`` until this process ends; False if another has it."""
    if fcntl is None:
        own.add((path, run))
        return True
    with guard:
        if path not in files:
            files[path] = os.open(path + SUFFIX, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        if not taken(files[path], run, fcntl.LOCK_EX):
            return False
        own.add((path, run))
        return True


def alive(path: str, run: int) -> bool:
    """Whether a process holds the lock of a run."""
    if (path, run) in own or fcntl is None:
        return (path, run) in own
    with guard:
        known = files.get(path)
        if known is not None:
            return probed(known, run)
        try:
            file = os.open(path + SUFFIX, os.O_RDONLY)
        except OSError:
            return False
        try:
            return probed(file, run)
        finally:
            os.close(file)


def probed(file: int, run: int) -> bool:
    if not taken(file, run, fcntl.LOCK_SH):
        return True
    fcntl.lockf(file, fcntl.LOCK_UN, 1, run)
    return False


def taken(file: int, run: int, kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB, 1, run)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
        return False
    return True


def forget(path: str) -> None:
    """Let go of the lock file of a journal that is another file now."""
    with guard:
        file = files.pop(path, None)
        own.difference_update({one for one in own if one[0] == path})
        if file is not None:
            os.close(file)


def after_fork() -> None:
    global guard
    guard = Lock()
    for path in list(files):
        forget(path)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)  # a child has none of its parent's locks
