"""The benchmarks run; what they measure is for people to read, and no time is a law here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.bench import report
from tests.bench.__main__ import pythons_of
from tests.bench.contestants import NAMES as CONTESTANTS
from tests.bench.contestants import module_of
from tests.bench.processes import ask, environment, workers
from tests.bench.venvs import folder_of

ROOT = Path(__file__).parents[1]
NAMES = ("chatfn_requests", "requests")
MEASURES = {"calls", "events", "flight 10", "flight 50", "streams 10", "size 100000", "imports"}


def bench(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "tests.bench", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run wrote, beside the table that it printed."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    path.with_suffix(".txt").write_text(bench("--quick", "--json", path, *NAMES), encoding="utf-8")
    return path


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_every_contestant_has_positive_figures_for_every_measure(written: Path) -> None:
    found = told(written)
    assert found["left_out"] == {}
    rows = [row for row in found["rows"] if row["contestant"] in NAMES]
    assert [row for row in rows if "error" in row] == []
    assert {(row["measure"], row["contestant"]) for row in rows} == {
        *((measure, name) for measure in MEASURES for name in NAMES),
        ("map", "chatfn_requests"),
    }
    assert all(row["wall"]["median"] > 0 and row["rate"]["median"] > 0 for row in found["rows"])
    assert {row["contestant"] for row in found["rows"] if row["measure"] == "calls"} == {*NAMES, "socket"}


def test_what_chatfn_itself_costs_is_told_with_its_memory_and_its_journal(written: Path) -> None:
    found = told(written)
    alone = {row["contestant"] for row in found["rows"] if row["measure"] == "alone" and row["cpu"]["median"] > 0}
    assert alone == {"null_calls", "null_events", "bare", "kept"}
    assert found["memory"]["before"] > 0
    assert found["journal"]["bytes"] > 0
    assert found["journal"]["replayed"]["rows"] == 298  # of 300 answers each hundredth is new, and one more
    assert {bar["bar"] for bar in found["bars"]} >= {"chatfn adds to a call, µs", "chatfn adds to a row, µs"}


def test_what_was_written_gives_the_same_table_again(written: Path) -> None:
    assert bench("--from", written) == written.with_suffix(".txt").read_text(encoding="utf-8")


@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")
def test_what_was_written_can_be_drawn(written: Path) -> None:
    picture = written.with_suffix(".png")
    bench("--from", written, "--png", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def turn(cpu: float, **more: float) -> dict[str, float]:
    return {"cpu": cpu, "wall": 2 * cpu, "peak": 5e6, **more}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    ours, theirs = [turn(1.0), turn(10.0), turn(2.0)], [turn(3.0), turn(20.0), turn(8.0)]
    assert report.ratio(theirs, ours, "cpu") == 3.0
    assert report.spread([1.0]) == {"low": 1.0, "median": 1.0, "high": 1.0}
    rows = list(report.rows("calls", {"openai": theirs, "requests": ours}))
    assert [(row["contestant"], row["times_less"], row["cpu"]["median"]) for row in rows] == [
        ("openai", 1.0, 8e6),
        ("requests", 3.0, 2e6),
    ]


def test_who_fails_has_its_words_in_the_table_and_no_figures() -> None:
    found = {"openai_async": [turn(1.0, p50=0.06, p99=0.07)], "litellm": [turn(1.0), {"error": "it broke"}]}
    rows = list(report.rows("flight 1000", found))
    assert [row.get("error") for row in rows] == [None, "it broke"]
    assert rows[0]["p50"]["median"] == pytest.approx(10)
    text = "\n".join(report.table("flight 1000", rows))
    assert "1,000 calls in flight" in text
    assert "it broke" in text


def test_a_bar_is_judged_if_its_contestants_were_measured() -> None:
    rounds = {
        "calls": {"openai": [turn(4e-4)], "chatfn_requests": [turn(1e-4)], "chatfn_curl": [turn(1e-4)]},
        "map": {"chatfn_curl": [{"error": "it broke"}], "script": [turn(1.0)]},
        "alone": {"null_calls": [turn(41e-6)]},
    }
    found = {bar["bar"]: (bar["value"], bar["met"]) for bar in report.bars(rounds)}
    assert found == {
        "one after another: CPU, openai to requests": (pytest.approx(4), True),
        "one after another: CPU, openai to curl": (pytest.approx(4), False),
        "a map: rows/s, curl to a script that keeps no journal": (None, False),
        "chatfn adds to a call, µs": (pytest.approx(41), False),
    }


def test_what_is_not_installed_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.contestants.find_spec", lambda name: name != "openai")
    pythons, left_out = pythons_of(["requests", "openai", "openai_async"], None)
    assert (list(pythons), left_out) == (
        ["requests"],
        dict.fromkeys(["openai", "openai_async"], "openai not installed"),
    )


def test_those_who_require_the_same_share_an_environment() -> None:
    assert folder_of("openai") == folder_of("openai_async") == "openai"
    assert {folder_of(name) for name in CONTESTANTS} >= {"nothing", "litellm", "pycurl", "requests"}
    assert all(module_of(name).IMPORT or name == "socket" for name in CONTESTANTS)


def test_a_contestant_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    pythons = {"nobody": sys.executable}
    with workers(environment(str(tmp_path)), pythons, "http://127.0.0.1:1/v1", pythons) as (worker,):
        assert worker.takes_part("calls")
        assert ask(worker, 60, measure="calls", count=1) == {"error": "its process has ended"}
