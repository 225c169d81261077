"""The embedded default model: it says back what it was told, in the exact form of the OpenAI API.

What the text of the last user message (or of the last message, if no user speaks) begins with may ask for a failure:

- ``!error STATUS [CODE] [words]`` is answered with that HTTP status, 400 to 599, and an error in the API's form.
  CODE is a word with an underscore in it: ``!error 429``, ``!error 429 insufficient_quota``, ``!error 400 some words``.
- ``!break [N] [text]`` echoes ``text``, and the transfer breaks: a stream after N events (2 if N is left out, and never
  later than before ``[DONE]``), a whole answer before it has come.

Any other text is the answer.  Its tokens are words and single other characters, each with the white space before it.
There is no clock and no randomness: the same request gives the same bytes, in every process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote, urlsplit

from chatfn.errors import ChatError, failure
from chatfn.plain import plain
from chatfn.spec import Json, Request, Response
from chatfn.sse import encode
from chatfn.transports.echo.refusal import error_of, refusal_of
from chatfn.transports.echo.reply import completion_of, last_text
from chatfn.unfold import events_of

BREAK_AFTER = 2  # events
ERROR = re.compile(r"!error\s+([45][0-9]{2})(?:\s+(.*))?", re.DOTALL)
BREAK = re.compile(r"!break(?:\s+([0-9]{1,6}))?(?:\s+(.*))?", re.DOTALL)
KINDS = {"insufficient_quota": "insufficient_quota", 429: "requests"}
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
BUSY = {"retry-after": "1", "retry-after-ms": "20"}


def echo(request: Request) -> Response:
    """The answer to a chat request: a transport that needs no network, no key and no time.

    The request's ``body`` is JSON bytes, or data.  The response's is JSON bytes, a ``chat.completion`` or an error in
    the API's form; or, if the body asks for a stream, an iterator of bytes, one server-sent event each.

    - content: the text of the last user message; parts of a message are joined by line breaks, and what is no text is
      named, as in ``[image_url]``.  ``stop`` and ``max_completion_tokens`` (or ``max_tokens``) shorten it.
    - a forced tool (the named one, or the first for "required") is called with the smallest arguments that fit its
      schema; ``json_schema`` is answered by the smallest instance, ``json_object`` by ``{"echo": content}``.
    - usage: the tokens of the messages' text; those of all choices, a call's being those of its arguments.
    - logprobs: each token is certain (0.0), its ``top_logprobs`` - 1 alternatives are as unlikely as the API can say.

    ``id`` is a hash of the body without ``stream`` and ``stream_options``, ``created`` is 1,700,000,000.  Never raises.
    Source: https://developers.openai.com/api/reference/resources/chat

    >>> body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
    >>> response = echo({"method": "POST", "url": "https://api.openai.com/v1/chat/completions", "body": body})
    >>> json.loads(response["body"])["choices"][0]["message"]["content"]
    'hello'
    """
    body = request["body"]
    digest = sha256(body).hexdigest() if isinstance(body, bytes) else sha256().hexdigest()
    path = path_of(request["url"])
    method = request["method"].upper()
    if not path.endswith("/chat/completions"):
        return refused(404, error_of(f"Invalid URL ({method} {path})"), digest)
    if method != "POST":
        error = error_of(f"Not allowed to {method} on {path}.", code="method_not_supported")
        return refused(405, error, digest, {"allow": "POST"})
    data = data_of(body)
    if data is None:
        words = "We could not parse the JSON body of your request: the API expects one JSON object, in UTF-8."
        return refused(400, error_of(words), digest)
    deployment = deployment_of(path)
    named = {**data, "model": data.get("model") or deployment} if deployment else data
    unstreamed = {key: value for key, value in named.items() if key not in ("stream", "stream_options")}
    return answer(named, sha256(text_of(unstreamed, sort=True)).hexdigest())


def answer(body: Json, digest: str) -> Response:
    """The response to a request that has reached the model."""
    error = refusal_of(body)
    if error is not None:
        return refused(400, error, digest)
    said = last_text(body["messages"])
    asked = ERROR.fullmatch(said.strip())
    if asked is not None:
        return asked_error(int(asked[1]), asked[2] or "", digest)
    broken = BREAK.fullmatch(said.strip())
    completion = completion_of(body, said if broken is None else broken[2] or "", digest)
    if body.get("stream"):
        after = None if broken is None else int(broken[1] or BREAK_AFTER)
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": f"req_echo_{digest[:32]}"}
        return {"status": 200, "headers": headers, "body": stream_of(completion, usage, after)}
    if broken is not None:
        return failure("interrupted", "the transfer broke, as the last user message asked")
    return sent(200, completion, digest)


def path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # a host in broken brackets
        return ""


def deployment_of(path: str) -> str | None:
    """Azure's name for a model, out of the path, or None.

    >>> deployment_of("/openai/deployments/my%20gpt/chat/completions")
    'my gpt'
    """
    *_, room, name, _, _ = ["", "", *path.split("/")]
    return unquote(name) if room == "deployments" and name else None


def data_of(body: Any) -> dict[str, Any] | None:
    """The body as data, or None if it is no JSON map or holds what JSON cannot carry."""
    try:
        found = plain(json.loads(body.decode()) if isinstance(body, (bytes, bytearray)) else body)
    except (ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def text_of(data: Any, sort: bool = False) -> bytes:
    """JSON; a lone surrogate, which only a URL can bring this far, becomes a question mark."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=sort)
    return text.encode("utf-8", "replace")


def sent(status: int, data: Json, digest: str, headers: Mapping[str, str] | None = None) -> Response:
    given = {"content-type": "application/json", "x-request-id": f"req_echo_{digest[:32]}", **(headers or {})}
    return {"status": status, "headers": given, "body": text_of(data)}


def refused(status: int, error: Json, digest: str, headers: Mapping[str, str] | None = None) -> Response:
    return sent(status, {"error": error}, digest, headers)


def asked_error(status: int, words: str, digest: str) -> Response:
    """The error that a message asked for; a 429 says when to come again, unless the quota is used up."""
    head, *rest = words.split(None, 1) or [""]
    coded = "_" in head and re.fullmatch(r"\w+", head)
    code, words = (head, "".join(rest)) if coded else (CODES.get(status), words)
    kind = KINDS.get(code or "") or KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    message = words or f"The echo model answers {status}, as the last user message asked."
    wait = BUSY if status == 429 and code != "insufficient_quota" else {}
    return refused(status, error_of(message, None, code, kind), digest, wait)


def stream_of(completion: dict[str, Any], usage: bool, after: int | None) -> Iterator[bytes]:
    """Server-sent events, one chunk each, and ``[DONE]``; ``after`` so many events the transfer breaks.

    With ``usage`` the chunks have a null ``usage``, and one more, without choices, has the numbers.
    """
    given = completion if usage else {key: value for key, value in completion.items() if key != "usage"}
    for index, event in enumerate(events_of(given)):
        if index == after:
            break
        yield encode(text_of({**event, "usage": event.get("usage")} if usage else event).decode())
    if after is not None:
        raise ChatError(failure("interrupted", "the stream broke, as the last user message asked")["error"])
    yield encode("[DONE]")
