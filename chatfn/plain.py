"""What JSON can carry: any mapping and sequence as plain dicts and lists, and the path of what it cannot.

One walk over the data copies the containers, so that a request map is plain, printable and picklable, and later
changes to the caller's data do not reach it.  Strings and numbers are taken as they are, in the order in which they
stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

MAPPINGS = (dict, Mapping)  # dict first: it is found sooner
DEEPEST = 200
SMALL = 2**63
LARGEST_INT_BITS = 14_000  # Python refuses to write integers of more than 4,300 digits


class NotPlain(Exception):
    """Inside this module: what is wrong, and the path to it, innermost part first."""

    def __init__(self, kind: type[Exception], message: str, *path: str | int) -> None:
        super().__init__(message)
        self.kind, self.message, self.path = kind, message, list(path)


def plain(value: Any, surrogates: Literal["refuse", "replace"] = "refuse") -> Any:
    """``value`` as dicts, lists, strings, numbers, booleans and None: what ``json`` writes without a change.

    ``TypeError`` for what JSON has no form for, ``ValueError`` for what it has no value for; both name the path.
    ``surrogates``: "refuse" a lone surrogate, or "replace" it by U+FFFD.

    >>> plain({"messages": ({"role": "user", "content": "hi"},)})
    {'messages': [{'role': 'user', 'content': 'hi'}]}
    >>> plain({"messages": [{"content": float("nan")}]})
    Traceback (most recent call last):
    ValueError: messages[0].content: nan is no JSON number; leave the member out, or give None
    """
    try:
        return copy_of(value, surrogates == "replace", 0)
    except NotPlain as exc:
        problem = exc
    except RecursionError:
        problem = too_deep()
    path = path_text(problem.path[::-1])
    raise problem.kind(f"{path}: {problem.message}" if path else problem.message)


def copy_of(value: Any, replace: bool, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return value if value.isascii() else text_of(value, replace)
    if value is None or kind is bool or (kind is int and -SMALL < value < SMALL):
        return value
    if kind is list:
        return list_of(value, replace, depth)
    if isinstance(value, MAPPINGS):
        return dict_of(value, replace, depth)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return list_of(value, replace, depth)
    return scalar_of(value, replace)


def dict_of(value: Mapping[Any, Any], replace: bool, depth: int) -> dict[str, Any]:
    if depth >= DEEPEST:
        raise too_deep()
    found = {}
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                key = key_of(key, replace)
            plain_text = type(item) is str and item.isascii()
            found[key] = item if plain_text else copy_of(item, replace, depth + 1)
    except NotPlain as exc:
        if isinstance(key, str):
            exc.path.append(key)
        raise
    return found


def list_of(value: Sequence[Any], replace: bool, depth: int) -> list[Any]:
    if depth >= DEEPEST:
        raise too_deep()
    found: list[Any] = []
    try:
        for item in value:
            copy = dict_of if type(item) is dict else copy_of
            found.append(copy(item, replace, depth + 1))  # its length is the path of a fault
    except NotPlain as exc:
        exc.path.append(len(found))
        raise
    return found


def key_of(key: Any, replace: bool) -> str:
    if not isinstance(key, str):
        raise NotPlain(TypeError, f"the key {str(key)[:80]} is {type(key).__name__}; JSON has string keys only")
    return text_of(str.__str__(key), replace)


def scalar_of(value: Any, replace: bool) -> Any:
    if isinstance(value, str):  # a subclass: an enum member, say
        return text_of(str.__str__(value), replace)
    if isinstance(value, int):
        if value.bit_length() > LARGEST_INT_BITS:
            raise NotPlain(ValueError, "an integer of more than 4,000 digits; give it as a string")
        return int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotPlain(ValueError, f"{float(value)} is no JSON number; leave the member out, or give None")
        return float.__float__(value)
    raise NotPlain(TypeError, f"{type(value).__name__} has no form in JSON{fix_for(value)}")


def text_of(text: str, replace: bool) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError as exc:
        at = exc.start
    if not replace:
        raise NotPlain(
            ValueError,
            f"a lone surrogate (half of a character) at position {at}; mend the text, "
            'or give the option {"surrogates": "replace"}',
        )
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def fix_for(value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "; decode it, or give it as base64 text"
    if hasattr(value, "model_dump"):
        return "; give its .model_dump()"
    if hasattr(value, "tolist"):
        return "; give its .tolist()"
    if isinstance(value, (set, frozenset)):
        return "; give a list"
    return "; give a dict, list, string, number, boolean or None"


def too_deep() -> NotPlain:
    return NotPlain(ValueError, f"nested more than {DEEPEST} levels deep, or containing itself")


def path_text(parts: Sequence[str | int]) -> str:
    """
    >>> path_text(["messages", 1, "content"])
    'messages[1].content'
    """
    text = ""
    for part in parts[:20]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text + ("…" if len(parts) > 20 else "")


def without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A dict of ``mapping`` less ``names``, its order kept (``toolz.dissoc`` may lose it).

    >>> without({"b": 1, "c": 2, "a": 3}, "c")
    {'b': 1, 'a': 3}
    """
    return {name: value for name, value in mapping.items() if name not in names}
