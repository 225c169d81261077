"""``chatfn journal``: what a journal knows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from chatfn.cli.output import whole_file
from chatfn.cli.progress import clock
from chatfn.cli.shown import json_of, say, shown
from chatfn.cli.table import format_of
from chatfn.cli.words import Misused
from chatfn.cli.writing import row_writer
from chatfn.journal.files import schema
from chatfn.journal.report import export, summary
from chatfn.spec import Json

NAMED = 20  # unknown calls that are named one by one


def show_journal(path: str | None, as_json: bool, target: str | None, sql: bool) -> None:
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
        say(json_of(summary(path), sys.stdout.encoding, 2))
    else:
        say(shown("\n".join(summary_lines(path, summary(path))), sys.stdout.isatty()))


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
    """
    failed, tokens, unknown = found["failed"], found["tokens"], found["unknown"]
    kinds = ", ".join(f"{count:,} {category}" for category, count in failed.items())
    yield f"{path}: {found['calls']:,} calls{span_of(found)}"
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
    if found["slowest"]:
        yield "slowest"
        yield from (call_line(call, f"{call['seconds']:.3g} s") for call in found["slowest"])


def span_of(found: Json) -> str:
    if found["first"] is None:
        return ""
    return f", {moment(found['first'])} to {moment(found['last'])} ({clock(found['last'] - found['first'])})"


def call_line(call: Json, what: str) -> str:
    return f"           {call['id']}  {what}  {call['model'] or ''}".rstrip()


def moment(seconds: Any) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
