"""What loops and the process around them owe each other: forks, and open files."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any
from weakref import WeakSet

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]  # as in the standard library

MOST_FILES = 1_048_576
LOOPS: WeakSet[Any] = WeakSet()  # all that there are


def forget_loops() -> None:
    """Leave what a forked process has of its parent's alone, for good.

    To end it would say farewell on connections that the parent uses, and wait for threads that only the parent has.
    To keep its sockets would keep what the parent closes open, for the parent's ``epoll`` too.
    """
    if not LOOPS:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for loop in LOOPS:
        loop.forgotten = True
        for fd, (_, inode) in loop.sockets.servers.items():
            with suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    os.dup2(nowhere, fd, inheritable=False)
        for kept in (loop, *(shard.multi for shard in loop.shards)):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    os.close(nowhere)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_loops)


def exhausted() -> bool:
    """Whether this process may open no more files, which libcurl does not tell."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return True
    return False


def make_room(more: int) -> None:
    """Raise this process's own limit of open files, as far as it may, if it leaves no room for so many more."""
    if resource is None:
        return
    with suppress(OSError, ValueError):
        next_fd = os.open(os.devnull, os.O_RDONLY)
        os.close(next_fd)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and next_fd + more > soft:
            most = MOST_FILES if hard == resource.RLIM_INFINITY else hard
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 2 * (next_fd + more))), hard))
