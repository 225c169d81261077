"""Laws of all policies together: random schedules of faults, limits, budgets and crashes on the simulated server.

A crash ends a map at some step of its engine.  After "kill" the next run finds the files as they were at that step, and
nothing else, as another process would; after "close" the map was closed in order, in the same process.
``CHATFN_EXAMPLES`` sets how many schedules are tried.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from chatfn import ChatError, map_chat, simulated
from chatfn.journal import stores
from chatfn.middleware.balance import forget
from chatfn.middleware.ledger import ledgers
from chatfn.middleware.limit import account_of

EXAMPLES = int(os.environ.get("CHATFN_EXAMPLES", "25"))
OPTIONS = {"api_key": "k", "api_endpoint": "https://one.example/v1", "deadline": None}
MOST_STEPS = 40_000  # of one run: more is no progress
FEW = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=set(Phase) - {Phase.explain}
)


class Crash(BaseException):
    """The end of a run, at a step of its engine."""


class Job(NamedTuple):
    texts: list[str]  # of the rows; equal ones are one call
    streams: bool
    concurrency: int
    ordered: bool
    server: dict[str, Any]
    layers: list[Any]
    crashes: list[tuple[int, str]]  # a step, and how


class Run(NamedTuple):
    rows: list[dict[str, Any]]
    stopped: str | None  # by a budget
    steps: int


def row_of(job: Job, number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": job.texts[number]}]
    usage = {"stream": True, "stream_options": {"include_usage": True}} if job.streams else {}
    return {"id": number, "params": {"model": "m", "messages": messages, "max_tokens": 20, **usage}}


def stepping(transport: Any, at: int | None, crashed: Callable[[], None], steps: list[int]) -> Any:
    """The transport, with an engine that crashes at a step of it."""

    def step() -> None:
        steps[0] += 1
        assert steps[0] < MOST_STEPS, "no progress"
        if steps[0] == at:
            crashed()
            raise Crash

    def driver() -> Any:
        inner = transport.driver()

        def send(request: Any, done: Any) -> None:
            step()
            inner.send(request, done)

        def wait(seconds: float | None) -> None:
            step()
            inner.wait(seconds)

        return inner._replace(send=send, wait=wait)

    def send(request: Any) -> Any:
        return transport(request)

    send.driver, send.inline = driver, True  # type: ignore[attr-defined]  # as of a transport with its own driver
    return send


def run_of(job: Job, server: Any, path: Path | None, crash: tuple[int, str] | None, **more: Any) -> Run | Path:
    """A run to its end, or the journal that is left after its crash."""
    steps, left = [0], path

    def crashed() -> None:
        nonlocal left
        if crash is not None and crash[1] == "kill" and path is not None:
            left = path.parent / f"{path.name}x"
            for suffix in ("", "-wal"):
                if os.path.exists(f"{path}{suffix}"):
                    shutil.copy(f"{path}{suffix}", f"{left}{suffix}")

    transport = stepping(server, None if crash is None else crash[0], crashed, steps)
    journal = [] if path is None else [["journal", {"path": str(path), **more}]]
    options = {**OPTIONS, "transport": transport, "middleware": [*journal, *job.layers]}
    rows, stopped = [], None
    try:
        inputs = (row_of(job, number) for number in range(len(job.texts)))
        for row in map_chat(inputs, options, concurrency=job.concurrency, ordered=job.ordered):
            rows.append(row)
    except ChatError as exc:
        stopped = str(exc)
    except Crash:
        assert left is not None
        if left != path:
            new_process()
        return left
    return Run(rows, stopped, steps[0])


def new_process() -> None:
    """Forget what a process knows that has begun just now."""
    ledgers.clear()
    account_of.cache_clear()
    forget()
    for one in list(stores.stores.values()):
        one.close()
    stores.stores.clear()
    stores.paths.clear()


def check_rows(job: Job, run: Run) -> None:
    """Each row once, in its order, with its own answer, and no row is lost unless a budget stopped the run."""
    numbers = [row["id"] for row in run.rows]
    assert len(set(numbers)) == len(numbers), "a row came out twice"
    if run.stopped is None:
        assert sorted(numbers) == list(range(len(job.texts))), "a row is lost"
    if job.ordered:
        assert numbers == sorted(numbers)
    for row in run.rows:
        assert ("response" in row) != ("error" in row)
        if "response" in row:
            assert row["response"]["choices"][0]["message"]["content"] == job.texts[row["id"]]


def check_job(job: Job) -> None:
    """The laws of a job with a journal, through all of its crashes."""
    new_process()
    server: Any = simulated(**job.server)
    cap = cap_of(job)
    with tempfile.TemporaryDirectory() as folder:
        path, lost = Path(folder) / "j", 0
        for crash in job.crashes:
            found = run_of(job, server, path, crash)
            check_cap(server, cap)
            if isinstance(found, Run):
                check_rows(job, found)
            else:
                path, lost = found, lost + job.concurrency
        run = run_of(job, server, path, None)
        assert isinstance(run, Run)
        check_rows(job, run)
        check_cap(server, cap)
        if run.stopped is not None:  # it goes on when there is more money
            job = job._replace(layers=[layer for layer in job.layers if layer[0] != "budget"])
            run = run_of(job, server, path, None)
            assert isinstance(run, Run)
            check_rows(job, run)
        answers = {job.texts[row["id"]] for row in run.rows if "response" in row}
        report = server.report()
        assert report["answered"] <= len(answers) + (lost if job.streams else 0), "an answered call was sent again"
        again = run_of(job, server, path, None, errors="keep")
        assert isinstance(again, Run)
        assert server.report()["requests"] == report["requests"], "what the journal knows was sent again"
        assert all(("response" in row) == (job.texts[row["id"]] in answers) for row in again.rows)
        new_process()


def cap_of(job: Job) -> int | None:
    """The tokens that may be paid for in all runs together."""
    return next((layer[1]["tokens"] for layer in job.layers if layer[0] == "budget"), None)


def check_cap(server: Any, cap: int | None) -> None:
    tokens = server.report()["tokens"].get("m", {"prompt": 0, "completion": 0})
    assert cap is None or tokens["prompt"] + tokens["completion"] <= cap, "more was paid than the budget has"


FAULTS = st.sampled_from(
    [
        {"status": 500},
        {"status": 429},
        {"status": 429, "headers": {"retry-after": "3"}},
        {"status": 400},
        {"kind": "timeout"},
        {"kind": "unavailable"},
        {"kind": "cut"},
        {"kind": "broken"},
        {"kind": "crash", "seconds": 2},
    ]
)


@st.composite
def servers(draw: Any) -> dict[str, Any]:
    faults = draw(st.lists(FAULTS, max_size=4))
    rates = [draw(st.sampled_from([0.02, 0.1, 0.24])) for _ in faults]
    limits = draw(
        st.sampled_from([{}, {"rpm": 120, "burst": 0.05}, {"rpm": 60, "tpm": 3_000, "window": "fixed", "period": 10}])
    )
    return {
        "latency": draw(st.sampled_from([0.5, {"uniform": [0.1, 3]}, {"median": 1, "p99": 30}])),
        "output_tokens": {"uniform": [10, 30]},
        "bytes_per_token": 0.35,  # so that calls cost nearly what a budget has to hold for them
        "limits": limits,
        "faults": [{**fault, "rate": rate} for fault, rate in zip(faults, rates, strict=True)],
        "seed": draw(st.integers(0, 10_000)),
    }


@st.composite
def jobs(draw: Any, layers: Any) -> Job:
    count = draw(st.integers(1, 24))
    distinct = draw(st.integers(1, count))
    texts = [f"row{draw(st.integers(0, distinct - 1))}" for _ in range(count)]
    crashes = st.tuples(st.integers(1, 12 * count), st.sampled_from(["kill", "close"]))
    return Job(
        texts,
        draw(st.booleans()),
        draw(st.integers(1, 8)),
        draw(st.booleans()),
        draw(servers()),
        draw(layers),
        draw(st.lists(crashes, max_size=3)),
    )


def jitter() -> float:
    return 0.5


def retry(attempts: int) -> list[Any]:
    return ["retry", {"attempts": attempts, "jitter": jitter}]


def budget(tokens: int) -> list[Any]:
    return ["budget", {"tokens": tokens}]


RETRIES = st.integers(1, 4).map(retry)


@given(jobs(st.tuples(RETRIES).map(list)))
@FEW
def test_retry_and_journal(job: Job) -> None:
    check_job(job)


@given(jobs(st.tuples(RETRIES, st.integers(400, 12_000).map(budget)).map(list)))
@FEW
def test_retry_budget_and_journal(job: Job) -> None:
    check_job(job)


@given(jobs(st.tuples(RETRIES, st.integers(400, 12_000).map(budget), st.just("limit")).map(list)))
@FEW
def test_retry_budget_limit_and_journal(job: Job) -> None:
    check_job(job)


@given(
    rpm=st.one_of(st.none(), st.integers(100, 600)),
    tpm=st.integers(20_000, 80_000),
    window=st.sampled_from(["bucket", "fixed"]),
    latency=st.sampled_from([0.5, {"uniform": [0.2, 4]}, {"median": 1, "p99": 6}]),
    spare=st.floats(2, 10),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=max(1, EXAMPLES // 5), deadline=None, phases=set(Phase) - {Phase.explain, Phase.shrink})
def test_a_limited_map_takes_hardly_longer_than_it_must_and_nobody_starves(
    rpm: int | None, tpm: int, window: str, latency: Any, spare: float, seed: int
) -> None:
    """With calls in flight to spare, and limits that nobody told it, a map keeps up with them, first come, first served."""
    new_process()
    limits = {"rpm": rpm, "tpm": tpm, "window": window}
    output = {"median": 80, "p99": 300}
    server: Any = simulated(latency=latency, output_tokens=output, limits=limits, seed=seed)
    rate = min(rpm or inf, tpm / 120) / 60  # requests a second
    count = int(3 * 60 * rate)
    times: dict[int, float] = {}  # when a row was first sent

    def noting() -> Any:
        inner = server.driver()

        def send(request: Any, done: Any) -> None:
            number = int(json.loads(request["body"])["messages"][0]["content"].split()[0])
            times.setdefault(number, inner.now())
            inner.send(request, done)

        return inner._replace(send=send)

    def transport(request: Any) -> Any:
        return server(request)

    transport.driver, transport.inline = noting, True  # type: ignore[attr-defined]  # as of a transport with a driver
    texts = [f"{number} {'x' * (number % 100)}" for number in range(count)]
    inputs = ({"params": {"model": "m", "messages": [{"role": "user", "content": text}]}} for text in texts)
    options = {**OPTIONS, "transport": transport, "middleware": [retry(6), "limit"]}
    concurrency = int(rate * spare * 2) + 8
    found = list(map_chat(inputs, options, concurrency=concurrency))
    report = server.report()
    note(f"{count} rows, {concurrency} in flight, {report}")
    assert all("response" in row for row in found)
    minutes = max(count / (rpm or inf), report["charged"] / tpm)
    burst = min(count, 60 * rate) * 2.1 / concurrency  # seconds for what may pass at once, at the slowest latency
    if window == "fixed":
        assert report["last"] <= 60 * ceil(1.1 * minutes) + burst  # in the window in which it should end
    else:
        assert report["last"] <= 60 * 1.1 * max(0, minutes - 1) + burst + 12  # seconds to learn the limits
    assert report["refused"] <= 0.05 * report["requests"] + 5
    later = inf
    for number in range(count - 1, -1, -1):  # who came much later is not sent much earlier
        later = min(later, times.get(number + 2 * concurrency, inf))
        assert times[number] <= later + 61  # a window


@pytest.mark.parametrize("how", ["kill", "close"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_crash_at_every_step(how: str, streams: bool) -> None:
    """No row is lost or paid for twice, wherever the first run ends."""
    faults = [{"status": 500, "rate": 0.2}, {"kind": "cut", "rate": 0.2}]
    server = {"latency": {"uniform": [0.5, 2]}, "output_tokens": 20, "faults": faults, "seed": 3}
    job = Job(["a", "b", "a", "c"], streams, 2, True, server, [retry(3), budget(10_000), "limit"], [])
    whole = run_of(job, simulated(**server), None, None)
    assert isinstance(whole, Run)
    for step in range(1, whole.steps + 3):
        check_job(job._replace(crashes=[(step, how), (step + 3, how)]))


TARGETS = ["fallback", "balance"]


@st.composite
def routes(draw: Any) -> tuple[dict[str, Any], list[Any]]:
    """A server, one of whose two deployments is well, and the layers for both."""
    own = st.lists(st.sampled_from([{"status": 503}, {"status": 429}, {"kind": "unavailable"}]), max_size=2)
    rates = st.sampled_from([0.1, 0.5])
    faults = [{**fault, "rate": draw(rates), "url": "one.example"} for fault in draw(own)]
    down = draw(st.integers(0, 20))
    faults.append({"status": 503, "rate": 1.0 - sum(fault["rate"] for fault in faults), "url": "one.example"})
    server = {
        "latency": draw(st.sampled_from([0.5, {"uniform": [0.1, 3]}])),
        "faults": [*faults[:-1], {**faults[-1], "from": down, "until": down + 10}],
        "seed": draw(st.integers(0, 10_000)),
    }
    other = {"api_endpoint": "https://two.example/v1", "api_key": "k2", "model": "m"}
    more = {"chance": jitter} if draw(st.booleans()) else {}
    name = draw(st.sampled_from(TARGETS))
    layer = [name, {"impls": [other], **(more if name == "balance" else {})}]
    return server, [layer, retry(draw(st.integers(1, 3))), *draw(st.sampled_from([[], ["limit"]]))]


@given(route=routes(), job=jobs(st.just([])))
@FEW
def test_while_one_target_is_well_every_row_has_an_answer(route: tuple[dict[str, Any], list[Any]], job: Job) -> None:
    server, layers = route
    job = job._replace(server=server, layers=layers)
    check_job(job)
    answered = simulated(**server)
    new_process()
    run = run_of(job, answered, None, None)
    assert isinstance(run, Run)
    check_rows(job, run)
    if layers[0][0] == "fallback":
        assert all("response" in row for row in run.rows)
