"""``chatfn map --plan``: what a map would send and cost, and what an edit changes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chatfn.cli.progress import clock
from chatfn.cli.rows import Job, prepared, table_columns
from chatfn.cli.shown import findings_text, json_of, output, say, several, shown, spoken_as_options
from chatfn.cli.table import Bad, opened_table
from chatfn.cli.words import Misused
from chatfn.middleware.budget import usd_text
from chatfn.pipeline.diffs import diff_plans
from chatfn.pipeline.plans import plan
from chatfn.prices import ATTOS
from chatfn.spec import Json
from chatfn.stack import STACK

NAMED = 10  # rows, findings and models that are named before the rest is counted


class Asked(NamedTuple):
    """How a plan is to be made and shown."""

    limits: Json | None = None
    output_tokens: tuple[int, int] | None = None
    as_json: bool = False
    against: str | None = None  # the file of another plan


def show_plan(job: Job, asked: Asked) -> int:
    """Print the plan of a job, or what it changes of another; nothing is sent.  Raises ``ValueError``, ``OSError``."""
    before = None if asked.against is None else plan_in(asked.against)
    found = plan_of(job, asked)
    data = found if before is None else diff_plans(before, found)
    if asked.as_json:
        say(json_of(data, output().encoding))
    else:
        lines = (
            plan_lines(job.source, found) if before is None else diff_lines(asked.against or "", before, found, data)
        )
        say(shown("\n".join(lines), output().isatty()))
    return 0


def plan_in(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as exc:
        problem = f"{path} is no plan: {exc}; make one with chatfn map IN OUT --plan --json"
    raise ValueError(problem)


def plan_of(job: Job, asked: Asked) -> dict[str, Any]:
    """The plan of what ``chatfn map`` would do with a job.  Its rows count from 0, bad lines among them."""
    errors = "resend" if job.retry_errors else "keep"
    journal = [] if job.journal is None else [["journal", {"path": job.journal, "errors": errors}]]
    limits = asked.limits
    if limits is not None and "latency" in limits:
        limits = {"concurrency": job.concurrency, **limits}
    with opened_table(job.source) as table:
        table_columns(job, table)
        rows: Iterator[Any] = prepared(job, table)
        return plan(
            rows,
            {**job.options, "middleware": [*journal, *STACK]},
            params_of=params_in,
            prices=job.prices,
            limits=limits,
            output_tokens=asked.output_tokens,
            keys=asked.as_json or asked.against is not None,
            id_of=id_in,
        )


def params_in(row: Any) -> Any:
    if isinstance(row, Bad):
        raise ValueError(f"line {row.line}: {row.error}")
    return row["params"]


def id_in(row: Any) -> Any:
    return None if isinstance(row, Bad) else row["row"].get("id")


def plan_lines(source: str, found: Json) -> Iterator[str]:
    """A plan for a reader."""
    journal = found["journal"]
    yield f"{source}: {several(found['rows'], 'row')}, nothing sent"
    yield f"unique     {found['unique']:,}"
    sent = "once" if journal else "as often as they come"
    yield f"duplicates {found['duplicates']:,}{f', sent {sent}' if found['duplicates'] else ''}"
    yield f"bad        {found['bad']:,}"
    if journal:
        yield f"answered   {found['answered']:,} in {os.path.basename(journal)}"
        yield f"failed     {found['failed']:,} there"
    yield f"to send    {found['to_send']:,}"
    yield from sums_lines(found)
    yield f"time       {between(found['time'], clock)}{reason(found['time'])}"
    if len(found["models"]) > 1:
        for name, part in rest_counted(list(found["models"].items())):
            yield f"  {name}: {part['to_send']:,} to send, {between(part['cost'], dollars)}{reason(part['cost'])}"
    yield from (f"bad row    {bad['error']}" for bad in found["bad_rows"][:NAMED])
    for each in found["lint"]:
        (text,) = findings_text([each])
        yield f"lint       {text} ({several(each['rows'], 'row')}, the first is row {each['row'] + 1:,})"


def rest_counted(models: list[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    return sorted(models, key=lambda pair: -pair[1]["to_send"])[:NAMED]


def sums_lines(found: Json) -> Iterator[str]:
    output = found["tokens"]["output"]
    yield f"tokens     {found['tokens']['input']:,} in (an estimate), {between(output, '{:,}'.format)} out"
    yield f"cost       {between(found['cost'], dollars)}{reason(found['cost'])}"


def diff_lines(path: str, before: Json, found: Json, diff: Json) -> Iterator[str]:
    """What one plan becomes by another, for a reader."""
    rows = diff["rows"]
    now = found["keys"]["id"] is None
    numbered = {"changed": now, "added": now, "removed": before["keys"]["id"] is None}
    yield f"{path}: {several(rows['before'], 'row')}; now {rows['after']:,}, nothing sent"
    yield f"same       {diff['same']:,}"
    for name in ("changed", "added", "removed"):
        yield f"{name:10} {len(diff[name]):,}{named(diff[name], numbered[name])}"
    yield f"to send    {diff['to_send']:,} for these, {found['to_send']:,} in all"
    yield from sums_lines({**diff, "cost": {**found["cost"], **diff["cost"]}})


def named(rows: list[Any], numbered: bool) -> str:
    """Rows by their ids, or, where none has one, by their numbers, here from 1.

    >>> named([0, 4], True), named(["a"], False), named([], True)
    (': rows 1, 5', ': a', '')
    """
    if not rows:
        return ""
    names = [f"{row + 1:,}" if numbered else str(row) for row in rows[:NAMED]]
    kind = f"row{'s' * (len(rows) > 1)} " if numbered else ""
    return f": {kind}{', '.join(names)}{', …' if len(rows) > NAMED else ''}"


def between(span: Json, text_of: Any) -> str:
    """
    >>> between({"low": 1, "high": 2}, str), between({"low": 2, "high": 2}, str), between({"low": 2, "high": None}, str)
    ('1 to 2', '2', '2 to unknown')
    """
    low, high = (None if span[name] is None else text_of(span[name]) for name in ("low", "high"))
    return "unknown" if low is None else low if low == high else f"{low} to {high or 'unknown'}"


def reason(span: Json) -> str:
    """Why something is not known."""
    why = span.get("unknown")
    if not why:
        return f", by {span['by']}" if "by" in span else ""
    reasons = [why] if isinstance(why, str) else list(why)
    return f" ({spoken_as_options('; '.join(reasons[:NAMED]))})"


def dollars(usd: float) -> str:
    return usd_text(round(usd * ATTOS))


def limits_in(text: str | None) -> Any:
    """Limits as the command line has them, JSON."""
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        found = text
    if found is not None and not isinstance(found, dict):
        raise Misused(f'--limits {text}: give JSON, such as \'{{"rpm": 500, "tpm": 200000}}\'')
    return found


def output_in(text: str | None) -> tuple[int, int] | None:
    """
    >>> output_in("20-300"), output_in("50")
    ((20, 300), (50, 50))
    """
    if text is None:
        return None
    least, _, most = text.partition("-")
    if not (least.isdecimal() and (most or least).isdecimal() and int(least) <= int(most or least)):
        raise Misused(f"--output-tokens {text}: give the least and the most tokens of an answer, such as 20-300")
    return int(least), int(most or least)
