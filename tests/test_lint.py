"""What the official document says of a request, as ``lint`` says it."""

from __future__ import annotations

import json
import pickle
import sys
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lint_rules as maker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze

from chatfn import IMPLS, cli, lint
from chatfn import lint_rules as shipped
from chatfn.lint_schema import MOST, check_of, kind_of
from chatfn.lint_words import WORDS, gpt_version, near_miss

API = Path(__file__).resolve().parents[2] / "shared" / "api"
beside = pytest.mark.skipif(not API.exists(), reason="the official document is not beside this checkout")
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "anything": 1}}}
CUSTOM = {"type": "custom", "custom": {"name": "shell", "format": {"type": "text"}}}
GOOD: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "n": 128, "stop": ["a"] * 4, "seed": None, "max_completion_tokens": None},
    {"logprobs": True, "top_logprobs": 20},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"tools": [TOOL, CUSTOM], "tool_choice": "required", "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "find"}}},
    {"tools": [CUSTOM], "tool_choice": {"type": "custom", "custom": {"name": "shell"}}},
    {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "find"}}]}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
    {"response_format": {"type": "json_object"}, "messages": [{"role": "user", "content": "Say it in JSON."}]},
    {"metadata": {str(n): "x" * 512 for n in range(16)}, "logit_bias": {"50256": -100}},
    {"model": "gpt-4o-audio-preview", "modalities": ["text", "audio"], "audio": {"voice": "new", "format": "wav"}},
    {"audio": {"voice": {"id": "voice_1"}, "format": "mp3"}},
    {"web_search_options": {"user_location": {"type": "approximate", "approximate": {"country": "DE"}}}},
    {"model": "gpt-5.6-sol", "prompt_cache_options": {"ttl": "30m"}, "reasoning_effort": "max"},
    {"model": "o3", "reasoning_effort": "low", "messages": [{"role": "developer", "content": "Be brief."}, USER]},
    {"model": "gpt-5.5", "prompt_cache_key": "k"},
    {"messages": (USER, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]})},
    {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "https://h/i", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}}]}]},
    {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
    {"on_next": print, "stream_buffer_len": 4, "stream": True},
]  # fmt: skip
BAD: list[tuple[dict[str, Any], str, str, str, str]] = [  # params, level, rule, path, part of the message
    ({"temprature": 1}, "warning", "unknown", "temprature", "did you mean 'temperature'?"),
    ({"user": "u"}, "warning", "deprecated", "user", "`safety_identifier`"),
    ({"seed": 1}, "warning", "deprecated", "seed", "deprecated"),
    ({"max_tokens": 1}, "warning", "deprecated", "max_tokens", "`max_completion_tokens`"),
    ({"functions": [{"name": "f"}]}, "warning", "deprecated", "functions", "`tools`"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, "warning", "deprecated", "function_call", "tool_"),
    ({"model": "gpt-5.5", "prompt_cache_retention": "24h"}, "warning", "deprecated", "prompt_cache_retention", "ttl"),
    ({"messages": [USER, {"role": "function", "name": "f", "content": None}]}, "warning", "deprecated", "messages[1]", ""),
    ({"tools": None}, "warning", "null", "tools", "leave it out, or give an array"),
    ({"n": True}, "error", "type", "n", "is a boolean; give an integer"),
    ({"temperature": "hot"}, "error", "type", "temperature", "give a number"),
    ({"stop": 1}, "error", "type", "stop", "give an array or a string"),
    ({"tools": {}}, "error", "type", "tools", "is an object; give an array"),
    ({"store": 1}, "error", "type", "store", "give a boolean"),
    ({"verbosity": 1}, "error", "type", "verbosity", "give a string"),
    ({"metadata": "x"}, "error", "type", "metadata", "give an object"),
    ({"tools": [{**TOOL, "function": {"name": "f", "parameters": []}}]}, "error", "type", "tools[0].function.parameters", "object"),
    ({"prompt_cache_key": b"k"}, "error", "type", "prompt_cache_key", "is bytes"),
    ({"logit_bias": {50256: 1}}, "error", "type", "logit_bias.(int)", "give a string"),
    ({"n": 0}, "error", "range", "n", "is 0; from 1 to 128"),
    ({"n": 10**9999}, "error", "range", "n", "out of all bounds"),
    ({"temperature": float("nan")}, "error", "range", "temperature", "is nan"),
    ({"logit_bias": {"1": 101}}, "error", "range", "logit_bias.1", "101"),
    ({"messages": []}, "error", "length", "messages", "at least 1 is needed"),
    ({"stop": list("abcde")}, "error", "length", "stop", "at most 4 may be"),
    ({"metadata": {str(n): "" for n in range(17)}}, "error", "length", "metadata", "at most 16"),
    ({"metadata": {"k": "x" * 513}}, "error", "length", "metadata.k", "at most 512"),
    ({"safety_identifier": "x" * 65}, "error", "length", "safety_identifier", "at most 64"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "error", "pattern", "tools[0].function.name", ""),
    ({"service_tier": "cheap"}, "error", "enum", "service_tier", "'flex'"),
    ({"messages": [{"role": "usr", "content": ""}]}, "error", "enum", "messages[0].role", "is 'usr'; the document knows"),
    ({"messages": [{"role": 1, "content": ""}]}, "error", "enum", "messages[0].role", "is an integer"),
    ({"messages": [{"content": ""}]}, "error", "required", "messages[0].role", "missing"),
    ({"messages": [{"role": "user"}]}, "error", "required", "messages[0].content", "missing"),
    ({"messages": ["hi"]}, "error", "type", "messages[0]", "is a string; give an object"),
    ({"messages": [{"role": "assistant"}]}, "error", "required", "messages[0].content", "tool_calls"),
    ({"audio": {"voice": {"id": "v", "x": 1}, "format": "wav"}}, "error", "unknown", "audio.voice.x", "not in the document"),
    ({"web_search_options": {"user_location": {"type": "approximate", "approximate": {"country": "Germany"}}}},
     "error", "pattern", "web_search_options.user_location.approximate.country", ""),
    ({"model": "o4-mini", "max_tokens": 1}, "error", "model", "max_tokens", "o-series"),
    ({"model": "o3-2025-04-16", "stop": "a"}, "error", "model", "stop", "o3"),
    ({"top_logprobs": 1}, "error", "conflict", "top_logprobs", "logprobs"),
    ({"stream_options": {}}, "error", "conflict", "stream_options", "stream"),
    ({"model": "gpt-4o-audio-preview", "modalities": ["audio"]}, "error", "conflict", "modalities", "audio"),
    ({"modalities": ["audio"], "audio": {"voice": "v", "format": "wav"}}, "warning", "model", "modalities", "most models"),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": ""}, {"type": "text", "text": ""}]}]},
     "error", "conflict", "messages[0].content", "alone"),
    ({"tool_choice": "required"}, "error", "conflict", "tool_choice", "no tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
     "error", "conflict", "tool_choice.function.name", "'x'"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CUSTOM]}}},
     "error", "conflict", "tool_choice.allowed_tools.tools[0].custom.name", "'shell'"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "error", "conflict", "function_call.name", "'g'"),
    ({"model": "gpt-5.5-pro", "prompt_cache_retention": "in_memory"}, "error", "model", "prompt_cache_retention", "24h"),
    ({"model": "gpt-5.4", "prompt_cache_options": {}}, "warning", "model", "prompt_cache_options", "gpt-5.6"),
    ({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "", "prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
     "warning", "model", "messages[0].content[0].prompt_cache_breakpoint", "gpt-5.6"),
    ({"reasoning_effort": "low"}, "warning", "model", "reasoning_effort", "gpt-5"),
    ({"response_format": {"type": "json_object"}}, "warning", "conflict", "response_format", "JSON"),
    ({"max_tokens": 1, "max_completion_tokens": 1}, "warning", "conflict", "max_tokens", "beside"),
    ({"functions": [{"name": "f"}], "tools": [TOOL]}, "warning", "conflict", "functions", "beside"),
    ({"functions": [{"name": "f"}], "function_call": "auto", "tools": [TOOL], "tool_choice": "auto"},
     "warning", "conflict", "function_call", "beside"),
    ({"model": "gpt-4o-mni"}, "info", "misspelt", "model", "'gpt-4o-mini'"),
    ({"model": "o1", "messages": [{"role": "system", "content": ""}, USER]}, "info", "advice", "messages[0].role", "develo"),
    ({"temperature": 1, "top_p": 1}, "info", "advice", "temperature", "top_p"),
]  # fmt: skip


def params(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [USER], **fields}


@pytest.mark.parametrize("fields", GOOD, ids=map(repr, range(len(GOOD))))
def test_of_a_good_request_nothing_is_said(fields: Any) -> None:
    assert lint(params(**fields)) == []
    assert lint(freeze(params(**{k: v for k, v in fields.items() if k != "on_next"}))) == []


@pytest.mark.parametrize(("fields", "level", "rule", "path", "words"), BAD, ids=[f"{b[2]} {b[3]}" for b in BAD])
def test_what_is_wrong_is_said_with_its_place(fields: Any, level: str, rule: str, path: str, words: str) -> None:
    found = [
        each for each in lint(params(**fields)) if (each["level"], each["rule"], each["path"]) == (level, rule, path)
    ]
    assert len(found) == 1
    assert words in found[0]["message"]
    assert found[0]["message"].startswith(path)
    assert found[0]["source"].startswith(f"openapi.json {shipped.VERSION}, ")


def test_every_rule_in_words_has_an_example() -> None:
    said = {each["source"].partition(': "')[2] for fields, *_ in BAD for each in lint(params(**fields))}
    assert {f'{words.words}"' for words in WORDS if words.words} <= said


def test_the_gravest_comes_first() -> None:
    levels = [each["level"] for each in lint(params(temperature=1, top_p=2, user="u", seed="s"))]
    assert levels == sorted(levels, key=("error", "warning", "info").index)
    assert len(set(levels)) == 3


def test_elsewhere_than_at_openai_an_unknown_parameter_is_worth_a_word_only() -> None:
    body = params(top_k=3, model="gpt-4o-mni")
    assert [each["level"] for each in lint(body)] == ["warning", "info"]
    for options in (
        {"impl": "vllm"},
        {"impl": "none such"},
        {"impl": IMPLS["groq"]},
        {"impl": 7},
        {"api_endpoint": "http://localhost:1/v1"},
        {"impl": {"url": 1}},
    ):
        assert [(each["level"], each["rule"]) for each in lint(body, options)] == [("info", "unknown")]
    assert len(lint(body, {"impl": "openai"})) == len(lint(body, {"impl": IMPLS["openai"]})) == 2


def test_azure_may_have_the_model_in_its_path_and_versions_of_its_own() -> None:
    azure = {"impl": "azure", "api_version": "2024-10-21"}
    assert lint({"messages": [USER]}, azure) == []
    assert lint({"messages": [USER]})[0]["path"] == "model"
    assert lint({"messages": [USER], "max_tokens": 1}, {**azure, "deployment": "o3"})[0]["rule"] == "model"
    (found,) = lint({"messages": [USER]}, {**azure, "api_version": "2023-05-15"})
    assert (found["rule"], found["level"], found["path"]) == ("version", "info", "api_version")
    assert lint(params(), {"impl": "azure", "api_version": 7}) == []


def test_names_before_and_after_a_model_do_not_hide_it() -> None:
    for model in ("openai/o3", "ft:o3-2025-04-16", "o3"):
        assert lint(params(model=model, stop="a"))[0]["rule"] == "model"
    assert [gpt_version(name) for name in ("gpt-35-turbo", "gpt-oss-20b", "gpt-3.5-turbo")] == [None, None, (3, 5)]
    assert [near_miss(name) for name in ("gpt-4o", "gpt-4oo", "gtp-4o", "my-model")] == [None, "gpt-4o", "gpt-4o", None]


class Hostile(UserDict):  # type: ignore[type-arg]  # of anything
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.just(object())
    | st.just({1}),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.integers() | st.sampled_from(["role", "type", "content", "text"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
FIELDS = [*shipped.SCHEMAS[shipped.ROOT]["properties"], "other"]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6) | ODD,
    st.dictionaries(st.sampled_from(["impl", "api_version", "api_endpoint", "deployment"]), ODD) | ODD,
)
def test_nothing_odd_makes_it_raise_and_all_that_it_says_is_text(data: Any, options: Any) -> None:
    for found in lint(data, options):
        assert list(found) == ["rule", "level", "path", "message", "source"]
        assert all(isinstance(value, str) for value in found.values())
        json.dumps(found).encode()


def test_what_cannot_be_read_or_has_no_end_is_data_too() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert lint(params(messages=loop))[0]["path"] == "messages[0]"
    assert [each["message"] for each in lint(Hostile(params()))] == ["params can't be read: RuntimeError"]
    assert lint(None)[0]["message"] == "params is null; leave it out, or give an object"
    assert lint(params(messages=[{}] * 2 * MOST))[MOST - 1 :][1:] == []
    assert len(lint(params(**{str(n): n for n in range(2 * MOST)}))) == MOST
    assert kind_of(2.0) == "integer"
    assert kind_of(sys) == "module, which has no form in JSON"


def test_nothing_is_changed() -> None:
    for fields, *_ in BAD:
        body = params(**fields)
        before = pickle.dumps(body)
        lint(body)
        assert pickle.dumps(body) == before


def test_every_schema_can_be_checked_by() -> None:
    for name in shipped.SCHEMAS:
        assert isinstance(list(check_of(name)(object())), list)


@beside
def test_the_shipped_rules_are_the_documents() -> None:
    """If not: python tests/lint_rules.py ../shared/api/openapi.json ../shared/api/azure-operations.json > chatfn/lint_rules.py"""
    document, azure = (json.loads((API / name).read_text()) for name in ("openapi.json", "azure-operations.json"))
    assert maker.module_of(maker.rules_of(document, azure)) == Path(str(shipped.__file__)).read_text()


@beside
def test_the_document_says_what_is_quoted() -> None:
    schemas = json.loads((API / "openapi.json").read_text())["components"]["schemas"]
    for said in WORDS:
        assert maker.flat(said.words) in maker.words_in(schemas[said.schema]), said.words


@beside
def test_of_the_documents_own_examples_only_what_is_deprecated_is_said() -> None:
    document = json.loads((API / "openapi.json").read_text())
    examples = document["paths"]["/chat/completions"]["post"]["x-oaiMeta"]["examples"]
    bodies = [example["request"]["curl"].partition("-d '")[2].rpartition("'")[0] for example in examples]
    found = [each for body in bodies for each in lint(json.loads(body.replace("VAR_chat_model_id", "gpt-4o")))]
    assert len(bodies) > 3
    assert {each["rule"] for each in found} <= {"deprecated"}


@beside
def test_the_parameters_are_those_of_the_operation() -> None:
    operations = json.loads((API / "operations.json").read_text())["operations"]
    (chat,) = [each for each in operations if each["operation_id"] == "createChatCompletion"]
    root = shipped.SCHEMAS[shipped.ROOT]
    assert sorted(root["properties"]) == sorted(chat["body_fields"])
    assert sorted(root["required"]) == sorted(chat["body_required_fields"])


def test_a_dry_run_shows_it_beside_the_request(capfd: Any) -> None:
    assert cli.run(["chat", "--dry-run", "--model", "o3", "--param", "max_tokens=3", "--param", "topp=1", "hi"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["body"]["max_tokens"] == 3
    assert [line.split(" ")[1:3] for line in err.splitlines()] == [
        ["error:", "max_tokens"],
        ["warning:", "max_tokens"],
        ["warning:", "topp"],
    ]
