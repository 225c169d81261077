"""Options made whole: spelled one way, checked, completed; every complaint names the option and the fix."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import freeze, pmap

from chatfn import IMPLS, build_request, wire_headers
from chatfn.options import (
    BOUNDS,
    CREDENTIAL_HEADERS,
    FLAGS,
    FUNCTIONS,
    TEXTS,
    TIMEOUT,
    bounds_of,
    check_url,
    is_loopback,
    nearest,
    resolve,
    timeout_of,
)
from chatfn.sealing import CREDENTIALS, KNOWN, REQUEST_KEYS, has_user, sealed, spelled
from chatfn.secret import Secret, absent
from chatfn.spec import Options

PARAMS: dict[str, Any] = {"model": "m", "messages": []}


def request(**options: Any) -> Any:
    return build_request(PARAMS, options)


def headers(given: Any, **options: Any) -> dict[str, str]:
    return dict(wire_headers(request(api_key="k", request={"headers": given}, **options)))


# --- names --------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "impl": "openai",
    "api_key": "k",
    "api_endpoint": "https://h/v1",
    "api_version": "v1",
    "deployment": "d",
    "organization": "o",
    "project": "p",
    "openai_beta": "b",
    "request": {"timeout": 3},
    "deadline": 7,
    "bounds": {"body": 9},
    "surrogates": "replace",
    "allow_http": True,
    "transport": "echo",
    "middleware": (),
    "category_of": lambda status, wire: "fault",
    "on_next": print,
    "trace": print,
    "full_response": True,
}


def test_the_known_options_are_those() -> None:
    assert {*GOOD, "ad_token"} == KNOWN
    assert set(Options.__annotations__) == KNOWN
    assert TEXTS | FUNCTIONS | set(FLAGS) | CREDENTIALS <= KNOWN


def test_every_option_is_kept_as_given() -> None:
    whole: Any = resolve(sealed(GOOD))
    assert {name: whole[name] for name in GOOD if name not in ("impl", "api_key")} == {
        name: value for name, value in GOOD.items() if name not in ("impl", "api_key")
    }
    assert whole["impl"] == dict(IMPLS["openai"])
    assert whole["api_key"].reveal() == "k"


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("spell", [lambda n: n, lambda n: n.replace("_", "-"), lambda n: n.replace("_", "-") + "?"])
def test_clojures_spellings_are_accepted(name: str, spell: Any) -> None:
    assert spelled(spell(name)) == name
    value = GOOD.get(name, "t")
    whole: Any = resolve(sealed({spell(name): value, "allow-http?": True}))
    assert name in whole


def test_what_is_none_counts_as_not_given_but_for_the_deadline() -> None:
    whole = resolve(sealed(dict.fromkeys(KNOWN)))
    assert whole == {**resolve({}), "deadline": None}
    assert build_request(PARAMS, {"deadline": None})["deadline"] is None
    assert build_request(PARAMS, {})["deadline"] == 900.0
    assert build_request({**PARAMS, "stream": True}, {})["deadline"] is None
    assert build_request({**PARAMS, "stream": True}, {"deadline": 5})["deadline"] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apikey": "x"}, "unknown option 'apikey': did you mean 'api_key'?"),
        ({"api-ky": "x"}, "unknown option 'api_ky': did you mean 'api_key'?"),
        ({"on-nxt": 1}, "unknown option 'on_nxt': did you mean 'on_next'?"),
        ({"base_url": "x"}, "unknown option 'base_url'"),
        ({"full_reponse": True}, "did you mean 'full_response'?"),
        ({"qqq": 1}, "unknown option 'qqq'"),
        ({5: 1}, "unknown option 5"),
        ({None: None}, "unknown option None"),
        ({"request": {"header": {}}}, "unknown key 'header' in the option 'request': did you mean 'headers'?"),
        ({"request": {"qqq": 1}}, "unknown key 'qqq' in the option 'request'"),
        ({"request": {5: 1}}, "unknown key 5 in the option 'request'"),
        ({"bounds": {"bdy": 1}}, "unknown bound 'bdy': did you mean 'body'?"),
        ({"impl": "opanai"}, "unknown impl 'opanai': did you mean 'openai'?; known: azure, deepseek,"),
        ({"impl": "zzz"}, "unknown impl 'zzz'; known: "),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(options: Any, words: str) -> None:
    with pytest.raises(ValueError) as info:
        build_request(PARAMS, options)
    assert words in str(info.value)


@settings(deadline=None)
@given(st.sampled_from(sorted(KNOWN)), st.data())
def test_one_wrong_letter_is_recognized(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:at] + "q" + name[at + 1 :]
    assert nearest(wrong, [name]) == f": did you mean {name!r}?"


# --- types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        *[({name: 5}, TypeError, f"the option '{name}' is int; give a string") for name in sorted(TEXTS)],
        *[({name: b"x"}, TypeError, f"the option '{name}' is bytes") for name in sorted(TEXTS)],
        *[
            ({name: "x\ny"}, ValueError, f"the option '{name}' has a character that is not visible ASCII")
            for name in sorted(TEXTS - {"api_endpoint"})
        ],
        *[({name: ""}, ValueError, f"the option '{name}' is empty") for name in sorted(TEXTS - {"api_endpoint"})],
        *[({name: 5}, TypeError, f"the option '{name}' is int; give a function") for name in sorted(FUNCTIONS)],
        *[({name: 1}, TypeError, f"the option '{name}' is 1; give True or False") for name in FLAGS],
        *[
            ({name: 5}, TypeError, f'the option "{name}" is int; give a string, or a function')
            for name in sorted(CREDENTIALS)
        ],
        *[({name: b"k"}, TypeError, f'the option "{name}" is bytes') for name in sorted(CREDENTIALS)],
        *[({name: ["k"]}, TypeError, f'the option "{name}" is list') for name in sorted(CREDENTIALS)],
        *[({name: ""}, ValueError, f'the option "{name}" is empty; strip it') for name in sorted(CREDENTIALS)],
        *[({name: "k\n"}, ValueError, f'the option "{name}" has a character') for name in sorted(CREDENTIALS)],
        ({"surrogates": "keep"}, ValueError, "'surrogates' is 'keep'; give 'refuse' or 'replace'"),
        ({"surrogates": []}, ValueError, "'surrogates' is []"),
        ({"deadline": "5"}, TypeError, "the option 'deadline' is '5'; give seconds as a number"),
        ({"deadline": True}, TypeError, "the option 'deadline' is True"),
        *[
            ({"deadline": v}, ValueError, f"the option 'deadline' is {v!r}; give a finite number")
            for v in (0, -1, math.inf, math.nan)
        ],
        ({"bounds": 5}, TypeError, "the option 'bounds' is int; give a mapping"),
        *[
            ({"bounds": {"event": v}}, ValueError, f"the bound 'event' is {v!r}; give bytes as a whole number")
            for v in (0, -1, 1.5, "9", True, None)
        ],
        ({"request": 5}, TypeError, "the option 'request' is int; give a mapping"),
        ({"request": "headers"}, TypeError, "the option 'request' is str; give a mapping"),
        ({"request": {"headers": 5}}, TypeError, "headers in the option 'request' are int; give a mapping"),
        ({"request": {"headers": [("a", "b")]}}, TypeError, "headers in the option 'request' are list"),
        ({"request": {"query": 5}}, TypeError, "query in the option 'request' is int; give a mapping"),
        ({"request": {"query": {"a": []}}}, TypeError, "'a' in the query is list; give a string, a number, or None"),
        ({"request": {"query": {5: "a"}}}, TypeError, "5 in the query is str"),
        ({"request": {"proxies": 5}}, TypeError, "proxies in the option 'request' are int; give a mapping"),
        ({"request": {"proxies": "http://p"}}, TypeError, "proxies in the option 'request' are str; give a mapping"),
        ({"request": {"timeout": "5"}}, TypeError, "timeout in the option 'request' is '5'"),
        ({"request": {"timeout": 0}}, ValueError, "timeout in the option 'request' is 0"),
        ({"request": {"timeout": (1, -1)}}, ValueError, "timeout in the option 'request' is -1"),
        ({"request": {"timeout": (1, 2, 3)}}, ValueError, "timeout in the option 'request' has 3 numbers"),
        *[
            ({"middleware": v}, TypeError, f"the option 'middleware' is {name}; give a list of layers, outermost first")
            for v, name in (("retry", "str"), ({"retry": {}}, "dict"), (5, "int"), (iter(["retry"]), "list_iterator"))
        ],
        ({"impl": 5}, TypeError, "the option 'impl' is int; give a name or an impl map"),
        ({"impl": ["azure"]}, TypeError, "the option 'impl' is list; give a name or an impl map"),
        ({"impl": {}}, ValueError, "the impl map lacks auth, body, defaults, env, headers, url"),
    ],
)
def test_what_cannot_be_right_is_an_error_that_names_the_option_and_the_fix(
    options: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as info:
        build_request(PARAMS, options)
    assert words in str(info.value)
    assert type(info.value) is kind


@pytest.mark.parametrize(
    ("options", "name"),
    [(None, "NoneType"), (5, "int"), ("sk-1", "str"), ([("impl", "azure")], "list"), (print, "function")],
)
def test_options_are_a_mapping(options: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"options are {name}; give a mapping"):
        build_request(PARAMS, options)
    with pytest.raises(TypeError, match="give a mapping"):
        resolve(options)


@pytest.mark.parametrize("wrap", [pmap, MappingProxyType, freeze])
def test_options_may_be_any_mapping_and_are_not_changed(wrap: Any) -> None:
    options = {
        "api_key": "sk-1",
        "deadline": 3,
        "impl": "azure",
        "api-endpoint": "https://h/openai/v1",
        "bounds": wrap({"body": 5}),
        "request": wrap({"headers": wrap({"A": "b", "authorization": None}), "query": wrap({"q": "1"}), "timeout": 4}),
    }
    plain_options = {
        **options,
        "bounds": {"body": 5},
        "request": {"headers": {"A": "b", "authorization": None}, "query": {"q": "1"}, "timeout": 4},
    }
    before = freeze(plain_options)
    expected = build_request(PARAMS, plain_options)
    assert freeze(plain_options) == before
    assert build_request(PARAMS, wrap(options)) == expected
    assert expected["bounds"] == {**BOUNDS, "body": 5}
    assert expected["timeout"] == (4.0, 4.0)


# --- sealing ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9) | st.binary(max_size=5) | st.just(print),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*sorted(KNOWN | REQUEST_KEYS), "authorization", "oops", 5, None]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_sealing_never_raises_and_resolving_raises_only_our_two_errors(options: Any) -> None:
    before = freeze(options)
    found = sealed(options)
    assert sealed(found) == found
    assert freeze(options) == before
    try:
        build_request(PARAMS, options)
    except (ValueError, TypeError) as exc:
        assert str(exc)  # noqa: PT017  # both ends are allowed


def test_a_credential_that_stayed_behind_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="gone"):
        build_request(PARAMS, {"request": {"headers": {"x-api-key": absent("gone")}}})
    lazy = build_request(PARAMS, {"api_key": absent("gone")})
    with pytest.raises(ValueError, match="gone"):
        wire_headers(lazy)


def test_an_impls_defaults_are_sealed_without_changing_the_impl() -> None:
    impl = {**IMPLS["openai"], "defaults": {"api_key": "sk-1", "api_endpoint": "https://h", "project": None}}
    found = sealed({"impl": impl})
    assert isinstance(found["impl"]["defaults"]["api_key"], Secret)
    assert impl["defaults"]["api_key"] == "sk-1"
    assert wire_headers(build_request(PARAMS, {"impl": impl, "project": "p"}))["authorization"] == "Bearer sk-1"
    assert sealed({"impl": {"defaults": 5}}) == {"impl": {"defaults": 5}}


# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "/v1",
        "//h/v1",
        "h/v1",
        "ftp://h/v1",
        "file:///etc/passwd",
        "https://",
        "https:///v1",
        "https://h:99999",
        "https://h:0",
        "https://h:x",
        "https://[::1",
        "https://h/v1#part",
        "https://h/a b",
        "https://h\\v1",
        "https://h/é",
        "https://h/\n",
        "\thttps://h",
        "https://h/ ",
    ],
)
def test_an_endpoint_is_an_absolute_url_of_http(url: str) -> None:
    with pytest.raises(ValueError) as info:
        request(api_endpoint=url)
    assert str(info.value) == (
        f"the option 'api_endpoint' is {url!r}, no absolute URL of http or https such as 'https://host/v1'"
    )


def test_an_empty_endpoint_is_none() -> None:
    with pytest.raises(ValueError, match="no endpoint"):
        request(api_endpoint="")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://me:word@h", True),
        ("https://me@h", True),
        ("https://@h", True),
        ("me:word@h", True),
        ("https://me:word@h:0", True),
        ("https://me:word@h:99999", True),
        ("https://me:w/rd@h", True),
        ("https://me:[word@h", True),
        ("https://h:0/@", True),
        ("https://h/@me", False),
        ("https://h:5/v1?a=@", False),
        ("https://h", False),
        ("", False),
        (None, False),
        (5, False),
    ],
)
def test_a_user_in_a_url_is_found(url: Any, found: bool) -> None:
    assert has_user(url) is found
    if found:
        with pytest.raises(ValueError, match="has a user or password in it; give credentials as options"):
            request(api_endpoint=url)
        with pytest.raises(ValueError, match=r"^the URL has a user or password in it"):
            check_url("the URL", url)


def test_an_impl_of_ones_own_gives_a_url_of_http_too() -> None:
    for url in ("nowhere", "https://me:sesame@h/v1", "https://h/a b"):
        with pytest.raises(ValueError, match=r"^the URL ") as info:
            request(impl=IMPLS["openai"].update({"url": lambda operation, params, options, url=url: url}))
        assert "sesame" not in str(info.value)


# --- http ---------------------------------------------------------------------------------------------------------

LOOPBACK = ["127.0.0.1", "127.9.9.9", "localhost", "api.localhost", "[::1]", "LOCALHOST"]
ELSEWHERE = ["example.com", "10.0.0.1", "0.0.0.0", "127.0.0.1.example.com", "localhost.example.com", "[2001:db8::1]"]


@pytest.mark.parametrize("host", LOOPBACK + ELSEWHERE)
@pytest.mark.parametrize(
    "carrier",
    [
        {"api_key": "k"},
        {"api_key": lambda: "k"},
        {"request": {"headers": {"authorization": "Bearer k"}}},
        {"impl": "vllm", "request": {"headers": {"x-my-token": "k"}}},
        {},
    ],
    ids=["key", "function", "header", "another header", "no key yet"],
)
def test_a_key_goes_over_http_to_loopback_only_or_where_it_is_allowed(host: str, carrier: Any) -> None:
    options = {**carrier, "api_endpoint": f"http://{host}:1/v1"}
    assert request(**options, allow_http=True)["url"].startswith("http://")
    assert request(**{**options, "api_endpoint": f"https://{host}:1/v1"})["url"].startswith("https://")
    if host in LOOPBACK:
        assert request(**options)["url"].startswith("http://")
    else:
        with pytest.raises(ValueError, match="would send the key unencrypted; use https, or give the option"):
            request(**options)


@pytest.mark.parametrize("impl", ["ollama", "vllm", "llama.cpp"])
def test_a_server_without_a_key_may_be_anywhere(impl: str) -> None:
    found = request(impl=impl, api_endpoint="http://10.0.0.1:8000/v1")
    assert "auth" not in found
    with pytest.raises(ValueError, match="unencrypted"):
        request(impl=impl, api_endpoint="http://10.0.0.1:8000/v1", api_key="k")


def test_a_host_is_loopback_or_not() -> None:
    assert [is_loopback(host) for host in ("::1", "127.1.2.3", "a.localhost", "", "x", "::2", "localhosts")] == (
        [True] * 3 + [False] * 4
    )


# --- request ------------------------------------------------------------------------------------------------------


def test_headers_merge_by_name_and_none_removes() -> None:
    found = headers({"X-A": "1", "User-Agent": "mine", "ACCEPT": None, "x-gone": None}, organization="o")
    assert found == {
        "content-type": "application/json",
        "user-agent": "mine",
        "openai-organization": "o",
        "x-a": "1",
        "authorization": "Bearer k",
    }
    assert "openai-organization" not in headers({"OpenAI-Organization": None}, organization="o")
    assert headers(None) == headers({})


@pytest.mark.parametrize("name", sorted(CREDENTIAL_HEADERS))
@pytest.mark.parametrize("spell", [str, str.upper, str.title])
def test_a_credential_header_of_ones_own_replaces_the_credential(name: str, spell: Any) -> None:
    found = request(api_key="k", request={"headers": {spell(name): "my own"}})
    assert "auth" not in found
    assert found["headers"][name] == "***"
    sent = wire_headers(found)
    assert sent[name] == "my own"
    assert sum(header in CREDENTIAL_HEADERS for header in sent) == 1
    removed = request(api_key="k", request={"headers": {spell(name): None}})
    assert not CREDENTIAL_HEADERS & wire_headers(removed).keys()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("a b", "x", "is no name of a header"),
        ("", "x", "is no name of a header"),
        ("a:", "x", "is no name of a header"),
        ("é", "x", "is no name of a header"),
        ("a\r\nb", "x", "is no name of a header"),
        (5, "x", "5 is no name of a header"),
        (b"a", "x", "b'a' is no name of a header"),
        ("Host", "x", "follows from the request itself; leave it out"),
        ("content-length", "5", "follows from the request itself"),
        ("Transfer-Encoding", "chunked", "follows from the request itself"),
        ("connection", None, "follows from the request itself"),
        ("a", "", "the value of the header 'a' is empty"),
        ("a", "x\r\ny: z", "has a character that is not visible ASCII"),
        ("a", "é", "has a character that is not visible ASCII"),
        ("a", 5, "is not a string but int"),
        ("a", print, "is not a string but builtin_function_or_method"),
        ("authorization", 5, "is not a string but int"),
        ("authorization", "x\n", "has a character that is not visible ASCII"),
        ("authorization", lambda: "x", "is not a string but a function"),
    ],
)
def test_a_header_that_could_break_a_request_is_refused(name: Any, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as info:
        headers({name: value})
    assert words in str(info.value)


@settings(deadline=None)
@given(st.text(max_size=8), st.text(max_size=8))
def test_a_header_is_sent_as_given_or_refused(name: str, value: str) -> None:
    try:
        found = headers({name: value})
    except ValueError:
        return
    assert found[name.lower()] == value
    assert (name + value).isascii()
    assert (name + value).isprintable()


def test_the_query_merges_and_none_removes() -> None:
    def url(query: Any) -> str:
        return str(request(api_endpoint="https://h/v1?a=1&b=2", request={"query": query})["url"])

    assert url({"b": None, "c": 3, "d": "x y"}) == "https://h/v1/chat/completions?a=1&c=3&d=x+y"
    assert url({}) == url(None) == "https://h/v1/chat/completions?a=1&b=2"
    assert url({"a": None, "b": None}) == "https://h/v1/chat/completions"
    gone = request(impl="azure", api_endpoint="https://h", request={"query": {"api-version": None}})
    assert gone["url"] == "https://h/openai/deployments/m/chat/completions"


@pytest.mark.parametrize(
    ("given", "timeout"),
    [
        (None, TIMEOUT),
        (3, (3.0, 3.0)),
        (0.5, (0.5, 0.5)),
        ((1, 2), (1.0, 2.0)),
        ([1, None], (1.0, TIMEOUT[1])),
        ((None, 2), (TIMEOUT[0], 2.0)),
        ((None, None), TIMEOUT),
    ],
)
def test_a_timeout_is_seconds_to_connect_and_of_silence(given: Any, timeout: tuple[float, float]) -> None:
    assert timeout_of(given) == timeout
    assert request(request={"timeout": given})["timeout"] == timeout


def test_timeouts_and_bounds_are_finite_by_default() -> None:
    found = request()
    assert (found["timeout"], found["deadline"]) == ((5.0, 600.0), 900.0)
    assert found["bounds"] == {"body": 64 * 2**20, "event": 16 * 2**20, "headers": 64 * 2**10}
    assert bounds_of({"bounds": {"event": 1}}) == {**BOUNDS, "event": 1}


def test_what_the_connection_needs_passes_through() -> None:
    more: dict[str, Any] = {"proxies": {"https": "http://p:1", "http": None}, "verify": "ca.pem", "cert": ("a", "b")}
    found = request(request=more)
    assert {name: found[name] for name in more} == more
    assert not request(request=dict.fromkeys(REQUEST_KEYS)).keys() & more.keys()
    with_user = request(request={"proxies": {"https": "http://me:word@p:1"}})["proxies"]["https"]
    assert with_user == "***"
    assert with_user.reveal() == "http://me:word@p:1"
    assert request(request={"verify": False})["verify"] is False


# --- settings of middleware ---------------------------------------------------------------------------------------

KEY = "sk-0123456789abcdef"
HOLDERS: list[Any] = [
    [["fallback", {"impls": [{"api_key": KEY}]}]],
    [("fallback", {"impls": ({"api-key": KEY, "model": "m"},)})],
    [["fallback", {"impls": {"oops": KEY}}]],
    [["fallback", {"impls": [[{"ad_token": KEY}], "azure"]}]],
    [["fallback", {"impls": [{"impl": {"defaults": {"api_key": KEY}}}]}]],
    [["fallback", {"impls": [{"request": {"headers": {"authorization": KEY}}}]}]],
    [["anything", {"api_endpoint": f"https://me:{KEY}@h", "deeper": [{"token": KEY}]}]],
    {"fallback": {"api_key": KEY}},
]


@pytest.mark.parametrize("layers", HOLDERS)
@pytest.mark.parametrize("wrap", [lambda options: options, freeze])
def test_credentials_in_settings_of_middleware_are_sealed(layers: Any, wrap: Any) -> None:
    found = sealed(wrap({"middleware": layers}))
    assert KEY not in repr(found)
    assert sealed(found) == found
    assert KEY in repr(layers)


def test_other_settings_of_middleware_stay_as_they_are() -> None:
    layers = ["retry", ("limit", {"tokens": 5, "path": "p"}), print, ["fallback", {"impls": ["azure", {"model": "m"}]}]]
    assert sealed({"middleware": layers}) == {"middleware": layers}


def test_settings_nested_too_deeply_are_sealed_whole() -> None:
    layers: Any = KEY
    for _ in range(50):
        layers = [layers]
    assert KEY not in repr(sealed({"middleware": layers}))


def test_a_request_names_the_model_that_was_asked_where_its_body_does_not() -> None:
    azure = {"impl": "azure", "api_endpoint": "https://h", "deployment": "d"}
    assert [request(**azure, api_version=version).get("model") for version in ("2024-10-21", "v1")] == ["m", "m"]
    assert "model" not in request()
