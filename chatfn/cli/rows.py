"""The rows that a map takes: read, checked before anything is sent, and named by their lines when they are bad."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import Empty, Queue
from typing import IO, Any, NamedTuple

from chatfn.atom import Atom
from chatfn.cli.lines import lines_in
from chatfn.cli.progress import Tally
from chatfn.cli.shown import note, several, shown
from chatfn.cli.stopping import Halted, Stop, until, until_at_once
from chatfn.cli.table import (
    Bad,
    Good,
    Row,
    Table,
    copied_table,
    format_of,
    json_blocks,
    json_rows,
    opened_table,
    rows_in,
)
from chatfn.cli.template import Template, check_columns
from chatfn.cli.words import Misused
from chatfn.cli.writing import json_line, json_text
from chatfn.client import resolved
from chatfn.core import request_of
from chatfn.pipeline.maps import NUDGE, PULL
from chatfn.sealing import sealed
from chatfn.spec import Json, Options

NAMED = 10  # bad lines that are named before the rest is counted
READ_AHEAD = 64  # rows of a pipe


class Job(NamedTuple):
    source: str
    target: str
    params_of: Callable[[Json], Json]
    options: Options
    templates: tuple[Template, ...] = ()
    needs: frozenset[str] | None = None  # the columns that make a row good, if nothing else does
    journal: str | None = None
    retry_errors: bool = False
    concurrency: int = 16
    limit: int | None = None
    full: bool = False
    parse: bool = False  # answers are JSON
    bad: str | None = None
    budget: str | None = None  # dollars
    prices: Json | None = None


def table_columns(job: Job, table: Table) -> Any:
    """The columns of a table, if it has its own; raises ``Misused`` for a template that names another."""
    for template in job.templates:
        if table.columns is not None:
            check_columns(template, table.columns)
    same = format_of(job.source).kind != "parquet" or format_of(job.target).kind == "parquet"
    return table.columns if same or table.columns is None else dict.fromkeys(table.columns, "text")


def prepared(job: Job, table: Table) -> Iterator[Row | Bad]:
    """The rows of a table as a map takes them, or what is wrong with them; with a limit, so many good ones."""
    left = job.limit
    for item in table.rows if left != 0 else ():
        made = item if isinstance(item, Bad) else with_params(job, item)
        yield made
        if left is not None and not isinstance(made, Bad):
            left -= 1
            if not left:
                return


def with_params(job: Job, item: Good) -> Row | Bad:
    try:
        params = job.params_of(item.row)
    except Misused:
        raise
    except ValueError as exc:
        return Bad(item.line, str(exc), json_text(item.row).decode())
    return {"row": item.row, "params": params, **sample_of(item.row)}


def sample_of(row: Row) -> Json:
    """The number that makes several calls of one request; a column of that name may hold anything else."""
    sample = row.get("sample")
    whole = isinstance(sample, int) or (isinstance(sample, str) and sample.isdecimal())
    return {"sample": int(sample)} if sample is not None and whole else {}


def checked(job: Job, stop: Stop, copy: IO[bytes] | None) -> int:
    """How many good rows there are, all of them looked at, before anything is sent; raises if any is bad.

    ``copy``: where the lines of a pipe go to, to be read again.
    """
    good, bad = 0, []
    for made in (until if copy is None else until_at_once)(stop, looked_at(job, copy)):
        if isinstance(made, int):
            good += made
        elif not isinstance(made, Bad):
            good += 1
            if good == 1:
                request_of(made["params"], resolved(sealed(job.options)))
        elif job.bad is None:
            bad.append(named(job, made))
    if bad:
        note(bad[:NAMED])
        fix = "mend the input, or give --bad FILE for such lines to go to"
        raise ValueError(f"{several(len(bad), 'bad line')}, nothing was sent; {fix}")
    if stop.signals:
        raise Halted
    return good


def looked_at(job: Job, copy: IO[bytes] | None) -> Iterator[Row | Bad | int]:
    """The rows of a table; in place of some the number of them, where all that they need is seen at a glance."""
    form = format_of(job.source)
    if form.kind == "jsonl" and copy is None and job.needs is not None and job.limit is None:
        number = 1
        with closing(lines_in(job.source, form.packing)) as lines:  # type: ignore[type-var]  # a generator
            for block in json_blocks(lines):
                rows = rows_in(block) if number > 1 else None  # the first one is looked at closely
                if rows is not None and all(job.needs <= row.keys() for row in rows):
                    yield len(rows)
                else:
                    yield from prepared(job, Table(None, json_rows((line for line in block), number)))
                number += len(block)
        return
    with opened_table(job.source) if copy is None else copied_table(job.source, copy) as table:
        table_columns(job, table)
        yield from prepared(job, table)


def named(job: Job, bad: Bad) -> str:
    return shown(f"{job.source}, line {bad.line}: {bad.error}", True)


def sources(items: Iterator[Row | Bad], job: Job, bad: IO[bytes] | None, tally: Atom[Tally]) -> Iterator[Row]:
    """The good rows; the bad ones go to their file, or end the map."""
    for made in items:
        if not isinstance(made, Bad):  # a row, or a nudge
            yield made
        elif bad is None:
            raise ValueError(f"{named(job, made)}; give --bad FILE for such lines to go to")
        else:
            json_line(bad, made._asdict())
            tally.swap(lambda now: now._replace(bad=now.bad + 1))


def as_they_come(stop: Stop, items: Iterator[Any]) -> Iterator[Any]:
    """The items of a pipe until a signal, and while there is none a nudge now and then, for a map to give out what is
    done meanwhile.  They are read on a thread of their own, which may wait for ever, and so is never waited for."""
    found: Queue[tuple[bool, Any]] = Queue(READ_AHEAD)

    def read() -> None:
        try:
            for item in items:
                found.put((True, item))
        except Exception as exc:
            found.put((False, exc))
        else:
            found.put((False, None))

    threading.Thread(target=read, name="chatfn-rows", daemon=True).start()
    while not stop.signals:
        try:
            more, item = found.get(timeout=PULL)
        except Empty:
            yield NUDGE
            continue
        if not more:
            if item is not None:
                raise item
            return
        yield item
