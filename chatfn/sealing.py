"""Options sealed: what may be a credential in them is a ``Secret`` from the first statement of a public function on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pyrsistent import PVector

from chatfn.plain import MAPPINGS, without
from chatfn.secret import hidden, seal
from chatfn.spec import Options

CREDENTIALS = frozenset({"api_key", "ad_token"})
KNOWN = frozenset(Options.__annotations__)
REQUEST_KEYS = frozenset({"headers", "query", "timeout", "proxies", "verify", "cert"})
SEALED_ALIKE = CREDENTIALS | {"api_endpoint", "impl", "request"}  # in the settings of middleware too
DEEPEST_SETTING = 20
OF_TARGETS = ("model", "limits")  # what a target has beside options
SENSITIVE = re.compile(r"auth|key|token|secret|cookie|passw|credential|signature", re.IGNORECASE)


def spelled(name: Any) -> Any:
    """An option's name as Python spells it; ``api-key`` and ``full-response?`` are Clojure's.

    >>> spelled("full-response?")
    'full_response'
    """
    return name.replace("-", "_").rstrip("?") if isinstance(name, str) else name


def sealed(options: Any) -> Any:
    """The options with whatever may be a credential as a ``Secret``; never raises, so that no traceback shows one."""
    if not isinstance(options, MAPPINGS):
        return hidden(options)
    found = {}
    for name, value in options.items():
        if name not in KNOWN:
            name = spelled(name)
        if name not in KNOWN:
            value = hidden(value)
        elif name in SEALS and value is not None:
            value = SEALS[name](value)
        found[name] = value
    return found


def sealed_own(options: Any) -> dict[str, Any]:
    """The same of an impl's defaults and of the environment, which may have options that only their impl knows."""
    found = {spelled(name): value for name, value in options.items()}
    return {
        name: sealed_option(name, value) if name in KNOWN else seal_if(is_sensitive(name), value)
        for name, value in found.items()
    }


def sealed_option(name: str, value: Any) -> Any:
    return SEALS[name](value) if name in SEALS and value is not None else value


def sealed_endpoint(value: Any) -> Any:
    return hidden(value) if has_user(value) else value


def sealed_impl(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("defaults"), Mapping):
        return {**value, "defaults": sealed_own(value["defaults"])}
    return value


def sealed_layers(value: Any, depth: int = 0) -> Any:
    """Middleware, or settings of it, with whatever in them may be a credential sealed, however deep."""
    if depth > DEEPEST_SETTING:
        return hidden(value)
    if isinstance(value, Mapping):
        return {name: sealed_setting(spelled(name), item, depth) for name, item in value.items()}
    if type(value) in (list, tuple) or isinstance(value, PVector):
        items = [sealed_layers(item, depth + 1) for item in value]
        return tuple(items) if type(value) is tuple else items
    return value


def sealed_setting(name: Any, value: Any, depth: int) -> Any:
    if name in SEALED_ALIKE:
        return sealed_option(name, value)
    if name == "impls":
        several = type(value) in (list, tuple) or isinstance(value, PVector)
        return [sealed_target(item, depth) for item in value] if several else sealed_target(value, depth)
    if is_sensitive(name) and isinstance(value, str):  # and not a number of tokens
        return hidden(value)
    return sealed_layers(value, depth + 1)


def sealed_request(request: Any) -> Any:
    if not isinstance(request, Mapping):
        return hidden(request)
    seals = {"headers": sealed_headers, "proxies": sealed_proxies}
    return {
        name: value
        if value is None
        else seals[name](value)
        if name in seals
        else seal_if(name not in REQUEST_KEYS, value)
        for name, value in request.items()
    }


def seal_if(condition: bool, value: Any) -> Any:
    return hidden(value) if condition and value is not None else value


def is_sensitive(name: Any) -> bool:
    return isinstance(name, str) and SENSITIVE.search(name) is not None


def sealed_headers(headers: Any) -> Any:
    if not isinstance(headers, Mapping):
        return hidden(headers)
    return {name: seal_if(not isinstance(name, str) or is_sensitive(name), value) for name, value in headers.items()}


def sealed_proxies(proxies: Any) -> Any:
    if not isinstance(proxies, Mapping):
        return hidden(proxies)
    return {name: seal(value) if isinstance(value, str) and "@" in value else value for name, value in proxies.items()}


def sealed_target(target: Any, depth: int) -> Any:
    """The options of one who may answer in place of the call's own impl, sealed as options are."""
    if not isinstance(target, Mapping):
        return sealed_layers(target, depth + 1)
    return {**sealed(without(target, *OF_TARGETS)), **{name: target[name] for name in OF_TARGETS if name in target}}


def has_user(url: Any) -> bool:
    """Whether a user or a password stands in a URL, or may stand in what is none.

    >>> has_user("https://me:word@host/v1"), has_user("me:word@host"), has_user("https://host/@me")
    (True, True, False)
    """
    if not isinstance(url, str) or "@" not in url:
        return False
    try:
        parts = urlsplit(url)
        return "@" in parts.netloc or not parts.hostname or parts.port == 0
    except ValueError:
        return True


SEALS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(CREDENTIALS, hidden),
    "api_endpoint": sealed_endpoint,
    "impl": sealed_impl,
    "middleware": sealed_layers,
    "request": sealed_request,
}
