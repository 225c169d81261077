"""The benchmarks run; what they measure is for people to read, and no time is a law here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

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
