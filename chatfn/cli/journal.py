"""``chatfn journal``: what a journal knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from chatfn.cli.output import whole_file
from chatfn.cli.progress import clock, cost_text
from chatfn.cli.shown import json_of, output, say, several, shown, spoken_as_options
from chatfn.cli.table import format_of
from chatfn.cli.words import Misused
from chatfn.cli.writing import row_writer
from chatfn.journal.report import export, summary
from chatfn.journal.spent import by_day
from chatfn.journal.tables import schema
from chatfn.prices import NO_LIBRARY, has_library, library_name, lookup_of
from chatfn.spec import Json

NAMED = 20  # unknown calls that are named one by one


def show_journal(path: str | None, as_json: bool, target: str | None, sql: bool, prices: Json | None = None) -> None:
    """Show, or export, what is asked for; raises ``Misused``, and ``ValueError`` for what is no journal."""
    if sum((as_json, target is not None, sql)) > 1:
        raise Misused("--json, --export and --sql are three things: give one of them")
    if sql:
        say(schema().rstrip())
    elif path is None:
        raise Misused("no FILE: give a journal, such as answers.jsonl.journal.db")
    elif target is not None:
        write_export(path, target)
    elif as_json:
        say(json_of(whole_summary(path, prices), output().encoding, 2))
    else:
        say(shown("\n".join(summary_lines(path, whole_summary(path, prices))), output().isatty()))


def whole_summary(path: str, prices: Json | None) -> dict[str, Any]:
    """A summary, with what was used and paid by day and model, and whose prices these are."""
    sources = [*(["the table given"] if prices else []), *([library_name()] if has_library() else [])]
    return {**summary(path), "by_day": by_day(path, lookup_of(prices)), "prices": sources}


def write_export(path: str, target: str) -> None:
    """JSON lines of what was asked and answered."""
    form = format_of(target)
    if form.kind != "jsonl":
        raise Misused(f"--export {target}: params and completions are JSON lines; give a name that ends in .jsonl")
    if os.path.realpath(target) == os.path.realpath(path):
        raise Misused(f"FILE and --export are the same file: {path}")
    with whole_file(target) as file, row_writer(file, form, None, {}, ".") as write:
        for row in export(path):
            write(row)


def summary_lines(path: str, found: Json) -> Iterator[str]:
    """A summary for a reader.

    >>> empty = {"calls": 0, "answered": 0, "failed": {}, "unknown": [], "in_flight": 0, "cached": 0,
    ...     "tokens": {"prompt": 0, "completion": 0, "total": 0}, "first": None, "last": None, "slowest": []}
    >>> print(*summary_lines("run.db", empty), sep="\\n")
    run.db: 0 calls
    answered   0
    failed     0
    unknown    0
    cached     0
    tokens     0 (0 of prompts, 0 of completions)
    >>> list(summary_lines("run.db", {**empty, "targets": {"m@a.example": 2, "m@b.example": 1}}))[-3:]
    ['targets', '           2  m@a.example', '           1  m@b.example']
    """
    failed, tokens, unknown = found["failed"], found["tokens"], found["unknown"]
    kinds = ", ".join(f"{count:,} {category}" for category, count in failed.items())
    yield f"{path}: {several(found['calls'], 'call')}{span_of(found)}"
    yield f"answered   {found['answered']:,}"
    yield f"failed     {sum(failed.values()):,}{f' ({kinds})' if kinds else ''}"
    if found["in_flight"]:
        yield f"in flight  {found['in_flight']:,}"
    yield f"unknown    {len(unknown):,}{' sent, and perhaps paid, but their outcome never came:' if unknown else ''}"
    yield from (call_line(call, moment(call["sent"])) for call in unknown[:NAMED])
    if len(unknown) > NAMED:
        yield f"           … and {len(unknown) - NAMED:,} more; --json has them all"
    yield f"cached     {found['cached']:,}{' answered from here' if found['cached'] else ''}"
    yield f"tokens     {tokens['total']:,} ({tokens['prompt']:,} of prompts, {tokens['completion']:,} of completions)"
    yield from cost_lines(found.get("by_day", []), found.get("prices", []))
    if found.get("targets"):
        yield "targets"
        yield from (f"           {count:,}  {name}" for name, count in found["targets"].items())
    if found["slowest"]:
        yield "slowest"
        yield from (call_line(call, f"{call['seconds']:.3g} s") for call in found["slowest"])


def cost_lines(days: list[Json], prices: list[str]) -> Iterator[str]:
    """What was used and paid, by day and model.

    >>> day = {"day": "2026-11-23", "model": "m", "calls": 2, "tokens": {"total": 40}, "usd": 0.5, "unpriced": 1}
    >>> print(*cost_lines([day], ["the table given"]), sep="\\n")
    cost       $0.5000 and 1 of unknown cost (prices: the table given)
               2026-11-23  m  2 calls  40 tokens  $0.5000 and 1 of unknown cost
    >>> print(next(cost_lines([{**day, "usd": None}], []))[:71])
    cost       1 of unknown cost (prices are data of genai-prices: pip inst
    """
    known = [Decimal(str(entry["usd"])) for entry in days if entry["usd"] is not None]
    unpriced = sum(entry["unpriced"] for entry in days)
    cost = cost_text(sum(known, Decimal(0)) if known else None, unpriced)
    if cost:
        yield f"cost       {cost} ({'prices: ' + ', '.join(prices) if prices else spoken_as_options(NO_LIBRARY)})"
    for entry in days:
        used = f"{several(entry['calls'], 'call')}  {several(entry['tokens']['total'], 'token')}"
        paid = cost_text(entry["usd"], entry["unpriced"])
        yield f"           {entry['day']}  {entry['model'] or 'no model'}  {used}{f'  {paid}' if paid else ''}"


def span_of(found: Json) -> str:
    if found["first"] is None:
        return ""
    return f", {moment(found['first'])} to {moment(found['last'])} ({clock(found['last'] - found['first'])})"


def call_line(call: Json, what: str) -> str:
    return f"           {call['id']}  {what}  {call['model'] or ''}".rstrip()


def moment(seconds: Any) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
