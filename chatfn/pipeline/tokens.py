"""How many tokens a request is, estimated before it is sent, and how many its answer may be.

Input: a quarter of the UTF-8 bytes of all text, rounded up for each text, four tokens for each message, and a thousand
for each picture, sound or file.  English prose has four to five bytes a token; code, tables of numbers and short words
have fewer, and are underestimated, by half at the worst.  A tokenizer of your own, ``tokens_of(text)``, is better.
Output: at least one token a choice, at most what the request allows, or what its caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from chatfn.middleware.limit.sizes import BYTES_A_TOKEN, BYTES_OF_MEDIA, MEDIA, TOKENS_A_MESSAGE
from chatfn.spec import Json

__all__ = ["BYTES_A_TOKEN", "MEDIA", "TOKENS_A_MESSAGE", "TOKENS_OF_MEDIA", "quarter", "size_of", "tokens_in"]

TOKENS_OF_MEDIA = BYTES_OF_MEDIA // BYTES_A_TOKEN
BESIDE_MESSAGES = ("tools", "functions", "response_format", "prediction")
LEAST = 1  # tokens of one choice

Counter = Callable[[str], int]


class Size(NamedTuple):
    input: int
    low: int  # of output, all choices together
    high: int | None  # None: nobody knows


def quarter(text: str) -> int:
    """
    >>> quarter("word"), quarter("words"), quarter("")
    (1, 2, 0)
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return -(-size // BYTES_A_TOKEN)


def size_of(body: Json, tokens_of: Counter, output: tuple[int, int] | None, longest: int | None) -> Size:
    """The tokens of a request's body.  ``output``: least and most of one choice; ``longest``: what the model can.

    >>> size_of({"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50, "n": 2}, quarter, None, None)
    Size(input=104, low=2, high=100)
    """
    messages = body.get("messages")
    total = 0
    for message in messages if isinstance(messages, list) else ():
        total += TOKENS_A_MESSAGE
        content = message.get("content") if isinstance(message, dict) else None
        total += tokens_of(content) if type(content) is str else 0
        if isinstance(message, dict) and (content is None or type(content) is not str or len(message) > 2):
            total += inner(message, tokens_of)
    total += sum(tokens_in(body[name], tokens_of) for name in BESIDE_MESSAGES if name in body)
    choices = whole(body.get("n")) or 1
    cap = whole(body.get("max_completion_tokens")) or whole(body.get("max_tokens"))
    least, most = output or (LEAST, longest)
    if cap is not None:
        least, most = min(least, cap), cap if output is None or most is None else min(most, cap)
    return Size(total, least * choices, None if most is None else most * choices)


def inner(message: Json, tokens_of: Counter) -> int:
    """The tokens of what a message has beside its role and its text: parts, calls, a name."""
    content = message.get("content")
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    return tokens_in(rest, tokens_of) + (0 if isinstance(content, str) else tokens_in(content, tokens_of))


def whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def tokens_in(value: Any, tokens_of: Counter) -> int:
    """The tokens of all text in a value, names included but those of text parts.

    >>> tokens_in([{"type": "text", "text": "word"}, {"type": "image_url", "image_url": {"url": "data:..."}}], quarter)
    1001
    """
    return sum(TOKENS_OF_MEDIA if found is None else tokens_of(found) for found in texts_in(value))


def texts_in(value: Any) -> Iterator[str | None]:
    """The texts in a value, and None for each picture, sound or file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if value.get("type") in MEDIA:
            yield None
        elif value.get("type") == "text":
            yield from texts_in(value.get("text"))
        else:
            for name, member in value.items():
                yield name
                yield from texts_in(member)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, (int, float)):
        yield str(value) if type(value) is not int or value.bit_length() < 64 else "0" * 20
