"""The key of a call: the same for what is the same call, and for nothing else."""

import json
import math
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrsistent import freeze

from chatfn import build_request
from chatfn.journal import canonical, request_key

VECTORS = json.loads((Path(__file__).parent / "key_vectors.json").read_text("utf-8"))
URL = "https://h/v1/chat/completions"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda name: name not in ("schema", "parameters", "stream", "stream_options"))
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(names, values, max_size=5)


def key(body, **more):
    return request_key({"method": "POST", "url": URL, "body": body, **more})


def shuffled(value, random):
    """The same data with the keys of all maps in another order."""
    if isinstance(value, dict):
        items = [(name, shuffled(item, random)) for name, item in value.items()]
        random.shuffle(items)
        return dict(items)
    return [shuffled(item, random) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_the_published_vectors_hold(vector):
    assert canonical(vector["request"]) == vector["canonical"]
    assert request_key(vector["request"]) == vector["key"]
    assert sha256(vector["canonical"].encode()).hexdigest() == vector["key"]


@given(bodies, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(body, random):
    assert key(shuffled(body, random)) == key(body)


@given(bodies)
def test_it_is_the_same_for_dict_and_pmap_and_changes_nothing(body):
    assert key(freeze(body)) == key(body)
    assert request_key(freeze({"method": "POST", "url": URL, "body": body})) == key(body)


@given(st.integers(-(2**53), 2**53))
def test_an_integer_and_the_float_that_equals_it_are_one_number(number):
    assert key({"n": number}) == key({"n": float(number)})


def test_numbers_and_booleans_and_texts_are_not_the_same():
    assert len({key({"n": value}) for value in (1, True, "1", None, "true", [1], 0, False)}) == 8
    assert key({"n": -0.0}) == key({"n": 0})


@given(st.integers(), st.integers())
def test_integers_of_any_size_are_told_apart(one, other):
    assert (key({"n": one}) == key({"n": other})) == (one == other)


@given(
    st.permutations(["a", "b", "type"]), st.permutations(["a", "b", "type"]), st.sampled_from(["schema", "parameters"])
)
def test_the_order_of_keys_in_a_schema_matters_at_any_depth(one, other, name):
    def body(order):
        return {"x": [{"y": {name: {"properties": [{"deep": dict.fromkeys(order, 1)}]}}}]}

    assert (key(body(one)) == key(body(other))) == (one == other)


def test_a_schema_that_is_no_map_and_what_stands_beside_one_are_sorted():
    assert key({"schema": [{"a": 1, "b": 2}]}) == key({"schema": [{"b": 2, "a": 1}]})
    assert key({"f": {"parameters": {}, "a": 1}}) == key({"f": {"a": 1, "parameters": {}}})


@given(bodies, names, values)
def test_whatever_stands_in_the_body_is_part_of_it(body, name, value):
    assert (key({**body, name: value}) == key(body)) == (
        name in body and canonical_of(body[name]) == canonical_of(value)
    )


def canonical_of(value):
    return canonical({"method": "POST", "url": URL, "body": {"v": value}})


def test_the_endpoint_the_model_the_method_and_the_sample_are_part_of_it():
    plain = {"method": "POST", "url": URL, "body": {"model": "m"}}
    others = [
        plain,
        {**plain, "url": "https://other/v1/chat/completions"},
        {**plain, "method": "PUT"},
        {**plain, "body": {"model": "n"}},
        *({**plain, "sample": sample} for sample in (None, 0, 1, 2)),
    ]
    assert len({request_key(other) for other in others}) == len(others)
    azure = {"impl": "azure", "api_endpoint": "https://mine.openai.azure.com"}
    assert request_key(build_request({"model": "a"}, azure)) != request_key(build_request({"model": "b"}, azure))


def test_secrets_headers_timeouts_and_the_way_it_arrives_are_not():
    params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    more = {"headers": {"x-trace": "1", "authorization": "Bearer sk-2"}, "timeout": 3, "verify": False}
    options = {"api_key": "sk-1", "organization": "o", "deadline": 5, "bounds": {"event": 9}}
    streamed = {**params, "stream": True, "stream_options": {"include_usage": True}}
    requests = [
        build_request(params),
        build_request(params, options),
        build_request(params, {"request": more}),
        build_request(streamed),
        build_request({**params, "stream": False}),
    ]
    assert len(set(map(request_key, requests))) == 1
    assert key({"a": {"stream": True}}) != key({"a": {}})


SCRIPT = "import json, sys; from chatfn.journal import request_key; print(*map(request_key, json.load(sys.stdin)))"


@pytest.mark.parametrize("seed", ["0", "1", "4294967295"])
def test_it_is_the_same_in_every_process(seed):
    requests = json.dumps([vector["request"] for vector in VECTORS])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=requests, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == [vector["key"] for vector in VECTORS]


@given(values)
def test_it_is_what_another_implementation_of_the_rfc_writes(value):
    rfc8785 = pytest.importorskip("rfc8785")
    assert (
        canonical({"method": "", "url": "", "body": value})
        == rfc8785.dumps({"body": value, "method": "", "url": ""}).decode()
    )


@given(values)
def test_it_is_json_that_says_the_same(value):
    assert json.loads(canonical_of(value), parse_int=float)["body"]["v"] == value


def test_any_mapping_sequence_and_subclass_of_a_scalar_is_taken():
    class Text(str):
        __slots__ = ()

    class Number(int):
        def __repr__(self):
            return "wrong"

    class Real(float):
        def __repr__(self):
            return "wrong"

    odd = {"a": (1, Text("x")), "b": Number(3), "c": Real(0.5), Text("d"): range(2)}
    assert key(odd) == key({"a": [1, "x"], "b": 3, "c": 0.5, "d": [0, 1]})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, ValueError),
        (-math.inf, ValueError),
        (b"x", TypeError),
        ({1}, TypeError),
        ({1: 2}, TypeError),
        ("\ud800", ValueError),
    ],
)
def test_what_is_no_json_is_refused(value, error):
    with pytest.raises(error):
        key({"v": value})


def test_what_contains_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="contains itself"):
        key({"v": endless})
