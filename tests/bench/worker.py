"""The process that a contestant runs in: ``python -m tests.bench.worker NAME ENDPOINT``.

It reads lines of JSON, ``{"measure": NAME, …}``, and answers each with one: CPU and wall seconds, the process's peak
memory in bytes, or an ``error``.  It ends when its standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from statistics import quantiles
from typing import Any

from tests.bench import alone
from tests.bench.contestants import Client, module_of, params_of
from tests.bench.limits import many_files, peak
from tests.bench.remote import answer_to
from tests.bench.server import TEXT

Told = dict[str, Any]


def check(right: bool, what: str) -> None:
    if not right:
        raise RuntimeError(f"{what}: not what the server sent")


def calls(client: Client, asked: Told) -> Told:
    """So many whole calls, one after another; with ``size`` the question and the text have so many characters."""
    size = asked.get("size")
    params = params_of("x" * size) if size else params_of()
    for text in client.calls(params, asked["count"]):
        check(len(text) == size if size else text == TEXT, "calls")
    return {}


def events(client: Client, asked: Told) -> Told:
    """One stream of so many events."""
    count = asked["count"]
    check(client.events is not None and client.events(params_of(max_tokens=count, stream=True)) == count, "events")
    return {}


def flight(client: Client, asked: Told) -> Told:
    """So many calls, so many of them at once, and how long the middle one and the last of a hundred took."""
    found = list(client.flight(params_of(), asked["count"], asked["at_once"])) if client.flight else []
    check(len(found) == asked["count"] and all(text == TEXT for text, _ in found), "flight")
    cuts = quantiles([seconds for _, seconds in found], n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}


def streams(client: Client, asked: Told) -> Told:
    """So many streams at once, each of so many events."""
    count, number = asked["count"], asked["at_once"]
    params = params_of(max_tokens=count, stream=True)
    check(client.streams is not None and client.streams(params, number) == count * number, "streams")
    return {}


def mapped(client: Client, asked: Told) -> Told:
    """A map over so many rows; all of them are answered once, and right."""
    salt, rows = time.monotonic_ns(), asked["count"]
    questions = [f"{salt} {n}" for n in range(rows)]
    found = client.mapped(iter(questions), asked["at_once"], asked["journal"]) if client.mapped else ()
    given = {question: text for question, text in islice(found, rows + 1) if text == answer_to(question)}
    check(given.keys() == set(questions), "map")
    return {}


MEASURES: dict[str, Callable[[Client, Told], Told]] = {
    "calls": calls,
    "events": events,
    "flight": flight,
    "streams": streams,
    "map": mapped,
}


def measured(client: Client | None, asked: Told) -> Told:
    """The figures of one measure."""
    measure = asked["measure"]
    wall, cpu = time.perf_counter(), time.process_time()
    found = MEASURES[measure](client, asked) if client else alone.MEASURES[measure](asked)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "peak": peak(), **found}


def main(name: str, endpoint: str = "") -> None:
    many_files()
    client = module_of(name).client(endpoint) if endpoint else None
    print(json.dumps({"most": client.most if client else 0, "can": abilities(client)}), flush=True)
    for line in sys.stdin:
        try:
            told = measured(client, json.loads(line))
        except Exception as exc:
            told = {"error": f"{type(exc).__name__}: {exc}"[:200]}
        print(json.dumps(told), flush=True)
    os._exit(0)  # at once: what is open belongs to nobody any more


def abilities(client: Client | None) -> list[str]:
    """Which measures a client takes part in."""
    parts = {} if client is None else {**client._asdict(), "map": client.mapped}
    return [measure for measure in MEASURES if parts.get(measure)]


if __name__ == "__main__":
    main(*sys.argv[1:])
