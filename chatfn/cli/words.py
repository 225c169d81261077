"""What the words of the command mean: params and options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from chatfn.options import is_loopback
from chatfn.plain import without
from chatfn.secret import Secret
from chatfn.spec import Json, Options
from chatfn.transports import NETWORK

OPENAI_MODEL = "gpt-4o-mini"


class Misused(ValueError):
    """A word of the command that can't be meant, whatever the world is like: exit status 2."""


def param_of(text: str) -> tuple[str, Any]:
    """The name and the value of ``name=value``: the value is JSON if it can be read so, else text.

    >>> param_of("temperature=0.2"), param_of("user=me"), param_of('stop=["."]')
    (('temperature', 0.2), ('user', 'me'), ('stop', ['.']))
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is no key=value")
    with suppress(ValueError, RecursionError):
        return name, json.loads(value)
    return name, value


def params_of(texts: Iterable[str]) -> dict[str, Any]:
    """The params that ``name=value`` texts spell, later ones in place of earlier.

    >>> params_of(["n=2", "n=3", "user=me"])
    {'n': 3, 'user': 'me'}
    """
    return dict(map(param_of, texts))


def messages_of(question: str | None, system: str | None, earlier: Any = None) -> list[Any]:
    """The messages of a chat: the system's words, what was said earlier, the question.

    >>> messages_of("Where?", "Be brief.", [{"role": "user", "content": "Who won?"}])
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Who won?'},
     {'role': 'user', 'content': 'Where?'}]
    """
    if not isinstance(earlier or [], list):
        raise ValueError(f"--param messages is {type(earlier).__name__}; give a JSON list of messages")
    first = [] if system is None else [{"role": "system", "content": system}]
    last = [] if question is None else [{"role": "user", "content": question}]
    return [*first, *(earlier or []), *last]


def chat_params(
    given: Json, question: str | None, system: str | None, model: str | None, impl: str, stream: bool
) -> dict[str, Any]:
    """The params of a chat.  OpenAI has a default model; elsewhere its name is anyone's guess."""
    name = model or given.get("model")
    messages = messages_of(question, system, given.get("messages"))
    if not any(message.get("role") != "system" for message in messages if isinstance(message, dict)):
        raise Misused('no question: give one, as in chatfn chat "Why is the sky blue?", or on standard input')
    head = default_model(impl) if name is None else {"model": name}
    return {**head, "messages": messages, **without(given, "model", "messages", "stream"), "stream": stream}


def default_model(impl: str) -> dict[str, Any]:
    """The params' ``model`` if nobody names one: OpenAI has a default, Azure may name it by its deployment."""
    if impl not in ("openai", "azure"):
        raise Misused(f"--impl {impl} has no default model: give --model")
    return {"model": OPENAI_MODEL} if impl == "openai" else {}


def options_of(where: Json) -> Options:
    """The options that the command line gives; a broken character must not stop a question."""
    given = {name: value for name, value in where.items() if value is not None}
    if "transport" in given:
        given["transport"] = named_transport(given["transport"])
    return cast(Options, {**given, "surrogates": "replace"})


def named_transport(text: str) -> Any:
    """A transport's name, or its name with settings as JSON.

    >>> named_transport("echo"), named_transport('["replay", {"path": "calls.jsonl"}]')
    ('echo', ['replay', {'path': 'calls.jsonl'}])
    """
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as exc:
        problem = json_problem(exc)
    raise Misused(f"--transport {text}: {problem}")


def json_problem(exc: Exception) -> str:
    """What is wrong with text that was read as JSON."""
    return f"no JSON: {exc}" if isinstance(exc, json.JSONDecodeError) else str(exc)


def client_key(variable: str | None, host: str, options: Options) -> Secret | None:
    """What clients of the server must give; needed where others could spend."""
    if variable is None:
        transport = options.get("transport", "requests")
        if not is_loopback(host) and (transport in NETWORK or not isinstance(transport, str)):
            raise Misused(f"--host {host} lets others spend your key: give --key-env with a key for them")
        return None
    if not os.environ.get(variable):
        raise ValueError(f"the variable {variable} is not set; put into it the key that clients must give")
    return Secret(os.environ[variable])
