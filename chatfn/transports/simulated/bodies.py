"""What a simulated server reads and answers: in the exact form of the API, or as data that is above the codec."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple, cast

from chatfn.chunks import DONE
from chatfn.core import parse
from chatfn.errors import ChatError, error_map
from chatfn.spec import Json, Request, Response
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


class Forms(NamedTuple):
    """How a server reads requests and writes responses."""

    read: Callable[[Request], tuple[Any, int]]  # the data of a request, and its bytes
    problem: Callable[[Any], Json | None]  # what is wrong with it, as the API says it
    answer: Callable[[Request, Any, Usage, Mapping[str, str], bool], Response]  # the flag: a stream that breaks
    error: Callable[[int, str, str | None, Mapping[str, str]], Response]


class Usage(NamedTuple):
    number: int  # of the answer
    prompt: int
    written: int
    cut: bool  # at the limit of tokens that the request named


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


def read_bytes(request: Request) -> tuple[Any, int]:
    body = cast(bytes, request["body"])
    try:
        return parse(body), len(body)
    except ValueError:
        return None, len(body)


def answer_in_bytes(request: Request, data: Any, usage: Usage, headers: Mapping[str, str], broken: bool) -> Response:
    body = completion_bytes(data, usage)
    if not request.get("stream"):
        return {"status": 200, "headers": {"content-type": "application/json", **headers}, "body": body}
    headers = {"content-type": "text/event-stream", **headers}
    found: Any = {"status": 200, "headers": headers, "body": stream_of(body, data, broken), "arrived": True}
    return cast(Response, found)


def completion_bytes(data: Json, usage: Usage) -> bytes:
    """The completion of a request.  It says what was asked, as ``echo`` does, whatever is counted as written.

    >>> request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    >>> json.loads(completion_bytes(request, Usage(1, 3, 7, False)))["usage"]
    {'prompt_tokens': 3, 'completion_tokens': 7, 'total_tokens': 10}
    """
    number, prompt, written, cut = usage
    words = plain_words(data) if is_plain(data) else None
    if words is None:
        return text_of(completed(data, usage))
    return (
        f'{{"id":"chatcmpl-{number}","object":"chat.completion","created":{CREATED},'
        f'"model":{json.dumps(data.get("model"))},"choices":[{{"index":0,"message":{{"role":"assistant",'
        f'"content":{json.dumps(words[:SAID])},"refusal":null,"annotations":[]}},"logprobs":null,'
        f'"finish_reason":"{"length" if cut else "stop"}"}}],"usage":{{"prompt_tokens":{prompt},'
        f'"completion_tokens":{written},"total_tokens":{prompt + written}}},"service_tier":"default"}}'
    ).encode()


def completed(data: Json, usage: Usage) -> dict[str, Any]:
    """The same of a request for tools, formats or several choices."""
    number, prompt, written, _ = usage
    digest = sha256(str(number).encode()).hexdigest()
    completion = completion_of(data, last_text(data["messages"])[:SAID], digest)
    counts = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {**completion, "id": f"chatcmpl-{number}", "usage": {**completion["usage"], **counts}}


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


def error_of(status: int, message: str, code: str | None) -> Json:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "insufficient_quota" if code == "insufficient_quota" else "requests"
        code = code or "rate_limit_exceeded"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_in_bytes(status: int, message: str, code: str | None, headers: Mapping[str, str]) -> Response:
    body = text_of(error_of(status, message, code))
    return {"status": status, "headers": {"content-type": "application/json", **headers}, "body": body}


WIRE = Forms(read_bytes, problem_of, answer_in_bytes, error_in_bytes)


def read_data(request: Request) -> tuple[Any, int]:
    body = cast("dict[str, Any]", request["body"])
    return body, len(body["messages"][-1]["content"])


def answer_as_data(request: Request, data: Any, usage: Usage, headers: Mapping[str, str], broken: bool) -> Response:
    """A completion that says nothing, and what it used."""
    _, prompt, written, _ = usage
    counts = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {"status": 200, "headers": headers, "body": {"model": data.get("model"), "choices": [], "usage": counts}}


def error_as_data(status: int, message: str, code: str | None, headers: Mapping[str, str]) -> Response:
    wire = error_of(status, message, code)
    return {"status": status, "headers": headers, "body": wire, "error": error_map(status, headers, wire)}


def no_problem(data: Any) -> Json | None:
    return None


DATA = Forms(read_data, no_problem, answer_as_data, error_as_data)  # for who needs none of the text, and no codec
