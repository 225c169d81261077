"""What the API refuses before a model sees it: a chat request's body checked, in the API's own words.

Source: https://developers.openai.com/api/reference/resources/chat and the messages of the API itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chatfn.lint_rules import ROOT, SCHEMAS
from chatfn.spec import Json
from chatfn.transports.echo.instance import instance_of
from chatfn.transports.echo.reply import TOOLS, chosen_of, forced_tool, named_tools

Error = dict[str, Any]

ROLES = ("developer", "system", "user", "assistant", "tool", "function")
FORMATS = ("text", "json_object", "json_schema")
KINDS: dict[str, type | tuple[type, ...]] = {
    "an object": dict,
    "an array": list,
    "a string": str,
    "a boolean": bool,
    "an integer": int,
    "a decimal": float,
    "a string or an array": (str, list),
}
FIELDS = {  # what each field must be, if it is given
    **dict.fromkeys(("n", "max_tokens", "max_completion_tokens", "top_logprobs"), "an integer"),
    **dict.fromkeys(("stream", "logprobs"), "a boolean"),
    **dict.fromkeys(("stream_options", "response_format"), "an object"),
    **dict.fromkeys(("messages", "tools", "functions"), "an array"),
    "model": "a string",
    "stop": "a string or an array",
}
DOCUMENTED = SCHEMAS[ROOT]["properties"]
RANGES = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), (1, 1e9)),
    **{name: (DOCUMENTED[name]["minimum"], DOCUMENTED[name]["maximum"]) for name in ("n", "top_logprobs")},
}
STOPS = next(each["maxItems"] for each in SCHEMAS["StopConfiguration"]["any"] if each["type"] == "array")


def refusal_of(body: Json) -> Error | None:
    """The first error of a chat request's ``body``, in the API's form and with ``param`` naming the field, or None.

    >>> refusal_of({"model": "m", "messages": []})["param"]
    'messages'
    >>> refusal_of({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    """
    return next(errors_in(body), None)


def errors_in(body: Json) -> Iterator[Error]:
    """All that is wrong; a check may rely on those before it, as only the first error is ever asked for."""
    if not body.get("model"):
        yield error_of("you must provide a model parameter", "model", "missing_required_parameter")
    for param, kind in FIELDS.items():
        yield from of_kind(body.get(param), kind, param)
    yield from message_errors(body.get("messages"))
    yield from number_errors(body)
    yield from format_errors(body.get("response_format"))
    yield from tool_errors(body)
    yield from choice_errors(body)
    yield from schema_errors(body)


def error_of(
    message: str, param: str | None = None, code: str | None = None, kind: str = "invalid_request_error"
) -> Error:
    """An error in the API's form."""
    return {"message": message, "type": kind, "param": param, "code": code}


def of_kind(value: Any, kind: str, param: str, needed: bool = False) -> Iterator[Error]:
    """An error if a value is not of the JSON type that it must have, or missing though it is needed."""
    if value is None and needed:
        yield error_of(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    elif value is not None and (
        not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "a boolean")
    ):
        got = next(name for name, found in KINDS.items() if type(value) is found)
        yield error_of(f"Invalid type for '{param}': expected {kind}, but got {got} instead.", param, "invalid_type")


def one_of(value: Any, options: tuple[str, ...], param: str) -> Iterator[Error]:
    yield from of_kind(value, "a string", param, needed=True)
    if value not in options:
        *most, last = (f"'{option}'" for option in options)
        words = f"Invalid value: '{value[:200]}'. Supported values are: {', '.join(most)}, and {last}."
        yield error_of(words, param, "invalid_value")


def message_errors(messages: Any) -> Iterator[Error]:
    yield from of_kind(messages, "an array", "messages", needed=True)
    if not messages:
        words = "Expected an array with minimum length 1, but got an empty array instead."
        yield error_of(f"Invalid 'messages': empty array. {words}", "messages", "empty_array")
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        yield from of_kind(message if message is not None else 0, "an object", param)
        yield from one_of(message.get("role"), ROLES, f"{param}.role")
        silent = message["role"] in ("assistant", "function")  # they may call a tool and say nothing
        content = message.get("content")
        yield from of_kind(content, "a string or an array", f"{param}.content", needed=not silent)
        for place, part in enumerate(content if isinstance(content, list) else ()):
            where = f"{param}.content[{place}]"
            yield from of_kind(part, "an object", where, needed=True)
            yield from of_kind(part.get("type"), "a string", f"{where}.type", needed=True)
            if part["type"] in ("text", "refusal"):
                yield from of_kind(part.get(part["type"]), "a string", f"{where}.{part['type']}", needed=True)


def number_errors(body: Json) -> Iterator[Error]:
    """Ranges, and fields that do not go together."""
    for param, (least, most) in RANGES.items():
        value = body.get(param)
        if value is not None and not least <= value <= most:
            end, limit = ("below minimum", f">= {least}") if value < least else ("above maximum", f"<= {most}")
            words = f"integer {end} value. Expected a value {limit}, but got {value} instead."
            yield error_of(f"Invalid '{param}': {words}", param, f"integer_{end[:9].replace(' ', '_')}_value")
    if body.get("max_tokens") and body.get("max_completion_tokens"):
        words = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        yield error_of(words, "max_tokens", "invalid_parameter_combination")
    for param, switch in (("stream_options", "stream"), ("top_logprobs", "logprobs")):
        if body.get(param) is not None and not body.get(switch):
            yield error_of(f"The '{param}' parameter is only allowed when '{switch}' is enabled.", param)
    for item in body.get("stop") or ():
        yield from of_kind(item, "a string", "stop", needed=True)
    if isinstance(body.get("stop"), list) and len(body["stop"]) > STOPS:
        words = f"array too long. Expected an array with maximum length {STOPS}, but got length {len(body['stop'])}."
        yield error_of(f"Invalid 'stop': {words}", "stop", "array_above_max_length")


def format_errors(wanted: Any) -> Iterator[Error]:
    param = "response_format"
    if wanted is not None:
        yield from one_of(wanted.get("type"), FORMATS, f"{param}.type")
        if wanted["type"] == "json_schema":
            yield from of_kind(wanted.get("json_schema"), "an object", f"{param}.json_schema", needed=True)
            yield from of_kind(wanted["json_schema"].get("name"), "a string", f"{param}.json_schema.name", needed=True)


def tool_errors(body: Json) -> Iterator[Error]:
    for of in ("tools", "functions"):
        for index, tool in enumerate(body.get(of) or ()):
            param, inner = f"{of}[{index}]", tool
            yield from of_kind(tool, "an object", param, needed=True)
            if of == "tools":
                yield from one_of(tool.get("type"), TOOLS, f"{param}.type")
                param, inner = f"{param}.{tool['type']}", tool.get(tool["type"])
                yield from of_kind(inner, "an object", param, needed=True)
            yield from of_kind(inner.get("name") or None, "a string", f"{param}.name", needed=True)


def choice_errors(body: Json) -> Iterator[Error]:
    """``tool_choice`` and ``function_call`` must name what is there."""
    for param, of, words in (
        ("tool_choice", "tools", ("none", "auto", "required")),
        ("function_call", "functions", ("none", "auto")),
    ):
        choice = body.get(param)
        if choice in (None, "none", "auto"):
            continue
        if not body.get(of):
            yield error_of(f"Invalid value for '{param}': '{param}' is only allowed when '{of}' are specified.", param)
        if not isinstance(choice, dict):
            yield from one_of(choice, words, param)
            continue
        offered = [(kind, name) for kind, name, _, _ in named_tools(body)]
        chosen = chosen_of(choice, legacy=of == "functions")
        if not chosen or not all(name in offered for name in chosen):
            yield error_of(f"Invalid value for '{param}': what it names is not found in '{of}'.", param)


def schema_errors(body: Json) -> Iterator[Error]:
    """The schemas that are strict, and those that must be answered."""
    found = [
        (tool, "parameters", f"function '{name[:200]}'", f"{param}.parameters", "invalid_function_parameters")
        for kind, name, tool, param in named_tools(body)
        if tool.get("strict") is True or (kind, name) == forced_tool(body)
    ]
    wanted = (body.get("response_format") or {}).get("json_schema")
    if wanted:
        found.append(
            (wanted, "schema", f"response_format '{wanted['name'][:200]}'", "response_format.json_schema.schema", "")
        )
    for holder, key, where, param, code in found:
        yield from of_kind(holder.get(key), "an object", param)
        try:
            instance_of(holder.get(key) or {}, holder.get("strict") is True)
        except ValueError as exc:
            yield error_of(f"Invalid schema for {where}: {exc}.", param, code or None)
