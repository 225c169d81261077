"""Options made whole: checked, and completed by defaults, impl and environment.

Every complaint names the option and the fix.  A value is repeated only where it can't be a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, cast
from urllib.parse import urlsplit

from pyrsistent import thaw
from toolz import keymap, merge, valfilter

from chatfn.impls import IMPLS, azure_endpoint
from chatfn.plain import without
from chatfn.sealing import CREDENTIALS, KNOWN, REQUEST_KEYS, has_user, sealed_own
from chatfn.secret import Secret, problem_of, type_name
from chatfn.spec import Bounds, Impl, Json, Options

CREDENTIAL_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key"})
TEXTS = frozenset({"api_endpoint", "api_version", "deployment", "organization", "project", "openai_beta"})
FUNCTIONS = frozenset({"on_next", "trace", "category_of"})
FLAGS = ("allow_http", "full_response")

# Seconds to connect and of silence, and bytes; each is an option, and is named by the error that it ends in.
TIMEOUT = (5.0, 600.0)
DEADLINE = 900.0
BOUNDS: Bounds = {"body": 64 * 2**20, "event": 16 * 2**20, "headers": 64 * 2**10}
DEFAULTS: Options = {"impl": "openai", "surrogates": "refuse", "allow_http": False, "full_response": False}

NAMES = frozenset(IMPLS)
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})


def impl_of(options: Json) -> Impl:
    """The impl map itself, or the one that goes by its name."""
    impl = options.get("impl")
    if impl is None:
        impl = "openai"
    if isinstance(impl, str):
        if impl not in NAMES:
            known = f"{nearest(impl, IMPLS)}; known: {', '.join(sorted(IMPLS))}, or a map"
            raise ValueError(f"unknown impl {impl!r}{known}")
        return plain_impl(impl)
    if not isinstance(impl, Mapping):
        raise TypeError(f"the option 'impl' is {type_name(impl)}; give a name or an impl map")
    lacking = sorted(Impl.__required_keys__ - set(impl))
    if lacking:
        raise ValueError(f"the impl map lacks {', '.join(lacking)}: derive it from one of IMPLS with .update(…)")
    return cast(Impl, impl)


@cache
def plain_impl(name: str) -> Impl:
    """An impl of the table as a dict, which is looked into faster."""
    return thaw(IMPLS[name])


def nearest(name: Any, known: Iterable[str]) -> str:
    """The known name nearest to a wrong one, as a question, or nothing."""
    from difflib import get_close_matches  # at its first use: rarely needed, and slow to import

    close = get_close_matches(str(name), list(known), 1, 0.5)
    return f": did you mean {close[0]!r}?" if close else ""


def resolve(options: Any, environment: Json | None = None) -> Options:
    """Options made complete and checked: defaults, then the impl's, then ``environment``, then given.

    ``options`` are ``sealed``.  ``environment`` holds what the environment says of options, not variables.
    The ``impl`` of the result is the impl map; what is None counts as not given, but for ``deadline``.
    """
    environment = sealed_own(environment or {})
    if not isinstance(options, Mapping):
        raise TypeError(f"options are {type_name(options)}; give a mapping")
    for name in options:
        if name not in KNOWN:
            raise ValueError(f"unknown option {name!r}{nearest(name, KNOWN)}")
    given = {name: value for name, value in options.items() if value is not None or name == "deadline"}
    impl = impl_of(given)
    if any(name in given for name in CREDENTIALS):  # a credential that is given is the only one
        environment = without(environment, *CREDENTIALS)
    elif "ad_token" in environment:  # as openai-python has it: a token before a key
        environment = without(environment, "api_key")
    defaults = sealed_own(impl["defaults"])
    whole = cast(Options, merge(DEFAULTS, defaults, environment, given, {"impl": impl}))
    check(whole)
    if "api_version" in whole.keys() - given.keys() and whole.get("api_endpoint") and azure_endpoint(whole)[2]:
        return cast(Options, without(cast(Json, whole), "api_version"))  # an endpoint that names its version knows best
    return whole


def check(options: Options) -> None:
    """Raise for an option that can't be right, before it is used."""
    values = cast("dict[str, Any]", options)
    for name in values.keys() & TEXTS:
        check_text(name, values[name])
    for name in values.keys() & FUNCTIONS:
        if not callable(values[name]):
            raise TypeError(f"the option {name!r} is {type(values[name]).__name__}; give a function")
    for name in FLAGS:
        if not isinstance(values[name], bool):
            raise TypeError(f"the option {name!r} is {values[name]!r}; give True or False")
    if values["surrogates"] not in ("refuse", "replace"):
        raise ValueError(f"the option 'surrogates' is {values['surrogates']!r}; give 'refuse' or 'replace'")
    check_credentials(values)
    if values.get("api_endpoint"):
        check_url("the option 'api_endpoint'", values["api_endpoint"])
    if values.get("deadline") is not None:
        seconds(values["deadline"], "the option 'deadline'")
    check_middleware(values.get("middleware", ()))
    bounds_of(options)
    check_request(values.get("request", {}))


def check_credentials(values: Json) -> None:
    if "api_key" in values and "ad_token" in values:
        raise ValueError('both "api_key" and "ad_token" are given: give one')
    for name in values.keys() & CREDENTIALS:
        check_secret(f'the option "{name}"', values[name])


def check_middleware(items: Any) -> None:
    if isinstance(items, str) or not isinstance(items, (list, tuple, Sequence)):
        raise TypeError(f"the option 'middleware' is {type_name(items)}; give a list of layers, outermost first")


def check_request(request: Any) -> None:
    if not isinstance(request, Mapping):
        raise TypeError(f"the option 'request' is {type_name(request)}; give a mapping")
    for name in request:
        if name not in REQUEST_KEYS:
            raise ValueError(f"unknown key {name!r} in the option 'request'{nearest(name, REQUEST_KEYS)}")
    if not isinstance(request.get("proxies") or {}, Mapping):
        raise TypeError(f"proxies in the option 'request' are {type_name(request['proxies'])}; give a mapping")


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"the option {name!r} is {type(value).__name__}; give a string")
    problem = None if name == "api_endpoint" else problem_of(value)
    if problem:
        raise ValueError(f"the option {name!r} {problem}")


def check_secret(name: str, secret: Any) -> None:
    if not isinstance(secret, Secret) or (secret.kind == "value" and not isinstance(secret.reveal(), str)):
        raise TypeError(f"{name} is {type_name(secret)}; give a string, or a function that returns one")
    problem = problem_of(secret.reveal()) if secret.kind == "value" else None
    if problem:
        raise ValueError(f"{name} {problem}; strip it, or correct where it comes from")


@lru_cache(1_024)  # asked twice for every call, and most calls have the same URL
def check_url(name: str, url: str) -> None:
    """Raise unless ``url`` is an absolute http(s) URL without a user, a password or a fragment in it."""
    if isinstance(url, Secret) or has_user(url):
        raise ValueError(f"{name} has a user or password in it; give credentials as options")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, fine = urlsplit(""), False
    if not fine or problem_of(url) or " " in url or "\\" in url or parts.fragment:
        raise ValueError(f"{name} is {url[:200]!r}, no absolute URL of http or https such as 'https://host/v1'")


@lru_cache(1_024)
def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("127.0.0.1.example.com")
    (True, True, False)
    """
    from ipaddress import ip_address  # at its first use: slow to import

    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}; give seconds as a number")
    if not (0 < value < math.inf):
        raise ValueError(f"{name} is {value!r}; give a finite number of seconds greater than 0")
    return float(value)


def timeout_of(value: Any) -> tuple[float, float]:
    """Seconds to connect and of silence, from one number for both, a pair, or None for the defaults."""
    name = "timeout in the option 'request'"
    if value is None:
        return TIMEOUT
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} has {len(value)} numbers; give seconds, or (connect, read)")
        connect, read = (default if v is None else seconds(v, name) for v, default in zip(value, TIMEOUT, strict=True))
        return connect, read
    return seconds(value, name), seconds(value, name)


def bounds_of(options: Options) -> Bounds:
    given = options.get("bounds", {})
    if not isinstance(given, Mapping):
        raise TypeError(f"the option 'bounds' is {type(given).__name__}; give a mapping")
    for name, value in given.items():
        if name not in BOUNDS:
            raise ValueError(f"unknown bound {name!r}{nearest(name, BOUNDS)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"the bound {name!r} is {value!r}; give bytes as a whole number greater than 0")
    return cast(Bounds, merge(BOUNDS, given))


def headers_of(headers: Any) -> dict[str, Any]:
    """Given headers with lower-case names, None for one to remove; raises for what could break a request."""
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers in the option 'request' are {type_name(headers)}; give a mapping")
    for name, value in headers.items():
        if not isinstance(name, str) or HEADER_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() in OWN_HEADERS:
            raise ValueError(f"the header {name!r} follows from the request itself; leave it out")
        if value is not None:
            problem = header_problem(value)
            if problem:
                raise ValueError(f"the value of the header {name!r} {problem}")
    return cast("dict[str, Any]", keymap(str.lower, headers))


def header_problem(value: Any) -> str | None:
    if not isinstance(value, Secret):
        return problem_of(value)
    return "is not a string but a function" if value.kind == "function" else problem_of(value.reveal())


def query_of(query: Any) -> Mapping[str, Any]:
    if not isinstance(query, Mapping):
        raise TypeError(f"query in the option 'request' is {type(query).__name__}; give a mapping")
    for name, value in query.items():
        if not isinstance(name, str) or not (value is None or isinstance(value, (str, int))):
            raise TypeError(f"{name!r} in the query is {type(value).__name__}; give a string, a number, or None")
    return query


def present(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", valfilter(lambda value: value is not None, mapping))
