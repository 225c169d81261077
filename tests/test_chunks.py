"""Events to the completion that they spell, and back."""

from __future__ import annotations

import copy
import gc
import json
import tracemalloc
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze, pmap

from chatfn.chunks import collect, collector, copied
from chatfn.unfold import events_of, pieces, text_deltas, text_of

Map = dict[str, Any]


def event(*choices: Any, **top: Any) -> Map:
    return {"object": "chat.completion.chunk", **top, "choices": list(choices)}


def choice(delta: Any, index: int = 0, reason: str | None = None, **fields: Any) -> Map:
    return {"index": index, "delta": delta, **fields, "finish_reason": reason}


def spoken(*deltas: Any) -> Map:
    """The message that the deltas of one choice spell."""
    message = collect(event(choice(delta)) for delta in deltas)["choices"][0]["message"]
    assert isinstance(message, dict)
    return message


def fields_of(*fields: Map) -> Map:
    """The fields of a choice that came one after the other."""
    found = collect(event({"index": 0, **each}) for each in fields)["choices"][0]
    return {key: value for key, value in found.items() if key not in ("index", "message")}


def call(index: int | None = None, **fields: Any) -> Map:
    return {"tool_calls": [fields if index is None else {"index": index, **fields}]}


SAID: dict[str, tuple[list[Any], Map]] = {
    "pieces": ([{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}], {"content": "ab"}),
    "the role is assistant unless given": ([{"content": "a"}], {"content": "a"}),
    "a role that is given stays": ([{"role": "tool"}, {"role": ""}, {"role": None}], {"role": "tool", "content": None}),
    "a role in every chunk": ([{"role": "assistant", "content": x} for x in "abc"], {"content": "abc"}),
    "nothing": ([{}], {"content": None}),
    "null is kept, and takes no one's place": (
        [{"content": None, "refusal": None}, {"content": "a", "refusal": "n"}, {"content": None}, {"refusal": "o"}],
        {"content": "a", "refusal": "no"},
    ),
    "only null": ([{"refusal": None}, {"refusal": None}], {"content": None, "refusal": None}),
    "empty pieces": ([{"content": ""}, {"content": ""}], {"content": ""}),
    "a piece after one that is empty": ([{"content": "a"}, {"content": ""}, {"content": "b"}], {"content": "ab"}),
    "reasoning": (
        [{"content": None, "reasoning_content": "a"}, {"content": None, "reasoning_content": "b"}, {"content": "c"}],
        {"content": "c", "reasoning_content": "ab"},
    ),
    "an unknown string is text": ([{"x": "a"}, {"x": "b"}, {"x": "c"}], {"content": None, "x": "abc"}),
    "names are not joined": ([{"id": "a"}, {"id": "a"}, {"id": ""}, {"id": "b"}], {"content": None, "id": "b"}),
    "numbers: the last": ([{"n": 1, "b": True}, {"n": 0, "b": False}], {"content": None, "n": 0, "b": False}),
    "other lists are extended": (
        [{"x": [1]}, {"x": [1, {"a": 2}]}, {"x": []}],
        {"content": None, "x": [1, 1, {"a": 2}]},
    ),
    "an empty list": ([{"x": []}, {"x": [1]}], {"content": None, "x": [1]}),
    "maps merge": (
        [{"x": {"a": "1", "c": {"d": "x"}}}, {"x": {"a": "2", "b": None, "c": {"d": "y"}}}, {"x": {}}],
        {"content": None, "x": {"a": "12", "b": None, "c": {"d": "xy"}}},
    ),
    "audio": (
        [
            {"audio": {"id": "a1", "transcript": "Hel"}},
            {"audio": {"id": "a1", "transcript": "lo"}},
            {"audio": {"data": "AA"}},
            {"audio": {"data": "BB"}},
            {"audio": {"expires_at": 1}},
            {"audio": {"expires_at": 2}},
        ],
        {"content": None, "audio": {"id": "a1", "transcript": "Hello", "data": "AABB", "expires_at": 2}},
    ),
    "unknown items merge by index and keep it": (
        [
            {"r": [{"index": 1, "type": "t", "text": "c"}]},
            {"r": [{"index": 0, "type": "t", "text": "a"}, {"index": 0, "text": "b"}]},
            {"r": [{"index": 1, "type": "t", "text": "d"}, {"x": 1}]},
        ],
        {
            "content": None,
            "r": [{"index": 0, "type": "t", "text": "ab"}, {"index": 1, "type": "t", "text": "cd"}, {"x": 1}],
        },
    ),
    "tool calls by index": (
        [
            call(1, id="b", type="function", function={"name": "g", "arguments": ""}),
            call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
            call(1, function={"arguments": "{}"}),
            call(0, function={"arguments": "{"}),
            call(0, function={"arguments": "}"}),
        ],
        {
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
    ),
    "a tool call in one event, twice": (
        [
            {
                "tool_calls": [
                    {"index": 0, "id": "a", "function": {"arguments": "1"}},
                    {"index": 0, "function": {"arguments": "2"}},
                ]
            }
        ],
        {"content": None, "tool_calls": [{"id": "a", "function": {"arguments": "12"}}]},
    ),
    "names repeated in every chunk, and names in pieces": (
        [
            call(0, id="a", type="function", function={"name": "get", "arguments": "1"}),
            call(0, id="a", type="function", function={"name": "get", "arguments": "1"}),
            call(1, id="b", function={"name": "get_"}),
            call(1, id="", function={"name": "time"}),
            call(1, id=None, function={"name": "get_time"}),
        ],
        {
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "get", "arguments": "11"}},
                {"id": "b", "function": {"name": "get_time"}},
            ],
        },
    ),
    "tool calls without index, by id or new": (
        [
            call(id="a", function={"arguments": "1"}),
            call(id="b", function={"arguments": "2"}),
            call(id="a", function={"arguments": "3"}),
            call(function={"arguments": "4"}),
            call(0, id="c"),
            call(id="c", function={"arguments": "5"}),
        ],
        {
            "content": None,
            "tool_calls": [
                {"id": "c", "function": {"arguments": "5"}},
                {"id": "a", "function": {"arguments": "13"}},
                {"id": "b", "function": {"arguments": "2"}},
                {"function": {"arguments": "4"}},
            ],
        },
    ),
    "tool calls that are no maps": (
        [{"tool_calls": None}, {"tool_calls": []}, {"tool_calls": [1]}, call(0, id="a"), {"tool_calls": False}],
        {"content": None, "tool_calls": [{"id": "a"}, 1]},
    ),
    "arguments as a map": (
        [call(0, function={"name": "f", "arguments": {"a": 1}}), call(0, function={"arguments": ""})],
        {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ),
    "the legacy function_call": (
        [{"function_call": {"name": "f", "arguments": "{"}}, {"function_call": {"arguments": "}"}}],
        {"content": None, "function_call": {"name": "f", "arguments": "{}"}},
    ),
    "annotations": (
        [{"annotations": [{"type": "url_citation", "u": "a"}]}, {"annotations": [{"type": "url_citation", "u": "b"}]}],
        {"content": None, "annotations": [{"type": "url_citation", "u": "a"}, {"type": "url_citation", "u": "b"}]},
    ),
    "parts, then text": (
        [
            {"content": ""},
            {"content": [{"type": "thinking", "x": 1}]},
            {"content": "a"},
            {"content": "b"},
            {"content": "c"},
        ],
        {"content": [{"type": "thinking", "x": 1}, {"type": "text", "text": "abc"}]},
    ),
    "text, then parts, then text": (
        [{"content": "a"}, {"content": "b"}, {"content": [{"type": "image"}]}, {"content": "c"}, {"content": []}],
        {"content": [{"type": "text", "text": "ab"}, {"type": "image"}, {"type": "text", "text": "c"}]},
    ),
    "no parts, then text": ([{"content": []}, {"content": "a"}], {"content": [{"type": "text", "text": "a"}]}),
    "a value of another kind, unless it is empty": (
        [{"x": 1, "y": 1, "z": "a"}, {"x": "", "y": "a", "z": {}}, {"y": {"b": "c"}, "z": [1]}],
        {"content": None, "x": 1, "y": {"b": "c"}, "z": [1]},
    ),
}


@pytest.mark.parametrize(("deltas", "message"), SAID.values(), ids=SAID)
def test_what_deltas_say(deltas: list[Any], message: Map) -> None:
    assert spoken(*deltas) == {"role": "assistant", **message}


FIELDS: dict[str, tuple[list[Map], Map]] = {
    "none": ([{}], {"finish_reason": None}),
    "the last reason": (
        [{"finish_reason": "stop"}, {"finish_reason": None}, {"finish_reason": ""}],
        {"finish_reason": "stop"},
    ),
    "logprobs": (
        [{"logprobs": None}]
        + [{"logprobs": {"content": [{"token": token}], "refusal": None}} for token in "ab"]
        + [{"logprobs": {"content": None, "refusal": [{"token": "c"}]}}, {"logprobs": None}],
        {"logprobs": {"content": [{"token": "a"}, {"token": "b"}], "refusal": [{"token": "c"}]}, "finish_reason": None},
    ),
    "no logprobs": ([{"logprobs": None}], {"logprobs": None, "finish_reason": None}),
    "token ids": ([{"token_ids": [5]}, {"token_ids": [5]}], {"token_ids": [5, 5], "finish_reason": None}),
    "strings are not joined": (
        [{"stop_reason": "a"}, {"stop_reason": "a"}],
        {"stop_reason": "a", "finish_reason": None},
    ),
    "content filters": (
        [
            {"content_filter_results": {}},
            {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}},
            {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}},
            {
                "content_filter_results": {"violence": {"filtered": True, "severity": "high"}},
                "finish_reason": "content_filter",
            },
            {"content_filter_offsets": {"check_offset": 1, "end_offset": 9}},
            {"content_filter_offsets": {"check_offset": 0, "end_offset": 19}},
        ],
        {
            "content_filter_results": {
                "hate": {"filtered": False, "severity": "safe"},
                "violence": {"filtered": True, "severity": "high"},
            },
            "content_filter_offsets": {"check_offset": 0, "end_offset": 19},
            "finish_reason": "content_filter",
        },
    ),
    "content filters with lists, reported again": (
        [{"content_filter_results": {"lists": {"details": [{"id": name}]}}} for name in "aabb"],
        {"content_filter_results": {"lists": {"details": [{"id": "a"}, {"id": "b"}]}}, "finish_reason": None},
    ),
}


@pytest.mark.parametrize(("given_fields", "found"), FIELDS.values(), ids=FIELDS)
def test_fields_of_a_choice(given_fields: list[Map], found: Map) -> None:
    """They merge beside the delta, which may be missing."""
    assert fields_of(*given_fields) == found


def test_the_top() -> None:
    """Azure's empty first chunk, noise, and the usage at the end: the last value that says something counts."""
    filters = [{"prompt_index": 0, "content_filter_results": {}}]
    real: Map = {"id": "c1", "created": 7, "model": "m", "system_fingerprint": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    events = [
        event(id="", created=0, model="", prompt_filter_results=filters, object=""),
        event(choice({"role": "assistant", "content": ""}), **real, usage=None, obfuscation="x"),
        event(choice({"content": "a"}), **real, usage=None, obfuscation="xy"),
        event(choice({}, reason="stop"), **real, usage=None, flag=True, obfuscation="xyz"),
        event(**{**real, "id": ""}, prompt_filter_results=[], usage=usage, flag=False, obfuscation=""),
    ]
    assert collect(events) == {
        **real,
        "object": "chat.completion",
        "prompt_filter_results": filters,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
        "usage": usage,
        "flag": False,
    }
    assert collect([]) == {"choices": []}
    assert collect([event(object="x", n=0), event(object="x", n="")]) == {"object": "x", "n": "", "choices": []}


def test_choices_in_any_order() -> None:
    """Choices are sorted by index; those without one are choice 0; several may stand in one event."""
    events = [
        event(choice({"content": "c"}, 2), choice({"content": "b"}, 1)),
        event({"delta": {"content": "a"}}, {"index": "1", "delta": {"content": "A"}}),
        event(choice({"content": "B"}, 1), choice({"content": "C"}, 2)),
    ]
    found = collect(events)["choices"]
    assert [(c["index"], c["message"]["content"]) for c in found] == [(0, "aA"), (1, "bB"), (2, "cC")]


MALFORMED: list[Any] = [
    *[None, 1, "text", [], {}, {"choices": None}, {"choices": 1}, {"choices": "text"}, {"choices": {"index": 0}}],
    *[event(None), event(1, "text", []), event({}), event({"index": []}), event({"index": None, "delta": None})],
    *[event(choice(None)), event(choice(1)), event(choice("text")), event(choice([])), event(choice({"content": 1}))],
    *[event(choice({"content": {}})), event(choice({"tool_calls": {}})), event(choice({"tool_calls": "text"}))],
    *[event(choice({"tool_calls": [None, 1, [], {}, {"index": "0", "id": []}, {"function": 1}]}))],
    *[event(choice({}, logprobs=1)), event(choice({}, logprobs=[1])), {"id": [], "usage": 1, "object": {}}],
    event(choice({}, content_filter_results=[{}])),
]


def test_malformed_events_do_not_raise() -> None:
    """What can be taken from a stream of anything is taken."""
    events = [e for bad in MALFORMED for e in (bad, event(choice({"content": "a"})), bad)]
    fold = collector()
    for each in events:
        fold.add(each)
        fold.completion()
        fold.whole()
    assert text_of(fold.completion()) == "a" * len(MALFORMED)
    assert "".join(text_deltas(events)) == "a" * len(MALFORMED)
    json.dumps(fold.completion())


KEYS = ["choices", "index", "delta", "message", "content", "role", "id", "type", "name", "tool_calls", "function"]
KEYS += ["arguments", "logprobs", "usage", "text", "finish_reason", "content_filter_results", "object", "audio"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["", "a", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(ANYTHING | st.builds(lambda c: {"choices": c}, st.lists(ANYTHING)), max_size=6))
def test_any_data_can_be_folded(events: list[Any]) -> None:
    """Nothing raises, nothing is changed, and what comes out shares nothing with what went in."""
    before = copy.deepcopy(events)
    fold = collector()
    shots = []
    for each in events:
        fold.add(each)
        shots.append((fold.completion(), copy.deepcopy(fold.completion())))
    assert events == before
    assert all(shot == kept for shot, kept in shots)
    assert all(collect(events[: n + 1]) == kept for n, (_, kept) in enumerate(shots))
    list(events_of(fold.completion()))
    text_of(fold.completion())
    list(text_deltas(events))


def test_nesting_costs_no_stack() -> None:
    """Values nested twenty thousand deep are folded like others, as long as they need not be compared."""
    deep: Any = {"a": "x"}
    for _ in range(20_000):
        deep = {"a": [deep], "b": deep} if deep == {"a": "x"} else {"a": deep}
    events = [event(choice({"x": deep}, content_filter_results=deep, y=[deep]), z=deep) for _ in range(2)]
    found = collect(events)
    assert sum(1 for _ in events_of(found)) == 4
    reached = found["choices"][0]["message"]["x"]
    while not isinstance(reached["a"], list):
        reached = reached["a"]
    assert reached == {"a": [{"a": "x"}, {"a": "x"}], "b": {"a": "xx"}}


def test_any_mapping_and_sequence() -> None:
    """Persistent and read-only maps and vectors fold to the same plain dicts and lists."""
    events = [
        event(choice({"content": "a", "x": [{"y": [1]}]}), usage={"n": 1}),
        event(choice({"content": "b", "tool_calls": [{"index": 0, "id": "a"}]}, logprobs={"content": [{"t": "b"}]})),
    ]
    assert collect(map(freeze, events)) == collect(map(MappingProxyType, events)) == collect(events)
    assert list(events_of(pmap(collect(events)))) == list(events_of(collect(events)))
    assert text_of(freeze(collect(events))) == "".join(text_deltas(map(freeze, events))) == "ab"


def test_folding_on_changes_nothing_given_out() -> None:
    """A completion that was taken early stays as it was, also when it or the events are changed."""
    fold = collector()
    first = event(choice({"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}), usage={"n": [1]})
    fold.add(first)
    early = fold.completion()
    kept = copy.deepcopy(early)
    first["usage"]["n"].append(2)
    first["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] = "changed"
    fold.add(event(choice({"tool_calls": [{"index": 0, "function": {"arguments": "b"}}]})))
    assert early == kept
    early["usage"]["n"].append(3)
    late = fold.completion()
    assert late["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "ab"
    assert late["usage"] == {"n": [1]}


def test_whole() -> None:
    """Whole is a stream with as many choices as asked for, each of them with its reason."""
    fold = collector(2)
    seen = []
    for each in (
        event(),
        choice({}),
        choice({}, 0, "stop"),
        choice({"content": "b"}, 1),
        choice({}, 1, "length"),
        event(),
    ):
        fold.add(each if "choices" in each else event(each))
        seen.append(fold.whole())
    assert seen == [False, False, False, False, True, True]


def test_the_same_event_again_counts_again() -> None:
    """Events that are alike but for nothing are still pieces: none is taken for a repetition."""
    same = event(choice({"content": "a"}, logprobs={"content": [{"token": "a"}]}), id="c")
    found = collect([same] * 5)["choices"][0]
    assert found["message"]["content"] == "aaaaa"
    assert len(found["logprobs"]["content"]) == 5
    assert spoken({"message": "x"}, {"message": "y"})["message"] == "xy"
    unfinished = [{"choices": [{"index": 0, "message": {"content": "a"}}]}] * 2
    assert collect(unfinished)["choices"][0]["message"]["content"] == "aa"


def test_one_event_that_changes_is_several() -> None:
    """Nothing of an event is kept to compare the next with: it may be the same object, with other members."""
    fold, same = collector(), event(choice({"content": "a"}), id="c")
    fold.add(same)
    fold.add(same)
    same["id"], same["choices"][0]["delta"]["content"] = "d", "b"
    fold.add(same)
    same["choices"][0]["finish_reason"] = "stop"
    same["choices"].append(choice({"content": "x"}, 1))
    fold.add(same)
    found = fold.completion()
    assert (found["id"], [each["message"]["content"] for each in found["choices"]]) == ("d", ["aabb", "x"])
    assert [each["finish_reason"] for each in found["choices"]] == ["stop", None]


def test_memory_is_of_the_size_of_the_text() -> None:
    """200,000 events leave no more objects behind than 3, and about their text in bytes."""
    fold = collector()
    fold.add(event(choice({"content": "-"})))
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    for number in range(200_000):
        fold.add(event(choice({"content": f"{number:06} "})))
    gc.collect()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(gc.get_objects()) - objects < 1_000
    assert peak < 11_000_000  # a list of the pieces would be 14 MB and more
    assert len(text_of(fold.completion())) == 1_400_001


def test_time_is_linear() -> None:
    """Half a million events for one string, one name, one tool call and many: hours if each step cost all before it."""
    deltas = [{"x": "abcd", **call(0, id="a", function={"name": "n", "arguments": "abcd"})} for _ in range(50_000)]
    assert spoken(*deltas) == {
        "role": "assistant",
        "content": None,
        "x": "abcd" * 50_000,
        "tool_calls": [{"id": "a", "function": {"name": "n", "arguments": "abcd" * 50_000}}],
    }
    many = spoken(*(call(number, id=str(number), function={"name": "n"}) for number in range(50_000, 0, -1)))
    assert [c["id"] for c in many["tool_calls"]] == [str(number) for number in range(1, 50_001)]
    assert len(spoken({"name": "ab" * 50_000}, *[{"name": "a"}] * 50_000)["name"]) == 150_000


TEXT = st.text(st.sampled_from("ab {}\n\t😀é\ud800"), max_size=40)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "id", "index", "name", "x"]), inner)
    ),
    max_leaves=6,
)
UNKNOWN = st.dictionaries(
    st.sampled_from(["x", "y", "annotations", "reasoning", "reasoning_content", "audio"]), VALUE, max_size=2
)


def maps(required: dict[str, Any], optional: dict[str, Any] | None = None, unknown: Any = UNKNOWN) -> Any:
    return st.builds(
        lambda extra, known: {**extra, **known}, unknown, st.fixed_dictionaries(required, optional=optional or {})
    )


TOKENS = st.none() | st.lists(
    maps({"token": TEXT, "logprob": st.floats(-9, 0), "bytes": st.none(), "top_logprobs": st.just([])})
)
CALL = (
    maps({"id": TEXT, "type": st.just("function"), "function": maps({"name": TEXT, "arguments": TEXT})})
    | maps({"id": TEXT, "type": st.just("custom"), "custom": maps({"name": TEXT, "input": TEXT})})
    | UNKNOWN
)
MESSAGE = maps(
    {"role": st.sampled_from(["assistant", "tool"]), "content": st.none() | TEXT | st.lists(VALUE, max_size=2)},
    {
        "refusal": st.none() | TEXT,
        "tool_calls": st.none() | st.lists(CALL, max_size=3) | TEXT,
        "function_call": st.none() | maps({"name": TEXT, "arguments": TEXT}) | VALUE,
        "audio": st.none() | maps({"id": TEXT, "data": TEXT, "transcript": TEXT, "expires_at": st.integers()}),
        "reasoning_content": st.none() | TEXT,
    },
)
CHOICE = maps(
    {"message": MESSAGE, "finish_reason": st.none() | st.sampled_from(["stop", "length", ""])},
    {
        "logprobs": st.none() | maps({"content": TOKENS, "refusal": TOKENS}) | VALUE,
        "content_filter_results": maps({"hate": maps({"filtered": st.booleans(), "severity": TEXT})}),
    },
)
COMPLETION = maps(
    {
        "id": TEXT,
        "object": st.just("chat.completion"),
        "created": st.integers(0),
        "model": TEXT,
        "choices": st.lists(CHOICE, max_size=3).flatmap(
            lambda choices: st.lists(st.integers(0, 9), min_size=len(choices), max_size=len(choices), unique=True).map(
                lambda places: [{"index": i, **c} for i, c in zip(sorted(places), choices, strict=True)]
            )
        ),
    },
    {
        "usage": st.none() | maps({"prompt_tokens": st.integers(), "details": VALUE}),
        "system_fingerprint": st.none() | TEXT,
        "service_tier": VALUE,
        "prompt_filter_results": VALUE,
    },
)


@settings(max_examples=300, deadline=None)
@given(COMPLETION)
def test_collect_undoes_events_of(completion: Map) -> None:
    """The law: collect(events_of(c)) == c, for every completion of the API's form; and c is not changed."""
    before = copy.deepcopy(completion)
    events = list(events_of(completion))
    assert collect(events) == completion == before
    assert {each.get("object") for each in events} == {"chat.completion.chunk"}
    assert json.loads(json.dumps(events)) == events


@settings(max_examples=100, deadline=None)
@given(COMPLETION, st.randoms(use_true_random=False))
def test_any_interleaving_of_choices(completion: Map, random: Any) -> None:
    """The order of events of different choices does not matter."""
    queues: dict[Any, list[Map]] = {}
    for each in events_of(completion):
        queues.setdefault(each["choices"][0]["index"] if each["choices"] else None, []).append(each)
    events = []
    while any(queues.values()):
        events.append(random.choice([queue for queue in queues.values() if queue]).pop(0))
    assert collect(events) == completion


def full() -> Map:
    """A completion with all that OpenAI's API sends."""
    arguments = '{"city": "Paris"}'
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello  you", "refusal": None, "annotations": []},
                "logprobs": {"content": [{"token": "Hello"}], "refusal": None},
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "refusal": "no no",
                    "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": arguments}}],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            },
        ],
        "usage": {"total_tokens": 3},
        "system_fingerprint": "fp",
        "x": [1],
    }


def deltas(events: Iterator[Map], index: int) -> list[Map]:
    return [c["delta"] for each in events for c in each["choices"] if c["index"] == index]


def test_the_form_of_the_stream() -> None:
    """Role first, text in words with their space, tool calls name first, reason last, then the usage."""
    events = list(events_of(full()))
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "fp"}
    assert events[0] == {
        **head,
        "x": [1],
        "choices": [choice({"role": "assistant", "content": "", "refusal": None}, logprobs=None)],
        "usage": None,
    }
    assert events[1]["choices"][0]["delta"] == {"role": "assistant", "content": None, "refusal": ""}
    assert all({**each, "choices": [], "usage": None} == {**head, "choices": [], "usage": None} for each in events[1:])
    assert events[-1] == {**head, "choices": [], "usage": {"total_tokens": 3}}
    assert deltas(iter(events), 0)[1:] == [{"content": "Hello"}, {"content": "  you"}, {"annotations": []}, {}, {}]
    assert deltas(iter(events), 1)[1:] == [
        {"refusal": "no"},
        {"refusal": " no"},
        {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "Paris"}'}}]},
        {},
    ]
    reasons = [c["finish_reason"] for each in events for c in each["choices"]]
    assert [reason for reason in reasons if reason] == ["stop", "tool_calls"]
    assert [each["choices"][0]["logprobs"] for each in events[:-1] if each["choices"][0]["logprobs"]] == [
        full()["choices"][0]["logprobs"]
    ]


def test_events_share_nothing() -> None:
    """Whoever changes an event changes neither the completion nor another event."""
    completion = full()
    for each in events_of(completion):
        for c in each["choices"]:
            c["delta"].clear()
            (c.get("logprobs") or {}).clear()
        for value in (each.get("x"), each["usage"]):
            if value:
                value.clear()
    assert completion == full()


def test_usage_only_if_there() -> None:
    """No usage, no word of it; a null is said in every chunk; a completion without choices is one chunk."""
    bare = {"id": "c", "choices": []}
    assert list(events_of(bare)) == [bare]
    assert list(events_of({**bare, "usage": None})) == [{**bare, "usage": None}]
    assert list(events_of({**bare, "usage": {"n": 1}})) == [{**bare, "usage": {"n": 1}}]
    one = {"choices": [{"index": 3, "message": {"role": "assistant", "content": "a"}, "finish_reason": None}]}
    assert not any("usage" in each for each in events_of(one))
    assert all(each["usage"] is None for each in events_of({**one, "usage": None}))
    assert len(list(events_of({**one, "usage": None}))) == len(list(events_of(one))) == 3


@pytest.mark.parametrize(
    "odd", [{}, {"choices": None}, {"choices": [None, 1]}, {"choices": [{}]}, {"choices": [{"message": 1}]}]
)
def test_events_of_what_is_no_completion(odd: Map) -> None:
    """Nothing raises; what is no map is left out."""
    assert all(each["choices"] in ([], [choice({})]) for each in events_of(odd))


def test_calls_of_other_forms() -> None:
    """A legacy call, a custom tool, arguments that are a map, a call of an unknown kind: all come back as they were."""
    calls = [
        {"id": "a", "type": "custom", "custom": {"name": "c", "input": "some words"}},
        {"id": "b", "function": {"name": "f", "arguments": {"a": 1}}},
        {"id": "c", "type": "new", "new": {"x": "some words"}},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls, "function_call": {"arguments": "some words"}}
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert collect(events_of(completion)) == completion
    assert {"function_call": {"arguments": " words"}} in deltas(events_of(completion), 0)


@given(st.text())
def test_pieces_are_the_text(text: str) -> None:
    """No piece is empty, and together they are the text."""
    assert "".join(pieces(text)) == text
    assert all(pieces(text))


def test_text_of() -> None:
    """The content of the first choice, of its text parts if it is a list, and "" if there is none."""
    assert text_of({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}) == "a"
    parts = ["a", {"type": "text", "text": "b"}, {"type": "thinking", "thinking": "c"}, {"text": 1}, None]
    assert text_of({"choices": [{"message": {"content": parts}}]}) == "ab"
    odd: list[Map] = [{}, {"choices": None}, {"choices": []}, {"choices": [1]}, {"choices": [{"message": None}]}]
    assert not any(map(text_of, odd))
    assert text_of({"choices": [{"message": {"content": None}}]}) == ""


def test_text_deltas() -> None:
    """The pieces of choice 0 only, none of them empty, as they come."""
    events = [
        event(choice({"content": "x"}, 1), choice({"role": "assistant", "content": ""})),
        event(choice({"content": "a"})),
        event({"delta": {"content": [{"text": "b"}]}}, choice({"content": None})),
        event(choice({"refusal": "no"}), choice(None)),
    ]
    assert list(text_deltas(events)) == ["a", "b"]
    assert next(text_deltas(events_of(full()))) == "Hello"


def test_plain() -> None:
    """A scalar is itself; maps and lists are copied, however they are nested."""
    assert copied(None) is None
    assert copied(pmap({"a": (1, pmap())})) == {"a": [1, {}]}
    odd = object()
    assert copied([odd]) == [odd]
