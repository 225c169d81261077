"""The sockets of a loop: what each waits for, in one ``epoll``, and what those say that no transfer uses."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pycurl

from chatfn.transports.curl_poller import GONE, READ, WRITE, left, new_poller

if TYPE_CHECKING:
    from chatfn.transports.curl_shard import Shard

MASKS = {pycurl.POLL_IN: READ, pycurl.POLL_OUT: WRITE, pycurl.POLL_INOUT: READ | WRITE}


class Sockets:
    """Sockets by their numbers.  libcurl opens and closes them, some of its own without a word."""

    __slots__ = ("multiplexed", "poller", "servers", "used", "watched")

    def __init__(self) -> None:
        self.poller = new_poller()
        self.watched: dict[int, tuple[Shard, int]] = {}  # whose a socket is, and what it is watched for
        self.used: dict[int, Shard] = {}  # those of them that a transfer uses
        self.servers: dict[int, tuple[str, int]] = {}  # of a socket to a server its origin, and its inode
        self.multiplexed: dict[str, bool] = {}  # of an origin whether it speaks HTTP/2, once it has spoken

    def connected(self, fd: int, origin: str) -> None:
        """A new socket: whatever had its number before is gone."""
        self.watched.pop(fd, None)
        self.used.pop(fd, None)
        self.servers[fd] = (origin, os.fstat(fd).st_ino)

    def watch(self, shard: Shard, what: int, fd: int, multi: Any, data: Any) -> None:
        """libcurl's word on what a socket waits for.

        One that waits for nothing is kept for its next request, and watched on: what an idle connection says is that
        it is of no more use.
        """
        if what != pycurl.POLL_REMOVE:
            mask = MASKS[what]
            try:
                (self.poller.modify if fd in self.watched else self.poller.register)(fd, mask)
            except OSError:  # it is another socket of that number
                self.poller.register(fd, mask)
            self.watched[fd] = (shard, mask)
            self.used[fd] = shard
        elif self.used.pop(fd, None) is not None and self.watched[fd][1] != READ:
            with suppress(OSError):  # as above
                self.poller.modify(fd, READ)
                self.watched[fd] = (shard, READ)

    def shared(self) -> list[tuple[Shard, int, int]]:
        """What to do to have libcurl look at the sockets on which several streams may wait for their answers."""
        waiting = [fd for fd in self.used if self.watched[fd][1] == READ and fd in self.servers]
        several = [fd for fd in waiting if self.multiplexed.get(self.servers[fd][0], True)]
        return [(self.used[fd], fd, pycurl.CSELECT_IN) for fd in several]

    def mute(self, fd: int) -> None:
        """The transfer of a socket pauses: what it says is heard when that goes on."""
        self.watched.pop(fd, None)
        with suppress(OSError):  # it is closed
            self.poller.unregister(fd)

    def leave(self, fd: int) -> None:
        """An unused socket has something to say.

        An idle connection does so that is closed, or about to be, or says what nobody asked for.  libcurl looks for
        that once a second; until it has done so, what begins there begins on a new connection.  One of HTTP/2 may
        speak for itself: it is of no more use when the other side has ended it, which libcurl takes for words.
        """
        shard, _ = self.watched.pop(fd, (None, 0))
        origin, _ = self.servers.get(fd, ("", 0))
        if shard is not None and origin:
            if not self.multiplexed.get(origin):
                shard.distrust(origin)
            elif left(fd):
                sever(fd)
                shard.distrust(origin)
            elif GONE:
                with suppress(OSError):  # it is closed
                    self.poller.modify(fd, GONE)
                    self.watched[fd] = (shard, GONE)
                return
        with suppress(OSError):  # as above
            self.poller.unregister(fd)

    def close(self) -> None:
        self.watched.clear()
        self.used.clear()
        self.poller.close()


def sever(fd: int) -> None:
    """End a connection that libcurl keeps, so that it sees that at its next look."""
    with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
