"""Servers and contestants as processes, and rounds in which all of them take their turn."""

from __future__ import annotations

import json
import math
import os
import resource
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FOREIGN = ("OPENAI_", "AZURE_", "COVERAGE_", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS")
STARTING = 120  # seconds

Figures = dict[str, Any]
Rounds = dict[str, list[Figures]]
Pythons = Mapping[str, str]  # contestant to the Python that it runs on


class Worker(NamedTuple):
    name: str
    process: subprocess.Popen[str]
    told: Figures | None  # what it can do, and at most how many at once; None if it did not start

    def takes_part(self, measure: str, at_once: int = 0) -> bool:
        """Whether it is asked; one that did not start is, so that it is told of."""
        return self.told is None or (measure in self.told["can"] and self.told["most"] >= at_once)


def environment(cache: str) -> dict[str, str]:
    """This process's environment without proxies and clients' settings; byte code is kept in ``cache``."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) and not k.lower().endswith("_proxy")}
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    return {**ours, **quiet, "PYTHONPYCACHEPREFIX": cache}


@contextmanager
def module(env: Mapping[str, str], python: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A Python module as a process that ends when the pipe to it closes, or is ended."""
    arguments, pipe = [python, "-m", *command], subprocess.PIPE
    with subprocess.Popen(arguments, env=env, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        try:
            yield process
            if process.stdin:
                process.stdin.close()
            process.wait(10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass  # what hangs is ended next
        finally:
            process.kill()


def line_from(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line of a process; "" if none comes in time."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:  # unlike ``select``, for descriptors of any number
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(seconds)
    return process.stdout.readline() if ready else ""


@contextmanager
def server(env: Mapping[str, str], *command: str) -> Iterator[str]:
    """The origin of a loopback server."""
    with module(env, sys.executable, *command) as process:
        port = line_from(process, STARTING).strip()
        if not port:
            raise SystemExit(f"no answer from {process.args!r}")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def workers(env: Mapping[str, str], pythons: Pythons, endpoint: str, names: Iterable[str]) -> Iterator[list[Worker]]:
    """The contestants, each in a process of its own."""
    with ExitStack() as stack:
        found = []
        for name in names:
            process = stack.enter_context(module(env, pythons[name], "tests.bench.worker", name, endpoint))
            line = line_from(process, STARTING)
            if not line:
                process.kill()  # what it is asked says so
                process.wait()
            found.append(Worker(name, process, json.loads(line) if line else None))
        yield found


def ask(worker: Worker, seconds: float, **asked: Any) -> Figures:
    """The figures of a measure, or the ``error`` that came in its place."""
    if worker.process.poll() is not None or not worker.process.stdin:
        return {"error": "its process has ended"}
    try:
        print(json.dumps(asked), file=worker.process.stdin, flush=True)
        line = line_from(worker.process, seconds)
    except BrokenPipeError:
        line = ""
    if line:
        found: Figures = json.loads(line)
        return found
    ended = worker.process.poll() is not None
    worker.process.kill()  # what it would still answer is no answer to the next question
    return {"error": "its process has ended" if ended else f"not done within {seconds:g} s"}


def turns(asks: Mapping[str, Callable[[], Figures]], times: int, seconds: float = math.inf) -> Rounds:
    """What each of ``asks`` gave when all were asked in turn, so many ``times``; who fails is not asked again.

    After so many ``seconds`` no further round begins.
    """
    found: Rounds = {name: [] for name in asks}
    began = time.monotonic()
    for place in range(times):
        if place and time.monotonic() - began > seconds:
            break
        for name, one in asks.items():
            if not found[name] or "error" not in found[name][-1]:
                found[name].append(one())
    return found


def spent(env: Mapping[str, str], python: str, statement: str) -> Figures:
    """What a fresh Python process spends on a ``statement``, its own start included."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([python, "-c", statement], env=env, cwd=ROOT, check=False, capture_output=True, text=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
    if done.returncode:
        return {"error": done.stderr.strip().rpartition("\n")[2]}
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}
