"""Budgets: the cap is never passed, whatever is in flight, and what is not spent can be."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rawserver import CLOSE, raw_server

from chatfn import ChatError, acreate_chat_completion, amap_chat, create_chat_completion, map_chat, scripted
from chatfn.cli import run
from chatfn.cost import money
from chatfn.journal.report import summary
from chatfn.journal.spent import by_day
from chatfn.middleware import Sleep, WoundDown
from chatfn.middleware import ledger as budgets
from chatfn.middleware.bounds import FORMAT, bound_of, input_bound
from chatfn.middleware.budget import budget, budget_of, budgeted, usd_text
from chatfn.middleware.ledger import NOTHING, Amount, Cap, Ledger, fits, plus, reserve, settle
from chatfn.prices import ATTOS, lookup_of

TABLE = {"m": {"input": 1, "output": 2, "max_output_tokens": 1000}}
LOOKUP = lookup_of(TABLE)
URL = "https://api.openai.com/v1/chat/completions"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Each test is a process of its own, as far as budgets go."""
    budgets.ledgers.clear()
    yield
    budgets.ledgers.clear()


def ask(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": text}], **more}


def request(**more: Any) -> Any:
    return {"url": URL, "body": ask(**more), "stream": False}


def answer(prompt: int = 3, said: int = 5, **more: Any) -> Any:
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    return {"status": 200, "headers": {}, "body": {"model": "m", "usage": usage, **more}}


def failed(status: int, category: str = "busy", **error: Any) -> Any:
    error = {"category": category, "message": "", "status": status, **error}
    return {"status": status, "headers": {}, "body": None, "error": error}


def settings_of(usd: Any = None, tokens: Any = None, **more: Any) -> Any:
    known = {"prices": TABLE, "provider": None, "parts": None, "wait": 60, "key": "test", **more}
    made = budget_of(usd, tokens, **known)
    budgets.ledger_of(made.key)
    return made


def ledger(key: str = "test") -> Ledger:
    return budgets.ledger_of(key).deref()


# --- the ledger ---------------------------------------------------------------------------------------------------


small = st.builds(Amount, st.integers(0, 50), st.integers(0, 50))
caps = st.builds(Cap, st.none() | st.integers(1, 120), st.none() | st.integers(1, 120))
moves = st.lists(st.tuples(st.sampled_from(["reserve", "settle", "keep"]), st.integers(0, 9), small), max_size=60)


@given(caps, moves)
def test_what_is_spent_and_reserved_never_passes_the_cap(cap: Cap, steps: Any) -> None:
    now = Ledger()
    for move, number, amount in steps:
        if move == "reserve" and number not in now.held:
            now = reserve(now, number, amount, cap)
        elif move == "settle" and number in now.held:
            need = now.held[number]
            now = settle(now, number, Amount(min(amount.attos, need.attos), min(amount.tokens, need.tokens)))
        elif move == "keep":
            now = settle(now, number, None)
        assert fits(cap, plus(now.spent, now.reserved))
        held = NOTHING
        for one in now.held.values():
            held = plus(held, one)
        assert held == now.reserved
        assert all(unsure <= spent for unsure, spent in zip(now.unsure, now.spent, strict=True))


@given(caps, small)
def test_a_reservation_that_is_given_back_leaves_no_trace(cap: Cap, need: Amount) -> None:
    before = reserve(Ledger(), 1, Amount(1, 1), Cap(None, None))
    after = settle(reserve(before, 2, need, cap), 2, NOTHING)
    assert after == before
    assert settle(after, 2, need) == before  # of what is not held nothing can be settled


def test_threads_together_never_pass_the_cap() -> None:
    cap = Cap(1000, None)
    atom = budgets.ledger_of("threads")
    granted: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 200):
            if number in atom.swap(reserve, number, Amount(7, 1), cap).held:
                granted.append(number)
                atom.swap(settle, number, Amount(7, 1))

    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 142  # 1000 // 7
    assert atom.deref().spent == Amount(994, 142)


# --- the flow, driven through random schedules --------------------------------------------------------------------


OUTCOMES = ("answer", "dear", "busy", "refused", "timeout", "cut", "mistake", "wound", "gone")


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(500, 6_000), st.booleans(), st.integers(1, 12))
def test_no_schedule_of_attempts_passes_the_cap_and_none_waits_for_ever(
    seed: int, cap: int, by_tokens: bool, at_once: int
) -> None:
    """The model of the world bills each attempt that reached it: by its usage, or, unheard, by the worst case."""
    dice = random.Random(seed)
    budgets.ledgers.clear()
    made = settings_of(None if by_tokens else f"{cap * 2}e-6", cap if by_tokens else None, wait=3)
    billed = Amount(0, 0)
    waiting: list[Any] = []
    flying: list[Any] = []
    told: list[Any] = []
    turns = 0

    def took(flow: Any, body: Any, step: Any) -> None:
        (waiting if isinstance(step, Sleep) else flying).append((flow, body))

    def move(flow: Any, body: Any, act: Any) -> None:
        try:
            took(flow, body, act())
        except StopIteration as stop:
            told.append(stop.value)
        except (ValueError, WoundDown):
            told.append(None)

    for _ in range(40):
        body = ask("x" * dice.randrange(400), max_tokens=dice.randrange(1, 400), n=dice.choice([None, 1, 3]))
        flow = budgeted(made).flow({"url": URL, "body": body, "stream": False})  # type: ignore[attr-defined]  # a flow's
        move(flow, body, lambda flow=flow: next(flow))
        while len(flying) >= at_once or (waiting and dice.random() < 0.3) or dice.random() < 0.3:
            turns += 1
            assert turns < 20_000
            if waiting and (not flying or dice.random() < 0.5):
                flow, body = waiting.pop(dice.randrange(len(waiting)))
                move(flow, body, lambda flow=flow, now=float(turns): flow.send(now))
                continue
            if not flying:
                break
            flow, body = flying.pop(dice.randrange(len(flying)))
            bound = bound_of({"url": URL, "body": body}, made)  # type: ignore[arg-type,typeddict-item]
            assert isinstance(bound, Amount)
            outcome = dice.choice(OUTCOMES)
            most_in = input_bound(body, {})[0]
            prompt = dice.randrange(int(most_in) + 1)
            said = dice.randrange(bound.tokens - int(most_in) + 1)
            if outcome == "dear":
                prompt, said = int(most_in), bound.tokens - int(most_in)
            if outcome in ("answer", "dear"):
                reply = answer(prompt, said)
                found = money(reply["body"]["usage"], "m", LOOKUP, None, None, None)
                assert not isinstance(found, str)
                billed = plus(billed, Amount(found[0], prompt + said))
                move(flow, body, lambda flow=flow, reply=reply: flow.send(reply))
            elif outcome in ("timeout", "cut"):
                billed = plus(billed, bound)
                move(flow, body, lambda flow=flow: flow.send(failed(0, "interrupted")))
            elif outcome == "gone":
                billed = plus(billed, bound)
                flow.close()
            elif outcome in ("mistake", "wound"):
                problem = ValueError("no") if outcome == "mistake" else WoundDown()
                move(flow, body, lambda flow=flow, problem=problem: flow.throw(problem))
            else:
                move(flow, body, lambda flow=flow, s=429 if outcome == "busy" else 400: flow.send(failed(s)))
            assert fits(made.cap, billed)
            now = ledger()
            assert fits(made.cap, plus(now.spent, now.reserved))
            assert all(a <= b for a, b in zip(billed, now.spent, strict=True)) or by_tokens
    for flow, _ in [*flying, *waiting]:
        flow.close()
    assert not ledger().held
    assert ledger().reserved == NOTHING


def test_one_that_does_not_fit_waits_for_those_in_flight() -> None:
    made = settings_of("0.0006")
    first, second = budgeted(made).flow(request()), budgeted(made).flow(request())  # type: ignore[attr-defined]
    assert "url" in next(first)
    step = next(second)
    assert isinstance(step, Sleep)
    with pytest.raises(StopIteration):
        first.send(answer())
    assert "url" in second.send(1.0)


def test_one_that_can_never_fit_is_refused_at_once_and_says_how_to_go_on() -> None:
    made = settings_of("0.0001", 10**6)
    with pytest.raises(StopIteration) as stop:
        next(budgeted(made).flow(request()))  # type: ignore[attr-defined]
    response = stop.value.value
    assert response["error"]["category"] == "forbidden"
    assert response["error"]["code"] == "budget_exceeded"
    assert response["stop"] == response["error"]["message"]
    assert "$0.00 and 0 tokens of $0.0001 and 1,000,000 tokens" in response["stop"]
    assert "raise usd or tokens of the budget to go on" in response["stop"]
    assert response["attempts"] == 0


def test_a_wait_ends_without_news_or_at_the_deadline() -> None:
    made = settings_of("0.0006", wait=5)
    holder = budgeted(made).flow(request())  # type: ignore[attr-defined]
    next(holder)
    flow, waited = budgeted(made).flow(request()), 0.0  # type: ignore[attr-defined]
    step = next(flow)
    with pytest.raises(StopIteration) as stop:
        for _ in range(100):
            waited += step.seconds
            step = flow.send(waited)
    assert 5 <= waited < 7
    assert "held for calls in flight" in stop.value.value["stop"]
    flow = budgeted(made).flow({**request(), "due": 3.0})  # type: ignore[attr-defined]
    next(flow)
    with pytest.raises(StopIteration) as stop:
        flow.send(4.0)
    assert stop.value.value["error"]["category"] == "interrupted"
    assert "stop" not in stop.value.value
    holder.close()


@pytest.mark.parametrize(
    ("response", "left"),
    [
        (answer(3, 5), "spent"),
        (failed(429), "free"),
        (failed(400, "incorrect"), "free"),
        (failed(500, "fault"), "free"),
        (failed(503), "free"),
        (failed(0, "unavailable", sent=False), "free"),
        (failed(0, "forbidden"), "free"),
        (failed(0, "unavailable"), "kept"),
        (failed(0, "interrupted"), "kept"),
        (failed(504, "unavailable"), "kept"),
        (failed(200, "fault"), "kept"),
        ({**answer(), "body": {"model": "m"}}, "kept"),
        ({**answer(), "body": {"model": "m", "usage": {"cost": 3}}}, "kept"),
        ({**failed(200, "fault"), "body": answer(3, 5)["body"]}, "spent"),
        (failed(200, "interrupted", partial=answer(3, 5)["body"]), "spent"),
        (answer(3, 5, model="another"), "spent"),
        (answer(3, 5, model=None), "spent"),
    ],
)
def test_what_came_of_an_attempt_settles_it(response: Any, left: str) -> None:
    made = settings_of(1)
    budgeted(made)(lambda request: response)(request())
    now = ledger()
    need = bound_of(request(), made)
    assert now.spent == {"spent": Amount(13 * ATTOS // 10**6, 8), "free": NOTHING, "kept": need}[left]
    assert now.unsure == (need if left == "kept" else NOTHING)
    assert not now.held


def test_what_a_handler_raises_is_no_leak() -> None:
    made = settings_of(1)

    def wrong(request: Any) -> Any:
        raise ValueError("no")

    def lost(request: Any) -> Any:
        raise OSError("lost")

    with pytest.raises(ValueError, match="no"):
        budgeted(made)(wrong)(request())
    assert ledger() == Ledger()
    with pytest.raises(OSError, match="lost"):
        budgeted(made)(lost)(request())
    assert ledger().unsure == ledger().spent == bound_of(request(), made)


# --- bounds -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["user", "system", "assistant"]), st.text()), max_size=8))
def test_the_bound_of_input_is_over_the_bytes_of_all_text_and_the_format(messages: Any) -> None:
    body = {"model": "m", "messages": [{"role": role, "content": text} for role, text in messages]}
    found = input_bound(body, {})
    assert isinstance(found, tuple)
    texts = sum(len(text.encode("utf-8", "surrogatepass")) for _, text in messages)
    assert found[0] >= texts + 8 * len(messages) + FORMAT


def test_parts_that_are_no_text_need_a_number() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = ask([{"type": "text", "text": "what?"}, picture, picture])
    assert "parts" in str(input_bound(body, {}))
    found = input_bound(body, {"image_url": 1500})
    assert isinstance(found, tuple)
    assert 3000 + FORMAT < found[0] < 3500 + FORMAT
    assert found[1] == ("image",)
    spoken = {**ask(), "modalities": ["text", "audio"]}
    assert input_bound(spoken, {})[1] == ("audio",)
    earlier = {**ask(), "messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}}, {"role": "user"}]}
    assert "'audio'" in str(input_bound(earlier, {}))
    assert "'web_search_options'" in str(input_bound({**ask(), "web_search_options": {}}, {}))
    for odd in ([3], [{"type": 3}], [{}]):
        assert "without a type" in str(input_bound(ask(odd), {}))  # type: ignore[arg-type]  # what a caller may send
    assert isinstance(input_bound({"messages": 3}, {}), tuple)
    assert isinstance(input_bound({"messages": [3, {"content": ["a", {"type": "refusal"}]}]}, {}), tuple)


def bound(body: Any, usd: Any = 1, **more: Any) -> Any:
    return bound_of({"url": URL, "body": body}, settings_of(usd, None if usd else 10**6, **more))  # type: ignore[arg-type,typeddict-item]


def test_the_bound_of_output_is_what_is_asked_for_or_what_the_model_can_say() -> None:
    given = input_bound(ask(), {})[0]
    assert bound(ask()).tokens == int(given) + 50
    assert bound(ask(n=3)).tokens == input_bound(ask(n=3), {})[0] + 150  # type: ignore[operator]
    both = {**ask(), "max_completion_tokens": 70}
    assert bound(both).tokens == input_bound(both, {})[0] + 70  # type: ignore[operator]
    body = {name: value for name, value in ask().items() if name != "max_tokens"}
    assert bound(body).tokens == input_bound(body, {})[0] + 1000  # type: ignore[operator]
    assert "max_completion_tokens" in bound(body, prices={"m": {"input": 1, "output": 1}})
    assert "max_completion_tokens" in bound({**body, "model": "nobody's"}, None)
    assert bound({**ask(), "model": "nobody's"}, None).attos == 0  # tokens need no price
    assert "no price" in bound({**ask(), "model": "nobody's"})
    assert "no price of input" in bound(ask(), prices={"m": {"output": 1}})
    assert bound([]) == "its body is no map"


def test_the_library_bounds_an_answer_by_the_context() -> None:
    pytest.importorskip("genai_prices")
    body = {"model": "gpt-4o-mini", "messages": []}
    assert bound(body, prices=None).tokens > 128_000


def test_a_tier_that_is_not_named_may_be_the_dearest() -> None:
    table = {"m": {"input": 1, "output": 2, "priority": 2, "flex": 0.5}}
    attos = {
        tier: bound({**ask(), **({} if tier is None else {"service_tier": tier})}, prices=table).attos
        for tier in (None, "auto", "default", "flex", "priority")
    }
    assert attos[None] > attos["default"]
    assert attos["auto"] > 1.9 * attos["default"]
    assert attos["flex"] == pytest.approx(attos["default"], rel=0.1)
    assert attos["priority"] > 1.9 * attos["default"]
    assert "priority" in bound({**ask(), "service_tier": "priority"}, prices={"m": {"input": 1, "output": 1}})


def test_an_azure_deployment_is_a_name_in_the_table() -> None:
    url = "https://mine.openai.azure.com/openai/deployments/my%20own/chat/completions?api-version=1"
    body = {name: value for name, value in ask().items() if name != "model"}
    made = settings_of(1, prices={**TABLE, "my own": "m"})
    assert isinstance(bound_of({"url": url, "body": body}, made), Amount)  # type: ignore[arg-type,typeddict-item]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a cap"),
        ({"usd": 0}, "more than 0"),
        ({"usd": -1}, "more than 0"),
        ({"usd": "much"}, "more than 0"),
        ({"usd": True}, "more than 0"),
        ({"tokens": 0}, "whole number"),
        ({"tokens": 1.5}, "whole number"),
        ({"tokens": 5, "wait": -1}, "seconds"),
        ({"tokens": 5, "parts": {"image_url": "many"}}, "'image_url' has 'many'"),
        ({"tokens": 5, "parts": [3]}, "tokens for each kind"),
        ({"usd": 1, "prices": {"m": {"inputs": 1}}}, "did you mean 'input'"),
    ],
)
def test_settings_that_can_be_no_budget_are_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"budget|price") as caught:
        budget(**given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "stack",
    [
        [["budget", {"tokens": 5}], "retry"],
        ["retry", ["limit", {}], ["budget", {"tokens": 5}]],
        ["retry", ["budget", {"tokens": 5}], ["budget", {"tokens": 5}]],
        [["budget", {"tokens": 5}], ["journal", {"path": "x"}]],
    ],
)
def test_a_budget_in_the_wrong_place_is_refused(stack: Any) -> None:
    with pytest.raises(ValueError, match="budget"):
        create_chat_completion(ask(), {"transport": "echo", "middleware": stack})


def test_money_is_shown_with_what_matters_of_it() -> None:
    assert [usd_text(n * ATTOS // 10**6) for n in (0, 3, 12, 210, 300, 3_141, 250_000, 1_234_567_000_000)] == [
        *("$0.00", "$0.000003", "$0.000012", "$0.00021", "$0.0003", "$0.0031", "$0.2500", "$1,234,567.00")
    ]


@given(st.integers(1, 10**24))
def test_however_little_it_is_two_digits_of_it_are_shown_and_no_exponent(attos: int) -> None:
    said = usd_text(attos)
    assert re.fullmatch(r"\$\d{1,3}(,\d{3})*\.\d+", said)
    shown = Decimal(said[1:].replace(",", "")) * ATTOS
    assert abs(shown - attos) <= Decimal(attos) / 20
    assert shown > 0


# --- calls, streams, maps -----------------------------------------------------------------------------------------


def options(**given: Any) -> dict[str, Any]:
    return {"transport": "echo", "middleware": ["retry", ["budget", {"prices": TABLE, **given}]]}


def only_ledger() -> Ledger:
    (atom,) = budgets.ledgers.values()
    return atom.deref()


def test_equal_settings_share_one_budget_and_a_refusal_is_not_sent_again() -> None:
    for _ in range(3):
        create_chat_completion(ask(), options(usd=0.01))
    assert only_ledger().spent.tokens == 6
    with pytest.raises(ChatError, match="budget is spent") as caught:
        create_chat_completion(ask(max_tokens=10_000), options(usd=0.01))
    assert caught.value.error["code"] == "budget_exceeded"
    assert caught.value.error["attempts"] == 0


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def test_a_stream_settles_at_its_end() -> None:
    events = create_chat_completion(ask("one two three", **STREAM), options(usd=1))
    next(events)
    assert only_ledger().reserved.tokens > 0
    list(events)
    assert only_ledger().reserved == NOTHING
    assert only_ledger().spent.tokens == 6


@pytest.mark.parametrize("text", ["!break 2 one two three", "one two three"])
def test_a_stream_without_its_usage_keeps_the_worst_case(text: str) -> None:
    with_usage = text.startswith("!")
    events = create_chat_completion(ask(text, **(STREAM if with_usage else {"stream": True})), options(usd=1))
    try:
        list(events)
    except ChatError:
        assert with_usage
    now = only_ledger()
    assert now.unsure == now.spent
    assert now.spent.tokens > 50
    assert not now.held


def test_a_stream_that_is_left_keeps_the_worst_case() -> None:
    events = create_chat_completion(ask("one two three", **STREAM), options(usd=1))
    next(events)
    events.close()
    assert only_ledger().unsure.tokens > 50
    assert not only_ledger().held


def test_one_who_has_a_stream_open_is_told_so_and_does_not_wait_for_himself() -> None:
    events = create_chat_completion(ask("one two three", **STREAM), options(usd="0.0006"))
    next(events)
    with pytest.raises(ChatError, match="read them to their end") as caught:
        create_chat_completion(ask(), options(usd="0.0006"))
    assert caught.value.error["code"] == "budget_held"
    list(events)
    create_chat_completion(ask(), options(usd="0.0006"))


def test_awaited_calls_and_streams_settle_too() -> None:
    async def work() -> None:
        await acreate_chat_completion(ask(), options(usd=1))
        events = await acreate_chat_completion(ask("one two", **STREAM), options(usd=1))
        assert [event async for event in events]

    asyncio.run(work())
    assert only_ledger().spent.tokens == 6
    assert not only_ledger().held


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "params": ask(f"row {n} of some")} for n in range(count)]


def taken(found: Iterator[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    out = []
    try:
        for row in found:
            out.append(row)
    except ChatError as exc:
        return out, str(exc.error["code"])
    return out, ""


@pytest.mark.parametrize("concurrency", [1, 4, 32])
def test_a_map_stops_at_its_cap_and_gives_out_what_was_paid_for(concurrency: int) -> None:
    out, code = taken(map_chat(rows(200), options(usd="0.0010"), concurrency=concurrency))
    assert code == "budget_exceeded"
    assert 0 < len(out) < 200
    assert all("response" in row for row in out)
    assert only_ledger().spent.tokens == 8 * len(out)
    assert only_ledger().spent.attos <= ATTOS // 1000
    room = ATTOS // 1000 - only_ledger().spent.attos
    assert room < bound_of({"url": URL, "body": rows(200)[199]["params"]}, settings_of(1)).attos  # type: ignore[union-attr,arg-type,typeddict-item]


def test_an_awaited_map_stops_likewise() -> None:
    async def work() -> int:
        out = []
        with pytest.raises(ChatError, match="budget is spent"):
            async for row in amap_chat(rows(100), options(usd="0.0010"), concurrency=4):
                out.append(row)
        return len(out)

    assert 0 < asyncio.run(work()) < 100


# --- with a journal -----------------------------------------------------------------------------------------------


def journaled(path: Path, errors: str = "resend", **given: Any) -> dict[str, Any]:
    whole = options(**given)
    return {**whole, "middleware": [["journal", {"path": str(path), "errors": errors}], *whole["middleware"]]}


@pytest.mark.parametrize("errors", ["resend", "keep"])
def test_another_run_of_the_same_journal_stays_under_the_same_cap_and_a_higher_one_resumes(
    errors: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    first, _ = taken(map_chat(rows(60), journaled(path, errors, usd="0.0010"), concurrency=4))
    budgets.ledgers.clear()  # another process
    again, code = taken(map_chat(rows(60), journaled(path, errors, usd="0.0010"), concurrency=4))
    assert code == "budget_exceeded"
    assert {row["id"] for row in again} <= {row["id"] for row in first}
    assert all(row["cached"] for row in again)
    assert sum(entry["tokens"]["total"] for entry in by_day(path, LOOKUP)) == 8 * len(first)
    budgets.ledgers.clear()
    whole, code = taken(map_chat(rows(60), journaled(path, errors, usd=1), concurrency=4))
    assert code == ""
    assert len(whole) == 60
    assert sum(row.get("cached", False) for row in whole) == len(first)
    assert only_ledger().spent.tokens == 8 * 60
    budgets.ledgers.clear()
    done, code = taken(map_chat(rows(60), journaled(path, errors, tokens=1), concurrency=4))
    assert (len(done), code) == (60, "")  # what is there costs nothing
    assert only_ledger().spent.tokens == 8 * 60


def test_a_raised_cap_goes_on_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    first, _ = taken(map_chat(rows(60), journaled(path, usd="0.0010"), concurrency=4))
    more, _ = taken(map_chat(rows(60), journaled(path, usd="0.0012"), concurrency=4))
    assert len(first) < sum(1 for row in more if "response" in row)
    assert only_ledger().spent.attos <= 12 * ATTOS // 10_000


@pytest.mark.parametrize("attempts", [1, 4])
def test_a_call_of_unknown_outcome_counts_at_its_worst(tmp_path: Path, attempts: int) -> None:
    """In another run as often as it may have been sent."""
    path = tmp_path / "run.db"

    def with_retry() -> dict[str, Any]:
        whole = journaled(path, usd=1)
        whole["middleware"][1] = ["retry", {"attempts": attempts}]
        return whole

    def dies(request: Any) -> Any:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        create_chat_completion(ask(), {**with_retry(), "transport": dies})
    worst_case = only_ledger().spent
    assert worst_case == bound_of(request(), settings_of(1))
    budgets.ledgers.clear()
    create_chat_completion(ask(), with_retry())
    assert only_ledger().spent == reduce(plus, [worst_case] * attempts, Amount(3 * ATTOS // 10**6, 2))


@pytest.mark.parametrize(
    ("script", "worst_case"),
    [
        ([failed(0, "interrupted")], True),
        ([failed(0, "unavailable")], True),
        ([{"status": 200, "body": {"id": "c", "choices": []}}], True),  # an answer that says no usage
        ([failed(0, "unavailable", sent=False)], False),
        ([{"status": 400, "body": {"error": {"message": "no"}}}], False),
    ],
)
def test_another_run_counts_a_call_as_the_one_that_sent_it_did(tmp_path: Path, script: Any, worst_case: bool) -> None:
    whole = {**journaled(tmp_path / "run.db", usd=1), "transport": scripted(script), "full_response": True}
    whole["middleware"][1] = ["retry", {"attempts": 1}]
    create_chat_completion(ask(), whole)
    spent = only_ledger().spent
    assert spent == (bound_of(request(), settings_of(1)) if worst_case else NOTHING)
    budgets.ledgers.clear()
    create_chat_completion(ask("another"), journaled(tmp_path / "run.db", usd=1))
    assert only_ledger().spent == plus(spent, Amount(3 * ATTOS // 10**6, 2))


def test_a_call_that_was_not_sent_because_its_run_ended_takes_nothing(tmp_path: Path) -> None:
    def ends(request: Any) -> Any:
        raise WoundDown

    with pytest.raises(WoundDown):
        create_chat_completion(ask(), {**journaled(tmp_path / "run.db", usd=1), "transport": ends})
    assert only_ledger().spent == NOTHING
    budgets.ledgers.clear()
    create_chat_completion(ask("another"), journaled(tmp_path / "run.db", usd=1))
    assert only_ledger().spent == Amount(3 * ATTOS // 10**6, 2)


def test_failures_of_a_journal_count_if_they_were_paid(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    script = [
        {"status": 400, "body": {"error": {"message": "no"}}},
        {"status": 200, "body": {**answer(7, 0)["body"], "error": {"message": "late", "code": 503}}},
        answer(5, 0),
    ]
    whole = journaled(path, usd=1)
    whole = {**whole, "transport": scripted(script), "full_response": True}
    whole["middleware"][1] = ["retry", {"base": 0}]
    create_chat_completion(ask("a"), whole)
    response = create_chat_completion(ask("b"), whole)
    assert response["usage"]["total_tokens"] == 12
    assert only_ledger().spent.tokens == 12
    assert summary(path)["tokens"]["total"] == 12
    budgets.ledgers.clear()
    create_chat_completion(ask("c"), journaled(path, usd=1))
    assert only_ledger().spent.tokens == 12 + 2


def test_a_journal_tells_use_and_cost_by_day_and_model(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    for text, model in (("one", "m"), ("one two", "m"), ("x", "nobody's"), ("!error 400", "m")):
        create_chat_completion(ask(text, model=model), {**journaled(path, tokens=10**6), "full_response": True})
    found = by_day(path, LOOKUP)
    assert [(entry["model"], entry["calls"], entry["usd"], entry["unpriced"]) for entry in found] == [
        ("m", 3, 9e-6, 0),
        ("nobody's", 1, None, 1),
    ]
    assert found[0]["tokens"] == {"prompt": 3, "completion": 3, "total": 6}
    assert len(found[0]["day"]) == 10


def test_a_budget_names_its_own_journal_or_none_at_all(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    create_chat_completion(ask(), journaled(other, tokens=10**6))
    budgets.ledgers.clear()
    create_chat_completion(ask(), journaled(tmp_path / "run.db", tokens=10**6, journal=str(other)))
    assert only_ledger().spent.tokens == 4
    budgets.ledgers.clear()
    create_chat_completion(ask(), options(tokens=10**6, journal=str(tmp_path / "none.db")))
    assert only_ledger().spent.tokens == 2
    (tmp_path / "text").write_text("no journal, but a text that is long enough to be looked at" * 99)
    with pytest.raises(ValueError, match="no journal"):
        create_chat_completion(ask(), options(tokens=10**6, journal=str(tmp_path / "text")))


FORK = """
import os, sys
from chatfn.middleware import ledger as b
key = "k"
atom = b.ledger_of(key, lambda: b.Amount(5, 5))
atom.swap(b.reserve, 1, b.Amount(3, 3), b.Cap(None, None))
child = os.fork()
now = b.ledger_of(key).deref()
os.write(1, f"{tuple(now.spent)} {tuple(now.reserved)} {len(now.held)}\\n".encode())
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_goes_on_from_what_was_spent_and_holds_nothing_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.split("\n")[:2]) == ["(5, 5) (0, 0) 0", "(5, 5) (3, 3) 1"]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_stops_at_its_budget_and_shows_what_was_paid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps({"q": f"row {n}"}) + "\n" for n in range(30)))
    Path("prices.json").write_text(json.dumps({"m": {"input": 1000, "output": 2000}}))
    asked = ["map", "in.jsonl", "out.jsonl", "--transport", "echo", "--model", "m", "--prompt", "{q}"]
    asked += ["--param", "max_tokens=20", "--prices", "prices.json", "--concurrency", "1", "--budget"]
    assert run([*asked, "0.45"]) == 1
    said = capsys.readouterr().err
    assert "the budget is spent" in said
    assert "the same command again goes on from there" in said
    assert "check the key" not in said
    assert not Path("out.jsonl").exists()
    assert run(["journal", "out.jsonl.journal.db", "--prices", "prices.json", "--json"]) == 0
    (day,) = json.loads(capsys.readouterr().out)["by_day"]
    assert 0 < day["usd"] <= 0.45
    assert run(["journal", "out.jsonl.journal.db", "--prices", "prices.json"]) == 0
    assert "cost       $0." in capsys.readouterr().out
    Path("prices.json").write_text('{"m": {"inputs": 1}}')
    assert run([*asked, "0.45"]) == 1
    assert "did you mean 'input'" in capsys.readouterr().err


# --- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaited", [False, True])
def test_what_was_never_sent_is_given_back_and_what_was_sent_in_vain_is_not(awaited: bool) -> None:
    def call(endpoint: str) -> Any:
        whole = {
            **options(usd=1),
            "transport": "aiohttp" if awaited else "requests",
            "api_key": "k",
            "api_endpoint": endpoint,
            "full_response": True,
        }
        whole["middleware"] = [["retry", {"attempts": 1}], ["budget", {"usd": 1, "prices": TABLE}]]
        if awaited:
            return asyncio.run(acreate_chat_completion(ask(), whole))
        return create_chat_completion(ask(), whole)

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        response = call(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1")
    assert response["error"]["sent"] is False
    assert only_ledger() == Ledger()
    with raw_server([CLOSE]) as server:
        response = call(server.url)
    assert "sent" not in response["error"]
    assert only_ledger().unsure == only_ledger().spent != NOTHING
