"""What the official document says of a request: its schema, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chatfn.core import CLIENT_PARAMS, NO_OPTIONS
from chatfn.impls import IMPLS
from chatfn.lint_rules import AZURE_VERSIONS, ROOT, VERSION
from chatfn.lint_schema import LONGEST_SHOWN, MAPS, MOST, Found, check_of, listed
from chatfn.lint_words import WORDS
from chatfn.plain import path_text, without
from chatfn.spec import Json, Options

LEVELS = ("error", "warning", "info")
NO_MODEL = ("required", "error", ("model",))  # Azure may have the model in the path


def lint(params: Any, options: Options | Json = NO_OPTIONS) -> list[dict[str, str]]:
    """What the official document says against a request: a list of maps, the gravest first; empty if it says nothing.

    Each has ``rule``, ``level``, ``path``, ``message``, and ``source``: the schema of the document that says so, and
    its words where it says so in words.  The levels: "error", the document forbids it; "warning", it is deprecated,
    not meant for that model, or unknown to the document; "info", advice.  Nothing is changed, nothing is sent, and
    nothing raises, whatever ``params`` and ``options`` are.  Of the options it counts whose API it is: elsewhere than
    at OpenAI what is unknown to its document is an "info".
    Source: https://github.com/openai/openai-openapi, the operation createChatCompletion

    >>> for found in lint({"model": "o3", "messages": [], "max_tokens": 9, "temprature": 1}):
    ...     print(found["level"], found["message"])
    error messages has 0 items; at least 1 is needed
    error max_tokens is not for o-series models; give max_completion_tokens
    warning max_tokens is deprecated: This value is now deprecated in favor of `max_completion_tokens`
    warning temprature is not in the document: did you mean 'temperature'?
    """
    try:
        found = list(findings(params, options if isinstance(options, MAPS) else NO_OPTIONS))
    except Exception as exc:  # of an object of the caller's that is not what it seems
        found = [line(Found("type", "error", (), f"can't be read: {type(exc).__name__}", ROOT))]
    return sorted(found[:MOST], key=lambda each: LEVELS.index(each["level"]))


def findings(params: Any, options: Json) -> Iterator[dict[str, str]]:
    service = service_of(options)
    body = without(params, *CLIENT_PARAMS) if isinstance(params, MAPS) else params
    for found in check_of(ROOT)(body):
        if service != "azure" or found[:3] != NO_MODEL:
            mild = service != "openai" and found.rule == "unknown"
            yield line(found._replace(level="info") if mild else found)
    if service == "azure":
        yield from map(line, azure_versions(options))
    if isinstance(body, MAPS):
        name = body.get("model") or options.get("deployment")
        model = name.rpartition("/")[2].removeprefix("ft:") if isinstance(name, str) else ""
        for said in WORDS:
            if said.param in body and (said.rule != "misspelt" or service == "openai"):
                for path, message in said.find(body, model):
                    yield line(Found(said.rule, said.level, path, message, said.schema), said.words)


def line(found: Found, words: str = "") -> dict[str, str]:
    """A finding as a map."""
    path = path_text(found.path)
    return {
        "rule": found.rule,
        "level": found.level,
        "path": path,
        "message": f"{path or 'params'} {found.message}",
        "source": f"openapi.json {VERSION}, {found.schema}" + (f': "{words}"' if words else ""),
    }


def service_of(options: Json) -> str:
    """Whose document counts: "openai", "azure", or "other" for those who speak OpenAI's API their own way."""
    impl = options.get("impl") or "openai"
    own = impl if isinstance(impl, MAPS) else IMPLS.get(impl) if isinstance(impl, str) else None
    if own is None:
        return "other"
    if own.get("url") is IMPLS["azure"]["url"]:
        return "azure"
    defaults = own.get("defaults")
    endpoint = options.get("api_endpoint") or (defaults.get("api_endpoint") if isinstance(defaults, MAPS) else None)
    return "openai" if "openai.com" in str(endpoint) else "other"


def azure_versions(options: Json) -> Iterator[Found]:
    version = options.get("api_version")
    if isinstance(version, str) and version not in AZURE_VERSIONS:
        words = f"is {version[:LONGEST_SHOWN]!r}; known are {listed(AZURE_VERSIONS)}"
        yield Found("version", "info", ("api_version",), words, "azure-operations.json")
