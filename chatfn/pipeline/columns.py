"""What a plan keeps of each row, so that it can be compared with another: a few columns of numbers, packed as text."""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any, NamedTuple

from chatfn.prices import ATTOS
from chatfn.spec import Json

VERSION = 1  # of plans
BAD, DUPLICATE, ANSWERED, KEPT, NEW = "bdafn"  # states; f: failed before, and kept so
NO_KEY = 0
UNKNOWN = -1
TYPES = {"key": "q", "input": "q", "low": "q", "high": "q", "usd_low": "d", "usd_high": "d"}


class Columns(NamedTuple):
    """One entry a row: the first 64 bits of its key, its state, its tokens, its dollars (-1: not known), its id."""

    key: Any
    input: Any
    low: Any
    high: Any
    usd_low: Any
    usd_high: Any
    state: bytearray
    id: list[Any]


def columns() -> Columns:
    return Columns._make([*(array(kind) for kind in TYPES.values()), bytearray(), []])


def add(
    to: Columns, label: Any, state: str, counts: Iterable[int | None], attos: Iterable[int | None] = (None, None)
) -> None:
    """One more row: its key and tokens, and what it costs."""
    numbers = [*counts, *(None if money is None else money / ATTOS for money in attos)]
    for column, number in zip(to, numbers, strict=False):
        column.append(UNKNOWN if number is None else number)
    to.state.append(ord(state))
    to.id.append(label)


def packed(found: Columns) -> dict[str, Any]:
    """Columns as JSON data: numbers of 8 bytes, little-endian, in base64; one letter a row; ids, if there are any.

    >>> one = columns()
    >>> add(one, None, NEW, [7, 1, 1, 2])
    >>> packed(one)["key"], packed(one)["state"], packed(one)["id"]
    ('BwAAAAAAAAA=', 'n', None)
    """
    numbers = {name: b64encode(swapped(column).tobytes()).decode() for name, column in zip(TYPES, found, strict=False)}
    ids = found.id if any(label is not None for label in found.id) else None
    return {**numbers, "state": found.state.decode(), "id": ids}


def unpacked(data: Json) -> Columns:
    """The columns of ``packed``; raises ``ValueError`` for what is none.

    >>> one = columns()
    >>> add(one, "a", NEW, [7, 1, 1, None])
    >>> unpacked(packed(one)) == one
    True
    """
    try:
        numbers = [swapped(array(kind, b64decode(data[name], validate=True))) for name, kind in TYPES.items()]
        state = bytearray(data["state"], "ascii")
        whole = Columns._make([*numbers, state, data["id"] or [None] * len(state)])
        fits = len({len(column) for column in whole}) == 1
    except (KeyError, TypeError, ValueError):
        fits = False
    if fits:
        return whole
    raise ValueError("the rows of the plan are damaged; make it again")


def swapped(column: Any) -> Any:
    """The column as it stands in a plan, or, from there, as this machine has it."""
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column
