"""Plans: what a map would send, before it is paid for, and what an edit changes."""

from __future__ import annotations

import json
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn import cli, diff_plans, echo, map_chat, plan
from chatfn.pipeline.columns import unpacked
from chatfn.pipeline.seen import first_seen
from chatfn.pipeline.sums import MOST_NAMED, OTHERS
from chatfn.pipeline.tokens import quarter, size_of

PRICES = {"m": {"input": 1, "output": 10, "max_output_tokens": 100}}
TINY = {"middleware": [["retry", {"attempts": 1}]], "api_key": "sk-none"}


def ask(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def rows_of(*texts: Any) -> list[dict[str, Any]]:
    return [{"params": ask(text)} for text in texts]


def journaled(path: Path, **more: Any) -> dict[str, Any]:
    return {**TINY, "middleware": [["journal", {"path": str(path), **more}], ["retry", {"attempts": 1}]]}


def counting() -> tuple[Any, list[Any]]:
    """A transport that answers, and what it was sent."""
    sent: list[Any] = []

    def transport(request: Any) -> Any:
        sent.append(request["body"])
        return echo(request)

    return transport, sent


# --- what is counted ---


TEXTS = st.sampled_from(["red", "blue", "green", "!error 400 bad", b"bytes", None])


@settings(max_examples=40, deadline=None)
@given(before=st.lists(TEXTS, max_size=6), now=st.lists(TEXTS, max_size=9), errors=st.sampled_from(["resend", "keep"]))
def test_as_many_are_sent_as_planned(tmp_path_factory: Any, before: list[Any], now: list[Any], errors: str) -> None:
    path = tmp_path_factory.mktemp("plan") / "run.db"
    transport, sent = counting()
    options = {**journaled(path, errors=errors), "transport": transport}
    list(map_chat(rows_of(*before), options))
    planned = plan(rows_of(*now), options)
    sent.clear()
    results = list(map_chat(rows_of(*now), options))
    assert planned["rows"] == len(now)
    assert planned["rows"] == planned["bad"] + planned["unique"] + planned["duplicates"]
    kept = planned["failed"] if errors == "keep" else 0
    assert planned["unique"] == planned["answered"] + kept + planned["to_send"]
    assert planned["bad"] == sum(row.get("attempts") == 0 for row in results)
    doubles = sum(max(now.count(text) - 1, 0) for text in ("!error 400 bad", None))  # what fails answers no other row
    again = 0 if errors == "keep" else doubles
    assert planned["to_send"] <= len(sent) <= planned["to_send"] + again


def test_without_a_journal_all_are_sent() -> None:
    transport, sent = counting()
    rows = rows_of("a", "b", "a")
    found = plan(rows, {**TINY, "transport": transport})
    assert sent == []
    assert (found["unique"], found["duplicates"], found["to_send"], found["journal"]) == (2, 1, 3, None)
    list(map_chat(rows, {**TINY, "transport": transport}))
    assert len(sent) == 3


def test_what_a_journal_has_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    list(map_chat(rows_of("a", "!error 400 x"), {**journaled(path), "transport": "echo"}))
    found = plan(rows_of("a", "!error 400 x", "new", "a"), journaled(path))
    assert [found[name] for name in ("answered", "failed", "to_send", "duplicates")] == [1, 1, 2, 1]
    assert found["journal"] == str(path)
    kept = plan(rows_of("a", "!error 400 x", "new", "a"), journaled(path, errors="keep"))
    assert [kept[name] for name in ("answered", "failed", "to_send", "duplicates")] == [1, 1, 1, 1]


def test_a_samples_number_makes_another_call_of_the_same_request(tmp_path: Path) -> None:
    rows = [{"params": ask("a"), "sample": n} for n in (1, 2, 1, None)]
    assert plan(rows, journaled(tmp_path / "run.db"))["to_send"] == 3


def test_no_file_is_made_and_none_is_changed(tmp_path: Path) -> None:
    plan(rows_of("a"), journaled(tmp_path / "run.db"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    assert plan(rows_of("a"), journaled(tmp_path / "empty.db"))["answered"] == 0
    assert (tmp_path / "empty.db").read_bytes() == b""
    list(map_chat(rows_of("a"), {**journaled(tmp_path / "run.db"), "transport": "echo"}))
    before = (tmp_path / "run.db").read_bytes()
    plan(rows_of("a", "b"), journaled(tmp_path / "run.db"))
    assert (tmp_path / "run.db").read_bytes() == before
    (tmp_path / "other.db").write_text("no journal")
    with pytest.raises(ValueError, match=r"other\.db is no journal"):
        plan([], journaled(tmp_path / "other.db"))


def test_no_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert plan(rows_of("a"))["to_send"] == 1


def test_bad_rows_are_named_with_what_a_map_says_of_them() -> None:
    rows: list[Any] = [{"id": 7, "params": ask(b"x")}, {"no": "params"}, 3, *rows_of("fine")]
    found = plan(rows, TINY)
    errors = [row["error"]["message"] for row in map_chat(rows, {**TINY, "transport": "echo"}) if "error" in row]
    assert found["bad"] == 3
    assert [bad["error"] for bad in found["bad_rows"]] == errors
    assert [(bad["row"], bad["id"]) for bad in found["bad_rows"]] == [(0, 7), (1, None), (2, None)]
    many = plan([{}] * (MOST_NAMED + 5), TINY)
    assert (many["bad"], len(many["bad_rows"])) == (MOST_NAMED + 5, MOST_NAMED)


def test_what_the_rows_raise_comes_out() -> None:
    def rows() -> Iterator[Any]:
        yield from rows_of("a")
        raise LookupError("the disk")

    with pytest.raises(LookupError, match="the disk"):
        plan(rows(), TINY)


# --- tokens, money, time ---


def test_what_is_not_known_is_none_and_says_why() -> None:
    found = plan([{"params": ask("a", model="no-such-model-anywhere")}], TINY)
    assert (found["cost"]["low"], found["cost"]["high"]) == (None, None)
    assert found["tokens"]["output"] == {"low": 1, "high": None}
    assert any("no price" in why or "prices are" in why for why in found["cost"]["unknown"])
    endless = plan(rows_of("a"), TINY, prices={"m": {"input": 1, "output": 1}}, limits={"tpm": 60, "rpm": 60})
    assert endless["cost"]["low"] is not None
    assert endless["cost"]["high"] is None
    assert endless["time"]["high"] is None
    assert any("max_completion_tokens" in why for why in endless["cost"]["unknown"])
    assert plan(rows_of("a"), TINY)["time"]["low"] is None
    json.dumps([found, endless])


def test_cost_is_the_exact_sum_of_its_calls() -> None:
    found = plan(rows_of(*"abc"), TINY, prices=PRICES)
    assert found["tokens"] == {"input": 15, "output": {"low": 3, "high": 300}}
    assert found["cost"] == {"low": (15 + 30) / 1e6, "high": (15 + 3000) / 1e6}
    own = {**TINY, "middleware": [["cost", {"prices": PRICES}], "retry"]}
    assert plan(rows_of(*"abc"), own)["cost"] == found["cost"]
    limited = {**TINY, "middleware": ["retry", ["limit", {"rpm": 60}]]}
    assert plan(rows_of(*"abc"), limited)["time"] == {"low": 3.0, "high": 3.0, "by": "rpm"}
    nothing = plan([], TINY, prices=PRICES, limits={"rpm": 1})
    assert nothing["cost"] == {"low": 0.0, "high": 0.0}
    assert nothing["time"] == {"low": 0.0, "high": 0.0, "by": "rpm"}


def test_models_are_summed_one_by_one_and_not_too_many_of_them() -> None:
    rows = [{"params": ask("a", model=f"zz{n}")} for n in range(MOST_NAMED + 7)]
    found = plan(rows, TINY, prices={"zz1": PRICES["m"]})
    assert found["models"]["zz1"]["cost"]["high"] is not None
    assert found["models"]["zz2"]["cost"]["high"] is None
    assert found["models"][OTHERS]["to_send"] == 7
    assert sum(part["to_send"] for part in found["models"].values()) == found["to_send"] == MOST_NAMED + 7
    assert len(found["cost"]["unknown"]) <= MOST_NAMED + 1


@pytest.mark.parametrize(
    ("limits", "time"),
    [
        ({"rpm": 60}, {"low": 4.0, "high": 4.0, "by": "rpm"}),
        ({"tpm": 60}, {"low": 24.0, "high": 420.0, "by": "tpm"}),
        ({"concurrency": 3, "latency": 5}, {"low": 10.0, "high": 10.0, "by": "latency"}),
        ({"rpm": 60, "tpm": 6000, "concurrency": None}, {"low": 4.0, "high": 4.2, "by": "tpm"}),
    ],
)
def test_time_is_that_of_the_tightest_limit(limits: Any, time: Any) -> None:
    assert plan(rows_of(*"abcd"), TINY, prices=PRICES, limits=limits)["time"] == time


def test_what_cannot_be_is_refused_before_any_row_is_read() -> None:
    def rows() -> Iterator[Any]:
        pytest.fail("read")
        yield

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"limits": {"rpn": 1}}, "did you mean 'rpm'"),
        ({"limits": {"rpm": 0}}, "greater than 0"),
        ({"limits": {"rpm": True}}, "greater than 0"),
        ({"output_tokens": (5, 1)}, "least and the most"),
        ({"output_tokens": 5}, "least and the most"),
        ({"prices": {"m": {"inputs": 1}}}, "did you mean 'input'"),
        ({"options": {"impls": 1}}, "did you mean 'impl'"),
    ]
    for settings_, words in wrong:
        with pytest.raises(ValueError, match=words):
            plan(rows(), **settings_)


def test_the_length_of_answers_is_what_the_request_says_else_the_caller_else_the_model() -> None:
    def high(body: Any, output: Any = None, longest: Any = None) -> Any:
        return size_of(body, quarter, output, longest)[1:]

    assert high({}) == (1, None)
    assert high({}, None, 100) == (1, 100)
    assert high({"n": 3}, (5, 10), 100) == (15, 30)
    assert high({"max_completion_tokens": 7, "max_tokens": 9}, None, 100) == (1, 7)
    assert high({"max_tokens": 7}, (5, 10)) == (5, 7)
    assert high({"max_tokens": 3}, (5, 10)) == (3, 3)
    assert high({"max_tokens": True, "n": 0}) == (1, None)


def test_all_that_a_request_says_has_tokens() -> None:
    def tokens(body: Any) -> int:
        return size_of(body, len, None, None).input

    assert tokens({"messages": [{"role": "user", "content": "abc"}]}) == 4 + 3
    assert tokens({"messages": [{"role": "user", "content": "abc", "name": "me"}]}) == 4 + 3 + 4 + 2
    parts = [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 9999}}]
    assert tokens({"messages": [{"role": "user", "content": parts}]}) == 4 + 2 + 1000
    call = {"id": "c", "function": {"arguments": "{}"}}
    assert tokens({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}) > 10
    assert tokens({"messages": [], "tools": [{"n": 1, "b": True, "big": 10**5000}]}) > 20
    assert tokens({"messages": "x"}) == tokens({}) == 0
    assert quarter("日本") == 2
    assert plan(rows_of("abc"), TINY, tokens_of=lambda text: 1000)["tokens"]["input"] == 1004


def test_findings_are_counted_by_rule_with_the_first_row_that_has_them() -> None:
    rows = [{"id": n, "params": ask("a", **({"user": "u"} if n > 1 else {}))} for n in range(5)]
    rows += [{"id": "last", "params": {"model": "m", "messages": [{"role": "usr"}] * 3, "topp": 1}}]
    found = {each["path"]: each for each in plan(rows, TINY)["lint"]}
    assert (found["user"]["rows"], found["user"]["row"], found["user"]["id"]) == (3, 2, 2)
    assert (found["messages[0].role"]["rows"], found["messages[0].role"]["row"]) == (1, 5)
    assert [each["level"] for each in found.values()] == ["error", "warning", "warning"]
    odd = [{"params": ask("a", **{f"x{n}": 1})} for n in range(MOST_NAMED + 9)]
    assert len(plan(odd, TINY)["lint"]) == MOST_NAMED + 1


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            plan(({"params": ask(str(n))} for n in range(count)), TINY, prices=PRICES)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(4_000) < 1_200_000  # bytes; the rows themselves are more


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)))
def test_a_number_is_new_once(numbers: list[int]) -> None:
    with first_seen() as is_new:
        assert [is_new(number) for number in numbers] == [n not in numbers[:place] for place, n in enumerate(numbers)]


# --- two plans ---


def planned(*texts: Any, ids: bool = False, **settings_: Any) -> Any:
    rows = [{**row, **({"id": f"r{n}"} if ids else {})} for n, row in enumerate(rows_of(*texts))]
    return json.loads(json.dumps(plan(rows, TINY, prices=PRICES, keys=True, **settings_)))


LISTS = st.lists(st.sampled_from("abcdef"), max_size=10)


@settings(max_examples=60, deadline=None)
@given(LISTS, LISTS, st.booleans())
def test_every_row_is_the_same_changed_added_or_removed(a: list[str], b: list[str], ids: bool) -> None:
    was, now = planned(*a, ids=ids), planned(*b, ids=ids)
    found = diff_plans(was, now)
    assert found["same"] + len(found["changed"]) + len(found["added"]) == len(b)
    assert found["same"] + len(found["changed"]) + len(found["removed"]) == len(a)
    assert found["to_send"] == sum(text not in a for text in b)
    if not ids:
        assert found["same"] == sum(min(a.count(text), b.count(text)) for text in set(a))
    assert diff_plans(now, now) == {**diff_plans(now, now), "same": len(b), "changed": [], "to_send": 0}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=10, unique=True), st.randoms())
def test_rows_in_another_order_ask_the_same(texts: list[str], random: Any) -> None:
    shuffled = random.sample(texts, len(texts))
    assert diff_plans(planned(*texts), planned(*shuffled))["same"] == len(texts)


def test_an_edit_of_the_prompt_changes_all_rows_and_one_of_the_data_its_own() -> None:
    was = planned("a", "b", "c", "d")
    prompt = diff_plans(was, planned("a!", "b!", "c!", "d!"))
    assert (prompt["changed"], prompt["added"], prompt["removed"]) == ([0, 1, 2, 3], [], [])
    assert prompt["cost"] == planned("a!", "b!", "c!", "d!")["cost"]
    model = diff_plans(was, plan([{"params": ask(t, model="other")} for t in "abcd"], TINY, keys=True))
    assert (model["changed"], model["to_send"], model["cost"]) == ([0, 1, 2, 3], 4, {"low": None, "high": None})
    data = diff_plans(was, planned("new", "a", "B", "c"))
    assert (data["changed"], data["added"], data["removed"]) == ([2], [0], [3])
    assert data["to_send"] == 2


def test_rows_with_ids_are_found_again_by_them() -> None:
    was = plan([{"id": n, "params": ask(t)} for n, t in ((7, "a"), (8, "b"), (9, "c"))], TINY, keys=True)
    now = plan([{"id": n, "params": ask(t)} for n, t in ((9, "c"), (7, "A"), (10, "b"))], TINY, keys=True)
    found = diff_plans(was, now)
    assert (found["same"], found["changed"], found["added"], found["removed"]) == (1, [7], [10], [8])
    own = plan(rows_of("a"), TINY, keys=True, id_of=lambda row: row["params"]["model"])
    assert diff_plans(plan([], TINY, keys=True), own)["added"] == ["m"]
    assert plan([{"id": [1], "params": ask("a")}], TINY, keys=True)["keys"]["id"] is None


def test_what_is_answered_or_cannot_be_sent_costs_nothing(tmp_path: Path) -> None:
    options = {**journaled(tmp_path / "run.db"), "transport": "echo"}
    list(map_chat(rows_of("paid"), options))
    was = plan(rows_of("a", b"bad", b"bad"), options, keys=True)
    now = plan(rows_of("paid", b"bad", "good"), options, keys=True, prices=PRICES)
    found = diff_plans(was, now)
    assert (found["same"], found["changed"], found["to_send"]) == (1, [0, 2], 1)
    assert found["tokens"]["input"] == 5


def test_what_is_no_plan_with_keys_is_refused() -> None:
    good = planned("a")
    for wrong in ({}, [], plan(rows_of("a"), TINY), {**good, "plan": 2}):
        with pytest.raises(ValueError, match="keys=True"):
            diff_plans(wrong, good)
        with pytest.raises(ValueError, match="second"):
            diff_plans(good, wrong)
    for keys in ({}, {**good["keys"], "key": "§"}, {**good["keys"], "state": "nn"}, {**good["keys"], "id": [1, 2]}):
        with pytest.raises(ValueError, match="damaged"):
            diff_plans({**good, "keys": keys}, good)
    assert unpacked(good["keys"]).input[0] == 5


# --- the command ---


def command(capfd: Any, *args: Any) -> tuple[int, str, str]:
    status = cli.run(["map", *map(str, args)])
    return status, *capfd.readouterr()


def table(path: Path, *words: Any) -> Path:
    path.write_text("".join(json.dumps({"word": word}) + "\n" for word in words))
    return path


def test_the_command_plans_and_makes_no_file(tmp_path: Path, capfd: Any) -> None:
    source, target = table(tmp_path / "in.jsonl", "red", "blue", "red"), tmp_path / "out.jsonl"
    source.write_text(source.read_text() + "{no json\n")
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(PRICES))
    args = [source, target, "--prompt", "{word}", "--model", "m", "--prices", prices, "--param", "user=u"]
    status, out, err = command(capfd, *args, "--plan", "--limits", '{"latency": 30}', "--concurrency", 1)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][1:3] == ["4", "rows,"]
    assert [line[-1] for line in lines[1:7]] == ["2", "once", "1", "out.jsonl.journal.db", "there", "2"]
    for words in ("2 to 200 out", "$0.0000", "1:00, by latency", "line 4: no JSON", "user is deprecated", "(3 rows"):
        assert words in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "prices.json"]


def test_the_command_tells_models_apart_and_what_is_not_known(tmp_path: Path, capfd: Any) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps(row) + "\n" for row in [{"params": ask("a")}, {"params": ask("a", model="zz")}])
    )
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(PRICES))
    status, out, err = command(capfd, source, "-", "--plan", "--prices", prices)
    assert (status, err) == (0, "")
    for words in (
        "duplicates 0\n",
        "cost       unknown (",
        "time       unknown (no --limits",
        "  m: 1 to send, $0.0000",
        "  zz: 1 to send, unknown (no price of the model 'zz'",
        "give one in --prices FILE; ",
        "1 to unknown out",
    ):
        assert words in out.replace("2 to unknown out", "1 to unknown out")
    assert "answered" not in out


def test_the_command_compares_with_a_saved_plan(tmp_path: Path, capfd: Any) -> None:
    source, target = table(tmp_path / "in.jsonl", "red", "blue"), tmp_path / "out.jsonl"
    args = [source, target, "--prompt", "Say {word}", "--model", "m", "--plan", "--output-tokens", "10-20"]
    status, saved, _ = command(capfd, *args, "--json")
    assert status == 0
    assert json.loads(saved)["tokens"]["output"] == {"low": 20, "high": 40}
    (tmp_path / "plan.json").write_text(saved)
    table(source, "red", "green", "black")
    status, out, _ = command(capfd, *args, "--against", tmp_path / "plan.json")
    assert status == 0
    for words in (
        "2 rows; now 3",
        "same       1",
        "changed    1: row 2",
        "added      1: row 3",
        "2 for these, 3 in all",
    ):
        assert words in out
    status, out, _ = command(capfd, *args, "--against", tmp_path / "plan.json", "--json")
    assert (status, json.loads(out)["changed"]) == (0, [1])


def test_the_command_says_what_cannot_be_meant(tmp_path: Path, capfd: Any) -> None:
    source = table(tmp_path / "in.jsonl", "red")
    args = [source, tmp_path / "out.jsonl", "--prompt", "{word}", "--model", "m"]
    (tmp_path / "torn.json").write_text("{")
    wrong: list[tuple[list[Any], int, str]] = [
        (["--json"], 2, "is for --plan"),
        (["--limits", "{}"], 2, "are for --plan"),
        (["--plan", "--simulate", source], 2, "two things"),
        (["--plan", "--limits", "fast"], 2, "give JSON"),
        (["--plan", "--limits", '{"rpn": 1}'], 1, "did you mean 'rpm'"),
        (["--plan", "--output-tokens", "9-1"], 2, "such as 20-300"),
        (["--plan", "--against", tmp_path / "torn.json"], 1, "is no plan"),
        (["--plan", "--against", source], 1, "make it with chatfn map IN OUT --plan --json"),
        (["--plan"], 0, "give --param max_completion_tokens=N, or --output-tokens"),
        (["--plan"], 0, "no --limits are given"),
        (["--plan", "--prompt", "{colour}"], 0, "no column 'colour'"),
    ]
    for more, expected, words in wrong:
        status, out, err = command(capfd, *args, *more)
        assert status == expected
        assert words in out + err


def test_a_plan_reads_a_journal_while_a_run_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    list(map_chat(rows_of("a"), {**journaled(path), "transport": "echo"}))
    writer = sqlite3.connect(path, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        assert plan(rows_of("a", "b"), journaled(path))["answered"] == 1
    finally:
        writer.close()
