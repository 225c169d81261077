"""The completion with which ``echo`` answers a request that is known to be good: what it says, and what that counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from chatfn.spec import Json
from chatfn.transports.echo.instance import instance_of, listed

CREATED = 1_700_000_000  # 2023-11-14T22:13:20Z, on every answer
FINGERPRINT = "fp_echo_1"  # counts up when the same request gets another answer than before
TOKEN = re.compile(r"\s*(?:\w+|\S)|\s+")
TOOLS = ("function", "custom")
TEXTS = ("text", "refusal")  # the parts that say something, under their own name
UNLIKELY = -9999.0  # the API's own value for a token that is none of the likely ones
DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def completion_of(body: Json, said: str, digest: str) -> dict[str, Any]:
    """The whole ``chat.completion``; ``said`` is the text to echo, ``digest`` what the ids are made of."""
    forced, text, reason = spoken(body, said)
    prompt = sum(len(tokens_of(content_text(message.get("content")))) for message in body["messages"])
    count = range(body.get("n") or 1)
    completion = len(tokens_of(text)) * len(count)
    marked = body.get("logprobs") and forced is None
    logprobs = logprobs_of(text, body.get("top_logprobs") or 0) if marked else None
    return {
        "id": f"chatcmpl-{digest[:29]}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [
            {
                "index": index,
                "message": message_of(forced, text, f"call_{sha256(f'{digest} {index}'.encode()).hexdigest()[:24]}"),
                "logprobs": logprobs,
                "finish_reason": reason,
            }
            for index in count
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            **DETAILS,
        },
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def spoken(body: Json, said: str) -> tuple[tuple[str, str] | None, str, str]:
    """The kind and name of the tool that is called, if one is; the content or the arguments; the finish reason.

    A named function ends with "stop", only "required" with "tool_calls": so the API does, whole and streamed.
    Source: the calls recorded in https://github.com/vllm-project/vllm/pull/25054
    """
    forced = forced_tool(body)
    text = content_of(body, said) if forced is None else input_of(body, forced, said)
    end = "tool_calls" if forced is not None and not names_one(body) else "stop"
    tokens = tokens_of(text)
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(tokens)
    return forced, "".join(tokens[:limit]), "length" if len(tokens) > limit else end


def content_text(content: Any) -> str:
    """The text of a message's content: a string, a list of parts, or nothing.

    >>> content_text([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "…"}}])
    'What is this?\\n[image_url]'
    """
    if not isinstance(content, list):
        return content or ""
    return "\n".join(str(part.get(part["type"])) if part["type"] in TEXTS else f"[{part['type']}]" for part in content)


def last_text(messages: list[Json]) -> str:
    """The text of the last user message, or of the last message if there is none."""
    users = [message for message in messages if message["role"] == "user"]
    return content_text((users or messages)[-1].get("content"))


def tokens_of(text: str) -> list[str]:
    """The tokens: words and single other characters, with the white space before them; joined, the text again.

    >>> tokens_of("How, then?")
    ['How', ',', ' then', '?']
    """
    return TOKEN.findall(text)


def content_of(body: Json, said: str) -> str:
    """What is said, in the format that is asked for, up to the first stop sequence."""
    wanted = body.get("response_format") or {"type": "text"}
    text = said
    if wanted["type"] == "json_object":
        text = json.dumps({"echo": said}, ensure_ascii=False)
    elif wanted["type"] == "json_schema":
        found = wanted["json_schema"]
        text = json_text(found.get("schema"), found.get("strict"))
    stop = body.get("stop") or []
    ends = [text.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each and each in text]
    return text[: min(ends, default=len(text))]


def json_text(schema: Json | None, strict: Any) -> str:
    return json.dumps({} if schema is None else instance_of(schema, strict is True), ensure_ascii=False)


def named_tools(body: Json) -> Iterator[tuple[str, str, Any, str]]:
    """The kind, name and definition of each tool, and where it stands; the legacy ``functions`` too."""
    for index, tool in enumerate(body.get("tools") or ()):
        kind = tool["type"]
        yield kind, tool[kind]["name"], tool[kind], f"tools[{index}].{kind}"
    for index, function in enumerate(body.get("functions") or ()):
        yield "legacy", function["name"], function, f"functions[{index}]"


def chosen_of(choice: Any, legacy: bool = False) -> list[tuple[Any, Any]]:
    """The kinds and names that ``tool_choice`` or ``function_call`` names; a None where it is malformed."""
    found = choice if isinstance(choice, dict) else {}
    kind = "legacy" if legacy else found.get("type")
    inner = found if legacy else found.get(kind) if isinstance(kind, str) else None
    if kind != "allowed_tools":
        return [(kind, inner.get("name") if isinstance(inner, dict) else None)]
    allowed = inner if isinstance(inner, dict) and inner.get("mode") in ("auto", "required") else {}
    return [name for tool in listed(allowed.get("tools", [])) for name in chosen_of(tool)]


def forced_tool(body: Json) -> tuple[str, str] | None:
    """The kind and name of the tool that must be called: the one that is named, or the first that may be; or None."""
    legacy, choice = body.get("function_call"), body.get("tool_choice")
    if isinstance(legacy, dict):
        return "legacy", legacy["name"]
    if isinstance(choice, dict):
        free = choice["type"] == "allowed_tools" and choice["allowed_tools"]["mode"] == "auto"
        return None if free else chosen_of(choice)[0]
    return next((kind, name) for kind, name, _, _ in named_tools(body)) if choice == "required" else None


def names_one(body: Json) -> bool:
    """Whether the request says which tool must be called, and not only that one must be."""
    choices = [body.get("function_call"), body.get("tool_choice")]
    return any(isinstance(choice, dict) and choice.get("type") != "allowed_tools" for choice in choices)


def input_of(body: Json, forced: tuple[str, str], said: str) -> str:
    """A function's smallest arguments as JSON; a custom tool is given what is said."""
    if forced[0] == "custom":
        return said
    tool = next(tool for kind, name, tool, _ in named_tools(body) if (kind, name) == forced)
    return json_text(tool.get("parameters"), tool.get("strict"))


def message_of(forced: tuple[str, str] | None, text: str, call_id: str) -> dict[str, Any]:
    """The assistant's message: what is said, or the call of a tool."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if forced else text,
        "refusal": None,
        "annotations": [],
    }
    if forced is None:
        return message
    kind, name = forced
    if kind == "legacy":
        return {**message, "function_call": {"name": name, "arguments": text}}
    given = {"name": name, "input" if kind == "custom" else "arguments": text}
    return {**message, "tool_calls": [{"id": call_id, "type": kind, kind: given}]}


def logprobs_of(text: str, top: int) -> dict[str, Any]:
    """Every token certain, and ``top`` likely ones: itself, and others as unlikely as the API can say."""
    content = [{**mark(token, 0.0), "top_logprobs": likely(token, top)} for token in tokens_of(text)]
    return {"content": content, "refusal": None}


def likely(token: str, top: int) -> list[dict[str, Any]]:
    return [mark(f"{token}{rank or ''}", UNLIKELY if rank else 0.0) for rank in range(top)]


def mark(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
