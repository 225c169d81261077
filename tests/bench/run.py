"""The measures: who takes part, against which server, how often; nothing is judged here."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tests.bench.contestants import FLOOR, module_of
from tests.bench.plans import AT_ONCE, LATENCY, MAP_LATENCY, Plan
from tests.bench.processes import Figures, Pythons, Rounds, Worker, ask, environment, server, spent, turns, workers

NEAR = ("tests.bench.server",)
FAR = ("tests.bench.remote", str(LATENCY))
FAULTY = ("tests.bench.remote", str(MAP_LATENCY), "faults")
NOTHING = "pass"
VERSIONS = (
    "import sys, json, importlib.metadata as found; installed = {d.name.lower() for d in found.distributions()};"
    "print(json.dumps({name: found.version(name) for name in sys.argv[1:] if name in installed}))"
)
WARM_ROWS = 300
OURS = "chatfn_requests"  # whose Python measures what chatfn itself costs

Env = Mapping[str, str]
Say = Callable[[str], None]


def per(units: float, figures: Figures) -> Figures:
    """The figures of one of so many units."""
    return {**figures, **{key: figures[key] / units for key in ("cpu", "wall") if key in figures}}


def timed(worker: Worker, plan: Plan, units: float, asked: Figures) -> Figures:
    return per(units, ask(worker, plan["seconds"], **asked))


def asks_of(able: Iterable[Worker], plan: Plan, units: float, **asked: Any) -> dict[str, Callable[[], Figures]]:
    """A question to each of those who are able; all have warmed up on it once."""
    return {worker.name: partial(timed, worker, plan, units, asked) for worker in able}


def near(env: Env, pythons: Pythons, plan: Plan) -> dict[str, Rounds]:
    """One call after another, and one stream."""
    found = {}
    with server(env, *NEAR) as origin, workers(env, pythons, f"{origin}/v1", pythons) as all_:
        for measure in ("calls", "events"):
            able = [worker for worker in all_ if worker.takes_part(measure)]
            turns(asks_of(able, plan, 1, measure=measure, count=max(1, plan[measure] // 5)), 1)
            asks = asks_of(able, plan, plan[measure], measure=measure, count=plan[measure])
            found[measure] = turns(asks, plan["rounds"], plan["share"])
    return found


def sizes(env: Env, pythons: Pythons, plan: Plan) -> dict[str, Rounds]:
    """One call after another, its question and its answer of some size."""
    found = {}
    with server(env, *NEAR) as origin:
        for size, calls in plan["sizes"]:
            with workers(env, pythons, f"{origin}/size/{size}/v1", pythons) as all_:
                turns(asks_of(all_, plan, 1, measure="calls", count=1, size=size), 1)
                asks = asks_of(all_, plan, calls, measure="calls", count=calls, size=size)
                found[f"size {size}"] = turns(asks, plan["size_rounds"], plan["share"])
    return found


@contextmanager
def apart(env: Env, pythons: Pythons) -> Iterator[list[Worker]]:
    """The contestants, each with a server of its own: no one process can hold the connections of all of them."""
    with ExitStack() as stack:
        found = []
        for name in pythons:
            origin = stack.enter_context(server(env, *FAR))
            found += stack.enter_context(workers(env, pythons, f"{origin}/v1", [name]))
        yield found


def far(env: Env, pythons: Pythons, plan: Plan) -> dict[str, Rounds]:
    """Many calls in flight, and many streams; the most memory is told after each, for it only grows."""
    found = {}
    streams, events, rounds = plan["streams"]
    with apart(env, pythons) as all_:
        for at_once, calls, times in plan["flight"]:
            able = [worker for worker in all_ if worker.takes_part("flight", at_once)]
            turns(asks_of(able, plan, 1, measure="flight", count=at_once, at_once=at_once), 1)
            asks = asks_of(able, plan, calls, measure="flight", count=calls, at_once=at_once)
            found[f"flight {at_once}"] = turns(asks, times, plan["share"])
        able = [worker for worker in all_ if worker.takes_part("streams", streams)]
        asks = asks_of(able, plan, streams * events, measure="streams", count=events, at_once=streams)
        found[f"streams {streams}"] = turns(asks, rounds, plan["share"])
    return found


def paid_at(origin: str) -> int:
    with urllib.request.urlopen(origin) as response:
        return int(json.load(response)["paid"])


def a_map(worker: Worker, plan: Plan, origin: str, rows: int, journals: Iterable[Path]) -> Figures:
    """The figures of a row; an answer that was paid for twice is an error."""
    before = paid_at(origin)
    asked = {"measure": "map", "count": rows, "at_once": AT_ONCE, "journal": str(next(iter(journals)))}
    figures = timed(worker, plan, rows, asked)
    paid = paid_at(origin) - before
    return figures if paid == rows or "error" in figures else {"error": f"{paid} answers paid for {rows} rows"}


def maps(env: Env, pythons: Pythons, plan: Plan) -> dict[str, Rounds]:
    """A map over many rows, of which two of a hundred fail at first; chatfn's keeps a journal."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(env, *FAULTY) as origin,
        workers(env, pythons, f"{origin}/v1", pythons) as all_,
    ):
        able = [worker for worker in all_ if worker.takes_part("map")]
        journals = (Path(folder) / f"{n}.db" for n in count())
        rows = plan["map"]
        turns({w.name: partial(a_map, w, plan, origin, min(rows, WARM_ROWS), journals) for w in able}, 1)
        asks = {w.name: partial(a_map, w, plan, origin, rows, journals) for w in able}
        return {"map": turns(asks, plan["map_rounds"], plan["share"])}


def imports(env: Env, pythons: Pythons, plan: Plan) -> dict[str, Rounds]:
    """CPU and wall seconds of an import, without those of a Python process that does nothing."""
    statements: dict[tuple[str, str], str] = {}
    if OURS in pythons:
        statements[pythons[OURS], "import chatfn"] = "chatfn"
    for name, python in pythons.items():
        statements.setdefault((python, module_of(name).IMPORT or NOTHING), name)
    asks = {name: partial(spent, env, python, statement) for (python, statement), name in statements.items()}
    base = {python: partial(spent, env, python, NOTHING) for python in {python for python, _ in statements}}
    turns({**base, **asks}, 1)  # byte code is written
    found = turns({**base, **asks}, plan["rounds"], plan["share"])
    python_of = {name: python for (python, _), name in statements.items() if name != FLOOR}
    return {"imports": {name: less(found[name], found[python]) for name, python in python_of.items()}}


def less(turned: Sequence[Figures], empty: Sequence[Figures]) -> list[Figures]:
    pairs = zip(turned, empty, strict=False)
    return [
        turn if "error" in turn else {key: turn[key] - base[key] for key in ("cpu", "wall")} for turn, base in pairs
    ]


def one(env: Env, python: str, plan: Plan, **asked: Any) -> Figures:
    """One measure in a process that is used for nothing else."""
    with workers(env, {OURS: python}, "", [OURS]) as (worker,):
        warm = {"bare": ("bare", ""), "kept": ("kept", f"{asked.get('journal')}.warm")}.get(asked["measure"])
        if warm:
            ask(worker, plan["seconds"], measure=warm[0], count=WARM_ROWS, journal=warm[1])
        return ask(worker, plan["seconds"], **asked)


def alone(env: Env, python: str, plan: Plan) -> dict[str, Rounds]:
    """What chatfn itself costs, by a call, an event, a row, and a row with a journal."""
    with tempfile.TemporaryDirectory() as folder, workers(env, {OURS: python}, "", [OURS]) as (worker,):
        journals = (str(Path(folder) / f"{n}.db") for n in count())
        asks: dict[str, Callable[[], Figures]] = {}
        for measure, units in (*plan["alone"].items(), ("kept", plan["alone"]["bare"])):
            told = {"measure": measure, "count": units, "batch": 50}
            asks[measure] = lambda told=told, units=units: (  # type: ignore[misc]  # bound at once
                timed(worker, plan, units, {**told, "journal": next(journals)})
            )
        turns(asks, 1)
        return {"alone": turns(asks, plan["rounds"], plan["share"])}


def memory(env: Env, python: str, plan: Plan) -> Figures:
    """By how many bytes the peak of a map's process grows between few rows and many."""
    few, many = plan["memory"]
    with workers(env, {OURS: python}, "", [OURS]) as (worker,):
        before, after = (ask(worker, plan["seconds"], measure="bare", count=rows) for rows in (few, many))
    if "error" in before or "error" in after:
        return {"error": before.get("error") or after.get("error")}
    return {"few": few, "many": many, "before": before["peak"], "growth": after["peak"] - before["peak"]}


def journal(env: Env, python: str, plan: Plan) -> Figures:
    """How fast answers go into a journal and come out of it again, each in a process of its own."""
    found: Figures = {"answers": plan["answers"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        for measure in ("kept", "replayed", "resumed"):
            figures = one(env, python, plan, measure=measure, count=plan["answers"], journal=str(path))
            found[measure] = per(figures.get("rows", 1), figures)
            if measure == "kept":
                found["bytes"] = path.stat().st_size if path.exists() else 0
    return found


def run(pythons: Pythons, plan: Plan, say: Say) -> dict[str, Any]:
    """All figures of the contestants: by measure, by contestant, by round."""
    rounds: dict[str, Rounds] = {}
    found: dict[str, Any] = {"rounds": rounds}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        env = environment(cache)
        for measure in (near, far, sizes, maps, imports):
            say(f"{time.monotonic() - began:5.0f} s  {measure.__name__}: {(measure.__doc__ or '').splitlines()[0]}")
            rounds |= measure(env, pythons, plan)
        if OURS in pythons:
            python = pythons[OURS]
            say(f"{time.monotonic() - began:5.0f} s  chatfn alone: its calls, its memory, its journal")
            rounds |= alone(env, python, plan)
            found |= {"memory": memory(env, python, plan), "journal": journal(env, python, plan)}
    say(f"{time.monotonic() - began:5.0f} s  done")
    return found


def versions(pythons: Pythons) -> dict[str, dict[str, str]]:
    """The packages that each contestant runs on."""
    found = {}
    for name, python in pythons.items():
        names = [spec.partition(">")[0] for spec in module_of(name).REQUIRES]
        done = subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, text=True, check=False)
        found[name] = json.loads(done.stdout or "{}")
    return found
