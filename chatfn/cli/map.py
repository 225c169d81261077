"""``chatfn map``: a table in, the same table with answers out."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import IO

from chatfn.atom import Atom
from chatfn.cli.answers import ANSWER, FULL, written_row
from chatfn.cli.lines import library
from chatfn.cli.output import whole_file
from chatfn.cli.progress import Tally, counted, progress, summary_text
from chatfn.cli.rows import Job, as_they_come, checked, prepared, sources, table_columns
from chatfn.cli.shown import note, several, shown, spoken_as_options
from chatfn.cli.stopping import Halted, Stop, stoppable, until
from chatfn.cli.table import Row, format_of, is_regular, needs, opened_table, read_table
from chatfn.cli.words import Misused
from chatfn.cli.writing import Write, row_writer
from chatfn.client import resolved
from chatfn.errors import ChatError
from chatfn.pipeline.maps import running
from chatfn.prices import has_library
from chatfn.sealing import sealed
from chatfn.stack import STACK

SOME_ERRORS = 3  # exit status
STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # a file there is not replaced, nor emptied


def journal_of(target: str) -> str | None:
    """Where the journal of a run is if nobody says; a run whose output is a pipe or a terminal has none."""
    return None if is_stream(target) else f"{target}.journal.db"


def is_stream(target: str) -> bool:
    """Whether an output is written as it comes: standard output, or what is no regular file."""
    return target == "-" or (os.path.exists(target) and not is_regular(target))


def run_map(job: Job) -> int:
    """The exit status of a map: 0, or 3 if some rows have no answer, or 128 and the number of a signal.

    Raises ``Misused``, ``ValueError`` and ``OSError``, and then, as after a signal, there is no output.
    """
    check_places(job)
    began = time.monotonic()
    tally = Atom(Tally())
    with stoppable() as stop, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the journal ", RuntimeWarning)  # what it says ends the map too
        try:
            run_until_done(job, stop, tally)
        except (Halted, KeyboardInterrupt):
            if not stop.signals:
                raise
            note([f"stopped after {tally.deref().rows:,} rows; {advice(job)}"])
            return 128 + stop.signals[-1]
        except (OSError, ValueError, ChatError) as exc:
            if tally.deref().rows and not isinstance(exc, BrokenPipeError):
                exc.add_note(advice(job))
            raise
    done = tally.deref()
    note([summary_text(done, time.monotonic() - began), *notes_on(done, job)])
    return SOME_ERRORS if done.errors or done.bad else 0


def check_places(job: Job) -> None:
    """Raise if one file would be two things, or is of a form that can't be read or written here."""
    for form in (format_of(job.source), format_of(job.target)):
        for package in needs(form):
            library(package)
    for name, path in {"IN": job.source, "OUT": job.target, "--bad": job.bad}.items():
        if path is not None and os.path.isdir(path):
            raise Misused(f"{name} is a folder: {path}")
    places = {"IN": job.source, "OUT": job.target, "--journal": job.journal, "--bad": job.bad}
    seen: dict[str, str] = {}
    for name, path in places.items():
        if path not in (None, "-", os.devnull):
            other = seen.setdefault(os.path.realpath(str(path)), name)
            if other != name:
                raise Misused(f"{other} and {name} are the same file: {path}")
    if job.target == job.bad == "-":
        raise Misused("OUT and --bad are both standard output")


def advice(job: Job) -> str:
    if job.journal is None:
        return "without --journal the same command again begins anew"
    if not os.path.exists(job.journal):
        return "nothing was sent"
    return f"what was paid for is in {job.journal}: the same command again goes on from there"


def notes_on(tally: Tally, job: Job) -> Iterator[str]:
    if tally.first is not None:
        yield shown(f"the first error: {spoken_as_options(' '.join(tally.first.split()))}", True)
    if tally.cut:
        yield f"{several(tally.cut, 'answer')} cut short by the limit of tokens; raise --param max_completion_tokens=…"
    if tally.errors and job.journal is not None:
        yield "errors stay as they are when this runs again; --retry-errors sends their rows again"


def run_until_done(job: Job, stop: Stop, tally: Atom[Tally]) -> None:
    """Read, send, write.  The files take their places when all is done, and not before.

    All input is looked at before anything is sent, what a pipe brings too, which is kept for that; but where bad lines
    have a place to go to, the rows of a pipe are sent as they come.
    """
    with ExitStack() as files:
        out = files.enter_context(whole_file(job.target))
        bad = None if job.bad is None else files.enter_context(whole_file(job.bad))
        regular = is_regular(job.source)
        live = bad is not None and not regular
        copy = None if live or regular else files.enter_context(tempfile.TemporaryFile())
        total = None if live else checked(job, stop, copy)
        table = read_table(job.source) if live else files.enter_context(opened_table(job.source, copy))
        columns = table_columns(job, table)
        folder = os.path.dirname(os.path.realpath(job.target))
        results = FULL if job.full else ANSWER
        write = files.enter_context(row_writer(out, format_of(job.target), columns, results, folder))
        items = prepared(job, table)
        rows = sources(as_they_come(stop, items) if live else until(stop, items), job, bad, tally)
        with nullcontext() if job.target == "-" and sys.stdout.isatty() else progress(tally.deref, total, sys.stderr):
            answer_rows(job, stop, rows, flushed(write, out) if is_stream(job.target) else write, tally)
        if stop.signals:
            raise Halted


def flushed(write: Write, file: IO[bytes]) -> Write:
    def function(row: Row) -> None:
        write(row)
        file.flush()

    return function


def answer_rows(job: Job, stop: Stop, rows: Iterator[Row], write: Write, tally: Atom[Tally]) -> None:
    """Send the rows and write their answers.  After a signal, or if one can't be written, nothing more is sent; what is
    in flight is waited for, since it is paid for."""
    failure: Exception | None = None
    journal = (
        []
        if job.journal is None
        else [["journal", {"path": job.journal, "errors": "resend" if job.retry_errors else "keep"}]]
    )
    prices = {} if job.prices is None else {"prices": job.prices}
    cost = [["cost", prices]] if prices or has_library() else []
    budget = [] if job.budget is None else [["budget", {"usd": job.budget, **prices}]]
    options = sealed({**job.options, "middleware": [*cost, *journal, *STACK, *budget]})
    found = running(rows, resolved(options), job.concurrency, ordered=True, params_of=None)
    stop.ends.append(found.wind_down)
    if stop.signals:
        found.wind_down()
    for row in found.rows:
        if failure is None:
            try:
                write(written_row(row, job.full, job.parse))
                tally.swap(counted, row)
            except (OSError, ValueError) as exc:
                failure = exc
                stop.ends.clear()  # a signal's handler would wait for what it interrupts
                found.wind_down()
    if failure is not None:
        raise failure
