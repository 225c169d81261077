"""Credentials are carried about and never seen: not in text, copies, pickles, errors or tracebacks."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import pprint
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chatfn
from chatfn import ChatError, acreate_chat_completion, build_request, create_chat_completion, responder, wire_headers
from chatfn.impls import IMPLS
from chatfn.secret import (
    DEEPEST,
    MASK,
    Secret,
    absent,
    fingerprint,
    hidden,
    mask,
    mask_all,
    problem_of,
    seal,
    secrets_of,
    type_name,
)

KEY = "sk-Zq8wV3nT5yR7uK2mB9cX4"
PACKAGE = str(Path(chatfn.__file__).parent)
PARAMS: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

SHOWS: list[Callable[[Any], object]] = [
    repr,
    str,
    "{}".format,
    "{!r:>40}".format,
    json.dumps,
    pprint.pformat,
    ascii,
    copy.copy,
    copy.deepcopy,
    lambda value: copy.deepcopy({"a": [value]}),
    *[lambda value, p=p: pickle.dumps(value, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)],
    lambda value: pickle.loads(pickle.dumps(value)),
]


def text_of(shown: object) -> str:
    return repr(shown) + str(shown) + (shown.decode("latin-1") if isinstance(shown, bytes) else "")


def told(exc: BaseException) -> str:
    """All that an error tells: its words, its chain, and the locals of every frame of the package."""
    assert exc.__cause__ is None
    assert exc.__context__ is None
    found = traceback.TracebackException.from_exception(exc, capture_locals=True)
    ours = [frame for frame in found.stack if frame.filename.startswith(PACKAGE)]
    assert ours, "the error was raised by the package"
    return f"{exc} {exc!r} {exc.args!r} " + " ".join(f"{frame.line} {frame.locals}" for frame in ours)


# --- the value itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("source", [KEY, lambda: KEY], ids=["value", "function"])
def test_a_secret_shows_as_its_mask(source: Any, show: Any) -> None:
    secret = Secret(source)
    assert KEY not in text_of(show(secret))
    assert KEY not in text_of(show({"secret": secret, "list": [secret]}))
    assert secret.reveal() == KEY
    assert f"{secret}{secret:>5}%s" % secret == f"{MASK}  {MASK}{MASK}"
    assert json.dumps(secret) == f'"{MASK}"'


def test_a_copy_is_the_same_secret_and_a_pickle_stays_behind() -> None:
    secret = Secret(KEY)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    arrived = pickle.loads(pickle.dumps(secret))
    assert arrived.kind == "absent"
    with pytest.raises(ValueError, match="stayed in the process that pickled this map: give the credential again"):
        arrived.reveal()
    assert pickle.loads(pickle.dumps(arrived)).kind == "absent"


def test_the_kinds_of_secrets() -> None:
    assert (Secret(KEY).kind, Secret(lambda: KEY).kind, absent("none").kind) == ("value", "function", "absent")
    with pytest.raises(ValueError, match="none is set"):
        absent("none is set").reveal()


def test_strings_and_functions_are_sealed_once_and_the_rest_only_hidden() -> None:
    for value in (None, 5, [KEY], b"x"):
        assert seal(value) is value
        assert hidden(value).reveal() is value
        assert hidden(value) == MASK
    for value in (KEY, "", lambda: KEY):
        assert isinstance(seal(value), Secret)
        assert seal(seal(value)) is not value
        sealed = seal(value)
        assert seal(sealed) is sealed
        assert hidden(sealed) is sealed


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (KEY, "str"),
        ([KEY], "list"),
        (None, "NoneType"),
        (Secret(KEY), "str"),
        (hidden([KEY]), "list"),
        (hidden(b""), "bytes"),
        (Secret(lambda: KEY), "function"),
        (absent("none"), "absent"),
    ],
)
def test_a_type_is_named_through_its_secret(value: Any, name: str) -> None:
    assert type_name(value) == name


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (KEY, None),
        ("a b", None),
        ("!~", None),
        ("Bearer " + KEY, None),
        ("", "is empty"),
        (" \t\n", "is empty"),
        (KEY + "\n", "not visible ASCII"),
        (KEY + "\r\nx: y", "not visible ASCII"),
        (" " + KEY, "not visible ASCII"),
        (KEY + " ", "not visible ASCII"),
        (KEY + "é", "not visible ASCII"),
        (KEY + "\x00", "not visible ASCII"),
        (KEY + "\x7f", "not visible ASCII"),
        (KEY + "\u200b", "not visible ASCII"),
        (KEY + "\ud800", "not visible ASCII"),
        (b"x", "is not a string but bytes"),
        (None, "is not a string but NoneType"),
    ],
)
def test_what_keeps_a_value_from_being_sent_is_said_without_it(value: Any, words: str | None) -> None:
    problem = problem_of(value)
    assert (problem is None) if words is None else (words in (problem or "") and KEY not in (problem or ""))


# --- masking ------------------------------------------------------------------------------------------------------

NAMES = st.text(max_size=4).filter(lambda name: name != MASK) | st.just(KEY)  # masked names may not meet
DATA = st.recursive(
    st.text(max_size=8) | st.just(f"key {KEY}.") | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@settings(deadline=None)
@given(DATA)
def test_masking_takes_the_value_out_wherever_it_stands_and_leaves_the_rest(data: Any) -> None:
    before = copy.deepcopy(data)
    masked = mask_all(data, [KEY])
    assert KEY not in repr(masked)
    assert repr(masked) == repr(before).replace(KEY, MASK)
    assert data == before


def test_masking_without_values_gives_the_same_object() -> None:
    data = {"a": [KEY]}
    assert mask_all(data, []) is data
    assert mask_all(data, ["abc"]) is data, "shorter values are no keys"
    assert mask("abc", ["abc"]) == "abc"
    assert mask_all({"a": "ollama"}, ["ollama"], 16) == {"a": "ollama"}


def test_masking_is_bounded_in_depth_and_hides_what_it_does_not_look_into() -> None:
    data: Any = KEY
    for _ in range(5_000):
        data = [data]
    shown = mask_all(data, [KEY])
    for _ in range(DEEPEST):
        shown = shown[0]
    assert shown == MASK


def test_the_secrets_of_a_request_are_those_that_a_server_could_echo() -> None:
    request = build_request(PARAMS, {"api_key": KEY, "request": {"headers": {"x-my-token": "Basic abc def"}}})
    assert sorted(secrets_of(request)) == sorted([KEY, "Basic abc def", "abc def"])
    assert secrets_of(build_request(PARAMS, {"api_key": lambda: KEY})) == []
    assert secrets_of(build_request(PARAMS)) == []
    replaced = build_request(PARAMS, {"request": {"headers": {"authorization": f"Bearer {KEY}"}}})
    assert secrets_of(replaced) == [f"Bearer {KEY}", KEY], "a server echoes the key without its scheme"


# --- the request map ----------------------------------------------------------------------------------------------

AZURE = {"impl": "azure", "api_endpoint": "https://h.openai.azure.com"}
CARRIERS: dict[str, Any] = {
    "key": {"api_key": KEY},
    "key function": {"api_key": lambda: KEY},
    "Azure key": {**AZURE, "api_key": KEY},
    "Azure token": {**AZURE, "ad_token": KEY},
    "token function": {**AZURE, "ad_token": lambda: KEY},
    "Clojure spelling": {"api-key": KEY},
    "authorization": {"request": {"headers": {"Authorization": f"Bearer {KEY}"}}},
    "api-key header": {"request": {"headers": {"api-key": KEY}}},
    "another header": {"api_key": "k", "request": {"headers": {"X-Gateway-Token": KEY, "cookie": f"s={KEY}"}}},
    "proxy": {"api_key": "k", "request": {"proxies": {"https": f"http://me:{KEY}@proxy:3128"}}},
    "impl's default": {"impl": IMPLS["openai"].update({"defaults": {"api_endpoint": "https://h", "api_key": KEY}})},
    "impl's default, in a dict": {
        "impl": {**IMPLS["openai"], "defaults": {"api_endpoint": "https://h", "api_key": KEY}}
    },
}


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("options", CARRIERS.values(), ids=CARRIERS)
def test_a_request_map_shows_no_secret(options: Any, show: Any) -> None:
    request = build_request(PARAMS, options)
    assert KEY not in text_of(show(request))
    assert MASK in repr(request)


@pytest.mark.parametrize("name", [name for name in CARRIERS if "proxy" not in name])
def test_a_secret_is_in_the_wires_headers_once(name: str) -> None:
    values = [value for value in wire_headers(build_request(PARAMS, CARRIERS[name])).values() if KEY in value]
    assert len(values) == (2 if name == "another header" else 1)


# --- errors -------------------------------------------------------------------------------------------------------

BAD: list[Any] = [
    {"api_key": KEY + "\n"},
    {"api_key": " " + KEY},
    {"api_key": KEY + "é"},
    {"api-key": KEY + "\r\nx-evil: 1"},
    {"api_key": KEY.encode()},
    {"api_key": [KEY]},
    {"api_key": {"key": KEY}},
    {"api_key": (KEY,)},
    {"ad_token": KEY + "\n"},
    {"ad_token": KEY.encode()},
    {"api_key": KEY, "ad_token": KEY},
    {"apikey": KEY},
    {"apikye": KEY},
    {"api_keys": [KEY]},
    {"token": KEY},
    {"oops": KEY.encode()},
    {"header": {"authorization": KEY}},
    {"headers": {"authorization": KEY}},
    KEY,
    KEY.encode(),
    [("api_key", KEY)],
    {"request": KEY},
    {"request": [("headers", KEY)]},
    {"request": {"header": {"authorization": KEY}}},
    {"request": {"api_key": KEY}},
    {"request": {"headers": KEY}},
    {"request": {"headers": [("authorization", KEY)]}},
    {"request": {"headers": {"authorization": KEY + "\n"}}},
    {"request": {"headers": {"authorization": KEY.encode()}}},
    {"request": {"headers": {"Authorization": [KEY]}}},
    {"request": {"headers": {"authorization": lambda: KEY}}},
    {"request": {"headers": {b"authorization": KEY}}},
    {"request": {"headers": {"authorization ": KEY}}},
    {"request": {"headers": {"x-api-key": KEY, "host": "h"}}},
    {"request": {"headers": {"x-api-key": KEY, "plain": "é"}}},
    {"request": {"proxies": f"http://me:{KEY}@proxy"}},
    {"request": {"proxies": {"https": f"http://me:{KEY}@proxy"}, "timeout": -1}},
    {"api_endpoint": f"https://me:{KEY}@host/v1"},
    {"api_endpoint": f"https://{KEY}@host/v1"},
    {"api_endpoint": f"me:{KEY}@host/v1"},
    {"api_endpoint": f"https://me:{KEY}@host:99999/v1"},
    {"api_endpoint": f"https://me:[{KEY}@host/v1"},
    {"api_endpoint": f"https://me:{KEY}/x@host/v1"},
    {"api_endpoint": f"https://me:{KEY}@host:0/v1"},
    {"api_endpoint": f"https:/me:{KEY}@host"},
    {"api_endpoint": f"ftp://me:{KEY}@host"},
    {"api_endpoint": f"https://host\\me:{KEY}@host"},
    {"impl": "azure", "api_endpoint": f"https://me:{KEY}@host"},
    {"api_key": KEY, "api_endpoint": "http://example.com/v1"},
    {"api_key": KEY, "api_endpoint": "nonsense"},
    {"api_key": KEY, "deadline": -1},
    {"api_key": KEY, "bounds": {"body": 0}},
    {"api_key": KEY, "surrogates": "keep"},
    {"api_key": KEY, "on_next": 5},
    {"api_key": KEY, "full_response?": "yes"},
    {"api_key": KEY, "organization": "a\nb"},
    {"api_key": KEY, "impl": "opanai"},
    {"api_key": KEY, "impl": ["openai"]},
    {"api_key": KEY, "impl": {"env": {}}},
    {"api_key": KEY, "request": {"query": [1]}},
    {"api_key": KEY, "request": {"query": {"a": 1.5}}},
    {"api_key": KEY, "request": {"timeout": "5"}},
    {"impl": {**IMPLS["openai"], "defaults": {"api_key": KEY}}, "oops": 1},
    {"impl": IMPLS["openai"].update({"defaults": {"api_key": KEY + "\n"}})},
    {"impl": "azure", "api_key": KEY},
    {"impl": "azure", "api_endpoint": "https://h", "deployment": "..", "api_key": KEY},
]
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "build_request": build_request,
    "responder": lambda params, options: responder(options)(params),
    "create": create_chat_completion,
    "acreate": lambda params, options: asyncio.run(acreate_chat_completion(params, options)),
}


def nowhere(request: Any) -> Any:
    raise AssertionError("sent")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_ENDPOINT", "AZURE_OPENAI_API_ENDPOINT", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("options", BAD, ids=range(len(BAD)))
def test_a_complaint_about_options_tells_no_secret(options: Any, call: Any) -> None:
    if isinstance(options, dict) and call is not build_request:
        options = {"transport": nowhere, **options}
    with pytest.raises((ValueError, TypeError)) as info:
        call(PARAMS, options)
    assert KEY not in told(info.value)
    assert "sent" not in str(info.value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("options", CARRIERS.values(), ids=CARRIERS)
@pytest.mark.parametrize(
    "params",
    [None, [], "hi", {"model": "m", "temperature": float("nan")}, {1: 2}, {"messages": [object()]}],
    ids=repr,
)
def test_a_complaint_about_params_tells_no_secret(params: Any, options: Any, call: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as info:
        call(params, options if call is build_request else {"transport": nowhere, **options})
    assert KEY not in told(info.value)


@pytest.mark.parametrize("call", [CALLS[name] for name in CALLS if name != "build_request"])
@pytest.mark.parametrize("more", [{"transport": "requets"}, {"transport": 5}, {"middleware": ["rety"]}])
def test_a_complaint_about_a_stack_tells_no_secret(more: Any, call: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as info:
        call(PARAMS, {"api_key": KEY, "transport": nowhere, **more})
    assert KEY not in told(info.value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_ENDPOINT"])
def test_a_complaint_about_the_environment_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, variable: str, call: Any
) -> None:
    monkeypatch.setenv(variable, f"https://me:{KEY}@host/\n" if "KEY" not in variable else KEY + "\n")
    if call is build_request:
        build_request(PARAMS, {"api_key": "k"})
        return
    with pytest.raises(ValueError) as info:
        call(PARAMS, {"transport": nowhere})
    assert KEY not in told(info.value)


ANSWERS: list[Any] = [
    {"status": 401, "headers": {"x-echo": KEY}, "body": f'{{"error":{{"message":"bad key {KEY}"}}}}'.encode()},
    {"status": 401, "headers": {}, "body": f"<html><body>no {KEY}</body></html>".encode()},
    {"status": 200, "headers": {}, "body": f'["{KEY}"]'.encode()},
    {"status": 200, "headers": {}, "body": f'{{"{KEY}": '.encode()},
]


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.parametrize("name", ["key", "key function", "Azure key", "Azure token", "authorization", "api-key header"])
def test_a_chat_error_tells_no_secret_even_if_the_server_does(name: str, answer: Any, show: Any) -> None:
    options = {**CARRIERS[name], "transport": lambda request: answer, "middleware": []}
    with pytest.raises(ChatError) as info:
        create_chat_completion(PARAMS, options)
    assert KEY not in told(info.value)
    if show is json.dumps:
        assert KEY not in json.dumps(info.value.error)
    else:
        assert KEY not in text_of(show(info.value))
        assert KEY not in text_of(show(info.value.error))


def test_a_fingerprint_tells_secrets_apart_and_nobody_what_they_are() -> None:
    def rotating() -> str:
        return KEY

    same = [(Secret(KEY), Secret(KEY)), (Secret(rotating), Secret(rotating))]
    others = [(Secret(KEY), Secret(KEY + "x")), (Secret(rotating), Secret(KEY)), (absent("a"), absent("a"))]
    assert all(fingerprint(one) == fingerprint(other) for one, other in same)
    assert all(fingerprint(one) != fingerprint(other) for one, other in others)
    assert KEY not in repr(fingerprint(Secret(KEY)))
    assert fingerprint(hidden([KEY])) is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("problem", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_what_a_transport_raises_shows_no_secret_on_its_way(problem: BaseException, stream: bool) -> None:
    """A bug, or Ctrl-C, with the frames of all layers in its traceback; within a stream too."""

    def before(request: Any) -> Any:
        raise problem

    def within(request: Any) -> Any:
        def pieces() -> Any:
            raise problem
            yield b""

        return {"status": 200, "headers": {"content-type": "application/json"}, "body": pieces()}

    params = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    for transport in (before, within) if stream else (before,):
        options = {"api_key": KEY, "transport": transport}
        with pytest.raises(type(problem)) as caught:
            create_chat_completion(params, options)
        assert KEY not in told(caught.value)


class Alike:
    """A function that says it is any other's equal."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def __call__(self) -> str:
        return "sk-1"


def test_a_function_is_told_by_itself_unless_it_says_what_it_equals() -> None:
    assert fingerprint(Secret(Alike())) is None
    one, other = Secret(lambda: "sk-1"), Secret(lambda: "sk-1")
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)
    assert fingerprint(Secret(Alike().__call__)) is not None
