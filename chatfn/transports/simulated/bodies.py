"""What a simulated server answers: completions and errors in the exact form of the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from chatfn.chunks import DONE
from chatfn.errors import ChatError
from chatfn.spec import Json
from chatfn.sse import encode
from chatfn.transports.echo import text_of
from chatfn.transports.echo.refusal import refusal_of
from chatfn.transports.echo.reply import completion_of, last_text
from chatfn.unfold import events_of

SAID = 200  # characters of a question that its answer repeats
BREAK_AFTER = 2  # events
PLAIN = frozenset(  # parameters that leave an answer what it is: one text
    {
        *("frequency_penalty", "max_completion_tokens", "max_tokens", "messages", "metadata", "model", "n"),
        *("presence_penalty", "prompt_cache_key", "reasoning_effort", "safety_identifier", "seed", "service_tier"),
        *("store", "stream", "stream_options", "temperature", "top_p", "user", "verbosity"),
    }
)
CREATED = 1_700_000_000


def tokens_asked(data: Json) -> float:
    """The most tokens that one choice is allowed."""
    most = data.get("max_completion_tokens") or data.get("max_tokens")
    return most if isinstance(most, int) and most > 0 else float("inf")


def choices_asked(data: Json) -> int:
    choices = data.get("n")
    return choices if isinstance(choices, int) and choices > 0 else 1


def is_plain(data: Json) -> bool:
    """Whether a request asks for nothing but text."""
    return data.keys() <= PLAIN and data.get("n") in (None, 1)


def problem_of(data: Any) -> Json | None:
    """What the API would say against a request that asks for more than text, or None."""
    if not isinstance(data, dict):
        return {"message": "We could not parse the JSON body of your request.", "type": "invalid_request_error"}
    if is_plain(data) and plain_words(data) is not None:
        return None
    return refusal_of(data)


def plain_words(data: Json) -> str | None:
    """What is asked, if it is a text."""
    messages = data.get("messages")
    message = messages[-1] if isinstance(messages, list) and messages else None
    words = message.get("content") if isinstance(message, dict) else None
    return words if isinstance(words, str) else None


def answer_of(data: Json, number: int, prompt: int, written: int, cut: bool) -> bytes:
    """The completion of a request, as bytes.  It says what was asked, as ``echo`` does, whatever ``written`` counts.

    >>> json.loads(answer_of({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, 1, 3, 7, False))["usage"]
    {'prompt_tokens': 3, 'completion_tokens': 7, 'total_tokens': 10}
    """
    words = plain_words(data) if is_plain(data) else None
    if words is None:
        return text_of(completed(data, number, prompt, written))
    return (
        f'{{"id":"chatcmpl-{number}","object":"chat.completion","created":{CREATED},'
        f'"model":{json.dumps(data.get("model"))},"choices":[{{"index":0,"message":{{"role":"assistant",'
        f'"content":{json.dumps(words[:SAID])},"refusal":null,"annotations":[]}},"logprobs":null,'
        f'"finish_reason":"{"length" if cut else "stop"}"}}],"usage":{{"prompt_tokens":{prompt},'
        f'"completion_tokens":{written},"total_tokens":{prompt + written}}},"service_tier":"default"}}'
    ).encode()


def completed(data: Json, number: int, prompt: int, written: int) -> dict[str, Any]:
    """The same of a request for tools, formats or several choices."""
    digest = sha256(str(number).encode()).hexdigest()
    completion = completion_of(data, last_text(data["messages"])[:SAID], digest)
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {**completion, "id": f"chatcmpl-{number}", "usage": {**completion["usage"], **usage}}


def stream_of(body: bytes, data: Json, broken: bool) -> Iterator[bytes]:
    """The server-sent events of a completion; a ``broken`` stream ends after two of them."""
    completion = json.loads(body)
    usage = bool((data.get("stream_options") or {}).get("include_usage"))
    given = completion if usage else {key: value for key, value in completion.items() if key != "usage"}
    for index, event in enumerate(events_of(given)):
        if broken and index == BREAK_AFTER:
            raise ChatError({"category": "interrupted", "message": "the simulated stream broke", "status": 200})
        yield encode(text_of(event).decode())
    yield encode(DONE)


def error_body(status: int, message: str, code: str | None) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "insufficient_quota" if code == "insufficient_quota" else "requests"
        code = code or "rate_limit_exceeded"
    return text_of({"error": {"message": message, "type": kind, "param": None, "code": code}})
