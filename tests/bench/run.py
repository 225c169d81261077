"""Rounds: every contestant in turn, each in a process of its own, against one server in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTHING = "pass"
IMPORTS = {"chatfn": "import chatfn", "requests": "import requests, toolz, pyrsistent", "openai": "import openai"}
FOREIGN = ("OPENAI_", "AZURE_", "COVERAGE_", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS")
# How many units a round has, and before and after which numbers of units the peak of the memory is read.
FULL = {"rounds": 15, "calls": 200, "events": 10_000, "few": {"calls": 1_000, "events": 100_000}, "many": 10}
QUICK = {"rounds": 3, "calls": 20, "events": 500, "few": {"calls": 50, "events": 1_000}, "many": 10}

Figures = dict[str, float]  # cpu and wall in seconds, peak in bytes
Rounds = dict[str, list[Figures]]


def environment(cache: str) -> dict[str, str]:
    """This process's environment without proxies and clients' settings; byte code is kept in ``cache``."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) and not k.lower().endswith("_proxy")}
    return {**ours, "PYTHONPYCACHEPREFIX": cache}


@contextmanager
def module(env: Mapping[str, str], *command: str) -> Iterator[subprocess.Popen[str]]:
    """A Python module as a process that ends when the pipe to it closes."""
    arguments, pipe = [sys.executable, "-m", *command], subprocess.PIPE
    with subprocess.Popen(arguments, env=env, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        yield process


def line_from(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise SystemExit(f"no answer from {process.args!r}")
    return line


def ask(process: subprocess.Popen[str], measure: str, count: int) -> Figures:
    """The figures of ``count`` calls, or of a stream of ``count`` events, in a contestant's process."""
    print(measure, count, file=process.stdin, flush=True)
    figures: Figures = json.loads(line_from(process))
    return figures


def per_unit(process: subprocess.Popen[str], measure: str, count: int) -> Figures:
    return {name: value / count for name, value in ask(process, measure, count).items()}


def spent(env: Mapping[str, str], statement: str) -> Figures:
    """What a fresh Python process spends on a ``statement``, its own start included."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], env=env, cwd=ROOT, check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def rounds(asks: Mapping[str, Callable[[], Figures]], times: int) -> Rounds:
    """What each of ``asks`` gave when all were asked in turn, ``times`` times after a first that does not count."""
    turns = [{name: one() for name, one in asks.items()} for _ in range(times + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in asks}


def speeds(env: Mapping[str, str], port: str, names: Iterable[str], plan: Mapping[str, Any]) -> dict[str, Rounds]:
    """CPU and wall seconds of a call and of a streamed event."""
    with ExitStack() as stack:
        open_ = {name: stack.enter_context(module(env, "tests.bench.contestants", name, port)) for name in names}
        return {
            measure: rounds(
                {name: partial(per_unit, process, measure, plan[measure]) for name, process in open_.items()},
                plan["rounds"],
            )
            for measure in ("calls", "events")
        }


def imports(env: Mapping[str, str], names: Iterable[str], times: int) -> Rounds:
    """CPU and wall seconds of an import, without those of a Python process that does nothing."""
    statements = {NOTHING: NOTHING, **{name: IMPORTS[name] for name in names if name in IMPORTS}}
    found = rounds({name: partial(spent, env, statement) for name, statement in statements.items()}, times)
    empty = found.pop(NOTHING)
    return {
        name: [{key: turn[key] - base[key] for key in turn} for turn, base in zip(turns, empty, strict=True)]
        for name, turns in found.items()
    }


def growth(env: Mapping[str, str], port: str, name: str, measure: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """By how many bytes a process's peak grows between few units and many."""
    few = plan["few"][measure]
    with module(env, "tests.bench.contestants", name, port) as process:
        before, after = (ask(process, measure, count)["peak"] for count in (few, few * plan["many"]))
    return {"few": few, "many": few * plan["many"], "before": before, "growth": after - before}


def run(names: Iterable[str], grown: Iterable[str], plan: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of the contestants ``names``, and the growth of the memory of those ``grown``."""
    with tempfile.TemporaryDirectory() as cache, module(environment(cache), "tests.bench.server") as server:
        env, port = environment(cache), line_from(server).strip()
        return {
            **speeds(env, port, names, plan),
            "imports": imports(env, names, plan["rounds"]),
            "memory": {
                name: {measure: growth(env, port, name, measure, plan) for measure in ("calls", "events")}
                for name in grown
            },
        }
