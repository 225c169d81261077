"""The dispatch table: URLs, headers, credentials and bodies of each service."""

from __future__ import annotations

import pickle
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import PMap, PVector, freeze

import chatfn
from chatfn import IMPLS, TRANSPORTS, build_request, wire_headers
from chatfn.client import environment
from chatfn.impls import AZURE_VERSION, segment, variables_of, with_path
from chatfn.operations import OPERATIONS
from chatfn.options import impl_of, resolve
from chatfn.sealing import sealed
from chatfn.spec import Impl

HOST = "https://h.openai.azure.com"
DATED = "2025-01-01-preview"


def url_of(params: Any = None, **options: Any) -> str:
    return build_request({"model": "m"} if params is None else params, options)["url"]


def azure(params: Any = None, endpoint: str = HOST, **options: Any) -> str:
    return url_of(params, impl="azure", api_endpoint=endpoint, **options)


# --- OpenAI -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://h/v1",
        "https://h/v1/",
        "https://h/v1//",
        "https://h/v1/chat/completions",
        "https://h/v1/chat/completions/",
    ],
)
def test_an_endpoint_is_taken_in_each_of_its_forms(endpoint: str) -> None:
    assert url_of(api_endpoint=endpoint) == "https://h/v1/chat/completions"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("https://h", "https://h/chat/completions"),
        ("https://h:8443/a/b?key=1&x=", "https://h:8443/a/b/chat/completions?key=1&x="),
        ("http://localhost:1/v1", "http://localhost:1/v1/chat/completions"),
        ("http://[::1]:1/v1", "http://[::1]:1/v1/chat/completions"),
        ("https://h/@cf/v1", "https://h/@cf/v1/chat/completions"),
    ],
)
def test_an_endpoints_path_and_query_are_kept(endpoint: str, url: str) -> None:
    assert url_of(api_endpoint=endpoint) == url


def test_openai_has_its_headers() -> None:
    options = {"organization": "o", "project": "p", "openai_beta": "b", "api_key": "k"}
    headers = wire_headers(build_request({}, options))
    assert headers["openai-organization"] == "o"
    assert headers["openai-project"] == "p"
    assert headers["openai-beta"] == "b"
    assert headers["authorization"] == "Bearer k"
    assert not build_request({}).keys() & {"proxies", "verify", "cert"}
    assert set(build_request({})["headers"]) == {"accept", "content-type", "user-agent"}


# --- Azure's two surfaces -----------------------------------------------------------------------------------------

ROOTS = {
    "": ["", "/", "//", "/openai", "/openai/", "/openai/v1", "/openai/v1/", "/openai/v1/chat/completions"],
    "/gw": ["/gw", "/gw/", "/gw/openai", "/gw/openai/", "/gw/openai/v1", "/gw/openai/v1/"],
    "/a/b": ["/a/b/openai/deployments/m/chat/completions", "/a/b/openai/deployments/m/", "/a/b/openai/v1/"],
    "/openai": ["/openai/openai/", "/openai/openai/v1"],
}
FORMS = [(root, HOST + path) for root, paths in ROOTS.items() for path in paths]


@pytest.mark.parametrize(("root", "endpoint"), FORMS)
def test_azures_endpoint_is_taken_in_each_of_its_forms(root: str, endpoint: str) -> None:
    dated = f"{HOST}{root}/openai/deployments/m/chat/completions?api-version={DATED}"
    assert azure(endpoint=endpoint, api_version=DATED) == dated
    assert azure(endpoint=f"{endpoint}?api-version=2023-05-15", api_version=DATED) == dated
    assert azure(endpoint=f"{endpoint}?api-version={DATED}") == dated
    v1 = f"{HOST}{root}/openai/v1/chat/completions"
    assert azure(endpoint=endpoint, api_version="v1") == v1
    assert azure(endpoint=f"{endpoint}?api-version={DATED}", api_version="v1") == v1
    for version in ("preview", "latest"):
        assert azure(endpoint=endpoint, api_version=version) == f"{v1}?api-version=preview"
        assert azure(endpoint=f"{endpoint}?api-version={version}") == f"{v1}?api-version=preview"


def test_an_endpoint_of_the_v1_surface_says_so_itself() -> None:
    assert azure(endpoint=f"{HOST}/openai/v1/") == f"{HOST}/openai/v1/chat/completions"
    assert azure(endpoint=f"{HOST}/openai/v1?api-version=preview") == (
        f"{HOST}/openai/v1/chat/completions?api-version=preview"
    )


def test_a_full_deployment_url_is_the_url() -> None:
    url = f"{HOST}/openai/deployments/gpt-4o/chat/completions?api-version={DATED}"
    assert azure({}, url) == url
    assert azure({"model": "ignored"}, url) == url
    assert azure({"model": "ignored"}, url, deployment="given").count("/deployments/given/") == 1


def test_an_endpoints_other_query_is_kept() -> None:
    url = azure(endpoint=f"{HOST}/gw?tier=1&api-version=2023-05-15")
    assert parse_qsl(urlsplit(url).query) == [("tier", "1"), ("api-version", "2023-05-15")]


@pytest.mark.parametrize("variable", [None, "2024-02-01"])
@pytest.mark.parametrize("in_url", [None, "2023-05-15"])
@pytest.mark.parametrize("given", [None, DATED])
@pytest.mark.parametrize("default", [None, "2022-12-01"])
def test_a_version_is_given_or_the_endpoints_or_the_environments_or_the_default(
    default: str | None, given: str | None, in_url: str | None, variable: str | None
) -> None:
    impl = IMPLS["azure"] if default is None else {**IMPLS["azure"], "defaults": {"api_version": default}}
    endpoint = HOST + (f"?api-version={in_url}" if in_url else "")
    found = {"api_version": variable} if variable else {}
    whole = resolve(sealed({"impl": impl, "api_endpoint": endpoint, "api_version": given, "deployment": "d"}), found)
    version = dict(parse_qsl(urlsplit(impl_of({"impl": impl})["url"](OPERATION, {}, whole)).query))["api-version"]
    assert version == (given or in_url or variable or default or AZURE_VERSION)


OPERATION: Any = OPERATIONS["create_chat_completion"]


def test_the_environments_endpoint_knows_its_version_too() -> None:
    found = {"api_endpoint": f"{HOST}/openai/v1", "api_version": "2024-02-01"}
    whole = resolve({"impl": "azure"}, found)
    assert impl_of(whole)["url"](OPERATION, {}, whole) == f"{HOST}/openai/v1/chat/completions"


@pytest.mark.parametrize(
    ("options", "params", "name"),
    [
        ({"deployment": "d"}, {"model": "m"}, "d"),
        ({"deployment": "d"}, {}, "d"),
        ({}, {"model": "m"}, "m"),
        ({"api_endpoint": f"{HOST}/openai/deployments/e"}, {"model": "m"}, "e"),
        ({"api_endpoint": f"{HOST}/openai/deployments/e%2Ff"}, {}, "e/f"),
        ({"api_endpoint": f"{HOST}/openai/deployments/e", "deployment": "d"}, {"model": "m"}, "d"),
    ],
)
def test_a_deployment_stands_in_the_path_or_on_v1_in_the_body(options: Any, params: Any, name: str) -> None:
    whole = {"impl": "azure", "api_endpoint": HOST, **options}
    dated = build_request({"n": 1, **params}, {**whole, "api_version": DATED})
    assert unquote(urlsplit(dated["url"]).path.split("/")[3]) == name
    assert dated["body"] == {"n": 1}
    v1 = build_request({"n": 1, **params}, {**whole, "api_version": "v1"})
    assert v1["body"] == {"n": 1, "model": name}


def test_on_v1_the_model_keeps_its_place_and_may_be_absent() -> None:
    v1 = {"impl": "azure", "api_endpoint": HOST, "api_version": "v1"}
    assert list(build_request({"a": 1, "model": "m", "b": 2}, {**v1, "deployment": "d"})["body"].items()) == [
        ("a", 1),
        ("model", "d"),
        ("b", 2),
    ]
    assert build_request({"a": 1}, v1)["body"] == {"a": 1}


def segments(url: str) -> list[str]:
    return urlsplit(url).path.split("/")[1:]


NASTY = [
    "../x",
    "a/b",
    "a?b#c",
    "a#b",
    "%2e%2e",
    "..%2f",
    "größe",
    "模型",
    " ",
    "a b",
    "\n",
    "\x00",
    "a\\..\\b",
    "@",
    ":",
]


@settings(deadline=None)
@given(st.text() | st.sampled_from([*NASTY, "", ".", ".."]))
def test_a_deployment_stays_one_segment_of_the_path_or_is_refused(name: str) -> None:
    for options in ({}, {"deployment": name}):
        try:
            url = azure({"model": name}, **options)
        except ValueError as exc:
            assert "deployment" in str(exc)  # noqa: PT017  # both ends are allowed
            assert name in ("", ".", "..") or options
            continue
        assert segments(url)[:2] == ["openai", "deployments"]
        assert segments(url)[3:] == ["chat", "completions"]
        assert unquote(segments(url)[2]) == name
        assert segments(url)[2] not in ("", ".", "..")
        assert urlsplit(url).query == f"api-version={AZURE_VERSION}"
        assert url.isascii()
        assert not urlsplit(url).fragment


@pytest.mark.parametrize("name", NASTY)
def test_nasty_deployments_as_model_are_quoted_not_refused(name: str) -> None:
    assert unquote(segments(azure({"model": name}))[2]) == name


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_name_is_refused_wherever_it_comes_from(name: str) -> None:
    with pytest.raises(ValueError, match="deployment"):
        azure({"model": name})
    with pytest.raises(ValueError, match="deployment"):
        azure(deployment=name)
    if name:
        with pytest.raises(ValueError, match="deployment"):
            azure({}, f"{HOST}/openai/deployments/{name.replace('.', '%2E')}/chat/completions")


@pytest.mark.parametrize("name", [5, True, ["m"], {}])
def test_a_deployment_is_a_string(name: Any) -> None:
    with pytest.raises(ValueError, match="is no name"):
        azure({"model": name})
    with pytest.raises(TypeError, match="'deployment'"):
        azure(deployment=name)
    with pytest.raises(ValueError, match="is no name"):
        segment(name, "id")


def test_no_deployment_says_how_to_give_one() -> None:
    for params in ({}, {"model": None}):
        with pytest.raises(ValueError, match='no deployment: give the option "deployment", or its name as "model"'):
            azure(params)


# --- credentials --------------------------------------------------------------------------------------------------


def credentials(options: Any, found: Any = None) -> dict[str, str]:
    whole = resolve(sealed({"deployment": "d", **options}), found)
    auth = impl_of(whole)["auth"](whole)
    return {} if auth is None else {auth["header"]: f"{auth['scheme']} {auth['secret'].reveal()}".strip()}


AZ = {"impl": "azure", "api_endpoint": HOST}


@pytest.mark.parametrize(
    ("options", "found", "sent"),
    [
        ({"api_key": "k"}, {}, {"authorization": "Bearer k"}),
        ({"api_key": lambda: "k"}, {}, {"authorization": "Bearer k"}),
        ({}, {"api_key": "e"}, {"authorization": "Bearer e"}),
        ({"api_key": "k"}, {"api_key": "e"}, {"authorization": "Bearer k"}),
        ({**AZ, "api_key": "k"}, {}, {"api-key": "k"}),
        ({**AZ, "ad_token": "t"}, {}, {"authorization": "Bearer t"}),
        ({**AZ, "ad_token": lambda: "t"}, {}, {"authorization": "Bearer t"}),
        ({**AZ, "api_key": "k"}, {"ad_token": "e"}, {"api-key": "k"}),
        ({**AZ, "ad_token": "t"}, {"api_key": "e"}, {"authorization": "Bearer t"}),
        ({**AZ, "ad_token": "t"}, {"api_key": "e", "ad_token": "f"}, {"authorization": "Bearer t"}),
        (AZ, {"api_key": "e"}, {"api-key": "e"}),
        (AZ, {"ad_token": "f"}, {"authorization": "Bearer f"}),
        ({"impl": "ollama"}, {}, {}),
        ({"impl": "ollama", "api_key": "k"}, {}, {"authorization": "Bearer k"}),
        ({"impl": "vllm"}, {"api_key": "e"}, {"authorization": "Bearer e"}),
    ],
)
def test_exactly_one_credential_is_sent_and_a_given_one_beats_the_environment(
    options: Any, found: Any, sent: dict[str, str]
) -> None:
    assert credentials(options, found) == sent


@pytest.mark.parametrize("found", [{}, {"api_key": "e"}])
def test_two_credentials_are_an_error(found: Any) -> None:
    with pytest.raises(ValueError, match='both "api_key" and "ad_token" are given: give one'):
        credentials({**AZ, "api_key": "k", "ad_token": "t"}, found)


def test_of_two_credentials_in_the_environment_the_token_is_sent() -> None:
    assert credentials(AZ, {"api_key": "e", "ad_token": "f"}) == {"authorization": "Bearer f"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, 'no API key: give the option "api_key" or set OPENAI_API_KEY'),
        ({"impl": "groq"}, 'no API key: give the option "api_key" or set GROQ_API_KEY'),
        ({"impl": "gemini"}, "set GEMINI_API_KEY or GOOGLE_API_KEY"),
        (AZ, 'set AZURE_OPENAI_API_KEY, or the option "ad_token" or AZURE_OPENAI_AD_TOKEN'),
        ({"impl": IMPLS["openai"].update({"env": {}})}, 'give the option "api_key"'),
    ],
)
def test_a_missing_key_is_no_error_until_it_is_sent_and_says_what_to_set(options: Any, words: str) -> None:
    request = build_request({"model": "m"}, options)
    with pytest.raises(ValueError) as info:
        wire_headers(request)
    assert words in str(info.value)


def test_a_missing_endpoint_says_what_to_set() -> None:
    with pytest.raises(ValueError) as info:
        url_of(impl="azure")
    assert str(info.value) == (
        'no endpoint: give the option "api_endpoint" or set AZURE_OPENAI_API_ENDPOINT or AZURE_OPENAI_ENDPOINT'
    )
    with pytest.raises(ValueError, match=r'^no endpoint: give the option "api_endpoint"$'):
        url_of(impl=IMPLS["openai"].update({"env": {}, "defaults": {}}))


# --- the environment ----------------------------------------------------------------------------------------------

VARIABLES = {
    "openai": {
        "api_key": ["OPENAI_API_KEY"],
        "organization": ["OPENAI_ORGANIZATION", "OPENAI_ORG_ID"],
        "project": ["OPENAI_PROJECT_ID"],
        "api_endpoint": ["OPENAI_API_ENDPOINT", "OPENAI_BASE_URL"],
    },
    "azure": {
        "api_key": ["AZURE_OPENAI_API_KEY"],
        "ad_token": ["AZURE_OPENAI_AD_TOKEN"],
        "api_endpoint": ["AZURE_OPENAI_API_ENDPOINT", "AZURE_OPENAI_ENDPOINT"],
        "api_version": ["OPENAI_API_VERSION"],
    },
    "openrouter": {"api_key": ["OPENROUTER_API_KEY"]},
    "groq": {"api_key": ["GROQ_API_KEY"]},
    "mistral": {"api_key": ["MISTRAL_API_KEY"]},
    "deepseek": {"api_key": ["DEEPSEEK_API_KEY"]},
    "xai": {"api_key": ["XAI_API_KEY"]},
    "gemini": {"api_key": ["GEMINI_API_KEY", "GOOGLE_API_KEY"]},
    "ollama": {"api_key": ["OLLAMA_API_KEY"]},
    "vllm": {"api_key": ["VLLM_API_KEY"]},
    "llama.cpp": {"api_key": ["LLAMA_API_KEY"]},
}
EACH = [(impl, option, names) for impl, env in VARIABLES.items() for option, names in env.items()]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for _, _, names in EACH:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def shown(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value.reveal() if hasattr(value, "reveal") else value for name, value in found.items()}


@pytest.mark.parametrize(("impl", "option", "names"), EACH)
def test_an_option_is_read_from_its_variables_in_order_at_call_time(
    bare: pytest.MonkeyPatch, impl: str, option: str, names: list[str]
) -> None:
    assert environment({"impl": impl}) == {}
    for name in reversed(names):
        bare.setenv(name, f"value of {name}")
        assert shown(environment({"impl": impl})) == {option: f"value of {name}"}
    bare.setenv(names[0], "")
    assert shown(environment({"impl": impl})) == ({option: f"value of {names[1]}"} if len(names) > 1 else {})


def test_the_table_has_these_impls_with_these_variables(bare: pytest.MonkeyPatch) -> None:
    for name, impl in IMPLS.items():
        assert {option: list(variables_of(impl, option)) for option in impl["env"]} == VARIABLES[name]
    assert IMPLS.keys() == VARIABLES.keys()
    assert variables_of(IMPLS["openai"], "deadline") == ()


@pytest.mark.parametrize("option", ["api_endpoint", "organization"])
def test_what_is_given_beats_the_environment(bare: pytest.MonkeyPatch, option: str) -> None:
    bare.setenv("OPENAI_BASE_URL", "https://environment/v1")
    bare.setenv("OPENAI_ORG_ID", "environment")
    whole: Any = resolve({option: "https://given"}, environment({}))
    assert whole[option] == "https://given"
    whole = resolve({}, environment({}))
    assert (whole["api_endpoint"], whole["organization"]) == ("https://environment/v1", "environment")


def test_build_request_reads_no_environment(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("OPENAI_BASE_URL", "https://environment/v1")
    assert url_of() == "https://api.openai.com/v1/chat/completions"


# --- the table ----------------------------------------------------------------------------------------------------

LOCAL = {"ollama": 11434, "vllm": 8000, "llama.cpp": 8080}


@pytest.mark.parametrize("name", sorted(VARIABLES))
def test_each_named_impl_is_whole(name: str) -> None:
    impl = IMPLS[name]
    assert Impl.__required_keys__ <= set(impl)
    options = {"impl": name, "api_key": "k", **({"api_endpoint": HOST} if name == "azure" else {})}
    request = build_request({"model": "m", "messages": []}, options)
    assert request["url"].split("?")[0].endswith("/chat/completions")
    parts = urlsplit(request["url"])
    assert parts.scheme == ("http" if name in LOCAL else "https")
    assert parts.port == LOCAL.get(name)
    assert variables_of(impl, "api_key")
    assert wire_headers(request)["api-key" if name == "azure" else "authorization"].endswith("k")


def test_a_new_service_is_data() -> None:
    before = IMPLS["openai"]
    mine = IMPLS["openai"].update(
        {"env": {"api_key": "MY_KEY"}, "defaults": {"api_endpoint": "https://mine/v1", "organization": "o"}}
    )
    request = build_request({"model": "m"}, {"impl": mine, "api_key": "k"})
    assert request["url"] == "https://mine/v1/chat/completions"
    assert request["headers"]["openai-organization"] == "o"
    assert variables_of(mine, "api_key") == ("MY_KEY",)
    assert IMPLS["openai"] is before
    assert url_of() == "https://api.openai.com/v1/chat/completions"


def test_an_impl_of_ones_own_may_have_options_and_a_body_of_its_own() -> None:
    impl = {
        **IMPLS["openai"],
        "defaults": {"region": "eu", "gateway-key": "secret-of-mine", "api_endpoint": "https://h"},
        "headers": lambda options: {"x-region": options["region"]},
        "body": lambda params, options: {"wrapped": params},
        "auth": lambda options: {"header": "x-gateway", "scheme": "", "secret": options["gateway_key"]},
    }
    request = build_request({"a": 1}, {"impl": impl})
    assert request["headers"]["x-region"] == "eu"
    assert request["body"] == {"wrapped": {"a": 1}}
    assert "secret-of-mine" not in repr(request)
    assert wire_headers(request)["x-gateway"] == "secret-of-mine"
    whole: Any = resolve({"impl": impl}, {"region": "us", "more": None})
    assert (whole["region"], whole["more"]) == ("us", None)


@pytest.mark.parametrize("lacking", sorted(Impl.__required_keys__))
def test_an_impl_map_must_be_whole(lacking: str) -> None:
    impl = {name: value for name, value in IMPLS["openai"].items() if name != lacking}
    with pytest.raises(ValueError, match=f"the impl map lacks {lacking}: derive it from one of IMPLS"):
        url_of(impl=impl)


@pytest.mark.parametrize("table", [IMPLS, OPERATIONS, TRANSPORTS, chatfn.MIDDLEWARE], ids=["I", "O", "T", "M"])
def test_the_tables_are_frozen_and_picklable(table: Any) -> None:
    assert isinstance(table, PMap)
    assert pickle.loads(pickle.dumps(table)) == table
    assert freeze(table) == table
    with pytest.raises(TypeError):
        table["new"] = 1
    for value in table.values():
        if isinstance(value, (PMap, PVector, dict, list)):
            assert isinstance(value, PMap)
            with pytest.raises(TypeError):
                value["new"] = 1
            assert not any(isinstance(member, (dict, list, set)) for member in value.values())


def test_a_derived_table_leaves_the_table() -> None:
    derived = IMPLS.transform(["openai", "defaults", "api_endpoint"], "https://mine")
    assert derived["openai"]["defaults"]["api_endpoint"] == "https://mine"
    assert IMPLS["openai"]["defaults"]["api_endpoint"] == "https://api.openai.com/v1"


def test_the_operations_are_those() -> None:
    assert OPERATIONS == {"create_chat_completion": {"method": "POST", "path": "/chat/completions"}}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [("a", "1"), ("b", "")]),
        ({"a": None}, [("b", "")]),
        ({"a": 2, "c": "&=?#/ é"}, [("a", "2"), ("b", ""), ("c", "&=?#/ é")]),
        ({"a": None, "b": None}, []),
    ],
)
def test_a_query_is_merged_and_none_removes(query: Any, expected: list[tuple[str, str]]) -> None:
    url = with_path("https://h:1/p?a=1&b=", "/q", query)
    parts = urlsplit(url)
    assert (parts.netloc, parts.path) == ("h:1", "/q")
    assert parse_qsl(parts.query, keep_blank_values=True) == expected
    assert "?" in url or not expected
