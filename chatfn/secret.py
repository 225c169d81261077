"""Credentials that can be carried about and never seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MethodType
from typing import Any, Literal

Kind = Literal["value", "function", "absent"]  # a function may return another value next time

MASK = "***"
VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
DEEPEST = 100  # what lies deeper in data is masked without a look
SHORTEST_IN_ERRORS = 4  # shorter "keys" are placeholders, and would mask parts of words
SHORTEST_IN_ANSWERS = 16  # likewise "ollama" or "not-needed", which an answer may say with good reason


class Secret(str):
    """A credential, or a function that returns one; as text it is ``***`` everywhere.

    It is a ``str``, so that JSON, formatting and comparison see the mask.  Its pickle holds no value:
    a secret does not travel, the other side brings its own.

    >>> secret = Secret("sk-123")
    >>> print(secret, repr(secret), f"{secret}", secret.reveal())
    *** '***' *** sk-123
    """

    __slots__ = ("kind", "reveal")

    kind: Kind
    reveal: Callable[[], Any]  # the value itself; for transports, at the moment of sending

    def __new__(cls, source: str | Callable[[], Any], kind: Kind | None = None) -> Secret:
        self = super().__new__(cls, MASK)
        self.kind = kind or ("function" if callable(source) else "value")
        self.reveal = source if callable(source) else lambda: source
        return self

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> Any:
        return left_behind, ()


def absent(message: str) -> Secret:
    """A secret that nobody gave: to reveal it is a ``ValueError`` that says how to give it."""

    def complain() -> str:
        raise ValueError(message)

    return Secret(complain, "absent")


def left_behind() -> Secret:
    """What a pickled secret becomes."""
    return absent("the secret stayed in the process that pickled this map: give the credential again, in options")


def seal(value: Any) -> Any:
    """A string or function as a ``Secret``; anything else, and what is sealed already, as it is."""
    return Secret(value) if (isinstance(value, str) or callable(value)) and not isinstance(value, Secret) else value


@lru_cache(64)
def sealed_text(value: str) -> Secret:
    """A string as a ``Secret``, the same for one that is given again with the next call."""
    return Secret(value)


def hidden(value: Any) -> Any:
    """Anything as a ``Secret``: for what stands in a credential's place, or may have been meant as one."""
    if type(value) is str:
        return sealed_text(value)
    secret = seal(value)
    return secret if isinstance(secret, Secret) else Secret(lambda: value, "value")


def fingerprint(secret: Secret) -> Any:
    """Equal for secrets that hold the same, and no help in guessing it; None for one that can't be told by it.

    >>> fingerprint(Secret("a")) == fingerprint(Secret("a")), fingerprint(Secret("a")) == fingerprint(Secret("b"))
    (True, False)
    """
    if secret.kind == "value":
        value = secret.reveal()
        return digest(str.__str__(value)) if isinstance(value, str) else None
    equality: Any = type(secret.reveal).__eq__
    if equality in (object.__eq__, MethodType.__eq__):
        return secret.reveal
    return None  # what says itself what it equals may give other keys than its equal


@lru_cache(64)
def digest(value: str) -> bytes:
    from hashlib import sha256  # here, for it is slow to import

    return sha256(value.encode("utf-8", "surrogatepass")).digest()


def type_name(value: Any) -> str:
    """The name of a value's type, or of what a ``Secret`` holds; for messages.

    >>> type_name(hidden(["sk-123"]))
    'list'
    """
    if isinstance(value, Secret):
        return type(value.reveal()).__name__ if value.kind == "value" else value.kind
    return type(value).__name__


def problem_of(value: Any) -> str | None:
    """What keeps a value from being a credential or a header, in words that do not repeat it, or None.

    >>> problem_of("sk-1\\n")
    'has a character that is not visible ASCII (a line break, perhaps, from the end of a file)'
    """
    if not isinstance(value, str):
        return f"is not a string but {type(value).__name__}"
    if not value.strip():
        return "is empty"
    if VISIBLE_ASCII.fullmatch(value) is None:
        return "has a character that is not visible ASCII (a line break, perhaps, from the end of a file)"
    return None


def secrets_of(request: Mapping[str, Any]) -> list[str]:
    """The values of all the secrets of a request map: its ``auth``, and headers that are sealed, with and without
    the scheme before them."""
    sealed = [request["auth"]["secret"]] if "auth" in request else []
    for value in request["headers"].values():
        if type(value) is Secret:
            sealed.append(value)  # noqa: PERF401  # in a call's path, where most have none
    values: list[str] = []
    for secret in sealed:
        if secret.kind == "value":
            value = secret.reveal()
            values += (value, value.partition(" ")[2]) if " " in value else (value,)
    return values


def mask(text: str, values: Iterable[str], shortest: int = SHORTEST_IN_ERRORS) -> str:
    """``text`` without any of the ``values`` in it.

    >>> mask("no such key: sk-123", ["sk-123"])
    'no such key: ***'
    """
    for value in values:
        if len(value) >= shortest and value in text:
            text = text.replace(value, MASK)
    return text


def mask_all(data: Any, values: Iterable[str], shortest: int = SHORTEST_IN_ERRORS, depth: int = 0) -> Any:
    """``data`` without any of the ``values`` in its strings, however deep; the same object if there is none."""
    values = [value for value in values if len(value) >= shortest]
    if not values:
        return data
    if isinstance(data, str):
        return mask(data, values, shortest)
    if not isinstance(data, (dict, list)):
        return data
    if depth >= DEEPEST:
        return MASK
    if isinstance(data, list):
        return [mask_all(item, values, shortest, depth + 1) for item in data]
    return {mask_all(k, values, shortest, depth): mask_all(v, values, shortest, depth + 1) for k, v in data.items()}
