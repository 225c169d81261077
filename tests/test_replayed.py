"""What a journal gives back is what was paid for: who answered, what it used, what it cost; in older files too."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn import create_chat_completion, map_chat, plan, scripted
from chatfn.cli import run
from chatfn.journal import stores
from chatfn.journal.files import connect
from chatfn.journal.report import export, summary
from chatfn.journal.rows import given_back, json_text, rest_of
from chatfn.journal.spent import by_day, spent_in
from chatfn.journal.tables import ADDED, schema
from chatfn.middleware.budget import budget_of
from chatfn.prices import ATTOS, Price, lookup_of

A, B = "https://a.example/v1", "https://b.example/v1"
TABLE = {"m-a": {"input": 1, "output": 2}, "m-b": {"input": 10, "output": 20}}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
PAST = ("response", "error", "attempts", "usage", "cost", "target")  # of a row: what its call came to


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "run.db")
    stores.close_all()


def ask(seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": seed, **more}


def completion(model: str, reason: str = "stop") -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    choice = {"index": 0, "message": {"role": "assistant", "content": "so"}, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def events(model: str) -> list[dict[str, Any]]:
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": model}
    return [
        {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "so"}, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**chunk, "choices": [], "usage": completion(model)["usage"]},
    ]


def by_host(a: Any, b: Any) -> Any:
    """A transport of two services."""
    return scripted([lambda request: a if request["url"].startswith(A) else b] * 99)


def options(path: str, transport: Any, *, attempts: int = 1, **settings: Any) -> dict[str, Any]:
    """A call of the service A, which goes on to B, with its cost and a journal."""
    target = {"api_endpoint": B, "api_key": "k-b"}
    layers = [
        ["cost", {"prices": TABLE}],
        ["journal", {"path": path, **settings}],
        ["fallback", {"impls": [target], "on": ["busy", "unavailable", "content_filter", "fault"]}],
        ["retry", {"attempts": attempts, "base": 0.0}],
    ]
    return {"api_key": "k-a", "api_endpoint": A, "transport": transport, "middleware": layers}


def capped(usd: Any = None, tokens: Any = None, prices: Any = None) -> Any:
    return budget_of(usd, tokens, prices, None, None, 1.0, None)


def rows_of(params: Any, options: Any) -> list[dict[str, Any]]:
    return list(map_chat([{"params": one} for one in params], options))


def past(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in PAST if name in row}


FAULTY = {"status": 200, "body": {**completion("m-a"), "error": {"message": "late", "code": 503}}}  # and yet paid
SCRIPTS = {
    "another answered": ({"status": 429}, completion("m-b")),
    "another answered, and the first was paid": (FAULTY, completion("m-b")),
    "its own answered": (completion("m-a"), {"status": 500}),
    "a filtered answer is the last one": (completion("m-a", "content_filter"), {"status": 429}),
    "none answered": (FAULTY, {"status": 503}),
    "nobody knows what the first cost": ({"status": 502}, completion("m-b")),
}


@pytest.mark.parametrize("how", [{}, STREAMED])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_row_that_is_answered_again_says_what_it_said_when_it_was_paid(path: str, script: Any, how: Any) -> None:
    """Its answer, target, cost, attempts, and usage of all of them; only ``cached`` is new."""
    a, b = script
    if how:
        a, b = ({"body": events(one["model"])} if one.get("choices") else one for one in script)
    first = rows_of([ask(**how)], options(path, by_host(a, b), attempts=2, errors="keep"))
    again = rows_of([ask(**how)], options(path, scripted([]), errors="keep"))
    assert "cached" not in first[0]
    assert past(again[0]) == past(first[0])
    assert json.dumps(past(again[0])) == json.dumps(past(first[0])), "to the byte"
    assert again[0]["cached"]
    assert "target" in first[0]


def test_a_call_says_so_too_and_of_a_stream_at_its_end(path: str) -> None:
    whole = {**options(path, by_host(FAULTY, completion("m-b"))), "full_response": True}
    first = create_chat_completion(ask(), whole)
    again = create_chat_completion(ask(), whole)
    for name in ("target", "url", "attempts", "usage", "paid", "cost"):
        assert again[name] == first[name]
    assert again["url"].startswith(B)
    assert again["cost"]["usd"] == pytest.approx((3 * 1 + 4 * 2 + 3 * 10 + 4 * 20) / 10**6)
    stream = create_chat_completion(ask(**STREAMED), whole)
    assert stream["target"] == first["target"]
    assert list(stream["body"])
    assert stream["cost"] == first["cost"]


def test_without_other_targets_a_response_has_nothing_of_them(path: str) -> None:
    whole = {**options(path, scripted([completion("m-a")])), "full_response": True}
    whole["middleware"] = [["journal", {"path": path}]]
    create_chat_completion(ask(), whole)
    again = create_chat_completion(ask(), whole)
    assert again.keys() == {"status", "headers", "body", "attempts", "cached", "elapsed"}


@settings(max_examples=50)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "target": st.text(st.characters(codec="utf-8"), min_size=1),
            "unsure": st.integers(1, 9),
            "paid": st.lists(st.dictionaries(st.text(), st.integers() | st.text()), min_size=1),
        },
    )
)
def test_what_few_responses_have_comes_back_as_it_was(response: dict[str, Any]) -> None:
    url = {"url": B} if "target" in response else {}
    values = rest_of({**response, **url})
    stored = json_text(values) if any(value is not None for value in values) else None
    assert given_back("p", 1, stored) == {**response, **url}
    assert rest_of({"url": B}) == (None, None, None, None), "a URL is that of a target"


# The sums


def test_a_summary_and_an_export_say_who_answered(path: str, capfd: Any) -> None:
    rows_of([ask(1), ask(2)], options(path, by_host({"status": 429}, completion("m-b"))))
    rows_of([ask(3), ask(4)], options(path, by_host(completion("m-a"), {})))
    rows_of([ask(5)], options(path, by_host({"status": 429}, {"status": 503})))
    assert summary(path)["targets"] == {"openai@b.example": 3, "openai@a.example": 2}
    assert [line["target"][-9:-8] for line in export(path)] == ["b", "b", "a", "a"]
    assert run(["journal", path]) == 0
    said = capfd.readouterr()[0].splitlines()
    place = said.index("targets")
    assert said[place + 1 : place + 3] == ["           3  openai@b.example", "           2  openai@a.example"]


def test_sums_count_each_attempt_at_the_price_of_who_it_was_sent_to(path: str) -> None:
    asked = []

    def noting(model: str, provider: str | None, tier: str | None, at: float | None) -> Price | str:
        asked.append((model, provider))
        return lookup_of(TABLE)(model, provider, tier, at)

    rows_of([ask()], options(path, by_host(FAULTY, completion("m-b"))))
    (entry,) = by_day(path, noting)
    dollars = (3 * 1 + 4 * 2 + 3 * 10 + 4 * 20) / 10**6
    assert (entry["model"], entry["calls"], entry["unpriced"]) == ("m-b", 1, 0)
    assert entry["usd"] == pytest.approx(dollars)
    assert entry["tokens"] == {"prompt": 6, "completion": 8, "total": 14}
    assert asked == [("m-a", f"{A}/chat/completions"), ("m-b", f"{B}/chat/completions")]
    taken = spent_in(path, 3, capped(usd=1, prices=TABLE))
    assert (taken.attos / ATTOS, taken.tokens) == (pytest.approx(dollars), 14)


# Files of before


def older(path: str, lacking: list[str]) -> None:
    """Make the journal one of before there were some columns."""
    stores.close_all()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for name in lacking:
            db.execute(f"ALTER TABLE calls DROP COLUMN {name}")


def columns(path: str) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [row[1] for row in db.execute("PRAGMA table_info(calls)")]


LACKING = [["target", "paid"], ["target", "paid", "unsure"], ["unsure"]]


@pytest.mark.parametrize("lacking", LACKING)
def test_a_file_without_a_column_is_read_as_it_is(path: str, lacking: list[str]) -> None:
    whole = options(path, by_host({"status": 429}, completion("m-b")))
    (row,) = rows_of([ask()], whole)
    older(path, lacking)
    before = Path(path).read_bytes()
    found = summary(path)
    assert (found["answered"], found["targets"]) == (1, {} if "target" in lacking else {row["target"]: 1})
    assert [line["completion"] for line in export(path)] == [row["response"]]
    assert by_day(path, lookup_of(TABLE))[0]["tokens"]["total"] == 7
    assert spent_in(path, 3, capped(tokens=1)).tokens == 7
    assert plan([{"params": ask()}, {"params": ask(2)}], whole)["answered"] == 1
    assert run(["journal", path]) == 0
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("lacking", LACKING)
def test_a_file_without_a_column_gets_it_and_loses_nothing(path: str, lacking: list[str]) -> None:
    whole = options(path, by_host({"status": 429}, completion("m-b")))
    (old,) = rows_of([ask()], whole)
    older(path, lacking)
    again, new = rows_of([ask(), ask(2)], whole)
    assert (again["cached"], again["response"]) == (True, old["response"])
    assert new["target"] == old["target"]
    (new_again,) = rows_of([ask(2)], options(path, scripted([])))
    assert past(new_again) == past(new)
    wanted = [name for name in wanted_columns() if name not in lacking]
    assert columns(path) == wanted + [name for name in ADDED if name in lacking]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def wanted_columns() -> list[str]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema())
        found = {row[1]: row[2:4] for row in db.execute("PRAGMA table_info(calls)")}
    assert {name: found[name] for name in ADDED} == {name: (kind, 0) for name, kind in ADDED.items()}
    return list(found)


def test_many_that_open_an_older_file_at_once_give_it_its_columns_once(path: str) -> None:
    rows_of([ask()], options(path, by_host(completion("m-a"), {})))
    older(path, list(ADDED))
    gate, opened = threading.Barrier(6), []

    def open_it() -> None:
        gate.wait()
        opened.append(connect(path, False))

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for db in opened:
        assert db.execute("SELECT count(target) FROM calls").fetchone() == (0,)
        db.close()
    assert len(opened) == 6
    assert sorted(columns(path)) == sorted(wanted_columns())


def test_an_older_chatfn_goes_on_with_a_file_that_got_columns_meanwhile(path: str) -> None:
    """It names its columns one by one; so does this one, where the file is older."""
    rows_of([ask()], options(path, by_host(completion("m-a"), {})))
    older(path, list(ADDED))
    with closing(sqlite3.connect(path, isolation_level=None)) as theirs, closing(sqlite3.connect(path)) as reads:
        claim = (
            "INSERT INTO calls (key, state, live, run, sent, model, url, request)"
            " VALUES (?, 'sent', 1, 1, 0, 'm', 'u', '{}')"
        )
        theirs.execute(claim, ("1",))
        assert reads.execute("SELECT count(*) FROM calls").fetchone() == (2,)
        rows_of([ask(2)], options(path, by_host({"status": 429}, completion("m-b"))))
        theirs.execute(claim, ("2",))
        theirs.execute("UPDATE calls SET state = 'answered', response = ? WHERE key = '1'", (json.dumps({"id": "x"}),))
        assert reads.execute("SELECT count(*) FROM calls").fetchone() == (4,)
    assert summary(path)["answered"] == 3
