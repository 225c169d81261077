"""Tables of rows to read: JSON lines, CSV and Parquet, plain or compressed.

A row that can't be read is data too, a ``Bad``, so that the caller decides what becomes of the rest.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, Any, NamedTuple, NoReturn

from chatfn.cli.lines import copied, library, lines_again, lines_in
from chatfn.cli.shown import several
from chatfn.cli.words import Misused
from chatfn.fastjson import fast_loads
from chatfn.secret import type_name
from chatfn.transports import close

Row = dict[str, Any]

KINDS = {"": "jsonl", "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet"}
PACKINGS = ("gz", "zst")
DELIMITERS = {"csv": ",", "tsv": "\t"}
LONGEST_CELL = 2**31 - 1  # what a C long holds everywhere
BATCH = 1_000  # rows of Parquet
BLOCK_BYTES = 1 << 20  # of lines that are parsed at once


class Format(NamedTuple):
    kind: str  # jsonl, csv, tsv or parquet
    packing: str  # "", gz or zst


class Bad(NamedTuple):
    """What stands in a table and is no row; ``line`` counts from 1, and is a row's number in Parquet."""

    line: int
    error: str
    text: str


class Good(NamedTuple):
    line: int
    row: Row


class Table(NamedTuple):
    columns: Mapping[str, Any] | None  # name to "text", or to Parquet's type; None: each row has its own
    rows: Iterator[Good | Bad]


def format_of(path: str) -> Format:
    """The format that a name's endings tell; without one, and of ``-``, it is JSON lines.

    >>> format_of("rows.csv.gz"), format_of("-")
    (Format(kind='csv', packing='gz'), Format(kind='jsonl', packing=''))
    """
    name = os.path.basename(path).lower()
    first, _, last = name.rpartition(".")
    packing = last if first and last in PACKINGS else ""
    ending = os.path.splitext(first if packing else name)[1].removeprefix(".")
    kind = KINDS.get(ending)
    if kind is None or (kind == "parquet" and packing):
        raise Misused(f"{path}: a name ends in .jsonl, .csv or .tsv, and .gz or .zst if need be, or in .parquet")
    return Format(kind, packing)


def needs(form: Format) -> list[str]:
    """The packages, beyond the standard library, that a format is read and written with.

    >>> needs(Format("csv", "zst"))
    ['zstandard']
    """
    return [*(["pyarrow"] if form.kind == "parquet" else []), *(["zstandard"] if form.packing == "zst" else [])]


def is_regular(path: str) -> bool:
    """Whether a file can be read twice."""
    return path != "-" and stat.S_ISREG(os.stat(path).st_mode)


@contextmanager
def opened_table(path: str, copy: IO[bytes] | None = None) -> Iterator[Table]:
    """The table in a file, which is closed at the end of the block; its lines are those of a ``copy``, if there is
    one."""
    table = read_table(path) if copy is None else table_of(lines_again(copy), path)
    try:
        yield table
    finally:
        close(table.rows)


@contextmanager
def copied_table(path: str, copy: IO[bytes]) -> Iterator[Table]:
    """The table in a file that can be read but once; its lines go into a ``copy`` as they are read."""
    form = format_of(path)
    if form.kind == "parquet":
        raise Misused(f"{path}: Parquet is read from a file")
    table = table_of(copied(lines_in(path, form.packing), copy), path)
    try:
        yield table
    finally:
        close(table.rows)


def read_table(path: str) -> Table:
    """The columns and the rows of a file, or of standard input; ``ValueError`` if it is broken as a whole."""
    form = format_of(path)
    return parquet_table(path) if form.kind == "parquet" else table_of(lines_in(path, form.packing), path)


def table_of(lines: Iterator[bytes], path: str) -> Table:
    """The table that lines make, by the format that their file's name tells."""
    kind = format_of(path).kind
    return Table(None, json_rows(lines)) if kind == "jsonl" else csv_table(lines, path, DELIMITERS[kind])


def json_rows(lines: Iterator[bytes], first: int = 1) -> Iterator[Good | Bad]:
    """The rows of JSON lines; empty lines are none.  ``first``: the number of the first line."""
    with closing(lines):  # type: ignore[type-var]  # a generator, which has a close
        for number, line in enumerate(lines, first):
            if line.strip():
                try:
                    yield Good(number, json_row(line))
                except (ValueError, RecursionError) as exc:
                    yield Bad(number, problem_with(exc), line.decode("utf-8", "replace").rstrip("\r\n"))


def json_row(line: bytes) -> Row:
    row = json.loads(line.rstrip().decode("utf-8"), parse_constant=refuse)
    if not isinstance(row, dict):
        raise ValueError(f"{type_name(row)} is no row; give an object: {{...}}")
    return row


def json_blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines, so many at once as are parsed at once."""
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    yield block


def rows_in(block: list[bytes]) -> list[Row] | None:
    """The rows of lines, parsed at once, which takes a fraction of the time; None if one may be bad, or more."""
    texts = [*filter(None, map(bytes.strip, block))]
    whole = b"[" + b",".join(texts) + b"]"
    try:
        found = fast_loads(whole) or json.loads(whole.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return found if len(found) == len(texts) and all(type(row) is dict for row in found) else None


def refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def problem_with(exc: Exception) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return f"no UTF-8 at byte {exc.start + 1}"
    if isinstance(exc, json.JSONDecodeError):
        return f"no JSON: {exc.msg} at character {exc.pos + 1}"
    return "nested too deep" if isinstance(exc, RecursionError) else str(exc)


def csv_table(lines: Iterator[bytes], path: str, delimiter: str) -> Table:
    csv.field_size_limit(LONGEST_CELL)
    seen: list[str] = []  # the lines of the row that is being read

    def texts() -> Iterator[str]:
        for line in lines:
            seen.append(line.decode("utf-8", "surrogateescape"))
            yield seen[-1]

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    names = next(reader, [])
    problem = header_problem(names)
    if problem:
        raise ValueError(f"{path}, line 1: {problem}")
    return Table(dict.fromkeys(names, "text"), csv_rows(reader, names, seen, lines))


def header_problem(names: list[str]) -> str | None:
    if not names:
        return "no names of columns"
    if len(set(names)) < len(names):
        return "a column has the name of another"
    return None if all(map(encodable, names)) else "no UTF-8"


def csv_rows(reader: Any, names: list[str], seen: list[str], lines: Iterator[bytes]) -> Iterator[Good | Bad]:
    with closing(lines):  # type: ignore[type-var]  # a generator, which has a close
        while True:
            seen.clear()
            first = reader.line_num + 1
            try:
                cells = next(reader)
                problem = problem_of(cells, len(names))
            except StopIteration:
                return
            except csv.Error as exc:
                cells, problem = [], f"no CSV: {exc}"
            if problem:
                text = "".join(seen).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                yield Bad(first, problem, text.rstrip("\r\n"))
            elif cells:
                yield Good(first, dict(zip(names, cells, strict=True)))


def problem_of(cells: list[str], count: int) -> str | None:
    if len(cells) not in (0, count):
        return f"{several(len(cells), 'cell')}; there {'is' if count == 1 else 'are'} {several(count, 'column')}"
    return None if all(map(encodable, cells)) else "no UTF-8"


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parquet_table(path: str) -> Table:
    parquet = library("pyarrow.parquet")
    if not is_regular(path):
        raise Misused(f"{path}: Parquet is read from a file")
    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
    except ValueError as exc:
        problem = f"{path}: {exc}"
    else:
        return Table({field.name: field.type for field in schema}, parquet_rows(file))
    raise ValueError(problem)


def parquet_rows(file: Any) -> Iterator[Good | Bad]:
    with file:
        number = 0
        for batch in file.iter_batches(batch_size=BATCH):
            for row in batch.to_pylist():
                number += 1
                yield Good(number, row)
