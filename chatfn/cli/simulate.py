"""``chatfn map --simulate``: what a map would come to on a server that is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chatfn.cli.plan import between, dollars, params_in, reason
from chatfn.cli.progress import clock
from chatfn.cli.rows import Job, prepared, table_columns
from chatfn.cli.shown import json_of, output, say, several, shown
from chatfn.cli.table import opened_table
from chatfn.cli.words import json_problem
from chatfn.pipeline.simulations import simulate
from chatfn.spec import Json
from chatfn.stack import STACK
from chatfn.transports.simulated.settings import settings_of

HEADS = ("concurrency", "duration", "rows/s", "429s", "errors", "tokens in", "tokens out", "cost")


def show_simulation(job: Job, settings: str, concurrency: Sequence[int], as_json: bool) -> int:
    """Simulate a job on the server that a file describes, and print what it comes to; nothing is sent or written.

    Raises ``ValueError`` and ``OSError``.
    """
    prices = {} if job.prices is None else {"prices": job.prices}
    budget = [] if job.budget is None else [["budget", {"usd": job.budget, **prices}]]
    options = {**job.options, "middleware": [*STACK, *budget]}
    server = server_in(settings)
    with opened_table(job.source) as table:
        table_columns(job, table)
        rows: Iterator[Any] = prepared(job, table)
        found = simulate(rows, options, server, concurrency=concurrency, params_of=params_in, prices=job.prices)
    lines = simulation_lines(job.source, found)
    say(json_of(found, output().encoding) if as_json else shown("\n".join(lines), output().isatty()))
    return 0


def server_in(path: str) -> Any:
    """The settings of a server in a file; raises ``ValueError`` for wrong ones."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        settings_of(found)
    except (ValueError, TypeError) as exc:
        problem = f"{path}: {json_problem(exc)}"
    else:
        return found
    raise ValueError(problem)


def simulation_lines(source: str, found: Json) -> Iterator[str]:
    """A simulation for a reader."""
    bad = f", {found['bad']:,} bad" if found["bad"] else ""
    yield f"{source}: {several(found['rows'], 'row')}{bad}, simulated; nothing sent"
    yield from aligned([HEADS, *map(cells, found["runs"])])
    for run in found["runs"]:
        if run["errors"]:
            kinds = ", ".join(f"{count:,} {category}" for category, count in sorted(run["errors"].items()))
            yield f"errors at {run['concurrency']:,}: {kinds}"
        if run["stopped"]:
            yield f"stopped at {run['concurrency']:,}: {run['stopped']}"
    if len(found["runs"]) > 1 and found["best"] is not None:
        yield f"best: --concurrency {found['best']}"
    why = [reason(run["cost"]) for run in found["runs"][:1] if run["cost"]["low"] is None]
    yield from (f"cost unknown{text}" for text in why)


def cells(run: Json) -> tuple[str, ...]:
    return (
        f"{run['concurrency']:,}",
        clock(run["seconds"]),
        f"{run['rows_per_second']:,.1f}",
        f"{run['refused']:,}",
        f"{sum(run['errors'].values()):,}",
        f"{run['tokens']['input']:,}",
        f"{run['tokens']['output']:,}",
        between(run["cost"], dollars),
    )


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """
    >>> list(aligned([("a", "bc"), ("100", "2")]))
    ['  a  bc', '100   2']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
