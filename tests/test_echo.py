"""The embedded model: its answers against the official API document, and its laws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze, thaw

from chatfn import ChatError, collect
from chatfn.transports.echo import echo
from chatfn.transports.echo.instance import instance_of

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
    {}, {"n": 3}, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"max_completion_tokens": 2}, {"stop": ["world"]},
    {"tools": [TOOL, OTHER]}, {"tools": [TOOL, OTHER], "tool_choice": "required", "n": 2, "logprobs": True},
    {"tools": [OTHER, TOOL], "tool_choice": NAMED}, {"tools": [OTHER, TOOL], "tool_choice": ALLOWED},
    {"functions": [TOOL["function"]], "function_call": {"name": "weather"}}, {"response_format": FORMAT},
    {"response_format": {"type": "json_object"}},
]  # fmt: skip


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


def tool(parameters: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **fields}}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}


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
    assert all(block[:7] == b"data: {" and block[-3:] == b"}\n\n" and block.count(b"\n") == 2 for block in blocks)
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
def official() -> Any:
    """A function that validates data against a schema of the official API document, named or written out."""
    jsonschema = pytest.importorskip("jsonschema")
    if not DOCUMENT.exists():
        pytest.skip(f"the official API document is not there: {DOCUMENT}")
    components = {"schemas": nulls_spelled_out(json.loads(DOCUMENT.read_bytes())["components"]["schemas"])}

    def validate(name: str, data: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        jsonschema.Draft202012Validator(schema).validate(instance_of(schema) if data is None else data)

    validate.__dict__["names"] = list(components["schemas"])
    return validate


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("fields", GOOD)
def test_answers_have_the_official_form(official: Any, fields: dict[str, Any], usage: bool) -> None:
    """An answer is a CreateChatCompletionResponse, whole or folded from CreateChatCompletionStreamResponses."""
    whole = answer(body(**fields))
    official("CreateChatCompletionResponse", whole)
    events = events_in(body(**fields, stream_options={"include_usage": usage}))
    for event in events:
        official("CreateChatCompletionStreamResponse", event)
    assert {**collect(events), "usage": None} == {**whole, "usage": None}
    assert not usage or collect(events)["usage"] == whole["usage"]


def test_official_schemas_have_instances(official: Any) -> None:
    """Every fifth schema of the official document has an instance, and it is valid."""
    for name in official.names[::5]:
        official(name, None)


@pytest.mark.parametrize(("messages", "content"), [
    ([{"role": "user", "content": "first"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "last"}], "last"),
    ([{"role": "user", "content": "mine"}, {"role": "tool", "tool_call_id": "c", "content": "not mine"}], "mine"),
    ([{"role": "system", "content": "rules"}], "rules"),
    ([{"role": "assistant", "content": None}], ""),
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
    ({"max_tokens": 4}, "one two, three", "stop"),
    ({"stop": ","}, "one two", "stop"),
    ({"stop": [" three", "two"]}, "one ", "stop"),
    ({"stop": ",", "max_tokens": 1}, "one", "length"),
])  # fmt: skip
def test_limits_shorten_the_content(fields: Any, content: str, reason: str) -> None:
    """Stop sequences cut before the first of them, and the token limit cuts what is left."""
    whole = answer(body("one two, three", **fields))
    assert (whole["choices"][0]["message"]["content"], whole["choices"][0]["finish_reason"]) == (content, reason)


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


def test_response_formats() -> None:
    """A schema is answered by its smallest instance (strict: all properties), an object by what was said."""
    assert json.loads(said_by(body(response_format=FORMAT))) == {"city": "", "unit": "celsius", "days": 0}
    assert json.loads(said_by(body(response_format=schema_format(WEATHER)))) == {"city": "", "unit": "celsius"}
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
def test_errors_on_demand(
    official: Any, said: Any, status: int, kind: str, code: str, message: str | None, stream: bool
) -> None:
    """``!error STATUS [CODE] [words]`` is answered with that error, before any stream begins."""
    response = send(body(said, stream=stream))
    error = error_in(response)
    official("ErrorResponse", {"error": error})
    assert (response["status"], error["type"], error["code"], error["param"]) == (status, kind, code, None)
    assert message is None or error["message"] == message
    assert ("retry-after" in response["headers"]) == (code == "rate_limit_exceeded")


def until_broken(stream: Any) -> tuple[list[bytes], ChatError | None]:
    """What arrives of a stream, and the error that ends it."""
    seen: list[bytes] = []
    try:
        seen.extend(stream)
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
    assert error is not None and error.error["category"] == "interrupted"  # noqa: PT018  # one law
    whole = [event["choices"][0]["delta"] for event in events_in(body(text))]
    assert [json.loads(block[6:])["choices"][0]["delta"] for block in seen] == whole[:events]
    assert (send(body(said))["status"], send(body(said))["error"]["category"]) == (0, "interrupted")


@pytest.mark.parametrize(("data", "param"), [
    (b"", None), (b"{", None), (b"[]", None), (b"\xff{}", None), (b'{"a": NaN}', None), (b'{"a": "\\ud800"}', None),
    (b"[" * 100_000, None), (None, None), ("{}", None), (freeze({1: 2}), None),
    ({"messages": [{"role": "user", "content": "x"}]}, "model"), (body(model=""), "model"), (body(model=5), "model"),
    ({"model": "m"}, "messages"), (body(messages=[]), "messages"), (body(messages=["hi"]), "messages[0]"),
    (body(messages=[{"role": "user", "content": "x"}, {"content": "x"}]), "messages[1].role"),
    (body(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
    (body(messages=[{"role": "user"}]), "messages[0].content"), (body(7), "messages[0].content"),
    (body(["x"]), "messages[0].content[0]"), (body([{"text": "x"}]), "messages[0].content[0].type"),
    (body([{"type": "text"}]), "messages[0].content[0].text"),
    (body(n=0), "n"), (body(n=129), "n"), (body(n="1"), "n"), (body(n=True), "n"), (body(n=1.5), "n"),
    (body(max_tokens=0), "max_tokens"), (body(max_tokens=1, max_completion_tokens=1), "max_tokens"),
    (body(top_logprobs=1), "top_logprobs"), (body(stream="yes"), "stream"), (body(stream_options={}), "stream_options"),
    (body(stop=5), "stop"), (body(stop=[5]), "stop"), (body(stop=list("abcde")), "stop"),
    (body(response_format="json"), "response_format"), (body(response_format={"type": "xml"}), "response_format.type"),
    (body(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (body(response_format={"type": "json_schema", "json_schema": {}}), "response_format.json_schema.name"),
    (body(response_format=schema_format({"not": {}})), "response_format.json_schema.schema"),
    (body(tools={}), "tools"), (body(tools=[5]), "tools[0]"), (body(tools=[{}]), "tools[0].type"),
    (body(tools=[{"type": []}]), "tools[0].type"), (body(tools=[{"type": "function"}]), "tools[0].function"),
    (body(tools=[{"type": "custom", "custom": {}}]), "tools[0].custom.name"), (body(functions=[{}]), "functions[0].name"),
    (body(tools=[tool({"$ref": "#/x"})], tool_choice="required"), "tools[0].function.parameters"),
    (body(tools=[OTHER, tool({"not": {}}, strict=True)]), "tools[1].function.parameters"),
    (body(functions=[{"name": "f", "parameters": {"type": "x"}}], function_call={"name": "f"}), "functions[0].parameters"),
    (body(tool_choice="required"), "tool_choice"), (body(function_call={"name": "f"}), "function_call"),
    (body(tools=[TOOL], tool_choice="weather"), "tool_choice"), (body(tools=[TOOL], tool_choice=5), "tool_choice"),
    (body(tools=[TOOL], tool_choice={}), "tool_choice"), (body(tools=[OTHER], tool_choice=NAMED), "tool_choice"),
    (body(tools=[TOOL], tool_choice={"type": "allowed_tools"}), "tool_choice"),
])  # fmt: skip
def test_bad_requests(data: Any, param: str | None) -> None:
    """What the API refuses is refused with its 400, and ``param`` names the field."""
    response = send(data)
    error = error_in(response)
    assert (response["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)


def test_answer_to_the_letter() -> None:
    """A whole answer has all its members, the tokens of all choices counted."""
    whole = answer(body(n=2))
    said = {"role": "assistant", "content": "hello, world!", "refusal": None, "annotations": []}
    choice = {"message": said, "logprobs": None, "finish_reason": "stop"}
    assert whole["choices"] == [{"index": 0, **choice}, {"index": 1, **choice}]
    assert (whole["object"], whole["created"], whole["model"]) == ("chat.completion", 1_700_000_000, "m")
    assert [whole["usage"][f"{part}_tokens"] for part in ("prompt", "completion", "total")] == [4, 8, 12]


def test_usage_in_a_stream_only_when_asked() -> None:
    """``include_usage``: a last chunk without choices, and null in the others; else no ``usage`` at all."""
    *others, last = events_in(body(stream_options={"include_usage": True}))
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 8)
    assert all(event["usage"] is None and event["choices"] for event in others)
    assert not any("usage" in event for event in events_in(body()))


def test_logprobs_spell_the_content() -> None:
    """The tokens of logprobs are the content, with as many alternatives as asked."""
    (choice,) = answer(body("é, x", logprobs=True, top_logprobs=2))["choices"]
    marks = choice["logprobs"]["content"]
    assert b"".join(bytes(mark["bytes"]) for mark in marks).decode() == "é, x"
    assert [mark["token"] for mark in marks] == ["é", ",", " x"]
    assert all(len(mark["top_logprobs"]) == 2 and mark["top_logprobs"][0]["logprob"] == 0 for mark in marks)


def test_other_forced_calls() -> None:
    """No parameters: no arguments; the legacy form is answered in kind; a custom tool is given the text; ids differ."""
    first, second = answer(body(tools=[OTHER], tool_choice="required", n=2))["choices"]
    assert first["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
    assert first["message"]["tool_calls"][0]["id"] != second["message"]["tool_calls"][0]["id"]
    (choice,) = answer(body(functions=[{"name": "old"}], function_call={"name": "old"}))["choices"]
    assert choice["message"]["function_call"] == {"name": "old", "arguments": "{}"}
    (choice,) = answer(body("ls", tools=[CUSTOM], tool_choice={"type": "custom", "custom": {"name": "shell"}}))[
        "choices"
    ]
    assert choice["message"]["tool_calls"][0]["custom"] == {"name": "shell", "input": "ls"}


@pytest.mark.parametrize("choice", [
    None, "auto", "none", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
])  # fmt: skip
def test_no_tool_is_called_unless_forced(choice: Any) -> None:
    """A free choice is no call, and the schema of a tool that is not called may be any."""
    assert said_by(body("hi", tools=[TOOL, tool({"not": {}})], tool_choice=choice)) == "hi"


@pytest.mark.parametrize("said", ["!error", "!error 200", "!error 4290", "!error x", "say !error 429", "!breakfast"])
def test_other_text_is_no_demand(said: str) -> None:
    """Only the documented form asks for a failure."""
    assert said_by(body(said)) == said


def test_deeply_nested_schemas_are_no_exception() -> None:
    """A schema nested as deep as a body may be is answered or refused, also where little stack is left."""
    schema: Any = {"type": "object"}
    for _ in range(90):
        schema = {"allOf": [schema]}

    def deeper(frames: int) -> Any:
        return send(body(response_format=schema_format(schema))) if frames == 0 else deeper(frames - 1)

    assert deeper(sys.getrecursionlimit() // 2)["status"] == 400


def test_azure_names_the_model_in_the_path() -> None:
    """Without a model in the body, the deployment of the path is the model, percent-decoded."""
    data = {"messages": [{"role": "user", "content": "hi"}]}
    assert answer(data, AZURE.format("my%2Fgpt%20%C3%A9"))["model"] == "my/gpt é"
    assert answer({**data, "model": "given"}, AZURE.format("d"))["model"] == "given"
    assert error_in(send(data, AZURE.format("")))["param"] == "model"


@pytest.mark.parametrize(("url", "method", "status"), [
    ("https://h/v1/embeddings", "POST", 404), ("http://[", "POST", 404), ("\ud800", "POST", 404), (URL, "GET", 405),
])  # fmt: skip
def test_only_posts_to_chat_completions_are_answered(url: str, method: str, status: int) -> None:
    """Another path is a 404, another method a 405."""
    response = send(body(), url, method)
    assert (response["status"], error_in(response)["type"]) == (status, "invalid_request_error")


def test_data_is_taken_for_bytes() -> None:
    """A body that is data already, of whatever mapping, is answered as its bytes are."""
    data = freeze(body(stop=["x"], response_format=FORMAT))
    assert echo({"method": "POST", "url": URL, "body": data})["body"] == send(json.dumps(thaw(data)).encode())["body"]  # type: ignore[typeddict-item]  # no more is read


def test_same_bytes_in_each_process() -> None:
    """Hash seeds do not show in an answer, whole or streamed."""
    program = (
        "import json, sys; from chatfn.transports.echo import echo\n"
        "for data in json.load(sys.stdin):\n"
        "    body = echo({'method': 'POST', 'url': sys.argv[1], 'body': json.dumps(data).encode()})['body']\n"
        "    sys.stdout.buffer.write(body if isinstance(body, bytes) else b''.join(body))\n"
    )
    refused = body(response_format=schema_format({"not": {}, "if": {}, "contains": {}}))
    data = json.dumps(
        [refused, *(body(**fields, stream=stream) for fields in GOOD for stream in (True, False))]
    ).encode()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    first, second = (
        subprocess.run([sys.executable, "-c", program, URL], input=data, capture_output=True, check=True,
                       env={**env, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    )  # fmt: skip
    assert first == second
    assert len(first) > 10_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LIKELY: dict[str, list[Any]] = {
    "messages": [body(said)["messages"] for said in ("hi, you", "!error 429 a_b c", "!break 1 x", [{"type": "image_url"}])],
    "n": [1, 3], "stop": ["h", ["i", ","]], "max_tokens": [1, 9], "logprobs": [True], "top_logprobs": [0, 2], "stream": [True],
    "response_format": [FORMAT], "tools": [[TOOL, OTHER], [CUSTOM]], "tool_choice": ["required", NAMED, ALLOWED], "model": ["m"],
    "functions": [[{"name": "f"}]], "function_call": [{"name": "f"}],
}  # fmt: skip
FIELDS = {key: st.sampled_from(values) | st.sampled_from(values) | JSON for key, values in LIKELY.items()}


@settings(deadline=None)
@given(
    st.fixed_dictionaries({}, optional=FIELDS)
    | st.fixed_dictionaries({}, optional=FIELDS).map(lambda given: {**body(), **given})
    | JSON
)
def test_anything_gets_an_answer_or_an_error(data: Any) -> None:
    """Any body at all is answered in the API's form, and a stream spells the whole answer."""
    response = send(json.dumps(data).encode())
    if response["status"] == 0:
        assert response["error"]["category"] == "interrupted"
    elif response["status"] != 200:
        assert 400 <= response["status"] < 600
        error_in(response)
    elif data.get("stream"):
        blocks, error = until_broken(response["body"])
        events = [json.loads(block[6:]) for block in blocks[:-1]]
        assert error or collect(events)["choices"] == answer({**data, "stream": False})["choices"]
    else:
        assert len(json.loads(response["body"])["choices"]) == (data.get("n") or 1)
