"""What makes two requests the same call: the canonical form of a request, and its SHA-256.

The form is JSON by the rules of RFC 8785 (keys by UTF-16 code units, numbers as ECMAScript writes them, the shortest
escapes), with two differences, and docs/key.rst has it all in words, with tests/key_vectors.json to check another
implementation by: below a map named ``schema`` or ``parameters`` keys stay in their order, because there it is meaning;
and integers are written digit by digit, however long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from chatfn.spec import Json

KEPT_IN_ORDER = frozenset({"schema", "parameters"})
HOW_TO_ARRIVE = ("stream", "stream_options")  # of the body: not what is asked
MAPS = (dict, Mapping)  # dict first: it is found sooner
LISTS = (list, tuple, Sequence)
NO_LISTS = (bytes, bytearray, memoryview)
EXPONENT_FROM = 21  # from 10 to this power on, and below 10 to -6, ECMAScript writes an exponent


def request_key(request: Json) -> str:
    """The key of a request: 64 hexadecimal digits, equal if and only if the requests are the same call.

    >>> one = request_key({"method": "POST", "url": "https://h/v1", "body": {"model": "m", "temperature": 1}})
    >>> one
    '0633cd9e8b03257fc5a0fc1678fab147867540cc5dfd64314b0e994882db1e71'
    >>> one == request_key({"method": "POST", "url": "https://h/v1", "body": {"temperature": 1.0, "model": "m"}})
    True
    """
    from hashlib import sha256  # here, for it is slow to import

    return sha256(canonical(request).encode()).hexdigest()


def canonical(request: Json) -> str:
    """The text whose UTF-8 is hashed: ``body``, ``method``, ``url`` and ``sample``, if there is one, as canonical JSON.

    ``request``: a request map above the codec, any mapping; what else it holds does not count.
    Raises ``TypeError`` or ``ValueError`` for a body that is not JSON data.
    Source: https://www.rfc-editor.org/rfc/rfc8785

    >>> canonical({"method": "POST", "url": "https://h/v1", "body": {"b": 1.0, "a": "é", "stream": True}, "sample": 2})
    '{"body":{"a":"é","b":1},"method":"POST","sample":2,"url":"https://h/v1"}'
    """
    body = request["body"]
    if isinstance(body, MAPS):
        body = {name: value for name, value in body.items() if name not in HOW_TO_ARRIVE}
    sample = f',"sample":{text_of(request["sample"], False)}' if "sample" in request else ""
    try:
        asked = text_of(body, False)
    except RecursionError:
        asked = ""
    if not asked:
        raise ValueError("the body is nested too deeply, or contains itself")
    return f'{{"body":{asked},"method":{quoted(request["method"])}{sample},"url":{quoted(request["url"])}}}'


def text_of(value: Any, in_order: bool) -> str:
    """Canonical JSON of plain data; ``in_order``: its keys as they stand."""
    kind = type(value)
    if kind is str:
        return quoted(value)
    if kind is dict or isinstance(value, MAPS):
        return map_text(value, in_order)
    if kind is list or (isinstance(value, LISTS) and not isinstance(value, (str, *NO_LISTS))):
        return f"[{','.join([text_of(item, in_order) for item in value])}]"
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, str):
        return quoted(value)
    raise TypeError(f"{kind.__name__} has no form in JSON")


def map_text(value: Mapping[str, Any], in_order: bool) -> str:
    names: Any = value
    if not in_order:
        names = sorted(value) if "".join(value).isascii() else sorted(value, key=utf16)
    parts = []
    for name in names:
        item = value[name]
        keep = in_order or (name in KEPT_IN_ORDER and isinstance(item, MAPS))
        parts.append(f"{quoted(name)}:{quoted(item) if type(item) is str else text_of(item, keep)}")
    return f"{{{','.join(parts)}}}"


def utf16(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def number_text(value: float) -> str:
    """A float as ECMAScript's ``String(value)`` has it: Python finds the same digits, and sets them otherwise.

    >>> number_text(1e21), number_text(1e20), number_text(-0.0), number_text(1e-6), number_text(1.5e-7)
    ('1e+21', '100000000000000000000', '0', '0.000001', '1.5e-7')
    """
    if not math.isfinite(value):
        raise ValueError(f"{float(value)} is no JSON number")
    text = float.__repr__(value)
    mantissa, exponential, exponent = text.partition("e")
    if not exponential:
        whole = text.removesuffix(".0")
        return "0" if whole == "-0" else whole
    power = int(exponent)
    if power >= EXPONENT_FROM:
        return f"{mantissa}e+{power}"
    if power < -6:
        return f"{mantissa}e{power}"
    sign = "-" * mantissa.startswith("-")
    digits = mantissa.lstrip("-").replace(".", "")
    return f"{sign}{digits.ljust(power + 1, '0')}" if power > 0 else f"{sign}0.{'0' * (-power - 1)}{digits}"
