"""Two plans compared: the rows that an edit of prompt, model or data changes, and what that costs."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from chatfn.pipeline.columns import BAD, NEW, UNKNOWN, VERSION, Columns, unpacked
from chatfn.spec import Json

Pairs = list[tuple[int | None, int | None]]  # rows of the one plan and of the other; None: there is none


def diff_plans(a: Json, b: Json) -> dict[str, Any]:
    """What ``b`` asks that ``a`` did not, as JSON data; both are of ``plan(…, keys=True)``, saved and loaded or not.

    ``same``: how many rows ask the same; ``changed``, ``added``, ``removed``: the ids of rows, or, of those without an
    id, their numbers, from 0: of ``removed`` in ``a``, else in ``b``.  Rows of one id belong together; where not every
    row has one, or an id is there twice, equal requests do, in whatever order, and what is left between them in turn.
    ``to_send``: the calls of ``b`` that ``a`` did not have, less what a journal had answered when ``b`` was planned;
    ``tokens`` and ``cost`` of these, as in a plan: None where a price, or the end of an answer, is not known.
    Raises ``ValueError`` for plans without keys.

    >>> from chatfn import plan
    >>> def rows(*texts):
    ...     return [{"params": {"model": "m", "messages": [{"role": "user", "content": text}]}} for text in texts]
    >>> was, now = plan(rows("red", "blue"), keys=True), plan(rows("new", "red", "green"), keys=True)
    >>> found = diff_plans(was, now)
    >>> found["same"], found["changed"], found["added"], found["removed"], found["to_send"]
    (1, [2], [0], [], 2)
    """
    was, now = columns_of(a, "first"), columns_of(b, "second")
    pairs = by_id(was, now) if identified(was) and identified(now) else by_key(was, now)
    same = [(i, j) for i, j in pairs if i is not None and j is not None and equal(was, i, now, j)]
    changed = [j for i, j in pairs if i is not None and j is not None and not equal(was, i, now, j)]
    added = [j for i, j in pairs if i is None and j is not None]
    removed = [i for i, j in pairs if i is not None and j is None]
    asked = frozenset(was.key)
    calls = [j for j in sorted([*changed, *added]) if now.state[j] == ord(NEW) and now.key[j] not in asked]
    return {
        "rows": {"before": len(was.state), "after": len(now.state)},
        "same": len(same),
        "changed": [label(now, j) for j in changed],
        "added": [label(now, j) for j in added],
        "removed": [label(was, i) for i in removed],
        "to_send": len(calls),
        "tokens": {"input": sum(now.input[j] for j in calls), "output": span(now.low, now.high, calls)},
        "cost": span(now.usd_low, now.usd_high, calls),
    }


def columns_of(plan: Any, which: str) -> Columns:
    keys = plan.get("keys") if isinstance(plan, Mapping) and plan.get("plan") == VERSION else None
    if not isinstance(keys, Mapping):
        raise ValueError(f"the {which} plan does not say what its rows ask; make it with plan(…, keys=True)")
    return unpacked(keys)


def identified(of: Columns) -> bool:
    """Whether every row has an id, and none another's."""
    return None not in of.id and len(set(of.id)) == len(of.id)


def by_id(was: Columns, now: Columns) -> Pairs:
    places = {each: i for i, each in enumerate(was.id)}
    pairs: Pairs = [(places.pop(each, None), j) for j, each in enumerate(now.id)]
    return [*pairs, *((i, None) for i in places.values())]


def by_key(was: Columns, now: Columns) -> Pairs:
    """Equal requests paired, and the others in turn with those that stand behind the same pair."""
    partners = partners_of(was.key, now.key)
    paired = bytearray(len(was.key))
    for partner in partners:
        if partner is not None:
            paired[partner] = 1
    before = list(behind(i if paired[i] else None for i in range(len(paired))))
    left: dict[int, list[int]] = defaultdict(list)  # of the first plan, by the pair that they stand behind; last first
    for i in range(len(paired) - 1, -1, -1):
        if not paired[i]:
            left[before[i]].append(i)
    pairs: Pairs = []
    for j, (partner, place) in enumerate(zip(partners, behind(partners), strict=True)):
        waiting = left.get(place) if partner is None else None
        pairs.append((waiting.pop() if waiting else partner, j))
    return [*pairs, *((i, None) for i in sorted(i for rest in left.values() for i in rest))]


def partners_of(was: Sequence[int], now: Sequence[int]) -> list[int | None]:
    """For each key of the second list the place of its first equal in the first that is not taken yet.

    >>> partners_of([7, 8, 7], [7, 7, 7, 9])
    [0, 2, None, None]
    """
    first: dict[int, int] = {}
    following = [-1] * len(was)
    for i in range(len(was) - 1, -1, -1):
        following[i] = first.get(was[i], -1)
        first[was[i]] = i
    found: list[int | None] = []
    for key in now:
        place = first.get(key, -1)
        found.append(None if place < 0 else place)
        if place >= 0:
            first[key] = following[place]
    return found


def behind(partners: Iterable[int | None]) -> Iterator[int]:
    """For each place the last partner before it, or -1."""
    last = -1
    for partner in partners:
        yield last
        last = last if partner is None else partner


def equal(was: Columns, i: int, now: Columns, j: int) -> bool:
    """Whether two rows ask the same; of bad ones nobody knows."""
    bad = ord(BAD)
    return bool(was.key[i] == now.key[j] and (was.state[i] == bad) == (now.state[j] == bad))


def label(of: Columns, place: int) -> Any:
    return place if of.id[place] is None else of.id[place]


def span(low: Any, high: Any, rows: list[int]) -> dict[str, Any]:
    """The sums of two columns; None where one of their entries is not known.  Dollars are added without an error."""
    found = {}
    for name, column in (("low", low), ("high", high)):
        entries = [column[row] for row in rows]
        total = math.fsum if isinstance(low, array) and low.typecode == "d" else sum
        found[name] = None if UNKNOWN in entries else total(entries)
    return found
