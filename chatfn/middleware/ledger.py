"""What a budget's calls have cost and may cost: an immutable value, moved by pure functions, kept for each budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from pyrsistent import PMap, pmap

from chatfn.atom import Atom


class Amount(NamedTuple):
    attos: int  # of a dollar
    tokens: int


NOTHING = Amount(0, 0)
NO_HOLDS: PMap[int, Amount] = pmap()


class Ledger(NamedTuple):
    """What a budget's calls have cost, and may cost."""

    spent: Amount = NOTHING
    unsure: Amount = NOTHING  # of what is spent: worst cases of calls whose outcome is not known
    reserved: Amount = NOTHING  # all that is held
    held: PMap[int, Amount] = NO_HOLDS  # a reservation for each attempt in flight


class Cap(NamedTuple):
    """The most that may be spent; None: no matter how much."""

    attos: int | None
    tokens: int | None


def plus(a: Amount, b: Amount, sign: int = 1) -> Amount:
    return Amount(a.attos + sign * b.attos, a.tokens + sign * b.tokens)


def fits(cap: Cap, amount: Amount) -> bool:
    return all(most is None or used <= most for most, used in zip(cap, amount, strict=True))


def reserve(ledger: Ledger, number: int, need: Amount, cap: Cap) -> Ledger:
    """The ledger with a reservation, if all that is spent and reserved stays within the cap; else as it is.

    >>> [len(reserve(Ledger(), 1, Amount(5, 5), cap).held) for cap in (Cap(None, 9), Cap(4, 9))]
    [1, 0]
    """
    reserved = plus(ledger.reserved, need)
    if not fits(cap, plus(ledger.spent, reserved)):
        return ledger
    return ledger._replace(reserved=reserved, held=ledger.held.set(number, need))


def settle(ledger: Ledger, number: int, used: Amount | None) -> Ledger:
    """The ledger with what an attempt used in place of its reservation; None: nobody knows, so all of that.

    >>> settle(reserve(Ledger(), 1, Amount(5, 5), Cap(9, 9)), 1, Amount(2, 3)).spent
    Amount(attos=2, tokens=3)
    """
    need = ledger.held.get(number)
    if need is None:
        return ledger
    return Ledger(
        plus(ledger.spent, need if used is None else used),
        plus(ledger.unsure, need if used is None else NOTHING),
        plus(ledger.reserved, need, -1),
        ledger.held.remove(number),
    )


ledgers: dict[str, Atom[Ledger]] = {}  # by the key of their budget
opening = Lock()


def ledger_of(key: str, begin: Callable[[], Amount] | None = None) -> Atom[Ledger]:
    """The ledger of a budget in this process; a new one begins with what ``begin()`` says is spent."""
    found = ledgers.get(key)
    if found is None:
        with opening:
            found = ledgers.get(key)
            if found is None:
                found = ledgers[key] = Atom(Ledger(NOTHING if begin is None else begin()))
    return found


def after_fork() -> None:
    """The child goes on from what was spent; what its parent has in flight is not its own."""
    global opening
    opening = Lock()
    for key, atom in list(ledgers.items()):
        spent, unsure, *_ = atom.deref()
        ledgers[key] = Atom(Ledger(spent, unsure))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
