"""The embedded model: its answers against the official API document, and its laws."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze

from chatfn import ChatError, collect
from chatfn.transports.echo import echo

DOCUMENT = Path(__file__).resolve().parents[2] / "shared" / "api" / "openapi.json"
URL = "https://api.openai.com/v1/chat/completions"
AZURE = "https://me.openai.azure.com/openai/deployments/{}/chat/completions?api-version=2024-10-21"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "kelvin"]}, "days": {"type": "integer"}},
    "required": ["city", "unit"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
OTHER = {"type": "function", "function": {"name": "clock"}}
CUSTOM = {"type": "custom", "custom": {"name": "shell"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": WEATHER}}
GOOD: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": True, "n": 2},
    {"max_completion_tokens": 2},
    {"stop": ["world"]},
    {"tools": [TOOL, OTHER]},
    {"tools": [TOOL, OTHER], "tool_choice": "required", "n": 2, "logprobs": True},
    {"tools": [OTHER, TOOL], "tool_choice": NAMED},
    {"tools": [OTHER, TOOL], "tool_choice": ALLOWED},
    {"functions": [TOOL["function"]], "function_call": {"name": "weather"}},
    {"response_format": FORMAT},
    {"response_format": {"type": "json_object"}},
]


def body(said: Any = "hello, world!", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": said}], **fields}


def send(data: Any, url: str = URL, method: str = "POST") -> dict[str, Any]:
    wire = json.dumps(data).encode() if isinstance(data, (dict, list)) else data
    request: Any = {"operation": "create_chat_completion", "method": method, "url": url, "headers": {}, "body": wire}
    return dict(echo(request))


def answer(data: Any, url: str = URL) -> Any:
    response = send(data, url)
    assert response["status"] == 200, response
    return json.loads(response["body"])


def said_by(data: Any) -> Any:
    return answer(data)["choices"][0]["message"]["content"]


def error_in(response: Any) -> Any:
    """The error of a response, which has the API's form."""
    assert response["headers"]["content-type"] == "application/json"
    assert response["headers"]["x-request-id"].startswith("req_echo_")
    data = json.loads(response["body"])
    assert set(data) == {"error"}
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert data["error"]["message"]
    return data["error"]


def events_in(data: Any) -> list[Any]:
    response = send({**data, "stream": True})
    assert response["status"] == 200
    assert response["headers"]["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, last = response["body"]
    assert last == b"data: [DONE]\n\n"
    assert all(
        block.startswith(b"data: {") and block.endswith(b"}\n\n") and block.count(b"\n") == 2 for block in blocks
    )
    return [json.loads(block[6:]) for block in blocks]


def nulls_spelled_out(schema: Any) -> Any:
    """OpenAPI 3.0's ``nullable``, which the document still uses, in the words of JSON Schema."""
    if isinstance(schema, list):
        return [nulls_spelled_out(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: nulls_spelled_out(value) for key, value in schema.items() if key != "nullable" or value is not True}
    return {"anyOf": [inner, {"type": "null"}]} if schema.get("nullable") is True else inner


@pytest.fixture(scope="module")
def schemas() -> Any:
    """The schemas of the official API document."""
    if not DOCUMENT.exists():
        pytest.skip(f"the official API document is not there: {DOCUMENT}")
    return nulls_spelled_out(json.loads(DOCUMENT.read_bytes())["components"]["schemas"])


@pytest.fixture(scope="module")
def official(schemas: Any) -> Any:
    """A function that validates data against a schema of the official API document."""
    jsonschema = pytest.importorskip("jsonschema")

    def validate(name: str, data: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        jsonschema.Draft202012Validator(schema).validate(data)

    return validate


@pytest.mark.parametrize("fields", [*GOOD, {"tools": [CUSTOM], "tool_choice": "required"}])
def test_whole_answers_have_the_official_form(official: Any, fields: dict[str, Any]) -> None:
    """Every whole answer is a CreateChatCompletionResponse."""
    official("CreateChatCompletionResponse", answer(body(**fields)))


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("fields", GOOD)
def test_chunks_have_the_official_form(official: Any, fields: dict[str, Any], usage: bool) -> None:
    """Every event of a stream is a CreateChatCompletionStreamResponse."""
    for event in events_in(body(**fields, stream_options={"include_usage": usage})):
        official("CreateChatCompletionStreamResponse", event)


@pytest.mark.parametrize("said", ["!error 429", "!error 400", "!error 503 over_loaded come back later"])
def test_errors_have_the_official_form(official: Any, said: str) -> None:
    """Every error is an ErrorResponse."""
    official("ErrorResponse", json.loads(send(body(said))["body"]))


def reached(name: str, schemas: Any) -> dict[str, Any]:
    """A schema and all that it refers to."""
    found = [name]
    for each in found:  # grows while it is walked
        text = json.dumps(schemas[each])
        found += [ref for ref in dict.fromkeys(re.findall(r'#/components/schemas/([^"/]+)"', text)) if ref not in found]
    return {each: schemas[each] for each in found}


def test_official_schemas_have_instances(official: Any, schemas: Any) -> None:
    """Each schema of the official document, as a function's parameters, is answered by a valid instance."""
    for name in schemas:
        whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": reached(name, schemas)}}
        function = {"name": "f", "parameters": whole}
        (choice,) = answer(body(tools=[{"type": "function", "function": function}], tool_choice="required"))["choices"]
        official(name, json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]))


def test_answer_to_the_letter() -> None:
    """A whole answer: all its members, in the API's order."""
    whole = answer(body())
    assert whole == {
        "id": whole["id"],
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello, world!", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_echo_1",
    }
    assert whole["id"].startswith("chatcmpl-")


@pytest.mark.parametrize("fields", GOOD)
def test_a_stream_spells_the_whole_answer(fields: dict[str, Any]) -> None:
    """Folded, a stream is the whole answer to the same request, ids included."""
    usage = {"stream_options": {"include_usage": True}}
    assert collect(events_in(body(**fields, **usage))) == answer(body(**fields))


def test_usage_in_a_stream_only_when_asked() -> None:
    """``include_usage``: a last chunk without choices, and null in the others; else no ``usage`` at all."""
    *others, last = events_in(body(stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 8
    assert all(event["usage"] is None and event["choices"] for event in others)
    assert not any("usage" in event for event in events_in(body()))
    assert not any("usage" in event for event in events_in(body(stream_options={"include_usage": False})))


@pytest.mark.parametrize(("messages", "content"), [
    ([{"role": "user", "content": "first"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "last"}], "last"),
    ([{"role": "user", "content": "mine"}, {"role": "tool", "tool_call_id": "c", "content": "not mine"}], "mine"),
    ([{"role": "system", "content": "rules"}], "rules"),
    ([{"role": "assistant", "content": None}], ""),
    ([{"role": "assistant"}], ""),
    ([{"role": "user", "content": []}], ""),
    ([{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "u"}},
      {"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {}}]}], "see\n[image_url]\n[input_audio]\n[file]"),
    ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]}], "never"),
    ([{"role": "user", "content": "  é\n中 🙂 "}], "  é\n中 🙂 "),
])  # fmt: skip
def test_content_is_what_the_last_user_message_says(messages: Any, content: str) -> None:
    """The last user message, or the last message, is said back, and what is no text is named."""
    assert said_by({"model": "m", "messages": messages}) == content


@pytest.mark.parametrize(("fields", "content", "reason"), [
    ({"max_tokens": 2}, "one two", "length"),
    ({"max_completion_tokens": 3}, "one two,", "length"),
    ({"max_tokens": 4}, "one two, three", "stop"),
    ({"stop": ","}, "one two", "stop"),
    ({"stop": [" three", "two"]}, "one ", "stop"),
    ({"stop": ["", "four"]}, "one two, three", "stop"),
    ({"stop": None, "max_tokens": None, "n": None}, "one two, three", "stop"),
    ({"stop": ",", "max_tokens": 1}, "one", "length"),
])  # fmt: skip
def test_limits_shorten_the_content(fields: Any, content: str, reason: str) -> None:
    """Stop sequences cut before the first of them, and the token limit cuts what is left."""
    whole = answer(body("one two, three", **fields))
    assert (whole["choices"][0]["message"]["content"], whole["choices"][0]["finish_reason"]) == (content, reason)


def test_n_choices_and_their_tokens() -> None:
    """``n`` equal choices, each counted."""
    whole = answer(body(n=3))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 12


def test_logprobs_spell_the_content() -> None:
    """The tokens of logprobs are the content, with as many alternatives as asked."""
    (choice,) = answer(body("é, x", logprobs=True, top_logprobs=2))["choices"]
    marks = choice["logprobs"]["content"]
    assert b"".join(bytes(mark["bytes"]) for mark in marks).decode() == "é, x"
    assert [mark["token"] for mark in marks] == ["é", ",", " x"]
    assert all(mark["top_logprobs"][0] == {key: mark[key] for key in ("token", "logprob", "bytes")} for mark in marks)
    assert all(len(mark["top_logprobs"]) == 2 for mark in marks)


@pytest.mark.parametrize(("fields", "name", "reason"), [
    ({"tools": [TOOL, OTHER], "tool_choice": "required"}, "weather", "tool_calls"),
    ({"tools": [OTHER, TOOL], "tool_choice": ALLOWED}, "weather", "tool_calls"),
    ({"tools": [OTHER, TOOL], "tool_choice": NAMED}, "weather", "stop"),
])  # fmt: skip
def test_forced_tools_are_called(fields: Any, name: str, reason: str) -> None:
    """The named tool, or the first that may be, is called with the smallest arguments."""
    (choice,) = answer(body(**fields))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == name
    assert json.loads(call["function"]["arguments"]) == {"city": "", "unit": "celsius"}
    assert call["id"].startswith("call_")
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == reason


def test_other_forced_calls() -> None:
    """A function without parameters has none, the legacy form is answered in kind, a custom tool is given the text."""
    (choice,) = answer(body(tools=[OTHER], tool_choice="required"))["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
    (choice,) = answer(body(functions=[{"name": "old"}], function_call={"name": "old"}))["choices"]
    assert choice["message"]["function_call"] == {"name": "old", "arguments": "{}"}
    assert choice["finish_reason"] == "stop"
    (choice,) = answer(body("ls", tools=[CUSTOM], tool_choice={"type": "custom", "custom": {"name": "shell"}}))[
        "choices"
    ]
    assert choice["message"]["tool_calls"][0]["custom"] == {"name": "shell", "input": "ls"}
    (choice,) = answer(body(tools=[TOOL], tool_choice="required", max_tokens=2))["choices"]
    assert choice["finish_reason"] == "length"


def test_tool_call_ids_differ_between_choices() -> None:
    """No two calls of an answer have the same id."""
    choices = answer(body(tools=[TOOL], tool_choice="required", n=5))["choices"]
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 5


@pytest.mark.parametrize("choice", [
    None, "auto", "none", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
])  # fmt: skip
def test_no_tool_is_called_unless_forced(choice: Any) -> None:
    """A free choice is no call."""
    assert said_by(body("hi", tools=[TOOL], tool_choice=choice, function_call="auto")) == "hi"


def test_response_formats() -> None:
    """A schema is answered by its smallest instance (strict: all properties), an object by what was said."""
    assert json.loads(said_by(body(response_format=FORMAT))) == {"city": "", "unit": "celsius", "days": 0}
    loose = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}
    assert json.loads(said_by(body(response_format=loose))) == {"city": "", "unit": "celsius"}
    assert said_by(body(response_format={"type": "json_schema", "json_schema": {"name": "w"}})) == "{}"
    assert json.loads(said_by(body('"é"', response_format={"type": "json_object"}))) == {"echo": '"é"'}
    assert said_by(body("x", response_format={"type": "text"})) == "x"


@pytest.mark.parametrize(("said", "status", "kind", "code", "message"), [
    ("!error 429", 429, "requests", "rate_limit_exceeded", None),
    ("!error 429 insufficient_quota", 429, "insufficient_quota", "insufficient_quota", None),
    ("!error 400 some words", 400, "invalid_request_error", None, "some words"),
    ("!error 401", 401, "invalid_request_error", "invalid_api_key", None),
    ("!error 404 model_not_found no such\nmodel", 404, "invalid_request_error", "model_not_found", "no such\nmodel"),
    (" !error  500\n", 500, "server_error", None, None),
    ([{"type": "text", "text": "!error 503"}], 503, "server_error", None, None),
])  # fmt: skip
@pytest.mark.parametrize("stream", [True, False])
def test_errors_on_demand(said: Any, status: int, kind: str, code: str, message: str | None, stream: bool) -> None:
    """``!error STATUS [CODE] [words]`` is answered with that error, before any stream begins."""
    response = send(body(said, stream=stream))
    error = error_in(response)
    assert (response["status"], error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert message is None or error["message"] == message
    assert ("retry-after" in response["headers"]) == (code == "rate_limit_exceeded")


@pytest.mark.parametrize("said", ["!error", "!error 200", "!error 4290", "!error x", "say !error 429", "!breakfast"])
def test_other_text_is_no_demand(said: str) -> None:
    """Only the documented form asks for a failure."""
    assert said_by(body(said)) == said


def until_broken(stream: Any) -> tuple[list[bytes], ChatError | None]:
    """What arrives of a stream, and the error that ends it."""
    seen: list[bytes] = []
    try:
        for block in stream:
            seen.append(block)  # noqa: PERF402  # what came before the error counts
    except ChatError as exc:
        return seen, exc
    return seen, None


@pytest.mark.parametrize(("said", "text", "events"), [
    ("!break", "", 2), ("!break 0", "", 0), ("!break 3 one two three four", "one two three four", 3),
    ("!break one two three", "one two three", 2), ("!break 99 one", "one", 99), ("!break 3abc", "3abc", 2),
])  # fmt: skip
def test_streams_that_break(said: str, text: str, events: int) -> None:
    """``!break [N] [text]``: after N events, or at the end but for ``[DONE]``, the stream is interrupted."""
    seen, error = until_broken(send(body(said, stream=True))["body"])
    assert error is not None
    assert error.error["category"] == "interrupted"
    whole = [event["choices"][0]["delta"] for event in events_in(body(text))]
    assert [json.loads(block[6:])["choices"][0]["delta"] for block in seen] == whole[:events]


def test_whole_answers_that_break() -> None:
    """``!break``: a whole answer never arrives."""
    response = send(body("!break"))
    assert (response["status"], response["error"]["category"]) == (0, "interrupted")


@pytest.mark.parametrize(("data", "param"), [
    (b"", None), (b"{", None), (b"[]", None), (b"null", None), (b"\xff{}", None), (b'{"a": NaN}', None), (b'{"a": 1e999}', None),
    (b'{"a": "\\ud800"}', None), (b"[" * 100_000, None), (b'{"a": ' * 100_000, None), (b'{"a": ' + b"1" * 10_000 + b"}", None),
    (None, None), ("{}", None), (freeze({1: 2}), None),
    ({"messages": [{"role": "user", "content": "x"}]}, "model"),
    (body(model=""), "model"), (body(model=5), "model"),
    ({"model": "m"}, "messages"), (body(messages=None), "messages"), (body(messages=[]), "messages"),
    (body(messages={}), "messages"), (body(messages="hi"), "messages"),
    (body(messages=["hi"]), "messages[0]"), (body(messages=[None]), "messages[0]"),
    (body(messages=[{"role": "user", "content": "x"}, {"content": "x"}]), "messages[1].role"),
    (body(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
    (body(messages=[{"role": 7, "content": "x"}]), "messages[0].role"),
    (body(messages=[{"role": [], "content": "x"}]), "messages[0].role"),
    (body(messages=[{"role": "user"}]), "messages[0].content"), (body(7), "messages[0].content"), (body({}), "messages[0].content"),
    (body(["x"]), "messages[0].content[0]"), (body([{"text": "x"}]), "messages[0].content[0].type"),
    (body([{"type": []}]), "messages[0].content[0].type"), (body([{"type": "text"}]), "messages[0].content[0].text"),
    (body(n=0), "n"), (body(n=129), "n"), (body(n="1"), "n"), (body(n=True), "n"), (body(n=1.5), "n"),
    (body(max_tokens=0), "max_tokens"), (body(max_tokens=1, max_completion_tokens=1), "max_tokens"),
    (body(max_completion_tokens=-1), "max_completion_tokens"), (body(logprobs=True, top_logprobs=21), "top_logprobs"),
    (body(top_logprobs=1), "top_logprobs"), (body(logprobs="yes"), "logprobs"), (body(stream="yes"), "stream"),
    (body(stream_options={}), "stream_options"), (body(stream=True, stream_options=[]), "stream_options"),
    (body(stop=5), "stop"), (body(stop=[5]), "stop"), (body(stop=list("abcde")), "stop"),
    (body(response_format="json"), "response_format"), (body(response_format={}), "response_format.type"),
    (body(response_format={"type": "xml"}), "response_format.type"),
    (body(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (body(response_format={"type": "json_schema", "json_schema": 5}), "response_format.json_schema"),
    (body(response_format={"type": "json_schema", "json_schema": {}}), "response_format.json_schema.name"),
    (body(response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": []}}), "response_format.json_schema.schema"),
    (body(response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": {"type": "text"}}}),
     "response_format.json_schema.schema"),
    (body(tools={}), "tools"), (body(tools=[5]), "tools[0]"), (body(tools=[{}]), "tools[0].type"),
    (body(tools=[{"type": "magic"}]), "tools[0].type"), (body(tools=[{"type": []}]), "tools[0].type"),
    (body(tools=[{"type": "function"}]), "tools[0].function"), (body(tools=[{"type": "function", "function": 5}]), "tools[0].function"),
    (body(tools=[{"type": "custom", "custom": {}}]), "tools[0].custom.name"), (body(functions=[{}]), "functions[0].name"),
    (body(tools=[{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/x"}}}]), "tools[0].function.parameters"),
    (body(functions=[{"name": "f", "parameters": {"minimum": "x"}}]), "functions[0].parameters"),
    (body(tool_choice="required"), "tool_choice"), (body(function_call={"name": "f"}), "function_call"),
    (body(tools=[TOOL], tool_choice="weather"), "tool_choice"), (body(tools=[TOOL], tool_choice=5), "tool_choice"),
    (body(tools=[TOOL], tool_choice={}), "tool_choice"), (body(tools=[OTHER], tool_choice=NAMED), "tool_choice"),
    (body(tools=[TOOL], tool_choice={"type": "function"}), "tool_choice"),
    (body(tools=[TOOL], tool_choice={"type": "allowed_tools"}), "tool_choice"),
    (body(tools=[TOOL], tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}), "tool_choice"),
    (body(tools=[TOOL], tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED, 5]}}), "tool_choice"),
    (body(functions=[{"name": "f"}], function_call={}), "function_call"),
    (body(functions=[{"name": "f"}], function_call="required"), "function_call"),
])  # fmt: skip
def test_bad_requests(data: Any, param: str | None) -> None:
    """What the API refuses is refused with its 400, and ``param`` names the field."""
    response = send(data)
    error = error_in(response)
    assert (response["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


def test_deeply_nested_schemas_are_no_exception() -> None:
    """A schema nested as deep as a body may be is answered or refused, also where little stack is left."""
    schema: Any = {"type": "object"}
    for _ in range(90):
        schema = {"allOf": [schema]}
    data = body(response_format={"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}})

    def deeper(frames: int) -> Any:
        return send(data) if frames == 0 else deeper(frames - 1)

    for frames in (sys.getrecursionlimit() // 2, 0):
        assert deeper(frames)["status"] in (200, 400)


def test_azure_names_the_model_in_the_path() -> None:
    """Without a model in the body, the deployment of the path is the model, percent-decoded."""
    data = {"messages": [{"role": "user", "content": "hi"}]}
    assert answer(data, AZURE.format("my%2Fgpt%20%C3%A9"))["model"] == "my/gpt é"
    assert answer({**data, "model": "given"}, AZURE.format("d"))["model"] == "given"
    assert answer({**data, "model": "v1"}, "https://me.openai.azure.com/openai/v1/chat/completions")["model"] == "v1"
    assert error_in(send(data, "https://me.openai.azure.com/openai/v1/chat/completions"))["param"] == "model"
    assert error_in(send(data, AZURE.format("")))["param"] == "model"


@pytest.mark.parametrize(
    "url", ["https://h/v1/embeddings", "https://h", "https://h/chat/completions/1", "http://[", "", "\ud800"]
)
def test_unknown_paths_are_404(url: str) -> None:
    """Only chat completions are served."""
    response = send(body(), url)
    assert response["status"] == 404
    assert error_in(response)["type"] == "invalid_request_error"


def test_other_methods_are_405() -> None:
    """Only POST is answered."""
    response = send(b"", method="GET")
    assert (response["status"], response["headers"]["allow"]) == (405, "POST")
    assert error_in(response)["code"] == "method_not_supported"


def test_data_is_taken_for_bytes() -> None:
    """A body that is data already, of whatever mapping, is answered as its bytes are, and is not changed."""
    data = body(response_format=FORMAT, tools=[TOOL])
    kept = copy.deepcopy(data)
    assert send(data)["body"] == echo({"method": "POST", "url": URL, "body": data})["body"]  # type: ignore[typeddict-item]  # no more is read
    assert data == kept
    plain = body(stop=["x"])
    assert send(freeze(plain))["body"] == send(plain)["body"]


def test_different_requests_have_different_ids() -> None:
    """The id is a hash of the request."""
    assert len({answer(body(said))["id"] for said in "abc"} | {answer(body(seed=1))["id"]}) == 4


def test_same_bytes_in_each_process() -> None:
    """Hash seeds, clocks and process ids do not show in an answer, whole or streamed."""
    program = (
        "import json, sys; from chatfn.transports.echo import echo\n"
        "for data in json.load(sys.stdin):\n"
        "    body = echo({'method': 'POST', 'url': sys.argv[1], 'body': json.dumps(data).encode()})['body']\n"
        "    sys.stdout.buffer.write(body if isinstance(body, bytes) else b''.join(body))\n"
    )
    requests = json.dumps([body(**fields, stream=stream) for fields in GOOD for stream in (True, False)]).encode()
    path = os.pathsep.join(entry for entry in sys.path if entry)
    seen = {
        subprocess.run([sys.executable, "-c", program, URL], input=requests, capture_output=True, check=True,
                       env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
    assert len(seen.pop()) > 10_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot", None])
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "refusal"])}, optional={"text": st.text()})
SAID = st.text() | st.lists(PARTS, max_size=3) | st.sampled_from(["!error 429 a_b c", "!break 1 x"]) | JSON
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES}, optional={"content": SAID, "name": JSON}) | JSON, max_size=4)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(-1, 4) | JSON,
        "stop": st.text() | st.lists(st.text(), max_size=5) | JSON,
        "max_tokens": st.integers(0, 9) | JSON,
        "logprobs": st.booleans() | JSON,
        "top_logprobs": st.integers(0, 3) | JSON,
        "response_format": st.just(FORMAT) | JSON,
        "tools": st.lists(st.sampled_from([TOOL, OTHER, CUSTOM]) | JSON, max_size=3) | JSON,
        "tool_choice": st.sampled_from(["required", "auto", "none", NAMED, ALLOWED]) | JSON,
        "stream": st.booleans() | JSON,
    },
)


def check_answer(data: Any) -> None:
    response = send(data)
    if response["status"] == 0:
        assert response["error"]["category"] == "interrupted"
    elif response["status"] != 200:
        assert 400 <= response["status"] < 600
        error_in(response)
    elif data.get("stream"):
        blocks, error = until_broken(response["body"])
        if error is None:
            events = [json.loads(block[6:]) for block in blocks[:-1]]
            assert {event["object"] for event in events} == {"chat.completion.chunk"}
            assert collect(events)["choices"] == answer({**data, "stream": False})["choices"]
    else:
        whole = json.loads(response["body"])
        assert len(whole["choices"]) == (data.get("n") or 1)
        assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
        assert response == send(data)


@settings(deadline=None)
@given(MESSAGES)
def test_any_messages_get_an_answer_or_an_error(messages: Any) -> None:
    """Any list of messages is answered in the API's form, with an answer or an error."""
    check_answer({"model": "m", "messages": messages})


@settings(deadline=None)
@given(st.text() | st.lists(PARTS, max_size=3), FIELDS)
def test_any_fields_get_an_answer_or_an_error(said: Any, fields: Any) -> None:
    """Any values of the fields that are read, too."""
    check_answer(body(said, **fields))


@settings(deadline=None)
@given(st.binary() | JSON)
def test_any_body_gets_an_answer_or_an_error(data: Any) -> None:
    """Any body at all, too."""
    assert send(data)["status"] == 400
