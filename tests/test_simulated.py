"""The simulated server: what it enforces, that its clock moves by itself alone, and what a map makes of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatfn import ChatError, acreate_chat_completion, create_chat_completion, map_chat, responder, simulated
from chatfn.cli import cli
from chatfn.middleware.limit.headers import report_of
from chatfn.pipeline.simulations import simulate
from chatfn.transports.simulated.limits import bucket, fixed, spelled

KEY = {"api_key": "k"}
EXAMPLES = int(os.environ.get("CHATFN_EXAMPLES", "25"))


def params(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def rows(count: int, **more: Any) -> Iterator[dict[str, Any]]:
    return ({"id": number, "params": params(f"row {number}", **more)} for number in range(count))


def ran(server: Any, count: int, concurrency: int = 10, middleware: Any = (), **more: Any) -> list[dict[str, Any]]:
    options = {**KEY, "transport": server, "middleware": middleware}
    return list(map_chat(rows(count, **more), options, concurrency=concurrency))


def said(row: Any) -> str:
    text: str = row["response"]["choices"][0]["message"]["content"]
    return text


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"latncy": 1}, "unknown setting 'latncy' of 'simulated': did you mean 'latency'?"),
        ({"latency": {"medain": 1, "p99": 2}}, "unknown key 'medain' of 'latency' of 'simulated': did you mean"),
        ({"latency": {"median": 2, "p99": 1}}, "'latency' of 'simulated' has a p99 below its median"),
        ({"latency": {"median": 2}}, "'latency' of 'simulated' is no distribution"),
        ({"latency": {"uniform": [2, 1]}}, "'latency' of 'simulated' is uniform from 2 down to 1"),
        ({"latency": "fast"}, "'latency' of 'simulated' is no distribution"),
        ({"latency": []}, "'latency' of 'simulated' is no distribution"),
        ({"latency": -1}, "'latency' of 'simulated' is -1; give a number >= 0"),
        ({"latency": float("nan")}, "'latency' of 'simulated' is nan"),
        ({"limits": {"rmp": 1}}, "unknown limit 'rmp' of 'simulated': did you mean 'rpm'?"),
        ({"limits": {"rpm": 0}}, "'rpm' of 'simulated' is 0; give a number greater than 0"),
        ({"limits": {"window": "bukket"}}, "unknown 'window' in 'limits' of 'simulated', 'bukket': did you mean"),
        ({"limits": {"punish": 1}}, "'punish' in 'limits' of 'simulated' is 1; give true or false"),
        ({"limits": 5}, "'limits' of 'simulated' is 5"),
        ({"faults": {"status": 500}}, "'faults' of 'simulated' is {'status': 500}; give a list of maps"),
        ({"faults": [500]}, "a fault of 'simulated' is 500"),
        ({"faults": [{"rate": 1}]}, "a fault of 'simulated' has either a 'status' or a 'kind'"),
        ({"faults": [{"statsu": 1}]}, "unknown key 'statsu' of a fault of 'simulated': did you mean 'status'?"),
        ({"faults": [{"kind": "timeoutt"}]}, "unknown 'kind' of a fault of 'simulated', 'timeoutt': did you mean"),
        ({"faults": [{"status": 200}]}, "'status' of a fault of 'simulated' is 200; give one from 300 to 599"),
        ({"faults": [{"status": 500, "rate": 2}]}, "'rate' of a fault of 'simulated' is 2"),
        ({"faults": [{"status": 500, "headers": "x"}]}, "'headers' of a fault of 'simulated' are 'x'"),
        ({"faults": [{"status": 500, "rate": 0.6}, {"kind": "cut", "rate": 0.6}]}, "have rates of 1.2 in sum at 0 s"),
        ({"capacity": True}, "'capacity' of 'simulated' is True; give a number"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_known_one(given: Any, problem: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        create_chat_completion(params(), {"transport": ["simulated", given]})
    assert problem in str(caught.value)


# --- limits -------------------------------------------------------------------------------------------------------


@given(
    limit=st.floats(1, 1_000),
    period=st.floats(1, 100),
    window=st.booleans(),
    arrivals=st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 50)), max_size=60),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_no_more_passes_than_a_limit_allows(
    limit: float, period: float, window: bool, arrivals: list[tuple[float, float]]
) -> None:
    """Between any two moments a bucket lets its capacity pass and what has come since, a window at most its limit."""
    meter = fixed(limit, period, 1.0) if window else bucket(limit, period, 0.5)
    now, taken = 0.0, []
    for pause, amount in arrivals:
        now += pause
        left = meter.left(now)
        assert 0 <= left <= limit
        if left >= amount:
            meter.take(amount)
            taken.append((now, amount))
            assert meter.earliest(sum(amount for _, amount in taken)) <= now + 1e-6
        elif amount <= (limit if window else limit / 2):
            assert meter.left(now) < amount
            assert meter.wait(amount) > 0
    for start, (begin, _) in enumerate(taken):
        total = 0.0
        for end, amount in taken[start:]:
            total += amount
            windows = end // period - begin // period + 1
            most = limit * windows if window else limit / 2 + limit / period * (end - begin)
            assert total <= most * (1 + 1e-9) + 1e-6


@given(seconds=st.floats(0, 90_000))
def test_its_times_are_read_as_they_were_meant(seconds: float) -> None:
    headers = {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": spelled(seconds)}
    report = report_of(headers, "requests")
    assert report is not None
    assert report.reset is not None
    assert seconds - 1e-6 <= report.reset <= seconds + 0.0011 + seconds * 1e-5


def test_a_refusal_says_when_to_come_again_and_then_there_is_room() -> None:
    server: Any = simulated(latency=0, output_tokens=1, limits={"rpm": 60, "burst": 1 / 60})
    respond = responder({**KEY, "transport": server, "middleware": []})
    responses = [respond(params()) for _ in range(4)]
    assert [response["status"] for response in responses] == [200, 429, 200, 429]
    assert responses[0]["headers"]["x-ratelimit-limit-requests"] == "60"
    assert responses[0]["headers"]["x-ratelimit-remaining-requests"] == "0"
    assert responses[1]["error"]["category"] == "busy"
    assert responses[1]["error"]["retry_after"] == pytest.approx(1.0, abs=0.01)
    assert server.report()["refused"] == 2


def test_who_does_not_wait_is_refused_again_for_refusals_count() -> None:
    limits = {"rpm": 60, "burst": 1 / 60, "retry_after": False, "headers": False}
    for punish in (True, False):
        server: Any = simulated(latency=0.5, output_tokens=1, limits={**limits, "punish": punish})
        found = ran(server, 200, concurrency=1)
        answered = sum("response" in row for row in found)
        assert answered == 1 if punish else answered >= 3
        refused = [row["error"] for row in found if "error" in row]
        assert all(error["category"] == "busy" and "retry_after" not in error for error in refused)
        assert refused


@pytest.mark.parametrize(("counted", "charged"), [("used", 40 * 5), ("asked", 40 * 50)])
def test_tokens_are_counted_as_used_or_as_asked_for(counted: str, charged: float) -> None:
    server: Any = simulated(output_tokens=5, latency=1, limits={"tpm": 1e6, "counted": counted})
    ran(server, 40, max_tokens=50)
    report = server.report()
    assert report["charged"] - report["tokens"]["m"]["prompt"] == charged
    assert report["tokens"]["m"]["completion"] == 40 * 5


# --- the clock ----------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 40),
    concurrency=st.integers(1, 12),
    latency=st.floats(0.001, 10_000),
    token_latency=st.sampled_from([0.0, 0.5]),
    stream=st.booleans(),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_map_takes_its_virtual_time_and_has_so_many_in_flight(
    count: int, concurrency: int, latency: float, token_latency: float, stream: bool
) -> None:
    server: Any = simulated(latency=latency, token_latency=token_latency, output_tokens=4)
    options = {**KEY, "transport": server, "deadline": None, "request": {"timeout": 1e9}}
    found = list(map_chat(rows(count, stream=stream), options, concurrency=concurrency))
    assert [said(row) for row in found] == [f"row {number}" for number in range(count)]
    rounds = -(-count // concurrency)
    assert server.report()["seconds"] == pytest.approx(rounds * (latency + 4 * token_latency))
    assert server.report()["most_in_flight"] == min(count, concurrency)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    faults = [{"status": 500, "rate": 0.1}, {"kind": "timeout", "rate": 0.05}, {"kind": "crash", "rate": 0.01}]

    def run(seed: int) -> Any:
        server: Any = simulated(latency={"median": 1, "p99": 9}, faults=faults, seed=seed, limits={"rpm": 600})
        retry = ["retry", {"jitter": lambda: 0.5, "attempts": 5}]
        return ran(server, 120, middleware=[retry]), server.report()

    assert run(1) == run(1)
    assert run(1)[1] != run(2)[1]


def test_a_server_with_more_than_it_bears_takes_longer() -> None:
    seconds = []
    for capacity in (10, 5):
        server: Any = simulated(latency=1, capacity=capacity)
        ran(server, 10, concurrency=10)
        seconds.append(server.report()["seconds"])
    assert seconds == [1.0, 2.0]


def test_the_timeout_and_the_deadline_are_virtual_too() -> None:
    for options, end in (({"request": {"timeout": 30}}, 30.0), ({"deadline": 20}, 20.0)):
        for stream in (False, True):
            server: Any = simulated(latency=1_000)
            given = {**KEY, "transport": server, "middleware": [], **options}
            (row,) = map_chat(rows(1, stream=stream), given)
            assert row["error"]["category"] == "interrupted"
            assert server.report()["seconds"] == end


def test_a_stream_with_a_deadline_is_read_to_its_end() -> None:
    server: Any = simulated(latency=1, output_tokens=5)
    options = {**KEY, "transport": server, "deadline": 20}
    assert [said(row) for row in map_chat(rows(3, stream=True), options)] == ["row 0", "row 1", "row 2"]


def test_a_map_that_is_closed_drops_what_is_in_flight_and_another_goes_on_at_its_time() -> None:
    server: Any = simulated(latency={"uniform": [1, 2]})
    found = map_chat(rows(100), {**KEY, "transport": server}, concurrency=7)
    next(found)
    found.close()
    before = server.report()
    assert before["in_flight"] == 0
    assert before["dropped"] == before["requests"] - before["answered"]
    ran(server, 1)
    assert server.report()["seconds"] >= before["seconds"] + 1


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "stream", "category", "status"),
    [
        ({"status": 500}, False, "fault", 500),
        ({"status": 503, "seconds": 3}, True, "busy", 503),
        ({"status": 429, "code": "insufficient_quota"}, False, "forbidden", 429),
        ({"status": 429}, False, "busy", 429),
        ({"kind": "timeout"}, False, "interrupted", 0),
        ({"kind": "unavailable"}, False, "unavailable", 0),
        ({"kind": "cut"}, False, "interrupted", 0),
        ({"kind": "broken"}, False, "interrupted", 0),
        ({"kind": "broken"}, True, "interrupted", 200),
        ({"kind": "crash", "seconds": 1}, True, "unavailable", 0),
    ],
)
def test_a_fault_is_the_error_that_it_would_be(fault: Any, stream: bool, category: str, status: int) -> None:
    server: Any = simulated(latency=1, faults=[fault])
    (row,) = ran(server, 1, stream=stream)
    assert (row["error"]["category"], row["error"]["status"]) == (category, status)
    assert server.report()["failed"] == 1
    if fault == {"kind": "broken"} and stream:
        assert row["error"]["partial"]["choices"][0]["message"]["content"] == "row"


def test_a_fault_comes_at_its_rate_and_in_its_time_and_of_its_url() -> None:
    server: Any = simulated(latency=1, faults=[{"status": 500, "rate": 0.2, "from": 10, "until": 60}], seed=4)
    found = ran(server, 1_000, concurrency=10)
    wrong = [row["id"] for row in found if "error" in row]
    assert all(100 <= number < 600 for number in wrong)
    assert 60 <= len(wrong) <= 140
    server = simulated(latency=1, faults=[{"status": 500, "url": "elsewhere"}])
    assert all("response" in row for row in ran(server, 10))


def test_a_crash_breaks_all_that_is_in_flight_and_the_server_is_away_for_its_time() -> None:
    server: Any = simulated(latency=[2, 3], faults=[{"kind": "crash", "seconds": 5, "from": 1.5, "until": 3}])
    found = ran(server, 60, concurrency=4)
    errors = Counter(row["error"]["message"] for row in found if "error" in row)
    assert errors["the simulated server crashed before it answered"] == 4
    assert errors["the simulated server takes no connection"] >= 1
    assert sum("response" in row for row in found) + sum(errors.values()) == 60


# --- answers ------------------------------------------------------------------------------------------------------


def test_single_calls_are_answered_at_once() -> None:
    server: Any = simulated(latency=3_600, output_tokens=7, limits={"rpm": 10})
    completion = create_chat_completion(params("hello"), {**KEY, "transport": server, "request": {"timeout": 9_999}})
    assert completion["choices"][0]["message"]["content"] == "hello"
    assert completion["usage"]["completion_tokens"] == 7
    events = list(create_chat_completion(params("hello", stream=True), {"transport": ["simulated", {}]}))
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    awaited = asyncio.run(acreate_chat_completion(params("hello"), {"transport": ["simulated", {"latency": 9}]}))
    assert awaited["object"] == "chat.completion"
    assert server.report()["seconds"] == 3_600.0


def test_tools_formats_and_choices_are_answered_as_they_are_asked_for() -> None:
    transport = ["simulated", {"output_tokens": 9}]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    called = create_chat_completion(params(tools=[tool], tool_choice="required"), {"transport": transport})
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    two = create_chat_completion(params(n=2), {"transport": transport})
    assert (len(two["choices"]), two["usage"]["completion_tokens"]) == (2, 18)
    short = create_chat_completion(params(max_tokens=4), {"transport": transport})
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (4, "length")
    with pytest.raises(ChatError, match="incorrect"):
        create_chat_completion({"model": "m", "messages": []}, {"transport": transport})


# --- a whole job --------------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 60),
    concurrency=st.integers(1, 20),
    rpm=st.sampled_from([None, 60, 600]),
    seed=st.integers(0, 99),
    rate=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=EXAMPLES, deadline=None)
@example(0, 1, None, 0, 0.0)
def test_what_is_simulated_is_what_a_map_does(
    count: int, concurrency: int, rpm: int | None, seed: int, rate: float
) -> None:
    """``simulate`` has the seconds, the refusals and the errors of ``map_chat`` on the transport of the same settings."""
    server = {
        "latency": {"median": 1, "p99": 4},
        "output_tokens": 5,
        "limits": {"rpm": rpm, "burst": 0.05},
        "faults": [{"status": 500, "rate": rate}],
        "seed": seed,
    }
    middleware = [["retry", {"attempts": 3, "jitter": lambda: 0.5}]]
    transport: Any = simulated(**server)
    found = ran(transport, count, concurrency, middleware)
    (run,) = simulate(rows(count), {**KEY, "middleware": middleware}, server, concurrency=concurrency)["runs"]
    report = transport.report()
    assert run["seconds"] == pytest.approx(report["seconds"])
    assert (run["requests"], run["refused"]) == (report["requests"], report["refused"])
    assert run["errors"] == Counter(row["error"]["category"] for row in found if "error" in row)
    assert run["answered"] == sum("response" in row for row in found)


def test_a_simulation_knows_its_cost_its_best_and_its_budget() -> None:
    prices = {"m": {"input": 1, "output": 10, "max_output_tokens": 100}}
    server = {"latency": 2, "output_tokens": 50, "capacity": 20, "faults": [{"kind": "cut", "rate": 0.1}]}
    found = simulate(rows(200), KEY, server, concurrency=[1, 20, 40], prices=prices)
    assert found["best"] == 20
    run = found["runs"][0]
    tokens = run["tokens"]
    assert tokens["output"] == 200 * 50
    assert run["cost"]["low"] == pytest.approx((tokens["input"] + 10 * tokens["output"]) / 1e6)
    assert run["cost"]["high"] > 1.05 * run["cost"]["low"]
    unknown = simulate(rows(2), KEY, {}, prices={"other": {"input": 1, "output": 1}})["runs"][0]["cost"]
    assert unknown["low"] is None
    assert unknown["unknown"]
    budget = ["budget", {"usd": 0.01, "prices": prices}]
    stopped = simulate(rows(200), {**KEY, "middleware": ["retry", budget]}, server, prices=prices)
    assert "the budget is spent" in stopped["runs"][0]["stopped"]
    assert stopped["runs"][0]["cost"]["high"] <= 0.01
    again = simulate(rows(200), {**KEY, "middleware": ["retry", budget]}, server, prices=prices)
    assert again["runs"][0]["answered"] == stopped["runs"][0]["answered"] > 0


def test_a_simulation_counts_rows_that_can_not_be_sent() -> None:
    found = simulate([{"params": params()}, {"nothing": 1}, {"params": None}], KEY, {"latency": 1})
    assert (found["rows"], found["bad"], found["runs"][0]["answered"]) == (1, 2, 1)
    with pytest.raises(ValueError, match="concurrency is 0"):
        simulate([], KEY, {}, concurrency=[0])
    with pytest.raises(ValueError, match="is no flow"):
        simulate([], {**KEY, "middleware": [lambda handler: handler]}, {})


def test_the_command_simulates_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source, server = tmp_path / "in.jsonl", tmp_path / "server.json"
    source.write_text("".join(json.dumps({"n": number}) + "\n" for number in range(300)))
    server.write_text(json.dumps({"latency": 1, "output_tokens": 10, "limits": {"rpm": 6_000}}))
    out = tmp_path / "out.jsonl"
    args = ["map", str(source), str(out), "--prompt", "What is {n}?", "--simulate", str(server)]
    found = CliRunner().invoke(cli, [*args, "--concurrency", "10,100"], env={"OPENAI_API_KEY": None})
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0].endswith("300 rows, simulated; nothing sent")
    assert [line.split()[:2] for line in lines[2:4]] == [["10", "0:30"], ["100", "0:03"]]
    assert "best: --concurrency 100" in lines
    data = json.loads(CliRunner().invoke(cli, [*args, "--json"]).output)
    assert (data["rows"], data["runs"][0]["concurrency"]) == (300, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "server.json"]
    several = CliRunner().invoke(cli, ["map", str(source), str(out), "--prompt", "x", "--concurrency", "1,2"])
    assert several.exit_code == 2
    assert CliRunner().invoke(cli, [*args, "--concurrency", "0"]).exit_code == 2
    server.write_text('{"latncy": 1}')
    wrong = CliRunner().invoke(cli, args)
    assert "did you mean 'latency'" in str(wrong.exception)
