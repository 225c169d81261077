"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import glob
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

PART = ".part"


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place at the end of the block, and not if that raises.

    It lies on the disk before it is renamed.  What is no regular file (a pipe, a terminal) and ``-``, standard output,
    are written as they stand.
    """
    if path == "-" or (os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)):
        with standard_output() if path == "-" else open(path, "wb") as file:
            yield file
        return
    place = os.path.realpath(path)  # a link goes on to point at it
    os.stat(os.path.dirname(place))  # else the error would name what is written beside it
    remove_stale(place)
    name, file = beside(place)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, place)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(os.path.dirname(place))


@contextmanager
def standard_output() -> Iterator[IO[bytes]]:
    if sys.stdout is None:  # closed by who started this
        raise OSError("there is no standard output")
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def beside(place: str) -> tuple[str, IO[bytes]]:
    """A new file in the folder of ``place``, with its mode, or with that of any new file; locked while it is open."""
    while True:
        name = f"{place}.{secrets.token_hex(4)}{PART}"
        file = opened_new(name, place)
        with suppress(FileNotFoundError):
            os.chmod(name, stat.S_IMODE(os.stat(place).st_mode))
        if locked(file) and os.path.exists(name):  # else one who looked for stale ones was quicker
            return name, file
        file.close()


def opened_new(name: str, place: str) -> IO[bytes]:
    """A new file; what keeps it from being made is said of ``place``."""
    try:
        return open(name, "xb")
    except OSError as exc:
        problem = OSError(exc.errno, exc.strerror, place)
    raise problem


def remove_stale(place: str) -> None:
    """Remove what processes left beside ``place`` that were killed: a lock ends with the process that holds it."""
    for name in glob.glob(f"{glob.escape(place)}.????????{PART}"):
        with suppress(FileNotFoundError, PermissionError), open(name, "rb") as file:
            if locked(file):
                os.unlink(name)


def locked(file: Any) -> bool:
    """Whether a lock on a file could be had; where there are none, no file is taken for stale."""
    try:
        import fcntl
    except ImportError:
        return file.writable() is True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folder(folder: str) -> None:
    """A name is safe once its folder lies on the disk; not every file system can say so."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
