"""The benchmarks run; what they measure is for people to read, and no time is a law here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def quick_run(path: Path) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_the_quick_form_has_positive_figures_for_each_installed_client_in_each_table(tmp_path: Path) -> None:
    text, told = quick_run(tmp_path / "bench.json")
    installed = {name for name in ("chatfn", "requests", "openai") if find_spec(name)}
    assert {"chatfn", "requests"} <= installed
    assert set(told["left_out"]) == {"chatfn", "requests", "openai"} - installed
    assert {(row["measure"], row["contestant"]) for row in told["rows"] if row["contestant"] != "socket"} == {
        (measure, name) for measure in ("calls", "events", "imports") for name in installed
    }
    assert all(row[key]["median"] > 0 for row in told["rows"] for key in ("cpu", "wall"))
    assert all(row["ratio"]["value"] > 0 for row in told["rows"] if row["contestant"] in installed - {"chatfn"})
    assert set(told["memory"]["chatfn"]) == {"calls", "events"}
    for name in installed:
        assert sum(line.startswith(f"{name} ") for line in text.splitlines()) >= 3
