"""What chatfn costs beside other clients, on this machine: a table, and the same as JSON and as a picture.

python -m tests.bench [--quick|--full] [--json FILE] [--png FILE] [--venvs FOLDER] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import picture, report, venvs
from tests.bench.contestants import FLOOR, NAMES, lacking
from tests.bench.plans import DEFAULT, FULL, QUICK, Plan
from tests.bench.run import run, versions


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    model = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{os.cpu_count()} cores of {model or platform.machine()}, {platform.platform()}"


def pythons_of(names: Sequence[str], folder: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """The Python of each contestant, and why others are left out."""
    if folder:
        return venvs.made(folder, names, say)
    without = {name: missing for name in names if (missing := lacking(name))}
    left_out = {name: f"{', '.join(missing)} not installed" for name, missing in without.items()}
    return {name: sys.executable for name in names if name not in without}, left_out


def report_of(names: Sequence[str], plan: Plan, folder: Path | None) -> dict[str, Any]:
    """Everything that was measured, as JSON data."""
    pythons, left_out = pythons_of([*names, *(() if FLOOR in names else (FLOOR,))], folder)
    found = run(pythons, plan, say)
    rounds = found.pop("rounds")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m tests.bench {' '.join(sys.argv[1:])}".strip(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": machine(),
        "packages": versions(pythons),
        "left_out": left_out,
        "plan": plan,
        "rows": [row for measure, of in rounds.items() for row in report.rows(measure, of)],
        **found,
        "bars": list(report.bars(rounds)),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"contestants, of {' '.join(NAMES)} (default: all)")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="some seconds that only show that it runs")
    much.add_argument("--full", action="store_true", help="more rounds, 2,000,000 rows, a journal of 1,000,000 answers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them there (needs matplotlib)")
    parser.add_argument("--venvs", type=Path, metavar="FOLDER", help="a virtual environment for each contestant, there")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="show what --json wrote, measure nothing"
    )
    given = parser.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown:
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    plan = QUICK if given.quick else FULL if given.full else DEFAULT
    told = json.loads(given.source.read_text()) if given.source else None
    told = told or report_of(given.names or NAMES, plan, given.venvs)
    print("\n".join(report.lines(told)))
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if given.png:
        picture.draw(told, given.png)


if __name__ == "__main__":
    main()
