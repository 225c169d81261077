"""``python -m tests.bench [--quick] [--json FILE] [NAME ...]``: what chatfn costs beside other clients, as a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tests.bench.run import FULL, QUICK, Rounds, run

SUBJECT, CEILING = "chatfn", "socket"
CONTESTANTS = (SUBJECT, "requests", "openai")
GROWN = (SUBJECT, "requests")
PACKAGES = ("chatfn", "requests", "urllib3", "toolz", "pyrsistent", "openai", "httpx", "httpx2", "pydantic")
# measure: its title, its unit and how many of them a second has, and by which figure it is judged
MEASURES = {
    "calls": ("a whole call", "µs", 1e6, "cpu"),
    "events": ("a streamed event", "µs", 1e6, "cpu"),
    "imports": ("an import, without Python's own start", "ms", 1e3, "wall"),
}
BARS = {("calls", "requests"): 1.0, ("calls", "openai"): 0.35, ("events", "openai"): 0.1, ("imports", "openai"): 0.125}


def spread(values: Sequence[float]) -> dict[str, float]:
    """The quartiles of ``values``."""
    return dict(zip(("low", "median", "high"), quantiles(values, n=4, method="inclusive"), strict=True))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios: both were measured in the same round."""
    return median(our / their for our, their in zip(ours, theirs, strict=True))


def rows(measure: str, found: Rounds) -> Iterator[dict[str, Any]]:
    """A row for each contestant: its figures in the measure's unit, and chatfn's share of its judged figure."""
    _, unit, scale, judged = MEASURES[measure]
    columns = {
        name: {key: [turn[key] * scale for turn in turns] for key in ("cpu", "wall")} for name, turns in found.items()
    }
    for name, column in columns.items():
        figures = {key: spread(values) for key, values in column.items()}
        row: dict[str, Any] = {"measure": measure, "contestant": name, "unit": unit, **figures}
        if SUBJECT in columns and name in CONTESTANTS and name != SUBJECT:
            row["ratio"] = {"of": judged, "value": ratio(columns[SUBJECT][judged], column[judged])}
            row["bar"] = BARS.get((measure, name))
        yield row


def versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            if find_spec(name):
                yield name, "from this checkout"


def report(names: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Everything that was measured, as JSON data."""
    present = [name for name in names if find_spec(name)]
    plan = QUICK if quick else FULL
    found = run([*present, CEILING], [name for name in present if name in GROWN], plan)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m tests.bench {' '.join(sys.argv[1:])}".strip(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.platform()}, {os.cpu_count()} cores",
        "packages": dict(versions(PACKAGES)),
        "left_out": [name for name in names if name not in present],
        "plan": plan,
        "rows": [row for measure in MEASURES for row in rows(measure, found[measure])],
        "memory": found["memory"],
    }


def cell(figure: Mapping[str, float]) -> str:
    between = f"{figure['low']:.1f} to {figure['high']:.1f}"
    return f"{figure['median']:>9.1f}  {between:<18}"


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The report as text."""
    yield f"{told['date']}  {told['command']}"
    yield f"{told['python']} on {told['platform']}"
    yield ", ".join(f"{name} {number}" for name, number in told["packages"].items())
    yield from (f"{name} is not installed: left out" for name in told["left_out"])
    for measure, (title, unit, _, judged) in MEASURES.items():
        yield f"\n{title}: medians and quartiles of {told['plan']['rounds']} rounds, {unit}"
        yield f"{'':<11}{'CPU':>9}{'':<20}{'wall':>9}{'':<20}chatfn's {judged.replace('cpu', 'CPU')} to it"
        for row in told["rows"]:
            if row["measure"] == measure:
                share = f"{row['ratio']['value']:.3f}" if "ratio" in row else ""
                bar = f"  (bar: {row['bar']})" if row.get("bar") else ""
                note = "the server's own ceiling" if row["contestant"] == CEILING else share + bar
                yield f"{row['contestant']:<11}{cell(row['cpu'])}{cell(row['wall'])}{note}".rstrip()
    yield "\nmemory: growth of the process's peak"
    for name, measures in told["memory"].items():
        for measure, grown in measures.items():
            span = f"{grown['few']:,} to {grown['many']:,} {measure}"
            yield f"{name:<11}{grown['growth'] / 1024:>9,.0f} KiB from {span}, after {grown['before'] / 2**20:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"contestants (default: {' '.join(CONTESTANTS)})")
    parser.add_argument("--quick", action="store_true", help="a few seconds that only show that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    unknown = set(given.names) - set(CONTESTANTS)
    if unknown:
        parser.error(f"no such contestant: {', '.join(sorted(unknown))}")
    told = report(given.names or CONTESTANTS, quick=given.quick)
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines(told)))


if __name__ == "__main__":
    main()
