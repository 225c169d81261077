"""Params to request, request to bytes, bytes to response, response to completion."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, UserDict, UserList, deque
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze, pmap, pvector, thaw

from chatfn import ChatError, build_request, completion_of, wire_headers
from chatfn.core import data_of, decode, encode, parse, text_of, with_totals
from chatfn.errors import EXCERPT_CHARACTERS, MESSAGE_CHARACTERS
from chatfn.secret import MASK
from chatfn.spec import __version__

FIELDS = [
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
]
OPENAPI = Path(__file__).parents[2] / "shared" / "api" / "openapi.json"
V1 = {"impl": "azure", "api_endpoint": "https://h/openai/v1"}
DATED = {"impl": "azure", "api_endpoint": "https://h", "deployment": "d"}
KEY = "sk-Zq8wV3nT5yR7uK2mB9cX4"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PARAMS = st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=8).map(
    lambda params: {name: value for name, value in params.items() if name not in ("on_next", "on-next")}
)


def text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sent(params: Any, **options: Any) -> bytes:
    return bytes(encode(build_request(params, options))["body"])


# --- params -------------------------------------------------------------------------------------------------------


def properties_of(schema: Any, schemas: Any) -> dict[str, Any]:
    if "$ref" in schema:
        return properties_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    found: dict[str, Any] = {}
    for part in schema.get("allOf", []):
        found |= properties_of(part, schemas)
    return found | schema.get("properties", {})


@pytest.mark.skipif(not OPENAPI.exists(), reason="the official description of the API is not beside this checkout")
def test_the_official_request_has_these_fields() -> None:
    schemas = json.loads(OPENAPI.read_text())["components"]["schemas"]
    fields = properties_of(schemas["CreateChatCompletionRequest"], schemas)
    assert sorted(fields) == FIELDS
    params = {name: [{"z": 1, "a": fields[name].get("default", "é😀")}] for name in reversed(list(fields))}
    assert sent(params) == text(params)
    assert sent(params, **V1) == text(params)


def test_there_are_37_fields_and_each_reaches_the_body_unchanged() -> None:
    assert len(FIELDS) == len(set(FIELDS)) == 37
    for name in FIELDS:
        for value in (None, False, 0, -0.0, 1e-7, "", "é\u2028\x7f😀\n", [], {}, {"b": 1, "a": [None, {"": "x"}]}):
            params = {"z": 1, name: value, "a": 2}
            assert sent(params) == text(params)


@settings(deadline=None)
@given(PARAMS)
def test_params_reach_the_body_byte_for_byte_in_their_order(params: dict[str, Any]) -> None:
    before = freeze(params)
    params.pop("stream_buffer_len", None)
    assert sent(params) == text(params)
    assert sent(params, **V1) == text(params)
    assert sent(params, **DATED) == text({name: value for name, value in params.items() if name != "model"})
    assert freeze(params) == before.discard("stream_buffer_len")


def wrapped(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        kinds = (dict, OrderedDict, MappingProxyType, UserDict)
        return draw(st.sampled_from(kinds))({key: wrapped(item, draw) for key, item in value.items()})
    if isinstance(value, list):
        return draw(st.sampled_from((list, tuple, pvector, deque, UserList)))([wrapped(item, draw) for item in value])
    return value


@settings(deadline=None)
@given(PARAMS, st.data())
def test_any_mapping_and_sequence_gives_the_same_bytes(params: dict[str, Any], data: st.DataObject) -> None:
    params.pop("stream_buffer_len", None)
    given_params = wrapped(params, data.draw)
    assert sent(MappingProxyType(given_params)) == text(params)
    assert sent(MappingProxyType(given_params), **V1) == text(params)


@settings(deadline=None)
@given(PARAMS)
def test_persistent_params_give_the_same_data(params: dict[str, Any]) -> None:
    frozen = freeze(params)
    assert json.loads(sent(frozen)) == {k: v for k, v in params.items() if k != "stream_buffer_len"}
    request = build_request(frozen, pmap({"request": pmap({"headers": pmap({"x-a": "b"})})}))
    assert json.dumps(request)
    assert thaw(frozen) == params


@pytest.mark.parametrize("options", [{}, V1, DATED, {"impl": "groq"}])
def test_neither_params_nor_options_are_changed(options: Any) -> None:
    params: dict[str, Any] = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "model": "m",
        "on_next": print,
        "tools": [{"function": {"parameters": {"properties": {"b": {}, "a": {}}}}}],
    }
    options = {**options, "api_key": "k", "request": {"headers": {"A": "b", "accept": None}, "query": {"q": None}}}
    frozen_params, frozen_options = freeze(params), freeze(options)
    request: Any = build_request(params, options)
    assert freeze(params) == frozen_params
    assert freeze(options) == frozen_options
    assert list(params) == ["messages", "model", "on_next", "tools"]
    request["body"]["messages"][0]["content"].append("more")
    request["headers"]["x"] = "y"
    assert freeze(params) == frozen_params, "a request map shares nothing with the params"
    encoded = encode(request)
    assert encoded is not request
    assert isinstance(request["body"], dict)


@pytest.mark.parametrize("name", ["on_next", "on-next", "stream_buffer_len"])
def test_client_side_keys_never_reach_the_wire(name: str) -> None:
    assert sent({"model": "m", name: print, "n": 1}) == b'{"model":"m","n":1}'


@pytest.mark.parametrize(
    ("params", "kind", "words"),
    [
        ({"messages": [{}, {"content": float("nan")}]}, ValueError, "messages[1].content: nan is no JSON number"),
        ({"temperature": float("inf")}, ValueError, "temperature: inf"),
        ({"messages": [{"content": "a\ud83d"}]}, ValueError, "messages[0].content: a lone surrogate"),
        ({"stop": {"a"}}, TypeError, "stop: set has no form in JSON"),
        ({"messages": ({"content": b"x"},)}, TypeError, "messages[0].content: bytes has no form in JSON"),
        ({"messages": [object()]}, TypeError, "messages[0]: object has no form in JSON"),
        ({"logit_bias": {50256: -100}}, TypeError, "logit_bias: the key 50256 is int"),
        ({1: "x"}, TypeError, "the key 1 is int"),
        (None, TypeError, "params are NoneType; give a mapping such as {'model': …, 'messages': […]}"),
        ([], TypeError, "params are list"),
        ("hi", TypeError, "params are str"),
    ],
)
@pytest.mark.parametrize("options", [{}, V1, DATED])
def test_what_json_cannot_carry_is_an_error_that_names_the_path(
    params: Any, kind: type[Exception], words: str, options: Any
) -> None:
    with pytest.raises(kind) as info:
        build_request(params, options)
    assert words in str(info.value)
    assert type(info.value) is kind


def test_lone_surrogates_are_replaced_if_asked() -> None:
    assert sent({"a": "x\ud800y"}, surrogates="replace") == '{"a":"x\ufffdy"}'.encode()


# --- the request map ----------------------------------------------------------------------------------------------


def test_a_request_map_is_what_would_be_sent() -> None:
    request = build_request({"model": "m", "stream": True}, {"api_key": "k"})
    assert request == {
        "operation": "create_chat_completion",
        "method": "POST",
        "url": "https://api.openai.com/v1/chat/completions",
        "headers": {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": f"chatfn/{__version__}",
        },
        "body": {"model": "m", "stream": True},
        "stream": True,
        "timeout": (5.0, 600.0),
        "deadline": None,
        "bounds": {"body": 67108864, "event": 16777216, "headers": 65536},
        "auth": {"header": "authorization", "scheme": "Bearer", "secret": "***"},
    }
    assert wire_headers(request) == {**request["headers"], "authorization": "Bearer k"}
    assert "authorization" not in request["headers"]
    assert json.loads(json.dumps(request))["auth"]["secret"] == MASK


@pytest.mark.parametrize(
    ("value", "stream"), [(True, True), (1, True), (False, False), (None, False), (0, False), ("", False)]
)
def test_a_stream_is_what_params_say(value: Any, stream: bool) -> None:
    assert build_request({"stream": value})["stream"] is stream
    assert build_request({})["stream"] is False


def test_an_azure_key_has_no_scheme() -> None:
    assert wire_headers(build_request({}, {**V1, "api_key": "k"}))["api-key"] == "k"


def test_headers_without_a_credential_are_sent_as_they_are() -> None:
    request = build_request({}, {"impl": "ollama"})
    assert wire_headers(request) == request["headers"]


def test_encoding_refuses_what_is_no_json() -> None:
    request: Any = {**build_request({}), "body": {"a": float("nan")}}
    with pytest.raises(ValueError):
        encode(request)


# --- answers ------------------------------------------------------------------------------------------------------


def judged(body: Any, status: int = 200, headers: Any = None, secrets: Any = (), **more: Any) -> Any:
    response: Any = {"status": status, "headers": headers or {}, "body": body}
    before = freeze(response)
    found = decode(response, list(secrets), **more)
    assert freeze(response) == before
    return found


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_2xx_of_one_json_map_is_an_answer_unchanged(data: dict[str, Any]) -> None:
    data.pop("error", None)
    for body in (text(data), bytearray(text(data)), json.dumps(data).encode(), b"\xef\xbb\xbf \n" + text(data) + b"\n"):
        for status in (200, 201, 299):
            found = judged(body, status, {"content-type": "text/plain; charset=latin-1"})
            assert found == {"status": status, "headers": found["headers"], "body": data}
            assert text(found["body"]) == text(data)
            assert completion_of(found) == data


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_an_empty_error_member_is_none(value: Any) -> None:
    assert "error" not in judged(text({"id": "c", "error": value}))


@pytest.mark.parametrize(
    ("error", "category", "message"),
    [
        ({"message": "slow", "code": 429}, "busy", "slow"),
        ({"message": "down", "code": "503"}, "busy", "down"),
        ({"message": "broke"}, "fault", "broke"),
        ({"code": "insufficient_quota", "message": "pay"}, "forbidden", "pay"),
        ("in words", "fault", "in words"),
        (True, "fault", "error: True"),
        (["a", {"message": "b"}], "fault", "a; b"),
    ],
)
def test_an_error_member_makes_a_2xx_an_error(error: Any, category: str, message: str) -> None:
    found = judged(text({"error": error}))
    assert found["error"]["category"] == category
    assert found["error"]["message"] == message
    assert found["error"]["status"] == 200
    assert found["body"] == found["error"]["body"] == {"error": error}


DEEP = 100_000
NO_ANSWER: dict[str, tuple[Any, Any]] = {
    "empty": (b"", ", and is empty"),
    "None": (None, ", and is empty"),
    "space": (b" \r\n\t", ", and is empty"),
    "byte order mark": (b"\xef\xbb\xbf", ", and is empty"),
    "list": (b"[]", ": []"),
    "list of maps": (b'[{"id":"c"}]', ': [{"id":"c"}]'),
    "string": (b'"hi"', ': "hi"'),
    "number": (b"5", ": 5"),
    "null": (b"null", ": null"),
    "true": (b"true", ": true"),
    "two documents": (b'{"a":1}\n{"b":2}', ': {"a":1}\n{"b":2}'),
    "two documents in a line": (b'{"a":1}{"b":2}', ': {"a":1}{"b":2}'),
    "truncated": (b'{"id":"c","cho', ': {"id":"c","cho'),
    "a comma too many": (b'{"id":"c",}', ': {"id":"c",}'),
    "HTML": (b"<html><body>Hello</body></html>", ": <html><body>Hello</body></html>"),
    "events": (b'data: {"a":1}\n\n', ': data: {"a":1}'),
    "bad UTF-8": (b'{"id":"\xff"}', ': {"id":"\ufffd"}'),
    "UTF-16": ('{"id":1}'.encode("utf-16"), None),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, ": [[[["),
    "deep maps": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, ': {"a":{"a":'),
    "deep and cut": (b"[" * DEEP, ": [[[["),
    "a million digits": (b'{"a":' + b"9" * 1_000_000 + b"}", ': {"a":9999'),
    "gzip": (b"\x1f\x8b\x08\x00\x00", None),
    "text": ("words", ": words"),
    "data": ([1, "é"], ': [1, "é"]'),
}


@pytest.mark.parametrize(("body", "said"), NO_ANSWER.values(), ids=NO_ANSWER)
@pytest.mark.parametrize("status", [200, 204])
def test_a_2xx_of_anything_else_is_an_error_with_its_beginning(body: Any, said: str | None, status: int) -> None:
    found = judged(body, status, secrets=[KEY])
    assert found["error"]["category"] == "fault"
    start = f"a {status} answer that is no JSON map"
    assert found["error"]["message"].startswith(start + (said or ": "))
    assert len(found["error"]["message"]) <= len(start) + 2 + EXCERPT_CHARACTERS
    json.dumps(found)
    with pytest.raises(ChatError) as info:
        completion_of(found)
    assert info.value.error == found["error"]


@pytest.mark.parametrize(("body", "said"), NO_ANSWER.values(), ids=NO_ANSWER)
@pytest.mark.parametrize("status", [0, 100, 103, 302, 304, 400, 404, 500, 529])
def test_no_other_status_is_an_answer_whatever_its_body(body: Any, said: str | None, status: int) -> None:
    for sent_body in (body, b'{"id":"c"}'):
        found = judged(sent_body, status, secrets=[KEY])
        assert found["error"]["status"] == status
        assert 0 < len(found["error"]["message"]) <= MESSAGE_CHARACTERS
        json.dumps(found)


@pytest.mark.parametrize("piece", [b"[%s]", b'{"error":%s}', b'{"x":%s}', b'{"message":[%s]}'])
@pytest.mark.parametrize("status", [200, 400])
def test_no_depth_makes_an_exception(piece: bytes, status: int) -> None:
    before, after = piece.split(b"%s")
    for depth in [*range(1, 40, 7), *range(40, sys.getrecursionlimit() + 60, 23)]:
        for inner in (b"1", text(KEY)):
            found = judged(before * depth + inner + after * depth, status, secrets=[KEY])
            assert ("error" in found) or (status == 200 and piece[:6] in (b'{"x":%', b'{"mess'))
            assert KEY not in str(found.get("error", {}).get("message"))


@pytest.mark.parametrize("code", ["9" * 5_000, 10**4_000, "abc", -5])
def test_no_code_makes_an_exception(code: Any) -> None:
    assert judged(text({"error": {"message": "m", "code": code}}))["error"]["category"] == "fault"


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), st.integers(0, 599))
def test_every_body_has_a_verdict(body: bytes, status: int) -> None:
    found = judged(body, status)
    try:
        data = json.loads(body.removeprefix(b"\xef\xbb\xbf").decode())
    except ValueError:
        data = None
    whole = 200 <= status < 300 and isinstance(data, dict) and not data.get("error")
    assert ("error" in found) is not whole
    json.dumps(found)


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=3), st.data())
def test_an_answer_cut_anywhere_is_none(data: dict[str, Any], cut: st.DataObject) -> None:
    body = text(data)
    found = judged(body[: cut.draw(st.integers(0, len(body) - 1))])
    assert found["error"]["category"] == "fault"


def test_a_failed_answer_is_told_by_its_table_its_classifier_and_its_clock() -> None:
    body = b'{"error":{"message":"slow","type":"t"}}'
    headers = {"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "x-request-id": "r"}
    found = judged(body, 429, headers, now=40.0)
    assert found["error"]["retry_after"] == 60.0
    assert found["error"]["request_id"] == "r"
    assert found["error"]["body"] == found["body"]
    assert judged(body, 429, headers, classify=lambda status, wire: "fault")["error"]["category"] == "fault"


# --- secrets that come back ---------------------------------------------------------------------------------------


def test_an_echoed_secret_is_masked_in_errors() -> None:
    for body in (f'{{"error":{{"message":"bad {KEY}","{KEY}":["{KEY}"]}}}}'.encode(), f"bad {KEY}".encode()):
        for status in (200, 401):
            found = judged(body, status, {"x-echo": KEY, "other": "1"}, [KEY, "abc"])
            assert KEY not in repr(found)
            assert found["headers"] == {"x-echo": MASK, "other": "1"}
            assert MASK in found["error"]["message"]


def test_an_echoed_secret_is_masked_in_answers_if_it_is_long_enough_to_be_one() -> None:
    headers = {"x-echo": f"key {KEY}", "server": "ollama"}
    body = text({"id": KEY, "list": [f"a {KEY}"], "word": "ollama"})
    found = judged(body, 200, headers, [KEY, "ollama"])
    assert found["body"] == {"id": MASK, "list": [f"a {MASK}"], "word": "ollama"}
    assert found["headers"] == {"x-echo": f"key {MASK}", "server": "ollama"}
    headers = {"a": "b"}
    assert judged(b'{"a":"ollama"}', 200, headers, ["ollama"])["body"] == {"a": "ollama"}
    assert judged(b'{"a":1}', 200, headers, [KEY])["headers"] is headers
    assert judged({"a": KEY}, 200, headers, [KEY])["body"] == {"a": KEY}, "data of a fake is not searched"


# --- the small functions ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_the_text_of_bytes_is_text(body: bytes) -> None:
    assert isinstance(text_of(body), str)
    assert text_of(text_of(body)) == text_of(body)


def test_the_data_of_a_body() -> None:
    assert data_of(b'{"a":1}') == {"a": 1}
    assert data_of(b" plain text\n") == " plain text\n"
    assert data_of(None) == ""
    assert data_of({"a": 1}) == {"a": 1}
    assert text_of(None) == ""


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{}{}", b"[" * DEEP, b"9" * 5_000])
def test_parsing_raises_value_error_only(body: bytes) -> None:
    with pytest.raises(ValueError):
        parse(body)


def test_totals_are_added_to_a_copy() -> None:
    response: Any = {"status": 200, "headers": {"x-request-id": "r"}, "body": {}}
    assert with_totals(response, 1.5) == {**response, "attempts": 1, "elapsed": 1.5, "request_id": "r"}
    failed: Any = {"status": 500, "headers": {}, "body": {}, "attempts": 3, "error": {"category": "fault"}}
    found: Any = with_totals(failed, 2.0)
    assert found == {**failed, "elapsed": 2.0, "error": {"category": "fault", "attempts": 3}}
    assert "attempts" not in failed["error"]
    assert "request_id" not in found


def test_a_completion_is_the_body_or_the_error() -> None:
    error: Any = {"category": "busy", "message": "slow", "status": 429}
    assert completion_of({"status": 200, "headers": {}, "body": {"id": "c"}}) == {"id": "c"}
    with pytest.raises(ChatError) as info:
        completion_of({"status": 429, "headers": {}, "body": None, "error": error})
    assert info.value.error is error
    assert info.value.__context__ is None
