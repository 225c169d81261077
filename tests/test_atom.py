"""State in one place: an immutable value, moved by pure functions."""

from __future__ import annotations

from threading import Thread

import pytest
from pyrsistent import pmap

from chatfn.atom import Atom


def test_a_swap_returns_the_new_value_and_keeps_it() -> None:
    old = pmap({"a": 1})
    atom = Atom(old)
    assert atom.deref() is old
    new = atom.swap(lambda m, key, value=0: m.set(key, value), "b", value=2)
    assert new == {"a": 1, "b": 2}
    assert atom.deref() is new
    assert old == {"a": 1}


def test_a_swap_that_raises_leaves_the_value_and_the_lock_free() -> None:
    atom = Atom(1)
    with pytest.raises(ZeroDivisionError):
        atom.swap(lambda n: n // 0)
    assert atom.deref() == 1
    assert atom.swap(lambda n: n + 1) == 2


def test_no_swap_of_another_thread_is_lost() -> None:
    atom = Atom(0)

    def work() -> None:
        for _ in range(2_000):
            atom.swap(lambda n: n + 1)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert atom.deref() == 8_000
