"""JSON by orjson, where it is installed and its result is that of the standard library, to the byte and to the type.

Both functions give None where that is not sure, and who calls them then asks the standard library, which has its own
result or its own words for what is wrong.  Where the two differ, and how each is known:

- orjson writes enums and UUIDs, which ``json`` refuses, refuses subclasses and keys that are no strings, which ``json``
  writes, and writes very small and very large floats with other digits (versions differ) and NaN as null: what was
  written is looked through, a container at a time.
- orjson reads integers beyond 64 bits as floats: 19 digits in a row that are no fraction are left to ``json``.
- orjson refuses half of a surrogate pair, NaN, infinities and floats beyond the largest, which ``json`` reads.
- orjson reads 1,024 levels of nesting, ``json`` about as many as its caller's stack leaves it: what is long
  enough for so many, and has brackets enough for more than 254, has to be written again, which orjson refuses at more.

orjson is imported at the first use, and without it nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

SHORT = 1_000  # bytes; half as many levels are no matter for json
DEEPEST = 254  # levels that orjson writes
DIGITS = bytes(48 if chr(byte).isdecimal() else byte for byte in range(128)) + bytes(range(128, 256))
WIDE = b"0" * 19  # the shortest that 64 bits may not hold: -9223372036854775809
FRACTION = b"." + WIDE
TEXTS = frozenset({str})
HOLDERS = frozenset({dict, list, tuple})
KINDS = TEXTS | HOLDERS | {int, float, bool, type(None)}


class Fast(NamedTuple):
    dumps: Callable[[Any], bytes]
    loads: Callable[[str | bytes], Any]


@cache
def fast() -> Fast | None:
    """orjson's functions, if it is installed; what it would write otherwise than ``json`` it shall refuse."""
    try:
        import orjson
    except ImportError:
        return None
    refused = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
    return Fast(partial(orjson.dumps, option=refused), orjson.loads)


def fast_dumps(data: Any) -> bytes | None:
    """What ``json`` writes of ``data``, compact and in UTF-8; or None: ask ``json``.

    >>> fast_dumps({"model": "m", "user": float("nan")}) is None
    True
    """
    found = fast()
    if found is None:
        return None
    try:
        text = found.dumps(data)  # first: what it writes has an end, and can be looked through
    except TypeError:
        return None
    return text if is_written_alike(data) else None


def fast_loads(text: str | bytes) -> Any:
    """What ``json`` reads in ``text``; or None (which may be what it reads): ask ``json``.

    >>> fast_loads("[1e999]") is None
    True
    """
    found = fast()
    if found is None:
        return None
    try:
        body = text.encode() if isinstance(text, str) else text
        # Of 19 digits in a row three are among each sixth byte (partition takes half the time of find, a third of in).
        if body[::6].translate(DIGITS).partition(b"000")[1] and has_wide_integer(body):
            return None
        data = found.loads(text)
        if len(body) > SHORT and body.count(b"[") + body.count(b"{") > DEEPEST:
            found.dumps(data)
    except (ValueError, TypeError):
        return None
    return data


def has_wide_integer(body: bytes) -> bool:
    """Whether 19 digits in a row are in ``body`` that are no fraction.

    >>> has_wide_integer(b"[1.0000000000000000000]"), has_wide_integer(b"[-1000000000000000000]")
    (False, True)
    """
    digits = body.translate(DIGITS)
    return digits.find(WIDE) >= 0 and digits.replace(FRACTION, b"").find(WIDE) >= 0


def is_written_alike(data: Any) -> bool:
    """Whether all in ``data`` is of the very types of JSON, and every float of a size that is written without exponent.

    >>> is_written_alike([1, {"a": 0.5}]), is_written_alike([1e-5]), is_written_alike([{1}])
    (True, False, False)
    """
    todo: list[Any] = [(data,)]
    for holder in todo:  # grows while it is walked
        members: Iterable[Any] = holder.values() if type(holder) is dict else holder
        kinds = set(map(type, members))
        if kinds <= TEXTS:
            continue
        if not kinds <= KINDS:
            return False
        if float in kinds and not all(is_plain_float(value) for value in members if type(value) is float):
            return False
        if not kinds.isdisjoint(HOLDERS):
            todo += [value for value in members if type(value) in HOLDERS]
    return True


def is_plain_float(value: float) -> bool:
    return value == 0 or 1e-4 <= abs(value) < 1e16
