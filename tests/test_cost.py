"""What calls cost: exact sums of tokens and prices, over all attempts, and "unknown" where either is not known."""

from __future__ import annotations

import json
import socket
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfn import acreate_chat_completion, create_chat_completion, map_chat
from chatfn.cost import cost_of, counts_of, money, worst
from chatfn.middleware.cost import cost
from chatfn.middleware.retry import retry
from chatfn.prices import ATTOS, Price, lookup_of, name_in
from chatfn.usage import added, is_free, model_asked, own_usage, paid_of, sum_of, usage_of, with_paid

TABLE = {"m": {"input": 1, "output": 2}}
ASK = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}

amounts = st.integers(0, 10**7)
usages = st.fixed_dictionaries(
    {"prompt_tokens": amounts, "completion_tokens": amounts},
    optional={
        "prompt_tokens_details": st.dictionaries(
            st.sampled_from(["cached_tokens", "audio_tokens", "image_tokens", "cache_write_tokens"]), amounts
        ),
        "completion_tokens_details": st.dictionaries(
            st.sampled_from(["reasoning_tokens", "audio_tokens", "image_tokens"]), amounts
        ),
        "total_tokens": amounts,
    },
)
prices = st.decimals(0, 1000, places=6, allow_nan=False)


# --- counting -----------------------------------------------------------------------------------------------------


@given(usages)
def test_every_token_is_counted_once(usage: dict[str, Any]) -> None:
    counts = counts_of(usage)
    assert counts is not None
    assert all(count >= 0 for count in counts)
    assert counts.given() == usage["prompt_tokens"]
    said = usage["completion_tokens"]
    assert sum(counts) - counts.given() == max(said, usage.get("total_tokens", 0) - usage["prompt_tokens"])


@pytest.mark.parametrize("usage", [{}, {"total_tokens": 3}, {"prompt_tokens": "3"}, {"prompt_tokens": True}])
def test_what_is_no_count_is_no_zero(usage: dict[str, Any]) -> None:
    assert counts_of(usage) is None
    assert cost_of(usage, "m", TABLE)["usd"] is None


def test_reasoning_beside_the_completion_is_paid_as_output() -> None:
    beside = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115,
              "completion_tokens_details": {"reasoning_tokens": 100}}  # fmt: skip
    within = {"prompt_tokens": 10, "completion_tokens": 105, "total_tokens": 115,
              "completion_tokens_details": {"reasoning_tokens": 100}}  # fmt: skip
    assert cost_of(beside, "m", TABLE) == cost_of(within, "m", TABLE)


# --- prices -------------------------------------------------------------------------------------------------------


@given(usages, prices, prices, prices, prices)
def test_the_cost_is_the_exact_sum_rounded_once(
    usage: dict[str, Any], given_: Decimal, cached: Decimal, said: Decimal, thought: Decimal
) -> None:
    entry = {"input": given_, "cached_input": cached, "output": str(said), "reasoning_output": float(thought)}
    c = counts_of(usage)
    assert c is not None
    plain_in = c.input + c.cache_write_input + c.audio_input + c.cached_audio_input + c.image_input
    plain_in += c.cached_image_input
    exact = (
        Fraction(given_) * plain_in
        + Fraction(cached) * c.cached_input
        + Fraction(said) * (c.output + c.audio_output + c.image_output)
        + Fraction(Decimal(str(float(thought)))) * c.reasoning_output
    ) / 10**6
    found = cost_of(usage, "m", {"m": entry})
    assert found == {"usd": float(exact), "model": "m", "prices": "the caller's table"}
    json.dumps(found, allow_nan=False)


@given(st.decimals(0, 1, places=20, allow_nan=False), st.integers(0, 1000))
def test_a_price_of_more_digits_than_are_kept_is_rounded_up(price: Decimal, tokens: int) -> None:
    found = money({"prompt_tokens": tokens}, "m", lookup_of({"m": {"input": price, "output": 0}}), None, None, None)
    assert not isinstance(found, str)
    exact = price * tokens * 10**12
    assert exact <= found[0] <= exact.to_integral_value(ROUND_CEILING) + tokens


def test_steps_by_input_charge_the_whole_request() -> None:
    table = {"m": {"input": 1, "output": 2, "above": {100: {"input": 10}, "200": {"input": 20, "output": 30}}}}
    costs = [cost_of({"prompt_tokens": n, "completion_tokens": 1}, "m", table)["usd"] for n in (100, 101, 200, 201)]
    assert costs == [102e-6, 1012e-6, 2002e-6, 4050e-6]


def test_service_tiers_are_maps_or_factors_and_never_guessed() -> None:
    usage = {"prompt_tokens": 10**6, "completion_tokens": 0}
    table = {"m": {"input": 2, "output": 8, "flex": 0.5, "priority": {"input": 3.5}, "above": {10: {"input": 4}}}}
    tiers = (None, "auto", "default", "scale", "flex", "priority", "batch")
    assert [cost_of(usage, "m", table, tier=tier)["usd"] for tier in tiers] == [4, 4, 4, 4, 2, 3.5, None]
    assert "batch" in cost_of(usage, "m", table, tier="batch")["unknown"]


def test_names_with_dates_and_other_names_find_their_price() -> None:
    table = {"m": {"input": 1, "output": 2}, "my-deployment": "m", "round": "round", "ft:m": {"input": 9, "output": 9}}
    usage = {"prompt_tokens": 10**6, "completion_tokens": 0}
    names = ("m", "m-2026-01-31", "m-20260131", "m@20260131", "my-deployment", "ft:m-2026-01-31:acme::x", "m-mini")
    assert [cost_of(usage, name, table)["usd"] for name in names] == [1, 1, 1, 1, 1, 9, None]
    assert cost_of(usage, "round", table)["usd"] is None
    assert name_in({"gpt-4": 1}, "gpt-4-0613") == "gpt-4"


def test_an_unknown_model_is_unknown_and_never_0() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    for name in ("nobody's", "", None, 3):
        found = cost_of(usage, name, TABLE)  # type: ignore[arg-type]  # what a server may answer
        assert found["usd"] is None
        assert found["unknown"]
    free = cost_of(usage, "local", {"local": {"input": 0, "output": 0}})
    assert free["usd"] == 0


def test_a_kind_of_tokens_without_a_price_is_unknown() -> None:
    assert cost_of({"prompt_tokens": 10, "completion_tokens": 0}, "m", {"m": {"output": 1}})["unknown"] == (
        "there is no price of input tokens"
    )
    assert cost_of({"prompt_tokens": 0, "completion_tokens": 5}, "m", {"m": {"output": 1}})["usd"] == 5e-6


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "prices are list"),
        ({"m": 3}, "its entry is int"),
        ({"m": {"inptu": 3}}, "did you mean 'input'"),
        ({"m": {"input": -1}}, "input is -1"),
        ({"m": {"input": float("nan")}}, "input is nan"),
        ({"m": {"input": True}}, "input is True"),
        ({"m": {"input": "much"}}, "input is 'much'"),
        ({"m": {"input": [1]}}, "input is"),
        ({"m": {"above": 3}}, "above is int"),
        ({"m": {"above": {1: {"inputs": 3}}}}, "inputs"),
        ({"m": {"flex": {"max_output_tokens": 3}}}, "max_output_tokens"),
        ({"m": {"flex": -1}}, "flex is -1"),
        ({"m": {"max_output_tokens": 0}}, "max_output_tokens is 0"),
    ],
)
def test_a_wrong_table_is_refused_at_once(table: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"prices are|price of") as caught:
        cost(prices=table or [1])
    assert words in str(caught.value)


def test_a_request_may_have_a_price() -> None:
    found = cost_of(
        {"prompt_tokens": 1, "completion_tokens": 0}, "m", {"m": {"input": 1, "output": 1, "request": 0.01}}
    )
    assert found["usd"] == 0.010001


@given(usages, st.booleans())
def test_the_worst_case_is_never_less_than_the_cost(usage: dict[str, Any], stepped: bool) -> None:
    steps = {"above": {1000: {"input": 7, "output": 1}}} if stepped else {}
    entry = {"input": 3, "cached_input": 1, "cache_write_input": 4, "output": 5, "reasoning_output": 6,
             "audio_input": 9, "image_input": 2, "audio_output": 11, **steps}  # fmt: skip
    lookup = lookup_of({"m": entry})
    price, found, counts = lookup("m", None, None, None), money(usage, "m", lookup, None, None, None), counts_of(usage)
    assert isinstance(price, Price)
    assert not isinstance(found, str)
    assert counts is not None
    most = worst(price, counts.given(), sum(counts) - counts.given(), ("audio", "image"))
    assert not isinstance(most, str)
    assert found[0] <= most


# --- the library --------------------------------------------------------------------------------------------------


def test_the_library_agrees_and_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("genai_prices")
    from genai_prices.data_snapshot import get_snapshot

    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    openai = next(seller for seller in get_snapshot().providers if seller.id == "openai")
    usage = {"prompt_tokens": 1_000, "completion_tokens": 70, "prompt_tokens_details": {"cached_tokens": 300}}
    used = library.Usage(input_tokens=1_000, output_tokens=70, cache_read_tokens=300)
    compared = 0
    for model in openai.models:
        mine = cost_of(usage, model.id, provider="openai")
        if mine["usd"] is not None:
            theirs = library.calc_price(used, model.id, provider_id="openai")
            assert mine["model"] == theirs.model.id
            assert mine["usd"] == pytest.approx(float(theirs.total_price), rel=1e-12)
            compared += 1
    assert compared > 50
    assert mine_is_dated(cost_of(usage, "gpt-4o-mini-2024-07-18")["prices"])


def mine_is_dated(source: str) -> bool:
    return source.startswith("genai-prices ") and "newest price of 20" in source


def test_the_library_knows_times_tiers_and_sellers() -> None:
    pytest.importorskip("genai_prices")
    usage = {"prompt_tokens": 10**6, "completion_tokens": 0}

    def usd(model: str, **more: Any) -> Any:
        return cost_of(usage, model, **more)["usd"]

    assert usd("o3", at=1_700_000_000) > usd("o3", at=1_795_000_000)  # its price fell in June 2025
    assert usd("gpt-5.4-mini", tier="batch", at=1_795_000_000) == usd("gpt-5.4-mini", at=1_795_000_000) / 2
    assert usd("gpt-5.4-mini", tier="priority", at=1_795_000_000) > usd("gpt-5.4-mini", at=1_795_000_000)
    assert usd("gpt-4o", tier="batch", at=1_700_000_000) is None  # no rate is known of that day
    assert usd("gpt-4o", provider="https://mine.openai.azure.com/openai/deployments/x/chat/completions") is not None
    assert usd("gpt-4o", provider="http://localhost:8000/v1") is None  # whose prices these are is not known
    assert usd("gpt-4o", provider="nobody") is None
    assert usd("mine", prices={"mine": "gpt-4o"}, provider="azure") == usd("gpt-4o", provider="azure")
    assert usd("whisper-1") is None  # it has a price by the hour
    dearest, cheaper = usd("deepseek-chat", provider="deepseek"), usd("deepseek-chat", provider="deepseek", at=1.7e9)
    assert dearest >= cheaper


def test_without_the_library_only_the_table_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatfn.prices.library.has_library", lambda: False)
    monkeypatch.setattr(import_module("chatfn.middleware.cost"), "has_library", lambda: False)
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    assert "chatfn[cost]" in cost_of(usage, "gpt-4o")["unknown"]
    assert cost_of(usage, "m", TABLE)["usd"] == 3e-6
    with pytest.raises(ValueError, match=r"chatfn\[cost\]"):
        create_chat_completion(ASK, {"transport": "echo", "middleware": ["cost", "retry"]})


# --- usage over attempts ------------------------------------------------------------------------------------------


trees = st.recursive(
    amounts, lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {p: n for name, sub in tree.items() for p, n in leaves(sub, (*path, name)).items()}


@given(usages, usages, usages)
def test_usage_adds_up_field_by_field(a: Any, b: Any, c: Any) -> None:
    total = leaves(added(a, b))
    assert total == {p: leaves(a).get(p, 0) + leaves(b).get(p, 0) for p in leaves(a) | leaves(b)}
    assert leaves(added(added(a, b), c)) == leaves(added(a, added(b, c)))
    assert sum_of([a]) == a


@given(trees, trees)
def test_no_shape_of_usage_breaks_the_sum(a: Any, b: Any) -> None:
    added(a, b)
    assert added({"x": None, "tier": "a", "ok": True}, {"x": 2, "tier": "b", "ok": True}) == {
        "x": 2,
        "tier": "a",
        "ok": True,
    }


def completion(tokens: int, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [], "usage": usage, **more}


def test_a_failed_attempt_that_was_paid_counts() -> None:
    refused = {"status": 200, "body": completion(5, error={"message": "late", "code": 503})}
    script = [refused, {"status": 429, "headers": {"retry-after": "0"}}, completion(7)]
    options = {"transport": ["scripted", {"responses": script}], "full_response": True}
    stack = [["cost", {"prices": TABLE}], ["retry", {"attempts": 3, "base": 0}]]
    response = create_chat_completion(ASK, {**options, "middleware": stack})
    assert response["attempts"] == 3
    assert response["usage"] == {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
    assert [paid["usage"]["total_tokens"] for paid in response["paid"]] == [6]
    assert response["cost"] == {"usd": 16e-6, "model": "m", "prices": "the caller's table"}
    assert response["body"]["usage"]["total_tokens"] == 8  # the answer stays as it was sent


def test_one_attempt_adds_nothing_to_the_response() -> None:
    answer = {"status": 200, "headers": {}, "body": completion(5)}
    response = retry()(lambda request: answer)({"url": "u", "body": {}})
    assert set(response) == {*answer, "attempts"}
    assert usage_of(response) is answer["body"]["usage"]


def test_a_row_has_the_usage_and_cost_of_all_attempts() -> None:
    refused = {"status": 200, "body": completion(5, error={"message": "late", "code": 503})}
    options = {
        "transport": ["scripted", {"responses": [refused, completion(7)]}],
        "middleware": [["cost", {"prices": TABLE}], ["retry", {"base": 0}]],
    }
    (row,) = map_chat([{"params": ASK}], options)
    assert row["usage"]["total_tokens"] == 14
    assert row["cost"]["usd"] == 16e-6
    (plain,) = map_chat([{"params": ASK, "cost": "mine"}], {"transport": "echo"})
    assert plain["cost"] == "mine"  # nobody asked for one


def test_a_call_that_never_reached_a_server_cost_nothing_and_a_timeout_is_unknown() -> None:
    def cost_after(error: dict[str, Any], status: int = 0) -> Any:
        failed = {"status": status, "headers": {}, "body": None, "error": {"message": "", "status": status, **error}}
        response = cost(TABLE)(lambda request: failed)({"url": "u", "body": {}})
        return response["cost"]["usd"]

    assert cost_after({"category": "unavailable", "sent": False}) == 0
    assert cost_after({"category": "busy"}, 429) == 0
    assert cost_after({"category": "forbidden"}) == 0
    assert cost_after({"category": "unavailable"}) is None
    assert cost_after({"category": "interrupted"}) is None
    assert cost_after({"category": "unavailable"}, 504) is None
    assert cost_after({"category": "fault"}, 200) is None


def test_what_is_free_is_a_table() -> None:
    def free(status: int, **error: Any) -> bool:
        return is_free({"status": status, "error": {"category": "busy", **error}})

    assert [status for status in (0, 200, 302, 400, 408, 429, 500, 501, 502, 503, 504, 529) if free(status)] == [
        *(302, 400, 408, 429, 500, 501, 503, 529)
    ]
    assert not is_free({"status": 200, "body": {}})
    assert not free(429, partial={"usage": {"total_tokens": 1}})
    assert is_free({"status": 0, "attempts": 0, "error": {"category": "interrupted"}})


def test_what_an_attempt_used_is_found_wherever_it_stands() -> None:
    usage = {"total_tokens": 3}
    broken: Any = {"status": 200, "body": None, "error": {"partial": {"usage": usage, "model": "m"}}}
    assert own_usage(broken) == usage
    assert own_usage({"status": 200, "body": None, "error": {"body": {"usage": usage}}}) == usage
    assert own_usage({"status": 500, "body": {"usage": usage}, "error": {}}) is None
    assert own_usage({"status": 200, "body": [1]}) is None
    request = {"url": "u", "body": {"model": "asked"}}
    assert paid_of(request, {**broken, "paid": [{"usage": usage}]}) == [
        {"usage": usage},
        {"model": "m", "usage": usage, "url": "u"},
    ]
    assert paid_of(request, {"status": 500, "body": None}) == []
    stream: Any = {"status": 200, "headers": {}, "body": iter(())}
    assert "usage" not in with_paid(stream, [{"usage": usage}])
    assert with_paid(stream, []) is stream
    assert usage_of({**stream, "paid": [{"usage": usage}]}) == usage
    assert model_asked(request) == "asked"  # type: ignore[arg-type]  # what is looked at of a request
    assert model_asked({"url": "https://h/openai/v1/chat/completions", "body": []}) is None  # type: ignore[arg-type,typeddict-item]


# --- streams ------------------------------------------------------------------------------------------------------


ASK_STREAM = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
STREAMED = {"transport": "echo", "full_response": True, "middleware": [["cost", {"prices": TABLE}], "retry"]}


def test_a_stream_has_its_cost_at_its_end() -> None:
    response = create_chat_completion(ASK_STREAM, STREAMED)
    assert response["cost"]["usd"] is None
    assert list(response["body"])
    assert response["cost"]["usd"] == pytest.approx(6e-6)
    response = create_chat_completion({**ASK_STREAM, "stream_options": None}, STREAMED)
    assert list(response["body"])
    assert "include_usage" in response["cost"]["unknown"]


def test_a_stream_that_is_left_or_breaks_is_of_unknown_cost() -> None:
    response = create_chat_completion(ASK_STREAM, STREAMED)
    next(response["body"])
    response["body"].close()
    assert response["cost"]["usd"] is None
    broken = {**ASK_STREAM, "messages": [{"role": "user", "content": "!break 2 one two three"}]}
    (row,) = map_chat([{"params": broken}], {**STREAMED, "full_response": False})
    assert row["error"]["category"] == "interrupted"
    assert row["cost"]["usd"] is None


@pytest.mark.filterwarnings("default::ResourceWarning")
def test_the_same_awaited() -> None:
    import asyncio

    async def run() -> Any:
        response = await acreate_chat_completion(ASK_STREAM, STREAMED)
        assert [event async for event in response["body"]]
        whole = await acreate_chat_completion(ASK, STREAMED)
        return response["cost"]["usd"], whole["cost"]["usd"]

    assert asyncio.run(run()) == (pytest.approx(6e-6), pytest.approx(6e-6))


@pytest.mark.parametrize(
    "stack", [["retry", ["cost", {"prices": TABLE}]], [["journal", {"path": "j"}], ["cost", {"prices": TABLE}]]]
)
def test_a_cost_inside_what_it_has_to_see_is_refused(stack: Any) -> None:
    with pytest.raises(ValueError, match='put "cost" before'):
        create_chat_completion(ASK, {"transport": "echo", "middleware": stack})


def test_attos_are_exact() -> None:
    assert ATTOS == 10**18
    found = cost_of({"prompt_tokens": 3, "completion_tokens": 0}, "m", {"m": {"input": 0.1, "output": 1}})
    assert found["usd"] == 3e-7  # and not 0.1 * 3 / 10**6
