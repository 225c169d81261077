"""A completion to the events that spell it, and the text of either.

``chatfn.chunks`` folds events to a completion; this is its inverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, repeat, zip_longest
from typing import Any

from chatfn.chunks import LISTS, MAPS, SCALARS, copied
from chatfn.plain import without
from chatfn.spec import Json

HEAD = ("id", "object", "created", "model", "service_tier", "system_fingerprint")  # repeated in every chunk
TEXTS = ("reasoning", "reasoning_content", "content", "refusal")
INPUTS = {"function": "arguments", "custom": "input"}  # of a tool call: what comes in pieces
PIECE = re.compile(r"\s*\S{1,16}|\s+")


def events_of(completion: Json) -> Iterator[dict[str, Any]]:
    """The stream of chunks that spells the ``completion``, as the API sends it: the inverse of ``collect``.

    For each choice its role, the text in pieces of a word with its space, tool calls (name first, then the arguments in
    pieces), logprobs, other fields, finish_reason; the choices take turns.  Then the usage, if there is one.

    ``collect(events_of(c)) == c`` for every completion of the API's form, unknown fields at any level included, where

    - choices have distinct integer indices, ascending, and a ``finish_reason`` (which may be None);
    - a message has a ``role`` that is not empty, and a ``content`` (which may be None);
    - tool calls are maps without an ``index`` of their own, and a choice has no ``delta``;
    - ``object`` is not ``chat.completion.chunk``, and there is no ``obfuscation`` at the top.

    What is not a map where a map is due (a choice, a message) is left out.
    Source: https://developers.openai.com/api/reference/resources/chat/subresources/completions/streaming-events

    >>> hello = {"id": "c1", "object": "chat.completion", "choices": [
    ...     {"index": 0, "message": {"role": "assistant", "content": "Hello you"}, "finish_reason": "stop"}]}
    >>> for event in events_of(hello):
    ...     print(event["object"], event["choices"][0]["delta"], event["choices"][0]["finish_reason"])
    chat.completion.chunk {'role': 'assistant', 'content': ''} None
    chat.completion.chunk {'content': 'Hello'} None
    chat.completion.chunk {'content': ' you'} None
    chat.completion.chunk {} stop
    >>> from chatfn.chunks import collect
    >>> collect(events_of(hello)) == hello
    True
    """
    whole = copied(completion)
    head = {key: whole[key] for key in HEAD if key in whole and isinstance(whole[key], SCALARS)}
    once = without(whole, "choices", "usage", *head)
    if head.get("object") == "chat.completion":
        head["object"] = "chat.completion.chunk"
    usage = {key: whole[key] for key in ("usage",) if key in whole}
    found = whole.get("choices")
    choices = [choice for choice in found if isinstance(choice, dict)] if isinstance(found, list) else []
    heads = chain([{**head, **once}], repeat(head))
    for turn in zip_longest(*(parts_of(place, choice) for place, choice in enumerate(choices))):
        for part in filter(None, turn):
            yield {**next(heads), "choices": [part], **dict.fromkeys(usage)}
    if usage.get("usage") is not None or not choices:
        yield {**next(heads), "choices": [], **usage}


def parts_of(place: int, choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the events of one choice hold for it, one after the other."""
    index = choice.get("index", place)
    message = choice.get("message")
    fields = without(choice, "index", "message", "delta", "finish_reason")
    quiet = {key: None for key in ("logprobs",) if key in fields}
    for delta in deltas_of(message if isinstance(message, dict) else {}):
        yield {"index": index, "delta": delta, **quiet, "finish_reason": None}
    if {**quiet, **fields} != quiet:
        yield {"index": index, "delta": {}, **fields, "finish_reason": None}
    yield {"index": index, "delta": {}, **quiet, "finish_reason": choice.get("finish_reason")}


def deltas_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The role, the texts in pieces, the tool calls in pieces, and the other fields."""
    texts = {key: message[key] for key in TEXTS if isinstance(message.get(key, False), (str, type(None)))}
    found = message.get("tool_calls")
    calls = found if isinstance(found, list) and all(isinstance(call, dict) for call in found) else []
    legacy = message.get("function_call")
    yield {key: message[key] for key in ("role",) if key in message} | {key: s and "" for key, s in texts.items()}
    for key, text in texts.items():
        for piece in pieces(text or ""):
            yield {key: piece}
    for number, call in enumerate(calls):
        for delta in deltas_of_call(number, call):
            yield {"tool_calls": [delta]}
    for delta in deltas_of_input(legacy, "arguments") if isinstance(legacy, dict) else ():
        yield {"function_call": delta}
    spelled = ["tool_calls"] * bool(calls) + ["function_call"] * isinstance(legacy, dict)
    others = without(message, "role", *texts, *spelled)
    if others:
        yield others


def deltas_of_call(number: int, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All of a tool call but its input, then the input in pieces."""
    kind = next((kind for kind in INPUTS if isinstance(call.get(kind), dict)), None)
    first = {"index": number, **without(call, "index")}
    if kind is None:
        yield first
        return
    for place, delta in enumerate(deltas_of_input(call[kind], INPUTS[kind])):
        yield {"index": number, kind: delta} if place else {**first, kind: delta}


def deltas_of_input(called: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """A function's name, then its arguments (the member ``key``) in pieces."""
    if not isinstance(called.get(key), str):
        yield called
        return
    yield {**called, key: ""}
    for piece in pieces(called[key]):
        yield {key: piece}


def pieces(text: str) -> Iterator[str]:
    """About what a token is: a word with the space before it.

    >>> list(pieces("What is it?  "))
    ['What', ' is', ' it?', '  ']
    """
    return (match[0] for match in PIECE.finditer(text))


def text_of(completion: Json) -> str:
    """The content of the first choice, ``""`` if there is none.

    >>> text_of({"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}), text_of({})
    ('Hello', '')
    """
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, LISTS) and choices else None
    message = first.get("message") if isinstance(first, MAPS) else None
    return words_of(message.get("content")) if isinstance(message, MAPS) else ""


def text_deltas(events: Iterable[Json]) -> Iterator[str]:
    """The pieces of the content of choice 0, as they come.

    >>> list(text_deltas([{"choices": [{"index": 0, "delta": {"content": "Hel"}}]}, {"choices": []}]))
    ['Hel']
    """
    for event in events:
        choices = event.get("choices") if isinstance(event, MAPS) else None
        for choice in choices if isinstance(choices, LISTS) else ():
            delta = choice.get("delta") if isinstance(choice, MAPS) and not choice.get("index") else None
            piece = words_of(delta.get("content")) if isinstance(delta, MAPS) else ""
            if piece:
                yield piece


def words_of(content: Any) -> str:
    """The text of a content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, LISTS) else ()
    texts = [part.get("text") if isinstance(part, MAPS) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))
