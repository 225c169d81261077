"""The lines of files, plain or compressed; one that was cut short is an error, and not a short file."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import IO, Any

EXTRAS = {"pyarrow": "parquet", "zstandard": "zstd"}
CHUNK = 2**16  # bytes


def lines_in(path: str, packing: str) -> Iterator[bytes]:
    """The lines of a file, unpacked, with their ends; the mark that some begin UTF-8 with is left out."""
    with standard_input() if path == "-" else open(path, "rb") as file:
        lines = unpacked(file, packing, path)
        for first in lines:
            yield first.removeprefix(b"\xef\xbb\xbf")
            break
        yield from lines


def standard_input() -> IO[bytes]:
    """What is read through ``sys.stdin`` on another thread may keep the interpreter from ending; this may not."""
    if sys.stdin is None:  # closed by who started this: the number may be that of another file by now
        raise ValueError("-: there is no standard input")
    return open(0, "rb", closefd=False)


def copied(lines: Iterator[bytes], copy: IO[bytes]) -> Iterator[bytes]:
    """The lines, each of them written to a file before it goes on."""
    with closing(lines):  # type: ignore[type-var]  # a generator, which has a close
        for line in lines:
            copy.write(line)
            yield line


def lines_again(copy: IO[bytes]) -> Iterator[bytes]:
    copy.seek(0)
    yield from copy


def unpacked(file: IO[bytes], packing: str, path: str) -> Iterator[bytes]:
    if packing == "zst":
        yield from lines_of(zst_chunks(file, path))
    elif packing == "gz":
        try:
            with gzip.open(file) as inner:
                yield from inner
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            problem = str(exc)
        else:
            return
        raise ValueError(f"{path}: {problem}")
    else:
        yield from file


def zst_chunks(file: IO[bytes], path: str) -> Iterator[bytes]:
    """The content of the frames of a file.  The library's own reader takes a cut file for a whole one."""
    zstandard = library("zstandard")
    frame, data = None, file.read(CHUNK)
    try:
        while data:
            frame = zstandard.ZstdDecompressor().decompressobj() if frame is None else frame
            yield frame.decompress(data)
            data = frame.unused_data or file.read(CHUNK)
            frame = None if frame.eof else frame
    except zstandard.ZstdError as exc:
        problem = str(exc)
    else:
        problem = "the file ends too early"
        if frame is None:
            return
    raise ValueError(f"{path}: {problem}")


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """
    >>> list(lines_of([b"a", b"b\\nc", b"\\n\\nd"]))
    [b'ab\\n', b'c\\n', b'\\n', b'd']
    """
    parts: list[bytes] = []
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        if whole:
            yield b"".join([*parts, whole[0], b"\n"])
            yield from (line + b"\n" for line in whole[1:])
            parts.clear()
        parts.append(rest)
    if any(parts):
        yield b"".join(parts)


def library(name: str) -> Any:
    """A package that only some tables need, imported at their first use."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        extra = EXTRAS[name.partition(".")[0]]
    raise ValueError(f"this needs the package {name.partition('.')[0]}: pip install 'chatfn[{extra}]'")
