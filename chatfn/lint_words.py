"""What the official document says of a chat request in words: the words, where they stand, and who looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from chatfn.lint_rules import ROOT, SCHEMAS
from chatfn.lint_schema import LONGEST_SHOWN, MAPS, kind_of
from chatfn.spec import Json

O_SERIES = re.compile(r"o\d(?![a-z0-9])")
GPT = re.compile(r"gpt-(\d)(?:[.](\d))?(?!\d)")
LATEST_REASONING = re.compile(r"(o3|o4-mini)(-\d{4}-\d\d-\d\d)?")
MODELS = frozenset(SCHEMAS["ModelIdsShared"]["any"][1]["enum"])
TAGS = ("function", "custom")  # of tools, and where their names stand

Place = tuple[tuple[str | int, ...], str]  # a path, and what is wrong there
Finder = Callable[[Json, str], Iterator[Place]]  # of params and the model's bare name


class Said(NamedTuple):
    """A rule that the document states in words: of which parameter, which ``schema`` of it has them, and who looks."""

    rule: str
    level: str
    param: str
    schema: str
    words: str
    find: Finder


def gpt_version(model: str) -> tuple[int, int] | None:
    """
    >>> gpt_version("gpt-5.4-mini"), gpt_version("gpt-4o"), gpt_version("o3")
    ((5, 4), (4, 0), None)
    """
    found = GPT.match(model)
    return (int(found[1]), int(found[2] or 0)) if found else None


def given(params: Json, *names: str) -> bool:
    """Whether all of them are given; null is not."""
    return all(params.get(name) is not None for name in names)


def said(
    rule: str, level: str, param: str, schema: str, words: str, message: str, holds: Callable[[Json, str], object]
) -> Said:
    """A rule by which a parameter should not be there when something ``holds`` of params and model."""

    def find(params: Json, model: str) -> Iterator[Place]:
        if given(params, param) and holds(params, model):
            yield (param,), message

    return Said(rule, level, param, schema, words, find)


def items(value: Any) -> Iterator[tuple[int, Json]]:
    """The objects in an array, with their places; nothing of anything else."""
    if kind_of(value) == "array":
        yield from ((place, item) for place, item in enumerate(value) if isinstance(item, MAPS))


def messages_of(params: Json, role: str) -> Iterator[tuple[int, Json]]:
    return (pair for pair in items(params.get("messages")) if pair[1].get("role") == role)


def parts_of(params: Json) -> Iterator[tuple[tuple[str | int, ...], Json]]:
    """The content parts of all messages, with their paths."""
    for place, message in items(params.get("messages")):
        for number, part in items(message.get("content")):
            yield ("messages", place, "content", number), part


def says_json(params: Json) -> bool:
    """Whether any message has the word; what is no text may have it."""
    texts = [message.get("content") for _, message in items(params.get("messages"))]
    return any(not isinstance(text, str) or "json" in text.lower() for text in texts)


def wants(params: Json, modality: str) -> bool:
    modalities: Any = params.get("modalities")
    return kind_of(modalities) == "array" and any(isinstance(each, str) and each == modality for each in modalities)


def silent_assistants(params: Json, model: str) -> Iterator[Place]:
    for place, message in messages_of(params, "assistant"):
        if not any(given(message, name) for name in ("content", "tool_calls", "function_call", "audio", "refusal")):
            yield ("messages", place, "content"), "is missing, and so are tool_calls and function_call"


def mixed_refusals(params: Json, model: str) -> Iterator[Place]:
    for place, message in messages_of(params, "assistant"):
        types = [part.get("type") for _, part in items(message.get("content"))]
        if "refusal" in types and len(types) > 1:
            yield ("messages", place, "content"), "has a part of type refusal that does not stand alone"


def system_messages(params: Json, model: str) -> Iterator[Place]:
    if O_SERIES.match(model) or (gpt_version(model) or (0, 0)) >= (5, 0):
        for place, _ in messages_of(params, "system"):
            yield ("messages", place, "role"), "is 'system'; o1 models and newer have 'developer' for it"
            return


def early_breakpoints(params: Json, model: str) -> Iterator[Place]:
    if (gpt_version(model) or (9, 9)) < (5, 6):
        if given(params, "prompt_cache_options"):
            yield ("prompt_cache_options",), "is for gpt-5.6 and later models"
        for path, part in parts_of(params):
            if given(part, "prompt_cache_breakpoint"):
                yield (*path, "prompt_cache_breakpoint"), "is for gpt-5.6 and later models"
                return


def offered(params: Json, of: str) -> Iterator[tuple[str, Any]]:
    """The types and names of tools, or of functions."""
    for _, tool in items(params.get(of)):
        kinds = TAGS if of == "tools" else ("function",)
        for kind in kinds:
            inner: Any = tool.get(kind) if of == "tools" else tool
            if isinstance(inner, Mapping):
                yield kind, inner.get("name")


def not_offered(choice_name: str, of: str) -> Finder:
    """A finder of a choice that names what is not among ``of``."""

    def find(params: Json, model: str) -> Iterator[Place]:
        choice, known = params[choice_name], list(offered(params, of))
        if isinstance(choice, Mapping):
            for path, kind, name in named_in(choice, of):
                if isinstance(name, str) and (kind, name) not in known:
                    yield (choice_name, *path, "name"), f"is {name[:LONGEST_SHOWN]!r}, which {of} do not have"

    return find


def named_in(choice: Json, of: str) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    """What a choice names: path, type and name."""
    if of == "functions":
        yield (), "function", choice.get("name")
        return
    allowed = choice.get("allowed_tools")
    choices: list[tuple[tuple[str | int, ...], Json]] = [((), choice)]
    if isinstance(allowed, Mapping):
        choices += [(("allowed_tools", "tools", place), tool) for place, tool in items(allowed.get("tools"))]
    for path, each in choices:
        for kind in TAGS:
            tool = each.get(kind)
            if isinstance(tool, Mapping):
                yield (*path, kind), kind, tool.get("name")


def misspelt(params: Json, model: str) -> Iterator[Place]:
    """A model that the document does not name, if it is one character off a name that it does."""
    name = params.get("model")
    if isinstance(name, str) and (near := near_miss(name[:LONGEST_SHOWN])):
        yield ("model",), f"is {name[:LONGEST_SHOWN]!r}, and the document has {near!r}"


@lru_cache(1_024)
def near_miss(name: str) -> str | None:
    """The model that a name misses by one character, added, left out, changed or swapped with the next."""
    if name in MODELS:
        return None
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.-"
    cuts = [(name[:at], name[at:]) for at in range(len(name) + 1)]
    near = {head + letter + tail for head, tail in cuts for letter in letters}
    near |= {head + letter + tail[1:] for head, tail in cuts for letter in ["", *letters]}
    near |= {head + tail[1] + tail[0] + tail[2:] for head, tail in cuts if len(tail) > 1}
    return min(near & MODELS, default=None)


WORDS = (
    said(
        "model", "error", "max_tokens", ROOT, "not compatible with [o-series models]",
        "is not for o-series models; give max_completion_tokens", lambda params, model: O_SERIES.match(model),
    ),
    said(
        "model", "error", "stop", "StopConfiguration", "Not supported with latest reasoning models `o3` and `o4-mini`.",
        "is not for o3 and o4-mini", lambda params, model: LATEST_REASONING.fullmatch(model),
    ),
    said(
        "conflict", "error", "top_logprobs", ROOT, "`logprobs` must be set to `true` if this parameter is used.",
        "needs logprobs to be true", lambda params, model: params.get("logprobs") is not True,
    ),
    said(
        "conflict", "error", "stream_options", "ChatCompletionStreamOptions",
        "Only set this when you set `stream: true`.",
        "needs stream to be true", lambda params, model: params.get("stream") is not True,
    ),
    said(
        "conflict", "error", "modalities", ROOT,
        'Required when audio output is requested with `modalities: ["audio"]`.',
        "has audio, and needs the parameter audio",
        lambda params, model: wants(params, "audio") and not given(params, "audio"),
    ),
    Said(
        "required", "error", "messages", "ChatCompletionRequestAssistantMessage",
        "Required unless `tool_calls` or `function_call` is specified.", silent_assistants,
    ),
    Said(
        "conflict", "error", "messages", "ChatCompletionRequestAssistantMessage",
        "Can be one or more of type `text`, or exactly one of type `refusal`.", mixed_refusals,
    ),
    said(
        "conflict", "error", "tool_choice", "ChatCompletionToolChoiceOption",
        "`required` means the model must call one or more tools.",
        "is 'required', and there are no tools",
        lambda params, model: params["tool_choice"] == "required" and not params.get("tools"),
    ),
    Said(
        "conflict", "error", "tool_choice", "ChatCompletionToolChoiceOption",
        "forces the model to call that tool.", not_offered("tool_choice", "tools"),
    ),
    Said(
        "conflict", "error", "function_call", "ChatCompletionFunctionCallOption",
        "forces the model to call that function.", not_offered("function_call", "functions"),
    ),
    said(
        "model", "error", "prompt_cache_retention", "ModelResponseProperties",
        "For `gpt-5.5`, `gpt-5.5-pro`, and future models, only `24h` is supported.",
        "is to be '24h' with gpt-5.5 and later models", lambda params, model:
        params["prompt_cache_retention"] == "in_memory" and (gpt_version(model) or (0, 0)) >= (5, 5),
    ),
    Said(
        "model", "warning", "messages", "PromptCacheOptionsParam", "Supported for `gpt-5.6` and later models.",
        early_breakpoints,
    ),
    said(
        "model", "warning", "reasoning_effort", "Reasoning", "**gpt-5 and o-series models only**",
        "is for reasoning models: gpt-5 and the o-series",
        lambda params, model: (gpt_version(model) or (9, 9)) < (5, 0),
    ),
    said(
        "model", "warning", "modalities", "ResponseModalities",
        "The `gpt-4o-audio-preview` model can also be used to [generate audio]",
        "has audio, which most models do not generate",
        lambda params, model: wants(params, "audio") and model in MODELS and "audio" not in model,
    ),
    said(
        "conflict", "warning", "response_format", "ResponseFormatJsonObject",
        "the model will not generate JSON without a system or user message instructing it to do so.",
        "is json_object, and no message says JSON",
        lambda params, model: isinstance(params["response_format"], Mapping)
        and params["response_format"].get("type") == "json_object" and not says_json(params),
    ),
    said(
        "conflict", "warning", "max_tokens", ROOT, "This value is now deprecated in favor of `max_completion_tokens`",
        "is given beside max_completion_tokens; give that alone",
        lambda params, model: given(params, "max_completion_tokens"),
    ),
    said(
        "conflict", "warning", "functions", ROOT, "Deprecated in favor of `tools`.",
        "is given beside tools; give those alone", lambda params, model: given(params, "tools"),
    ),
    said(
        "conflict", "warning", "function_call", ROOT, "Deprecated in favor of `tool_choice`.",
        "is given beside tool_choice; give that alone", lambda params, model: given(params, "tool_choice"),
    ),
    Said("misspelt", "info", "model", "ModelIdsShared", "", misspelt),
    Said(
        "advice", "info", "messages", "ChatCompletionRequestSystemMessage",
        "With o1 models and newer, use `developer` messages for this purpose instead.", system_messages,
    ),
    said(
        "advice", "info", "temperature", "ModelResponseProperties",
        "We generally recommend altering this or `top_p` but not both.",
        "is given beside top_p; alter one of them", lambda params, model: given(params, "top_p"),
    ),
)  # fmt: skip
