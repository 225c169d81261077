"""What the API refuses before a model sees it: a chat request's body checked, in the API's own words.

Each check takes the body and returns an error or None; the first error wins.
Source: https://developers.openai.com/api/reference/resources/chat and the messages of the API itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from chatfn.spec import Json
from chatfn.transports.echo.instance import instance_of

ROLES = ("system", "assistant", "user", "function", "tool", "developer")
FORMATS = ("json_object", "json_schema", "text")
TOOLS = ("function", "custom")
RANGES: dict[str, tuple[int, int | None]] = {
    "n": (1, 128),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "top_logprobs": (0, 20),
}
JSON_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
}
STOPS = 4


def refusal_of(body: Json, model: str | None = None) -> dict[str, Any] | None:
    """The error of a chat request's ``body``, in the API's form and with ``param`` naming the field, or None.

    ``model``: the deployment that the URL names, if it does.

    >>> refusal_of({"model": "m", "messages": []})["param"]
    'messages'
    >>> refusal_of({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    """
    checks: tuple[Callable[[Json], dict[str, Any] | None], ...] = (
        lambda body: None if model else model_refusal(body),
        messages_refusal,
        ranges_refusal,
        switches_refusal,
        stop_refusal,
        format_refusal,
        tools_refusal,
        choice_refusal,
    )
    return next((error for check in checks for error in [check(body)] if error is not None), None)


def error_of(
    message: str, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> dict[str, Any]:
    """An error in the API's form."""
    return {"message": message, "type": kind, "param": param, "code": code}


def missing(param: str) -> dict[str, Any]:
    return error_of(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def wrong_type(param: str, expected: str, value: Any) -> dict[str, Any]:
    got = JSON_NAMES.get(type(value), "null")
    return error_of(f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param, "invalid_type")


def wrong_value(param: str, value: Any, options: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, str):
        return wrong_type(param, f"one of {quoted(options)}", value)
    return error_of(f"Invalid value: '{value[:200]}'. Supported values are: {quoted(options)}.", param, "invalid_value")


def quoted(options: tuple[str, ...]) -> str:
    return ", ".join(f"'{option}'" for option in options[:-1]) + f", and '{options[-1]}'"


def model_refusal(body: Json) -> dict[str, Any] | None:
    model = body.get("model")
    if model is None or model == "":
        return error_of("you must provide a model parameter", "model", "missing_required_parameter")
    return None if isinstance(model, str) else wrong_type("model", "a string", model)


def messages_refusal(body: Json) -> dict[str, Any] | None:
    messages = body.get("messages")
    if messages is None:
        return missing("messages")
    if not isinstance(messages, list):
        return wrong_type("messages", "an array of objects", messages)
    if not messages:
        words = (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
        )
        return error_of(words, "messages", "empty_array")
    errors = (message_refusal(message, f"messages[{index}]") for index, message in enumerate(messages))
    return next(filter(None, errors), None)


def message_refusal(message: Any, param: str) -> dict[str, Any] | None:
    if not isinstance(message, dict):
        return wrong_type(param, "an object", message)
    if message.get("role") is None:
        return missing(f"{param}.role")
    if message["role"] not in ROLES:
        return wrong_value(f"{param}.role", message["role"], ROLES)
    content = message.get("content")
    if content is None:
        return None if message["role"] in ("assistant", "function") else missing(f"{param}.content")
    if isinstance(content, list):
        errors = (part_refusal(part, f"{param}.content[{index}]") for index, part in enumerate(content))
        return next(filter(None, errors), None)
    return (
        None if isinstance(content, str) else wrong_type(f"{param}.content", "a string or an array of objects", content)
    )


def part_refusal(part: Any, param: str) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        return wrong_type(param, "an object", part)
    if not isinstance(part.get("type"), str):
        return missing(f"{param}.type")
    if part["type"] in ("text", "refusal") and not isinstance(part.get(part["type"]), str):
        return missing(f"{param}.{part['type']}")
    return None


def ranges_refusal(body: Json) -> dict[str, Any] | None:
    for param, (least, most) in RANGES.items():
        value = body.get(param)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            return wrong_type(param, "an integer", value)
        if value is not None and value < least:
            words = f"integer below minimum value. Expected a value >= {least}, but got {value} instead."
            return error_of(f"Invalid '{param}': {words}", param, "integer_below_min_value")
        if value is not None and most is not None and value > most:
            words = f"integer above maximum value. Expected a value <= {most}, but got {value} instead."
            return error_of(f"Invalid '{param}': {words}", param, "integer_above_max_value")
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        words = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        return error_of(words, "max_tokens", "invalid_parameter_combination")
    return None


def switches_refusal(body: Json) -> dict[str, Any] | None:
    for param in ("stream", "logprobs"):
        if not isinstance(body.get(param), (bool, type(None))):
            return wrong_type(param, "a boolean", body[param])
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return wrong_type("stream_options", "an object", options)
    if options is not None and not body.get("stream"):
        words = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        return error_of(words, "stream_options")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        return error_of("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs")
    return None


def stop_refusal(body: Json) -> dict[str, Any] | None:
    stop = body.get("stop")
    if stop is None or isinstance(stop, str):
        return None
    if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
        return wrong_type("stop", "a string or an array of strings", stop)
    if len(stop) > STOPS:
        words = f"array too long. Expected an array with maximum length {STOPS}, but got length {len(stop)} instead."
        return error_of(f"Invalid 'stop': {words}", "stop", "array_above_max_length")
    return None


def format_refusal(body: Json) -> dict[str, Any] | None:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        return wrong_type("response_format", "an object", wanted)
    if wanted.get("type") is None:
        return missing("response_format.type")
    if wanted["type"] not in FORMATS:
        return wrong_value("response_format.type", wanted["type"], FORMATS)
    if wanted["type"] != "json_schema":
        return None
    param = "response_format.json_schema"
    found = wanted.get("json_schema")
    if not isinstance(found, dict):
        return missing(param) if found is None else wrong_type(param, "an object", found)
    if not isinstance(found.get("name"), str):
        return missing(f"{param}.name")
    where = f"response_format '{found['name'][:200]}'"
    return schema_refusal(found.get("schema"), found.get("strict"), where, f"{param}.schema", None)


def schema_refusal(schema: Any, strict: Any, where: str, param: str, code: str | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    if not isinstance(schema, dict):
        return wrong_type(param, "an object", schema)
    try:
        instance_of(schema, strict is True)
    except ValueError as exc:
        return error_of(f"Invalid schema for {where}: {exc}.", param, code)
    except RecursionError:
        return error_of(f"Invalid schema for {where}: it is nested too deep.", param, code)
    return None


def named_tools(body: Json) -> Iterator[tuple[str, str, Any, str]]:
    """The kind, name and definition of each tool, and where it stands; the legacy ``functions`` too."""
    for index, tool in enumerate(body.get("tools") or ()):
        kind = tool["type"]
        yield kind, tool[kind]["name"], tool[kind], f"tools[{index}].{kind}"
    for index, function in enumerate(body.get("functions") or ()):
        yield "legacy", function["name"], function, f"functions[{index}]"


def tools_refusal(body: Json) -> dict[str, Any] | None:
    for param in ("tools", "functions"):
        tools = body.get(param)
        if tools is not None and not isinstance(tools, list):
            return wrong_type(param, "an array of objects", tools)
        errors = (tool_refusal(tool, f"{param}[{index}]", param) for index, tool in enumerate(tools or ()))
        error = next(filter(None, errors), None)
        if error is not None:
            return error
    found = (
        schema_refusal(
            tool.get("parameters"),
            tool.get("strict"),
            f"function '{name[:200]}'",
            f"{param}.parameters",
            "invalid_function_parameters",
        )
        for _, name, tool, param in named_tools(body)
    )
    return next(filter(None, found), None)


def tool_refusal(tool: Any, param: str, of: str) -> dict[str, Any] | None:
    if not isinstance(tool, dict):
        return wrong_type(param, "an object", tool)
    kind = tool.get("type")
    if of == "tools" and kind not in TOOLS:
        return missing(f"{param}.type") if kind is None else wrong_value(f"{param}.type", kind, TOOLS)
    inner, path = (tool.get(kind), f"{param}.{kind}") if of == "tools" else (tool, param)
    if not isinstance(inner, dict):
        return missing(path) if inner is None else wrong_type(path, "an object", inner)
    return None if isinstance(inner.get("name"), str) and inner["name"] else missing(f"{path}.name")


def choice_refusal(body: Json) -> dict[str, Any] | None:
    """``tool_choice`` and ``function_call`` must name what is there."""
    offered = {(kind, name) for kind, name, _, _ in named_tools(body)}
    for param, kinds in (("tool_choice", set(TOOLS)), ("function_call", {"legacy"})):
        choice = body.get(param)
        if choice is None or (choice in ("none", "auto") and isinstance(choice, str)):
            continue
        if not any(kind in kinds for kind, _ in offered):
            words = (
                f"'{param}' is only allowed when '{'tools' if param == 'tool_choice' else 'functions'}' are specified."
            )
            return error_of(f"Invalid value for '{param}': {words}", param)
        wanted = wanted_of(choice, param)
        if wanted is None:
            return error_of(f"Invalid value for '{param}'.", param, "invalid_value")
        if not set(wanted) <= offered:
            return error_of(f"Invalid value for '{param}': what it names is not among those that are offered.", param)
    return None


def wanted_of(choice: Any, param: str) -> list[tuple[str, str]] | None:
    """The kinds and names that a choice names, none for "required"; or None if it is no choice."""
    if choice == "required" and param == "tool_choice":
        return []
    if not isinstance(choice, dict):
        return None
    if param == "function_call":
        return [("legacy", choice["name"])] if isinstance(choice.get("name"), str) else None
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        if not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
            return None
        tools = allowed.get("tools")
        found = [wanted_of(tool, param) for tool in tools] if isinstance(tools, list) and tools else [None]
        named = [name for names in found if names for name in names]
        return named if all(found) else None
    kind = choice.get("type")
    named_tool = choice.get(kind) if kind in TOOLS else None
    name = named_tool.get("name") if isinstance(named_tool, dict) else None
    return [(str(kind), name)] if isinstance(name, str) else None
