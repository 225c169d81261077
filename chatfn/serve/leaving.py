"""Connections of the server whose client may leave in the middle of an answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from cheroot.makefile import StreamWriter
from cheroot.server import HTTPConnection


class Writer(StreamWriter):
    """What is still to be written to a client that has left is written by none: Python 3.13 and later print a traceback
    of that, when the writer is collected."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Connection(HTTPConnection):
    def __init__(self, server: Any, sock: Any, makefile: Callable[..., Any]) -> None:
        super().__init__(server, sock, partial(file_of, makefile))


def file_of(makefile: Callable[..., Any], sock: Any, mode: str, size: int) -> Any:
    return Writer(sock, mode, size) if "w" in mode else makefile(sock, mode, size)
