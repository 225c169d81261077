"""Rows written as JSON lines, CSV or Parquet, plain or compressed.

The same rows give the same bytes: no time, no name and no count of threads is in them.  Where the columns are known
only at the end, rows wait for it in a file without a name.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import IO, Any

from chatfn.cli.lines import library
from chatfn.cli.table import BATCH, DELIMITERS, Format, Row

Write = Callable[[Row], None]
Columns = Mapping[str, Any]  # name to text, integer, number or boolean, or to a type of Parquet's

LARGEST = 2**63  # Parquet's integers have 64 bits


@contextmanager
def row_writer(
    file: IO[bytes], form: Format, columns: Columns | None, results: Columns, folder: str
) -> Iterator[Write]:
    """A function that writes a row to a file; all are written when the block ends.

    ``columns``: those of the rows that were read, if they are known; ``results``: those that the run adds.
    """
    with packed(file, form.packing) as inner:
        if form.kind == "jsonl":
            yield lambda row: json_line(inner, row)
        elif columns is not None:
            with typed_writer(inner, form.kind, {**without_names(columns, results), **results}) as write:
                yield write
        else:
            with tempfile.TemporaryFile(dir=folder) as waiting:
                known: dict[str, Any] = {}

                def keep(row: Row) -> None:
                    json_line(waiting, row)
                    known.update({name: wider(known.get(name), kind_of(value)) for name, value in row.items()})

                yield keep
                waiting.seek(0)
                found = {name: kind or "text" for name, kind in without_names(known, results).items()}
                with typed_writer(inner, form.kind, {**found, **results}) as write:
                    for line in waiting:
                        write(json.loads(line))


def without_names(columns: Columns, names: Columns) -> dict[str, Any]:
    return {name: kind for name, kind in columns.items() if name not in names}


@contextmanager
def packed(file: IO[bytes], packing: str) -> Iterator[Any]:
    if packing == "gz":
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as inner:
            yield inner
    elif packing == "zst":
        with library("zstandard").ZstdCompressor().stream_writer(file, closefd=False) as inner:
            yield inner
    else:
        yield file


def json_line(file: IO[bytes], row: Row) -> None:
    file.write(json_text(row) + b"\n")


def json_text(data: Any) -> bytes:
    """JSON in UTF-8; what has no form in it is text, or null.

    >>> json_text({"a": "é", "b": float("nan")}), json_text("\\ud800")
    (b'{"a": "\\xc3\\xa9", "b": null}', b'"\\\\ud800"')
    """
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, default=text_for).encode()
    except UnicodeEncodeError:
        return json.dumps(finite(data), default=text_for).encode()
    except ValueError:
        return json_text(finite(data))


def finite(data: Any) -> Any:
    """Data whose numbers are JSON's: one that is none, which Parquet may hold, is null."""
    if isinstance(data, dict):
        return {name: finite(value) for name, value in data.items()}
    if isinstance(data, list):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def text_for(value: Any) -> str:
    """What JSON has no form for, as text: bytes in base64, dates in ISO's form."""
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def cell_of(value: Any) -> str:
    """A value as the text of a cell: what is no text is JSON, null is empty."""
    if value is None or isinstance(value, str):
        return (value or "").encode("utf-8", "replace").decode()
    return json_text(value).decode() if isinstance(value, (bool, int, float, list, dict)) else text_for(value)


def kind_of(value: Any) -> str | None:
    """
    >>> [kind_of(value) for value in (True, 1, 2**70, 0.5, "a", [1], None)]
    ['boolean', 'integer', 'text', 'number', 'text', 'text', None]
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if -LARGEST <= value < LARGEST else "text"
    return "number" if isinstance(value, float) else "text"


def wider(one: str | None, other: str | None) -> str | None:
    """The kind that holds the values of both."""
    kinds = {one, other} - {None}
    return "number" if kinds == {"integer", "number"} else "text" if len(kinds) > 1 else one or other


@contextmanager
def typed_writer(file: IO[bytes], kind: str, columns: Columns) -> Iterator[Write]:
    make = parquet_writer if kind == "parquet" else csv_writer
    with make(file, kind, columns) as write:
        yield write


@contextmanager
def csv_writer(file: IO[bytes], kind: str, columns: Columns) -> Iterator[Write]:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, delimiter=DELIMITERS[kind], lineterminator="\n")
    writer.writerow(columns)
    try:
        yield lambda row: writer.writerow([cell_of(row.get(name)) for name in columns])
    finally:
        text.detach()  # which writes what is left, and leaves the file open


@contextmanager
def parquet_writer(file: IO[bytes], kind: str, columns: Columns) -> Iterator[Write]:
    arrow, parquet = library("pyarrow"), library("pyarrow.parquet")
    types = {"text": arrow.string(), "integer": arrow.int64(), "number": arrow.float64(), "boolean": arrow.bool_()}
    schema = arrow.schema(
        [(name, types.get(kind, kind) if isinstance(kind, str) else kind) for name, kind in columns.items()]
    )
    texts = [name for name, kind in columns.items() if kind == "text"]
    rows: list[Row] = []

    def flush() -> None:
        if rows:
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            rows.clear()

    def write(row: Row) -> None:
        rows.append({**row, **{name: cell_of(row[name]) for name in texts if row.get(name) is not None}})
        if len(rows) >= BATCH:
            flush()

    with closing(parquet.ParquetWriter(file, schema)) as writer:
        yield write
        flush()
