"""How many tokens a request will take, guessed before it is sent.

Input: a quarter of the bytes of its text and four for each message, times a factor that the real ``prompt_tokens``
teach.  Output: the three-quarter quantile of the ``completion_tokens`` so far, at most what the request allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

BYTES_A_TOKEN = 4
TOKENS_A_MESSAGE = 4
BYTES_OF_MEDIA = 4_000  # of a picture or a sound, whatever its size
FIRST_OUTPUT = 256.0  # tokens, before the first answer
QUANTILE = 0.75
PACE = 0.08  # of the quantile's own size, by which one answer moves it at most
MEMORY = 0.99  # of the sums, that each answer leaves
MEDIA = frozenset({"image_url", "input_audio", "file"})
EXTRAS = frozenset({"tools", "functions", "response_format"})


class Size(NamedTuple):
    """What can be known of a request's tokens from its body."""

    input: float  # tokens, by the quarter of bytes
    most: float  # tokens of output that one choice is allowed
    choices: int


class Guess(NamedTuple):
    """What answers have taught."""

    real: float = 500.0  # sums of real and of guessed input; the first are there to be outweighed
    guessed: float = 500.0
    output: float = FIRST_OUTPUT
    taught: bool = False


def size_of(body: Any) -> Size:
    """The size of a request's body.

    >>> size_of({"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50})
    Size(input=104.0, most=50, choices=1)
    """
    if not isinstance(body, dict):
        return Size(weight(body) / BYTES_A_TOKEN, inf, 1)
    weighed, messages = 0, body.get("messages") or ()
    for message in messages:
        content = message.get("content") if type(message) is dict else message
        if type(content) is str and content.isascii():
            weighed += len(content)
        else:
            weighed += weight(content)
        if type(message) is dict and "tool_calls" in message:
            weighed += weight(message["tool_calls"])
    if not body.keys().isdisjoint(EXTRAS):
        weighed += sum(weight(body.get(name)) for name in EXTRAS)
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    choices = body.get("n")
    return Size(
        weighed / BYTES_A_TOKEN + TOKENS_A_MESSAGE * len(messages),
        most if isinstance(most, (int, float)) and most > 0 else inf,
        choices if isinstance(choices, int) and choices > 0 else 1,
    )


def weight(value: Any) -> int:
    """The bytes of all text in a value.

    >>> weight([{"type": "text", "text": "word"}, {"type": "image_url", "image_url": {"url": "data:..."}}])
    4017
    """
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return sum(BYTES_OF_MEDIA if key in MEDIA else weight(member) for key, member in value.items())
    if isinstance(value, (list, tuple)):
        return sum(map(weight, value))
    return 0 if value is None else 4


def tokens_of(guess: Guess, size: Size) -> float:
    """The tokens that a request is guessed to take, both ways.

    >>> tokens_of(Guess(), Size(100.0, 50, 1)), tokens_of(Guess(), Size(100.0, inf, 2))
    (150.0, 612.0)
    """
    return size.input * guess.real / guess.guessed + min(size.most, guess.output) * size.choices


def taught(guess: Guess, size: Size, read: float | None, written: float | None) -> Guess:
    """The guess after an answer that took so many tokens, ``read`` of the prompt and ``written`` in all choices."""
    real, guessed, output, any_written = guess
    if read is not None:
        real, guessed = real * MEMORY + read, guessed * MEMORY + size.input
        if real > 20 * guessed or guessed > 20 * real:
            real, guessed = min(real, 20 * guessed), min(guessed, 20 * real)
    if written is not None:
        one = written / size.choices
        if not any_written:
            output = max(1.0, one)
        elif one > output:
            output += min(one - output, PACE * output * QUANTILE)
        else:
            output = max(1.0, one, output - PACE * output * (1 - QUANTILE))
    return Guess(real, guessed, output, any_written or written is not None)
