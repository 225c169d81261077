"""The report as a picture: a panel a measure, a bar a contestant, the shorter the better."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.bench.report import title_of

PANELS = {
    "calls": ("cpu", "CPU, µs a call"),
    "events": ("cpu", "CPU, µs an event"),
    "flight 1000": ("rate", "calls a second"),
    "map": ("rate", "rows a second"),
}
NAMES = {"socket": "raw sockets", "script": "aiohttp script"}
OURS, PEER, FLOOR = "#1f6f8b", "#c9ced6", "#8a8f98"


def draw(told: Mapping[str, Any], path: Path) -> None:
    """Write the picture; the panels of which nothing was measured are left out."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    plt = import_module("matplotlib.pyplot")
    found = {
        measure: [row for row in told["rows"] if row["measure"] == measure and "error" not in row] for measure in PANELS
    }
    shown = [measure for measure, rows in found.items() if rows]
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5))
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, measure in zip(axes.flat, shown, strict=False):
        panel(axis, measure, found[measure])
    date, machine = told["date"][:10], told["machine"]
    figure.text(0.01, 0.01, f"{date}  {told['command']}\n{told['python']}, {machine}", fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def panel(axis: Any, measure: str, rows: list[Any]) -> None:
    """One measure: medians, whiskers from quartile to quartile, on a logarithmic scale."""
    figure, label = PANELS[measure]
    rows = sorted(rows, key=lambda row: row[figure]["median"], reverse=figure == "cpu")
    names = [NAMES.get(row["contestant"], row["contestant"].replace("_", " ")) for row in rows]
    values = [row[figure]["median"] for row in rows]
    colours = [OURS if n.startswith("chatfn") else FLOOR if n == NAMES["socket"] else PEER for n in names]
    spreads = [
        [row[figure]["median"] - row[figure]["low"] for row in rows],
        [row[figure]["high"] - row[figure]["median"] for row in rows],
    ]
    axis.barh(names, values, xerr=spreads, color=colours, ecolor="#444444", capsize=2, log=True)
    for place, value in enumerate(values):
        axis.annotate(
            f" {value:,.0f}" if value >= 20 else f" {value:,.1f}",
            (value, place),
            va="center",
            fontsize=8,
            xytext=(6, 0),
            textcoords="offset points",
        )
    axis.margins(x=0.25)
    axis.set_title(title_of(measure), fontsize=10)
    axis.set_xlabel(f"{label} (logarithmic)", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
