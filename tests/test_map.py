"""The laws of maps over rows: each row exactly once, lazily, whatever happens to it, and nothing left behind.

Every law is tested on threads and on an event loop, called and awaited, where it can differ.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyrsistent import freeze, pmap
from rawserver import STREAM_HEAD, answer, delta, endless, event, raw_server, stream, until_gone
from toolz import pipe
from toolz.curried import filter as keeping
from toolz.curried import map as mapping

from chatfn import amap_chat, build_request, map_chat, scripted, text_of

WAYS = [(call, pool) for call in ("map", "amap") for pool in ("threads", "loop")]
IDS = ["-".join(way) for way in WAYS]
AHEAD = 16  # times the concurrency, as the documentation has it
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ECHO = {"transport": "echo"}
NO_RETRY: dict[str, Any] = {"middleware": []}
RETRY: dict[str, Any] = {"middleware": [["retry", {"attempts": 3, "base": 0.0}]]}
LONGEST = 15  # seconds that a test may last
Plan = Callable[[Any], tuple[float, Any]]  # a request to seconds, and its response map or exception


class Stuck(BaseException):
    """A map that does not end."""


def params_for(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": str(text)}], **more}


def row_for(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "params": params_for(number), **more}


def rows_to(number: int) -> list[dict[str, Any]]:
    return [row_for(n) for n in range(number)]


def asked(request: Any) -> str:
    return str(json.loads(request["body"])["messages"][-1]["content"])


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": f"c{text}", "object": "chat.completion", "choices": [choice], "usage": USAGE}


def reply(text: str, status: int = 200, **headers: Any) -> dict[str, Any]:
    body = completion(text) if status == 200 else {"error": {"message": text}}
    return {
        "status": status,
        "headers": {name.replace("_", "-"): str(value) for name, value in headers.items()},
        "body": json.dumps(body).encode(),
    }


def good(request: Any) -> tuple[float, Any]:
    return 0.0, reply(asked(request))


def sending(pool: str, plan: Plan = good) -> Callable[[Any], Any]:
    """A transport of the caller's own, blocking for threads and awaitable for a loop, that does as planned."""

    def given_(outcome: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def send(request: Any) -> Any:
        seconds, outcome = plan(request)
        time.sleep(seconds)
        return given_(outcome)

    async def asend(request: Any) -> Any:
        seconds, outcome = plan(request)
        await asyncio.sleep(seconds)
        return given_(outcome)

    return asend if pool == "loop" else send


def mapped(call: str, rows: Any, options: Any, **settings_: Any) -> list[Any]:
    """All rows of a map, called or awaited."""
    if call == "map":
        return list(map_chat(rows, options, **settings_))

    async def collected() -> list[Any]:
        return [row async for row in amap_chat(rows, options, **settings_)]

    return asyncio.run(collected())


def first_of(call: str, rows: Any, options: Any, number: int, **settings_: Any) -> list[Any]:
    """The first rows of a map that is closed after them."""
    if call == "map":
        found = map_chat(rows, options, **settings_)
        try:
            return list(islice(found, number))
        finally:
            found.close()

    async def collected() -> list[Any]:
        found_ = amap_chat(rows, options, **settings_)
        try:
            return [await anext(found_) for _ in range(number)]
        finally:
            await found_.aclose()

    return asyncio.run(collected())


EARLIER: set[threading.Thread] = set()  # what other tests left, should they have failed
SOON = 4.0  # seconds that the end of a map may take on a busy machine: less than those after which it gives up


def threads() -> list[str]:
    """The names of the threads of this test's maps."""
    return [one.name for one in set(threading.enumerate()) - EARLIER if one.name.startswith("chatfn-map")]


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true within seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def _nothing_hangs_and_no_thread_is_left() -> Iterator[None]:
    def complain(*_: Any) -> None:
        raise Stuck

    EARLIER.update(threading.enumerate())
    handler = signal.signal(signal.SIGALRM, complain)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert soon(lambda: threads() == []), threads()


both = pytest.mark.parametrize(("call", "pool"), WAYS, ids=IDS)
calls = pytest.mark.parametrize("call", ["map", "amap"])
pools = pytest.mark.parametrize("pool", ["threads", "loop"])
orders = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


# Every row exactly once

FATES = ["good", "slow", "refused", "busy", "down", "raises", "unsendable", "bare", "no map"]


def fated(fates: list[str]) -> tuple[list[Any], Plan]:
    """A row for each fate, and the transport's part in them."""
    tries: Counter[str] = Counter()
    lock = threading.Lock()

    def plan(request: Any) -> tuple[float, Any]:
        text = asked(request)
        fate = fates[int(text)]
        with lock:
            tries[text] += 1
            again = tries[text] > 1
        if fate == "refused":
            return 0.0, reply("no", 400)
        if fate == "busy" and not again:
            return 0.0, reply("slow down", 429, retry_after_ms=2)
        if fate == "down":
            return 0.0, reply("down", 500)
        if fate == "raises":
            return 0.0, RuntimeError("a transport's own mistake")
        return (0.003 if fate == "slow" else 0.0), reply(text)

    def row(number: int, fate: str) -> Any:
        if fate == "bare":
            return {"id": number}
        if fate == "no map":
            return number
        return {"id": number, "params": params_for(number, seed=float("nan") if fate == "unsendable" else 1)}

    return [row(number, fate) for number, fate in enumerate(fates)], plan


def check_fate(number: int, fate: str, row: Any) -> None:
    assert ("response" in row) != ("error" in row)
    if fate in ("good", "slow", "busy"):
        assert text_of(row["response"]) == str(number)
        assert row["attempts"] == (2 if fate == "busy" else 1)
        assert row["usage"] == USAGE
        return
    error = row["error"]
    assert row["usage"] is None
    expected = {"refused": "incorrect", "down": "fault", "raises": "fault"}
    assert error["category"] == expected.get(fate, "incorrect"), (fate, error)
    if fate == "down":
        assert row["attempts"] == error["attempts"] == 3


def number_of(row: Any) -> int:
    return int(row["id"] if "id" in row else row["row"])


@both
@settings(max_examples=25, deadline=None)
@given(fates=st.lists(st.sampled_from(FATES), max_size=40), concurrency=st.integers(1, 24), ordered=st.booleans())
@example(fates=[], concurrency=1, ordered=True)
@example(fates=FATES * 5, concurrency=3, ordered=True)
@example(fates=FATES * 5, concurrency=3, ordered=False)
def test_every_row_comes_out_once_with_its_own_result(
    call: str, pool: str, fates: list[str], concurrency: int, ordered: bool
) -> None:
    rows, plan = fated(fates)
    found = mapped(
        call, iter(rows), {**RETRY, "transport": sending(pool, plan)}, concurrency=concurrency, ordered=ordered
    )
    numbers = [number_of(row) for row in found]
    assert sorted(numbers) == list(range(len(fates)))
    if ordered:
        assert numbers == sorted(numbers)
    for number, row in zip(numbers, found, strict=True):
        check_fate(number, fates[number], row)


@calls
@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="!")), max_size=60), size=st.integers(1, 9)
)
def test_the_map_is_the_call_for_each_row(call: str, texts: list[str], size: int) -> None:
    from chatfn import responder

    respond = responder(ECHO)
    rows = [{"text": text, "params": params_for(text)} for text in texts]
    found = mapped(call, rows, ECHO, concurrency=size)
    assert [row["text"] for row in found] == texts
    for row in found:
        response = respond(params_for(row["text"]))
        assert row.get("response") == (None if "error" in response else response["body"])
        assert row.get("error") == response.get("error")


@both
def test_unordered_rows_come_as_they_are_done(call: str, pool: str) -> None:
    transport = sending(pool, lambda request: (0.2 if asked(request) == "0" else 0.0, reply(asked(request))))
    options = {"transport": transport}
    found = mapped(call, rows_to(20), options, concurrency=4, ordered=False)
    assert found[-1]["id"] == 0
    assert sorted(row["id"] for row in found) == list(range(20))
    assert [row["id"] for row in mapped(call, rows_to(20), options, concurrency=4)] == list(range(20))


def test_a_script_is_used_up_by_rows_once_each() -> None:
    transport = scripted([completion(str(n)) for n in range(50)])
    found = list(map_chat(rows_to(50), {"transport": transport}, concurrency=7))
    assert sorted(int(text_of(row["response"])) for row in found) == list(range(50))


def test_no_argument_is_changed_and_frozen_rows_are_rows() -> None:
    rows, options = freeze(rows_to(9)), freeze(ECHO)
    found = list(map_chat(rows, options))
    assert [type(row) for row in found] == [dict] * 9
    assert [row["id"] for row in found] == list(range(9))
    assert rows == freeze(rows_to(9))
    plain = rows_to(3)
    list(map_chat(plain, ECHO))
    assert plain == rows_to(3)


@both
def test_what_a_row_carries_comes_out_with_it(call: str, pool: str) -> None:
    marker = object()
    rows = [{"id": n, "params": params_for(n), "any": marker, 7: None} for n in range(3)]
    for row in mapped(call, rows, {"transport": sending(pool)}):
        assert row["any"] is marker
        assert row[7] is None


@calls
def test_rows_of_a_run_can_be_fed_again(call: str) -> None:
    """The results of the last run are not those of this one."""
    bad = {"transport": sending("threads", lambda _: (0.0, reply("no", 400)))}
    once = mapped(call, rows_to(3), bad)
    assert all("error" in row and "response" not in row for row in once)
    twice = mapped(call, once, ECHO)
    assert all("response" in row and "error" not in row for row in twice)
    assert mapped(call, twice, bad) == once


def test_rows_that_a_journal_answered_before_forget_it() -> None:
    row = next(map_chat([{**row_for(1), "cached": True}], ECHO))
    assert "cached" not in row


def test_usage_and_attempts_of_what_went_wrong_half_way_are_kept() -> None:
    events = [delta("half"), {**delta(""), "usage": USAGE}]
    transport = scripted([{"status": 200, "body": [json.dumps(e).join(("data: ", "\n\n")).encode() for e in events]}])
    (row,) = map_chat([{"params": params_for(1, stream=True)}], {**NO_RETRY, "transport": transport})
    assert text_of(row["error"]["partial"]) == "half"
    assert row["usage"] == USAGE
    assert row["attempts"] == 1


@both
def test_streams_fold(call: str, pool: str) -> None:
    """A row whose params ask for a stream has the whole completion all the same."""
    with raw_server([stream("a", "b", "c")]) as server:
        transport = "aiohttp" if pool == "loop" else "requests"
        options = {"api_key": "k", "api_endpoint": server.url, "transport": transport}
        rows = [{"id": n, "params": params_for(n, stream=True)} for n in range(8)]
        found = mapped(call, rows, options, concurrency=3)
    assert [text_of(row["response"]) for row in found] == ["abc"] * 8
    assert [row["id"] for row in found] == list(range(8))


@both
def test_real_transports_on_real_connections(call: str, pool: str) -> None:
    def script(request: Any) -> list[Any]:
        number = int(json.loads(request["body"])["messages"][0]["content"])
        return [answer(completion(str(number)))] if number % 5 else [answer({"error": "no"}, 400)]

    with raw_server(script) as server:
        transport = "aiohttp" if pool == "loop" else "requests"
        options = {"api_key": "k", "api_endpoint": server.url, "transport": transport}
        found = mapped(call, rows_to(100), options, concurrency=8)
        assert len(server.requests) == 100
        assert len(server.connections) <= 8
    assert [row["id"] for row in found] == list(range(100))
    assert [text_of(row["response"]) if "response" in row else "" for row in found] == [
        str(n) if n % 5 else "" for n in range(100)
    ]


def test_params_of_makes_the_params_of_any_row() -> None:
    found = list(map_chat(["a", "b"], ECHO, params_of=params_for))
    assert [(row["row"], text_of(row["response"])) for row in found] == [("a", "a"), ("b", "b")]
    found = list(map_chat([pmap({"q": "c"})], ECHO, params_of=lambda row: params_for(row["q"])))
    assert found[0]["q"] == text_of(found[0]["response"]) == "c"


def test_a_row_s_sample_reaches_the_request_and_not_the_wire() -> None:
    seen: list[Any] = []

    def send(request: Any) -> Any:
        seen.append((request.get("sample"), b"sample" in request["body"]))
        return reply(asked(request))

    rows = [row_for(1, sample=n) for n in (None, 0, 1, "x")]
    found = list(map_chat(rows, {"transport": send}, concurrency=1))
    assert seen == [(None, False), (0, False), (1, False), ("x", False)]
    assert [row["sample"] for row in found] == [None, 0, 1, "x"]


# Lazy on both sides


class Source:
    """An endless iterator of rows that counts how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.taken += 1
        return row_for(self.taken - 1)

    async def alist(self) -> AsyncIterator[Any]:
        for row in self:
            yield row


@pools
@orders
def test_nothing_is_taken_before_the_first_row_is_asked_for(pool: str, ordered: bool) -> None:
    source = Source()
    found = map_chat(source, {"transport": sending(pool)}, ordered=ordered)
    assert source.taken == 0
    assert threads() == []
    next(found)
    assert 0 < source.taken <= 2 * 16
    found.close()


@pools
@orders
@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_what_is_taken_and_not_given_is_bounded_by_the_concurrency(pool: str, ordered: bool, concurrency: int) -> None:
    source, most = Source(), 0
    transport = sending(pool, lambda request: (0.002 if asked(request).endswith("7") else 0.0, reply(asked(request))))
    found = map_chat(source, {"transport": transport}, ordered=ordered, concurrency=concurrency)
    for given_out, _ in enumerate(islice(found, 300), 1):
        most = max(most, source.taken - given_out)
    taken = source.taken
    time.sleep(0.05)
    assert source.taken == taken, "rows are taken only when the consumer asks"
    found.close()
    assert most <= AHEAD * concurrency


@pools
@orders
def test_what_is_taken_is_bounded_though_every_row_waits_and_ctrl_c_passes_at_once(pool: str, ordered: bool) -> None:
    source = Source()
    transport = sending(pool, lambda _: (0.0, reply("slow down", 429, retry_after=60)))
    seen: list[Any] = []

    def interrupt() -> None:
        assert soon(lambda: source.taken >= AHEAD * 3)
        time.sleep(0.05)
        seen.extend((source.taken, len(threads()), time.monotonic()))
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        next(map_chat(source, {**RETRY, "transport": transport}, ordered=ordered, concurrency=3))
    other.join()
    taken, running, interrupted = seen
    assert taken == AHEAD * 3
    assert running <= 3 + 1
    assert time.monotonic() - interrupted < 20


@pools
def test_a_slow_first_row_does_not_stop_the_others_until_the_bound(pool: str) -> None:
    source, sent = Source(), []

    def plan(request: Any) -> tuple[float, Any]:
        sent.append(asked(request))
        return (0.3 if asked(request) == "0" else 0.0), reply(asked(request))

    found = map_chat(source, {"transport": sending(pool, plan)}, concurrency=2)
    assert next(found)["id"] == 0
    assert len(sent) == source.taken == AHEAD * 2
    found.close()


def test_an_endless_asynchronous_iterator_is_taken_lazily() -> None:
    async def run() -> None:
        source = Source()
        found = amap_chat(source.alist(), ECHO, concurrency=4)
        assert source.taken == 0
        assert [(await anext(found))["id"] for _ in range(50)] == list(range(50))
        assert source.taken <= 50 + AHEAD * 4
        await found.aclose()

    asyncio.run(run())


# Waiting rows


@both
@orders
def test_a_row_that_waits_holds_no_thread_and_no_place(call: str, pool: str, ordered: bool) -> None:
    """Half of the rows are told to come back in 0.3 s: all of them wait at the same time."""
    tries: Counter[str] = Counter()
    most = 0

    def plan(request: Any) -> tuple[float, Any]:
        text = asked(request)
        tries[text] += 1
        if int(text) % 2 and tries[text] == 1:
            return 0.0, reply("slow down", 429, retry_after_ms=300)
        return 0.0, reply(text)

    def count_threads(rows: Iterable[Any]) -> Iterator[Any]:
        nonlocal most
        for row in rows:
            most = max(most, threads().count("chatfn-map"))  # not those of an awaited map's rows
            yield row

    began = time.monotonic()
    options = {**RETRY, "transport": sending(pool, plan)}
    found = mapped(call, count_threads(rows_to(100)), options, concurrency=7, ordered=ordered)
    took = time.monotonic() - began
    assert sorted(row["id"] for row in found) == list(range(100))
    assert {row["attempts"] for row in found if row["id"] % 2} == {2}
    assert 0.3 <= took < 1.8, "rows that hold their places while they wait take 2.1 s"
    assert most <= (7 + 1 if pool == "threads" else 1)


@both
def test_at_most_so_many_requests_are_in_flight(call: str, pool: str) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def entered(by: int) -> None:
        nonlocal inside, most
        with lock:
            inside += by
            most = max(most, inside)

    def send(request: Any) -> Any:
        entered(1)
        time.sleep(0.003)
        entered(-1)
        return reply(asked(request))

    async def asend(request: Any) -> Any:
        entered(1)
        await asyncio.sleep(0.003)
        entered(-1)
        return reply(asked(request))

    mapped(call, rows_to(60), {"transport": asend if pool == "loop" else send}, concurrency=5)
    assert most == 5


def test_at_most_so_many_streams_are_in_flight_on_a_loop() -> None:
    """A stream is in flight until its last event."""
    inside = most = 0

    async def asend(request: Any) -> Any:
        async def body() -> AsyncIterator[bytes]:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            for piece in (event(delta("a")), event(delta("", "stop")), event(b"[DONE]")):
                await asyncio.sleep(0.002)
                yield piece
            inside -= 1

        return {"status": 200, "headers": {"content-type": "text/event-stream"}, "body": body()}

    rows = [{"params": params_for(n, stream=True)} for n in range(40)]
    found = list(map_chat(rows, {"transport": asend}, concurrency=4))
    assert [text_of(row["response"]) for row in found] == ["a"] * 40
    assert most == 4


# What goes wrong with a row is its error


@both
def test_exceptions_of_params_of_are_the_row_s(call: str, pool: str) -> None:
    errors = [KeyError("text"), ValueError("no"), TypeError("no"), FileNotFoundError("picture.png"), RuntimeError("no")]
    errors += [StopIteration(), ZeroDivisionError(), TimeoutError(), PermissionError("no"), LookupError(), Exception()]

    def params_of(row: Any) -> Any:
        if row["id"] < len(errors):
            raise errors[row["id"]]
        return params_for(row["id"])

    rows = [{"id": n} for n in range(len(errors) + 3)]
    found = mapped(call, rows, {"transport": sending(pool)}, params_of=params_of)
    assert [row["id"] for row in found] == list(range(len(rows)))
    assert ["error" in row for row in found] == [row["id"] < len(errors) for row in found]
    for row in found[: len(errors)]:
        assert row["error"]["message"]
        assert row["attempts"] == 0


@both
def test_exceptions_of_a_transport_are_the_row_s(call: str, pool: str) -> None:
    errors = [OSError("broken"), ValueError("no"), StopIteration(), KeyError("x"), RuntimeError(), TimeoutError()]
    transport = sending(pool, lambda request: (0.0, errors[int(asked(request))]))
    found = mapped(call, rows_to(len(errors)), {**NO_RETRY, "transport": transport})
    assert [row["id"] for row in found] == list(range(len(errors)))
    assert all(row["error"]["message"] for row in found)


@both
@pytest.mark.parametrize("garbage", [None, 7, {}, {"status": 200}, {"status": "x", "headers": None, "body": 1}])
def test_what_is_no_response_map_is_the_row_s_error(call: str, pool: str, garbage: Any) -> None:
    found = mapped(call, rows_to(3), {**NO_RETRY, "transport": sending(pool, lambda _: (0.0, garbage))})
    assert [row["id"] for row in found] == [0, 1, 2]
    assert all("error" in row for row in found)


@both
@pytest.mark.parametrize("exception", [SystemExit, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_what_a_transport_raises_beyond_exceptions_does_not_hang_the_map(
    call: str, pool: str, exception: type[BaseException]
) -> None:
    """It comes out of the map, or is the row's error; the other rows come out in any case."""
    transport = sending(pool, lambda request: (0.0, exception() if asked(request) == "1" else reply(asked(request))))
    found: list[Any] = []

    def run() -> None:
        try:
            found.extend(mapped(call, rows_to(3), {**NO_RETRY, "transport": transport}))
        except BaseException as exc:
            found.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(2)
    assert not thread.is_alive()
    assert {row["id"] for row in found if isinstance(row, dict)} >= {0, 2}


@both
def test_exceptions_of_middleware_are_the_row_s(call: str, pool: str) -> None:
    from chatfn import middleware

    @middleware
    def failing(request: Any) -> Any:
        if request["body"]["messages"][0]["content"] == "1":
            raise OSError("a flow's own file is gone")
        response = yield request
        if request["body"]["messages"][0]["content"] == "2":
            raise RuntimeError("a flow's own mistake")
        return response

    found = mapped(call, rows_to(4), {"middleware": [failing()], "transport": sending(pool)})
    assert ["error" in row for row in found] == [False, True, True, False]


@both
def test_middleware_that_wraps_handlers_works(call: str, pool: str) -> None:
    seen: list[int] = []

    def noting(handler: Any) -> Any:
        def run(request: Any) -> Any:
            seen.append(int(request["body"]["messages"][0]["content"]))
            return handler(request)

        async def arun(request: Any) -> Any:
            seen.append(int(request["body"]["messages"][0]["content"]))
            return await handler(request)

        return arun if pool == "loop" else run

    options = {"middleware": [["retry", {}], noting], "transport": sending(pool)}
    found = mapped(call, rows_to(30), options, concurrency=4)
    assert sorted(seen) == list(range(30))
    assert [text_of(row["response"]) for row in found] == [str(n) for n in range(30)]


@pools
def test_a_retry_around_middleware_of_another_make_waits_without_a_thread(pool: str) -> None:
    tries: Counter[str] = Counter()

    def plan(request: Any) -> tuple[float, Any]:
        tries[asked(request)] += 1
        if tries[asked(request)] == 1:
            return 0.0, reply("slow down", 429, retry_after_ms=200)
        return 0.0, reply(asked(request))

    def foreign(handler: Any) -> Any:
        async def arun(request: Any) -> Any:
            return await handler(request)

        return arun if pool == "loop" else lambda request: handler(request)

    options = {"middleware": [["retry", {}], foreign], "transport": sending(pool, plan)}
    began = time.monotonic()
    found = list(map_chat(rows_to(30), options, concurrency=2))
    assert time.monotonic() - began < 2.4, "one after another in two places they take 3 s"
    assert [row["attempts"] for row in found] == [2] * 30


@both
@orders
@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_an_exception_of_the_rows_comes_after_all_rows_before_it(
    call: str, pool: str, ordered: bool, kind: type[Exception]
) -> None:
    def rows() -> Iterator[Any]:
        yield from rows_to(25)
        raise kind("line 26")

    found: list[Any] = []

    async def collect() -> None:
        async for row in amap_chat(rows(), options, concurrency=4, ordered=ordered):
            found.append(row["id"])

    options = {"transport": sending(pool, lambda request: (0.002, reply(asked(request))))}
    with pytest.raises(kind, match="line 26"):
        if call == "map":
            for row in map_chat(rows(), options, concurrency=4, ordered=ordered):
                found.append(row["id"])
        else:
            asyncio.run(collect())
    assert sorted(found) == list(range(25))


def test_an_exception_of_asynchronous_rows_comes_after_all_rows_before_it() -> None:
    async def rows() -> AsyncIterator[Any]:
        for row in rows_to(5):
            yield row
        raise LookupError("row 6")

    found: list[Any] = []

    async def run() -> None:
        async for row in amap_chat(rows(), ECHO, concurrency=2):
            found.append(row["id"])

    with pytest.raises(LookupError, match="row 6"):
        asyncio.run(run())
    assert found == list(range(5))


WRONG: list[tuple[Any, dict[str, Any]]] = [
    ({"transprot": "echo"}, {}),
    ({"transport": "nonsense"}, {}),
    ({"transport": "echo", "middleware": [["retyr", {}]]}, {}),
    ({"transport": "echo", "middleware": [["retry", {"attempst": 3}]]}, {}),
    ({"transport": "requests", "api_endpoint": "no url", "api_key": "k"}, {}),
    ({"transport": "requests", "api_key": "with\nbreak"}, {}),
    (7, {}),
    (ECHO, {"concurrency": 0}),
    (ECHO, {"concurrency": True}),
    (ECHO, {"concurrency": 1.5}),
]


@calls
@pytest.mark.parametrize(("options", "keywords"), WRONG)
def test_what_cannot_work_raises_before_any_row_is_taken(call: str, options: Any, keywords: dict[str, Any]) -> None:
    source = Source()
    with pytest.raises((ValueError, TypeError)):
        if call == "map":
            map_chat(source, options, **keywords)  # at once, without a ``next``
        else:
            mapped(call, source, options, **keywords)
    assert source.taken == 0


@calls
def test_without_a_key_nothing_is_taken(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    source = Source()
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        mapped(call, source, {})
    assert source.taken == 0


def test_what_is_no_iterable_is_refused() -> None:
    with pytest.raises(TypeError):
        list(map_chat(7, ECHO))


# The end of a map: nothing new is sent, what is in flight is closed, no thread is left

HALF_STREAM = [STREAM_HEAD, endless(b"5\r\n: \n\n\n\r\n", 0.02)]
NETWORK = pytest.mark.parametrize("transport", ["requests", "aiohttp"])


def network_options(server: Any, transport: str) -> dict[str, Any]:
    return {"api_key": "k", "api_endpoint": server.url, "transport": transport}


def first_good_then(steps: list[Any]) -> Callable[[Any], list[Any]]:
    """A script that answers row 0, and does ``steps`` for the others."""
    return lambda request: [answer(completion("0"))] if b'"content":"0"' in request["body"] else steps


def check_end(server: Any, end: Callable[[], Any]) -> None:
    """``end`` ends a map before it gives its threads up, and nothing of it is left."""
    began = time.monotonic()
    end()
    assert time.monotonic() - began < SOON
    assert threads() == []
    time.sleep(0.3)  # the server may still have to read what was sent before the end
    idle = 1  # the connection of the row that was answered may be kept for the next call
    assert soon(lambda: len(server.open) <= idle), server.open
    sent = len(server.requests)
    time.sleep(0.1)
    assert len(server.requests) == sent


@NETWORK
@pytest.mark.parametrize("steps", [[until_gone], HALF_STREAM], ids=["silent", "stream"])
def test_an_early_close_closes_what_is_in_flight(transport: str, steps: list[Any]) -> None:
    with raw_server(first_good_then(steps)) as server:
        found = map_chat(stream_rows(steps), network_options(server, transport), concurrency=4)
        assert next(found)["id"] == 0
        check_end(server, found.close)
        assert next(found, None) is None


def stream_rows(steps: list[Any]) -> Iterator[Any]:
    streams = steps is HALF_STREAM
    return (row_for(n) | {"params": params_for(n, **({"stream": True} if streams and n else {}))} for n in count())


@NETWORK
def test_a_break_closes_what_is_in_flight(transport: str) -> None:
    with raw_server(first_good_then([until_gone])) as server:

        def end() -> None:
            for _ in map_chat(Source(), network_options(server, transport), concurrency=4):
                break

        check_end(server, end)


@NETWORK
def test_an_exception_in_the_consumer_closes_what_is_in_flight(transport: str) -> None:
    with raw_server(first_good_then([until_gone])) as server:

        def end() -> None:
            with pytest.raises(ZeroDivisionError):
                for row in map_chat(Source(), network_options(server, transport), concurrency=4):
                    _ = 1 / row["id"]

        check_end(server, end)


@NETWORK
def test_an_iterator_that_is_forgotten_closes_what_is_in_flight(transport: str) -> None:
    with raw_server(first_good_then([until_gone])) as server:
        found = map_chat(Source(), network_options(server, transport), concurrency=4)
        next(found)
        circle: list[Any] = [found]
        circle.append(circle)
        del found

        def end() -> None:
            circle.clear()
            gc.collect()

        check_end(server, end)


@pools
def test_a_map_whose_own_thread_collects_it_ends_in_silence(pool: str) -> None:
    """The collector may run on any thread: also on one that the map would wait for."""
    collect = threading.Event()

    def plan(request: Any) -> tuple[float, Any]:
        if asked(request) == "1":
            collect.wait(5)
            gc.collect()
        return 0.0, reply(asked(request))

    gc.collect()
    gc.disable()
    try:
        found = map_chat(Source(), {"transport": sending(pool, plan)}, concurrency=1, ordered=False)
        assert next(found)["id"] == 0
        circle: list[Any] = [found]
        circle.append(circle)
        del found, circle
        collect.set()
        assert soon(lambda: threads() == [])
    finally:
        gc.enable()


@calls
@NETWORK
def test_ctrl_c_passes_at_once_and_closes_what_is_in_flight(call: str, transport: str) -> None:
    with raw_server(first_good_then([until_gone])) as server:
        rows = Source()

        def end() -> None:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                mapped(call, rows, network_options(server, transport), concurrency=4)

        check_end(server, end)


@both
def test_rows_that_were_to_be_sent_again_are_not_after_the_end(call: str, pool: str) -> None:
    sent: list[str] = []

    def plan(request: Any) -> tuple[float, Any]:
        sent.append(asked(request))
        if asked(request) == "0":
            return 0.0, reply("0")
        return (0.05, reply("down", 500)) if len(sent) % 2 else (0.0, reply("wait", 429, retry_after_ms=100))

    options = {"middleware": [["retry", {"attempts": 9, "base": 0.0}]], "transport": sending(pool, plan)}
    first_of(call, Source(), options, 1, concurrency=4)
    number = len(sent)
    time.sleep(0.25)
    assert len(sent) == number
    assert threads() == []


@pools
def test_what_fails_at_once_is_not_sent_again_after_the_end(pool: str) -> None:
    """A flow that would go on without waiting meets the end at its next request."""
    sent: list[float] = []
    ended = threading.Event()

    def plan(request: Any) -> tuple[float, Any]:
        if asked(request) == "0":
            return 0.0, reply("0")
        if ended.is_set():
            sent.append(time.monotonic())
        return 0.05, reply("down", 500)

    options = {"middleware": [["retry", {"attempts": 40, "base": 0.0}]], "transport": sending(pool, plan)}
    found = map_chat(Source(), options, concurrency=2)
    next(found)
    time.sleep(0.1)
    ended.set()
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < SOON
    assert sent == []


@pools
def test_an_endless_stream_of_a_caller_s_own_transport_ends_with_the_map(pool: str) -> None:
    begun, closed = threading.Event(), threading.Event()
    piece = event(delta("a"))
    head = {"status": 200, "headers": {"content-type": "text/event-stream"}}

    def body() -> Iterator[bytes]:
        try:
            while True:
                begun.set()
                time.sleep(0.001)
                yield piece
        finally:
            closed.set()

    async def abody() -> AsyncIterator[bytes]:
        try:
            while True:
                begun.set()
                await asyncio.sleep(0.001)
                yield piece
        finally:
            closed.set()

    def send(request: Any) -> Any:
        return {**head, "body": body()} if request["stream"] else reply("0")

    async def asend(request: Any) -> Any:
        return {**head, "body": abody()} if request["stream"] else reply("0")

    rows = [row_for(0), {"params": params_for(1, stream=True)}]
    found = map_chat(rows, {"transport": asend if pool == "loop" else send}, concurrency=2)
    assert next(found)["id"] == 0
    assert begun.wait(5)
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < SOON
    assert closed.wait(20)
    assert threads() == []


@NETWORK
@pytest.mark.parametrize("asynchronous", [False, True], ids=["rows", "async-rows"])
def test_cancelling_what_awaits_a_row_closes_what_is_in_flight(transport: str, asynchronous: bool) -> None:
    async def run(options: Any) -> list[Any]:
        got: list[Any] = []
        source = Source()

        async def consume() -> None:
            rows: Any = source.alist() if asynchronous else source
            async for row in amap_chat(rows, options, concurrency=4):
                got.append(row["id"])

        task = asyncio.create_task(consume())
        while not got:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return got

    with raw_server(first_good_then([until_gone])) as server:
        check_end(server, lambda: asyncio.run(run(network_options(server, transport))))


def within(seconds: float, coroutine: Any) -> Any:
    """The result of a coroutine on an event loop of its own; ``Stuck`` if it does not come, even if its loop is."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((True, asyncio.run(coroutine)))
        except BaseException as exc:
            result.append((False, exc))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise Stuck
    fine, value = result[0]
    if not fine:
        raise value
    return value


def test_a_source_that_waits_does_not_hold_an_awaited_map_open() -> None:
    """To close, or to cancel, ends at once, though the next row may never come."""

    async def run() -> list[Any]:
        async def rows() -> AsyncIterator[Any]:
            yield row_for(0)
            await asyncio.Event().wait()

        got: list[Any] = []

        async def consume() -> None:
            async for row in amap_chat(rows(), ECHO, concurrency=1):
                got.append(row["id"])

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return got

    within(20, run())


def test_an_awaited_map_gives_what_is_done_while_its_source_waits() -> None:
    """A source may feed on the answers: agents and queues do."""

    async def run() -> list[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def rows() -> AsyncIterator[Any]:
            while (row := await queue.get()) is not None:
                yield row

        queue.put_nowait(row_for(0))
        got = []
        async for row in amap_chat(rows(), ECHO, concurrency=4):
            got.append(row["id"])
            queue.put_nowait(row_for(row["id"] + 1) if row["id"] < 5 else None)
        return got

    assert within(20, run()) == list(range(6))


def test_an_awaited_map_leaves_the_event_loop_free() -> None:
    """Other tasks go on while rows are on their way, also while a cancelled map ends."""

    async def run() -> float:
        longest, ended = 0.0, False

        async def beat() -> None:
            nonlocal longest
            last = time.monotonic()
            while not ended:
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        beating = asyncio.create_task(beat())
        transport = sending("threads", lambda request: (1.0 if int(asked(request)) > 3 else 0.0, reply(asked(request))))

        async def consume() -> None:
            async for _ in amap_chat(rows_to(20), {"transport": transport}, concurrency=2):
                pass

        task = asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()  # the impatient cancel twice
        await asyncio.wait([task])
        ended = True
        await beating
        return longest

    assert within(20, run()) < 0.7


@pools
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 30), size=st.integers(1, 6), pause=st.floats(0, 0.002), waits=st.integers(1, 5))
def test_a_map_can_be_closed_at_any_moment(pool: str, rows: int, size: int, pause: float, waits: int) -> None:
    def plan(request: Any) -> tuple[float, Any]:
        number = int(asked(request))
        if number % waits:
            return 0.0, reply("slow down", 429, retry_after_ms=number % 3)
        return 0.0005 * (number % 2), reply(str(number))

    found = map_chat(Source(), {**RETRY, "transport": sending(pool, plan)}, concurrency=size)
    assert [row["id"] for row in islice(found, rows)] == list(range(rows))
    time.sleep(pause)
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < SOON
    assert threads() == []


def test_two_maps_do_not_meet() -> None:
    one, other = (map_chat(rows_to(50), ECHO, concurrency=n) for n in (3, 5))
    found = [(a["id"], b["id"]) for a, b in zip(one, other, strict=True)]
    assert found == [(n, n) for n in range(50)]
    left, right = map_chat(rows_to(9), ECHO), map_chat(rows_to(9), ECHO)
    next(left), next(right)
    left.close()
    assert [row["id"] for row in right] == list(range(1, 9))


def test_maps_nest() -> None:
    inner = map_chat(rows_to(20), ECHO, concurrency=2)
    outer = map_chat(inner, ECHO, concurrency=3, params_of=lambda row: params_for(text_of(row["response"]) + "!"))
    assert [text_of(row["response"]) for row in outer] == [f"{n}!" for n in range(20)]


def test_several_awaited_maps_share_a_loop() -> None:
    async def texts(number: int) -> list[int]:
        return [row["id"] async for row in amap_chat(rows_to(number), ECHO, concurrency=2)]

    async def run() -> Any:
        return await asyncio.gather(*(texts(n) for n in range(5)))

    assert asyncio.run(run()) == [list(range(n)) for n in range(5)]


# Where maps are used


def test_a_map_is_a_step_of_a_pipe() -> None:
    found = pipe(
        ["a", "!error 400", "b"],
        mapping(lambda text: {"text": text, "params": params_for(text)}),
        partial(map_chat, options=ECHO),
        keeping(lambda row: "response" in row),
        mapping(lambda row: text_of(row["response"])),
        list,
    )
    assert found == ["a", "b"]


def test_rows_pickle_with_their_results() -> None:
    rows = [row_for(1), {"params": params_for("!error 429 insufficient_quota")}]
    found = list(map_chat(rows, ECHO))
    assert pickle.loads(pickle.dumps(found)) == json.loads(json.dumps(found)) == found


def work(numbers: list[int]) -> list[str]:
    return [text_of(row["response"]) for row in map_chat((row_for(n) for n in numbers), ECHO, concurrency=2)]


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_maps_run_in_processes_of_a_pool(method: str) -> None:
    """Also in children of a process in which a map is going on."""
    going = map_chat(Source(), ECHO, concurrency=2)
    next(going)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(work, [[1, 2, 3], [4, 5]]) == [["1", "2", "3"], ["4", "5"]]
    assert next(going)["id"] == 1
    going.close()


@pools
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_child_that_forgets_its_parent_s_map_leaves_it_alone(pool: str) -> None:
    going = map_chat(Source(), {"transport": sending(pool)}, concurrency=2)
    next(going)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        del going
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [row["id"] for row in islice(going, 20)] == list(range(1, 21))
    going.close()


UNFINISHED = """
import asyncio, sys
from chatfn import map_chat
async def asend(request):
    await asyncio.sleep(0 if b'"0"' in request["body"] else 60)
    return {"status": 200, "headers": {}, "body": b'{"id": "c", "choices": []}'}
def params_of(n):
    return {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
transport = {"echo": "echo", "loop": asend}[sys.argv[1]]
found = map_chat(range(10**9), {"transport": transport}, params_of=params_of)
print(next(found)["row"])
"""


@pytest.mark.parametrize("name", ["echo", "loop"])
def test_to_leave_the_interpreter_with_an_open_map_is_quick_and_quiet(name: str) -> None:
    began = time.monotonic()
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", UNFINISHED, name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, cwd=Path(__file__).parents[1]
    )
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)
    assert time.monotonic() - began < 20


def test_a_map_runs_beside_a_running_event_loop() -> None:
    """As in a notebook, whose cells run on one."""

    async def cell() -> list[int]:
        return [row["id"] for row in map_chat(rows_to(5), {"transport": sending("loop")})]

    assert asyncio.run(cell()) == list(range(5))


def test_rows_are_any_iterable() -> None:
    for rows in (rows_to(2), tuple(rows_to(2)), iter(rows_to(2)), dict.fromkeys(range(2)).keys()):
        assert len(list(map_chat(rows, ECHO, params_of=params_for))) == 2


def test_the_request_of_a_row_is_the_one_that_is_built() -> None:
    """And its credential is no part of the row."""
    seen: list[Any] = []

    def send(request: Any) -> Any:
        seen.append(request)
        return reply("x")

    (row,) = map_chat([row_for(1)], {"transport": send, "api_key": "sk-secret-0123456789"})
    built = build_request(params_for(1), {"api_key": "sk-secret-0123456789"})
    sent = seen[0]
    assert {key: sent[key] for key in built if key != "body"} == {key: built[key] for key in built if key != "body"}
    assert json.loads(sent["body"]) == built["body"]
    assert "sk-secret" not in repr(row)


def test_a_row_that_is_no_map_says_what_to_give_and_rows_that_are_none_raise_at_once() -> None:
    wrong: Any = ["hi", None]
    found = list(map_chat(wrong, {"transport": "echo"}))
    assert [row["row"] for row in found] == wrong
    assert found[0]["error"]["category"] == "incorrect"
    assert found[0]["error"]["message"] == "the row is str; give a mapping with 'params', or the function params_of"
    wrong = 5
    with pytest.raises(TypeError, match="not iterable"):
        map_chat(wrong, {"transport": "echo"})
