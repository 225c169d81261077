"""Which sockets are ready: Linux's ``epoll``, or its face on the selector of another system."""

from __future__ import annotations

import select
import selectors
from typing import Any

READ, WRITE = 1, 4  # EPOLLIN and EPOLLOUT
GONE = getattr(select, "EPOLLRDHUP", 0)  # the other side has ended the connection; 0 where nothing says so
TO_SELECTORS = {READ: selectors.EVENT_READ, WRITE: selectors.EVENT_WRITE}
TO_SELECTORS[READ | WRITE] = selectors.EVENT_READ | selectors.EVENT_WRITE
FROM_SELECTORS = {value: key for key, value in TO_SELECTORS.items()}


class Selected:
    """A selector with the methods of ``epoll`` that are needed here; what it refuses is an ``OSError``."""

    def __init__(self, selector: Any = None) -> None:
        self.selector = selector or selectors.DefaultSelector()
        self.close = self.selector.close

    def register(self, fd: int, mask: int) -> None:
        if fd in self.selector.get_map():  # of a socket that was closed since
            self.selector.unregister(fd)
        self.selector.register(fd, TO_SELECTORS[mask])

    def modify(self, fd: int, mask: int) -> None:
        try:
            self.selector.modify(fd, TO_SELECTORS[mask])
        except (KeyError, ValueError) as exc:
            problem = OSError(str(exc))
        else:
            return
        raise problem

    def unregister(self, fd: int) -> None:
        if fd in self.selector.get_map():
            self.selector.unregister(fd)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        return [(key.fd, FROM_SELECTORS[events]) for key, events in self.selector.select(seconds)]

    def fileno(self) -> int:
        """Its own descriptor, for another loop to wait for; ``NotImplementedError`` where it has none."""
        number = getattr(self.selector, "fileno", None)
        if number is None:
            raise NotImplementedError
        found: int = number()
        return found


def left(fd: int) -> bool:
    """Whether the other side has ended a connection, whatever it said before."""
    if not GONE:
        return False
    poller = select.poll()
    poller.register(fd, select.POLLRDHUP)
    return bool(poller.poll(0))


def new_poller() -> Any:
    return select.epoll() if hasattr(select, "epoll") else Selected()
