"""The dispatch table: what each service does its own way, as maps of pure functions.

An impl is a map of ``env`` (option to environment variables), ``defaults`` (of options) and the functions ``auth``,
``url``, ``headers`` and ``body``.  A new service is data: take one of ``IMPLS`` and change what differs.

Sources: https://platform.openai.com/docs/api-reference/authentication,
https://learn.microsoft.com/azure/ai-foundry/openai/reference and .../openai/api-version-lifecycle (the v1 surface).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pyrsistent import PMap, freeze
from toolz import assoc, merge

from chatfn.plain import without
from chatfn.secret import Secret, absent
from chatfn.spec import Auth, Impl, Json, Operation, Options

AZURE_VERSION = "2024-10-21"  # the newest dated version that is generally available
V1_VERSIONS = ("v1", "latest", "preview")
AZURE_PATH = re.compile(
    r"(?P<root>.*?)(/openai)?(?P<v1>/v1)?(/deployments/(?P<deployment>[^/]+))?(/chat/completions)?/*"
)
ENDPOINT_HEADERS = {"organization": "openai-organization", "project": "openai-project", "openai_beta": "openai-beta"}


def missing(options: Options, option: str, what: str) -> str:
    """The sentence that says what is not set, and where to set it."""
    variables = variables_of(cast(Impl, options["impl"]), option)
    return f'no {what}: give the option "{option}"' + (f" or set {' or '.join(variables)}" if variables else "")


def variables_of(impl: Impl, option: str) -> tuple[str, ...]:
    """The environment variables that an impl reads an option from, in order.

    >>> variables_of(IMPLS["openai"], "api_endpoint")
    ('OPENAI_API_ENDPOINT', 'OPENAI_BASE_URL')
    """
    names = impl["env"].get(option, ())
    return (names,) if isinstance(names, str) else tuple(names)


def segment(value: Any, name: str) -> str:
    """One segment of a path: percent-encoded, so that it stays one.

    >>> segment("a/b?c", "deployment")
    'a%2Fb%3Fc'
    """
    if not isinstance(value, str) or value in ("", ".", ".."):
        raise ValueError(f"{name} {value!r} is no name: give a string that is not empty, '.' or '..'")
    return quote(value, safe="")


def endpoint_of(options: Options) -> str:
    endpoint = options.get("api_endpoint")
    if not endpoint:
        raise ValueError(missing(options, "api_endpoint", "endpoint"))
    return endpoint


def with_path(url: str, path: str, query: Mapping[str, Any]) -> str:
    """``url`` with another path, and with its own query merged with ``query``, where None removes a name.

    >>> with_path("https://h/v1?a=1&b=2", "/v2", {"b": None, "c": 3})
    'https://h/v2?a=1&c=3'
    """
    parts = urlsplit(url)
    if not parts.query and not query:
        return f"{parts.scheme}://{parts.netloc}{path}"
    asked = merge(dict(parse_qsl(parts.query, keep_blank_values=True)), query)
    text = urlencode({name: value for name, value in asked.items() if value is not None})
    return f"{parts.scheme}://{parts.netloc}{path}" + (f"?{text}" if text else "")


def openai_url(operation: Operation, params: Json, options: Options) -> str:
    return beneath(endpoint_of(options), operation["path"])


@lru_cache(1_024)
def beneath(endpoint: str, path: str) -> str:
    """The URL of a path beneath an endpoint, which may name it already.

    >>> beneath("https://h/v1/", "/chat/completions"), beneath("https://h/v1/chat/completions", "/chat/completions")
    ('https://h/v1/chat/completions', 'https://h/v1/chat/completions')
    """
    base = urlsplit(endpoint).path.rstrip("/").removesuffix(path)
    return with_path(endpoint, base + path, {})


def key_auth(options: Options) -> Auth | None:
    """Bearer authorization; a missing key is an error when it is sent."""
    secret = options.get("api_key") or absent(missing(options, "api_key", "API key"))
    return {"header": "authorization", "scheme": "Bearer", "secret": cast(Secret, secret)}


def optional_key_auth(options: Options) -> Auth | None:
    """Bearer authorization if a key is given; for servers of one's own."""
    return key_auth(options) if options.get("api_key") else None


def openai_headers(options: Options) -> dict[str, str]:
    given = cast("dict[str, str]", options)
    return {header: given[option] for option, header in ENDPOINT_HEADERS.items() if given.get(option)}


def same_body(params: Json, options: Options) -> Json:
    return params


def azure_endpoint(options: Options) -> tuple[str, str | None, str | None]:
    """An endpoint in any of its forms as (path before ``/openai``, deployment or None, API version or None)."""
    parts = urlsplit(endpoint_of(options))
    found = cast("re.Match[str]", AZURE_PATH.fullmatch(parts.path))
    version = dict(parse_qsl(parts.query)).get("api-version") or ("v1" if found["v1"] else None)
    return found["root"], unquote(found["deployment"] or "") or None, version


def azure_version(options: Options) -> str:
    return options.get("api_version") or azure_endpoint(options)[2] or AZURE_VERSION


def azure_url(operation: Operation, params: Json, options: Options) -> str:
    root, deployment, _ = azure_endpoint(options)
    version = azure_version(options)
    endpoint = endpoint_of(options)
    if version in V1_VERSIONS:
        query = {"api-version": None if version == "v1" else "preview"}
        return with_path(endpoint, f"{root}/openai/v1{operation['path']}", query)
    name = options.get("deployment") or deployment or params.get("model")
    if name is None:
        raise ValueError('no deployment: give the option "deployment", or its name as "model" in params')
    path = f"{root}/openai/deployments/{segment(name, 'deployment')}{operation['path']}"
    return with_path(endpoint, path, {"api-version": version})


def azure_auth(options: Options) -> Auth | None:
    token = options.get("ad_token")
    if token:
        return {"header": "authorization", "scheme": "Bearer", "secret": cast(Secret, token)}
    how = missing(options, "api_key", "Azure OpenAI key") + ', or the option "ad_token" or AZURE_OPENAI_AD_TOKEN'
    return {"header": "api-key", "scheme": "", "secret": cast(Secret, options.get("api_key") or absent(how))}


def azure_body(params: Json, options: Options) -> Json:
    """A dated version names the deployment in the path; the v1 surface names it in the body, as its model."""
    if azure_version(options) not in V1_VERSIONS:
        return without(params, "model")
    name = options.get("deployment") or azure_endpoint(options)[1]
    return assoc(params, "model", name) if name else params


OPENAI: Impl = {
    "env": {
        "api_key": "OPENAI_API_KEY",
        "organization": ("OPENAI_ORGANIZATION", "OPENAI_ORG_ID"),
        "project": "OPENAI_PROJECT_ID",
        "api_endpoint": ("OPENAI_API_ENDPOINT", "OPENAI_BASE_URL"),
    },
    "defaults": {"api_endpoint": "https://api.openai.com/v1"},
    "auth": key_auth,
    "url": openai_url,
    "headers": openai_headers,
    "body": same_body,
}
AZURE: Impl = {
    "env": {
        "api_key": "AZURE_OPENAI_API_KEY",
        "ad_token": "AZURE_OPENAI_AD_TOKEN",
        "api_endpoint": ("AZURE_OPENAI_API_ENDPOINT", "AZURE_OPENAI_ENDPOINT"),
        "api_version": "OPENAI_API_VERSION",
    },
    "defaults": {},
    "auth": azure_auth,
    "url": azure_url,
    "headers": openai_headers,
    "body": azure_body,
}


def service(endpoint: str, *variables: str) -> Impl:
    """Another service that speaks OpenAI's API, at ``endpoint``, with its key in one of ``variables``."""
    return {**OPENAI, "env": {"api_key": variables}, "defaults": {"api_endpoint": endpoint}}


def server(endpoint: str, *variables: str) -> Impl:
    """A server of one's own, which may want no key."""
    return {**service(endpoint, *variables), "auth": optional_key_auth}


IMPLS = cast(
    "PMap[str, Impl]",
    freeze(
        {
            "openai": OPENAI,
            "azure": AZURE,
            "openrouter": service("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
            "groq": service("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
            "mistral": service("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
            "deepseek": service("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
            "xai": service("https://api.x.ai/v1", "XAI_API_KEY"),
            "gemini": service(
                "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", "GOOGLE_API_KEY"
            ),
            "ollama": server("http://localhost:11434/v1", "OLLAMA_API_KEY"),
            "vllm": server("http://localhost:8000/v1", "VLLM_API_KEY"),
            "llama.cpp": server("http://localhost:8080/v1", "LLAMA_API_KEY"),
        }
    ),
)
