"""State in one place: a reference to an immutable value, moved by pure functions."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Concatenate, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Atom(Generic[T]):
    """A value that several threads may look at and move.

    >>> count = Atom(1)
    >>> count.swap(lambda n, by: n + by, 2), count.deref()
    (3, 3)
    """

    def __init__(self, value: T) -> None:
        self._value = value
        self._lock = Lock()

    def deref(self) -> T:
        """The value as it is now; takes no lock."""
        return self._value

    def swap(self, f: Callable[Concatenate[T, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The new value, ``f(value, ...)``.  ``f`` runs under a lock: keep it pure and short."""
        with self._lock:
            self._value = f(self._value, *args, **kwargs)
            return self._value
