"""The layers around a call: the middleware of the option ``middleware`` in its order, and those of every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from inspect import signature
from math import prod
from typing import Any, cast

from pyrsistent import PMap, pmap
from toolz import compose

from chatfn.core import auth_of
from chatfn.errors import category_of
from chatfn.middleware.call import authorize, careful, timed, tracing
from chatfn.middleware.codec import codec
from chatfn.middleware.targets import targets_in
from chatfn.options import nearest
from chatfn.spec import AsyncHandler, Handler, Middleware, Options
from chatfn.transports import check_needs, named, needs_of

MIDDLEWARE: PMap[str, str] = pmap(
    {
        "cost": "chatfn.middleware.cost:cost",
        "journal": "chatfn.journal:journal",
        "fallback": "chatfn.middleware.fallback:fallback",
        "balance": "chatfn.middleware.balance:balance",
        "retry": "chatfn.middleware.retry:retry",
        "budget": "chatfn.journal:budget",
        "limit": "chatfn.middleware.limit:limit",
    }
)
STACK = (["retry", {"attempts": 3}],)
ORDER = (  # outer, inner, and why not the other way round
    ("cost", "journal", "a cost inside a journal would not be there for answers that are at hand"),
    ("cost", "fallback", "a cost inside a fallback would be that of one target"),
    ("cost", "balance", "a cost inside a balance would be that of one target"),
    ("cost", "retry", "a cost inside a retry would be that of the last attempt"),
    ("cost", "budget", "a cost inside a budget would be that of one attempt"),
    ("journal", "fallback", "a fallback outside of the journal would have the answers of each target kept apart"),
    ("journal", "balance", "a balance outside of the journal would have the answers of each target kept apart"),
    ("journal", "retry", "a journal inside a retry would take each attempt for a call of its own"),
    ("journal", "budget", "a budget outside a journal would hold money for answers that are at hand"),
    ("journal", "limit", "a limit outside a journal would hold up answers that are at hand"),
    ("fallback", "budget", "a budget outside of the fallback can't tell one target from another"),
    ("fallback", "limit", "a limit outside of the fallback can't tell one target from another"),
    ("balance", "budget", "a budget outside of the balance can't tell one target from another"),
    ("balance", "limit", "a limit outside of the balance can't tell one target from another"),
    ("retry", "budget", "a budget outside a retry would hold one attempt and pay for several"),
    ("retry", "limit", "a limit outside a retry would not see what is sent again"),
    ("budget", "limit", "a budget inside a limit would hold up those who wait for their turn"),
)
ALONE = (  # of these only one, and why
    (("journal",), "two journals around one call would wait for each other"),
    (("fallback", "balance"), 'both "fallback" and "balance" try all targets'),
    (("budget",), 'two budgets around one call; give "usd" and "tokens" to one'),
    (("limit",), 'two limits around one call would count each request twice; give all settings to one "limit"'),
)


def layer(item: Any) -> Middleware:
    """Middleware as it is, or by its name in ``MIDDLEWARE``, with its settings.

    >>> layer(["retry", {"attempts": 6}]).__name__
    'wrap'
    """
    if getattr(item, "makes_layers", False):
        raise TypeError(f"{item.__name__} makes middleware of settings: call it, {item.__name__}()")
    if callable(item):
        return cast(Middleware, item)
    name, settings = named(item, "middleware")
    if name not in MIDDLEWARE:
        raise ValueError(
            f"unknown middleware {name!r}{nearest(name, MIDDLEWARE)}; known: {', '.join(sorted(MIDDLEWARE))}"
        )
    for setting in settings:
        if setting not in settings_of(name):
            raise ValueError(f"unknown setting {setting!r} of {name!r}{nearest(setting, settings_of(name))}")
    check_needs(name, settings, needed_by(name))
    return maker(name)(**settings)


@cache
def settings_of(name: str) -> frozenset[str]:
    """The names of the settings of a middleware of the table."""
    return frozenset(signature(maker(name)).parameters) - {"request"}


@cache
def needed_by(name: str) -> frozenset[str]:
    """Those of them that have no default."""
    return frozenset(needs_of(maker(name))) - {"request"}


@cache
def maker(name: str) -> Callable[..., Middleware]:
    """The function that makes a middleware of the table, imported now."""
    module, attribute = MIDDLEWARE[name].split(":")
    return cast(Callable[..., Middleware], getattr(import_module(module), attribute))


def handler_of(options: Options, transport: Handler | AsyncHandler) -> Any:
    """The handler of a call: its layers around the transport."""
    return compose(*layers_of(options))(transport)


def names_of(items: Any) -> list[str | None]:
    """The names of middleware, None for a function.

    >>> names_of(["retry", ["limit", {}], print])
    ['retry', 'limit', None]
    """
    return [None if callable(item) else named(item, "middleware")[0] for item in items]


def check_order(items: Any) -> None:
    """Raise for layers that would undo each other."""
    names = names_of(items)
    for only, why in ALONE:
        if sum(name in only for name in names) > 1:
            raise ValueError(f"{why}; name one, once, in the option 'middleware'")
    for outer, inner, why in ORDER:
        if outer in names and inner in names[: names.index(outer)]:
            raise ValueError(f'{why}; put "{outer}" before "{inner}" in the option \'middleware\'')


def linked(items: Sequence[Any]) -> list[Any]:
    """The middleware with what layers have to know of each other: a budget counts what its journal has paid for."""
    found = [(None, {}) if callable(item) else named(item, "middleware") for item in items]
    path = next((settings.get("path") for name, settings in found if name == "journal"), None)
    most = prod(attempts_in(name, settings) for name, settings in found)
    return [
        [name, {"journal": path, "attempts": most, **settings}] if name == "budget" and path is not None else item
        for item, (name, settings) in zip(items, found, strict=True)
    ]


def attempts_in(name: str | None, settings: Any) -> int:
    """How many times as many attempts a layer may make."""
    if name in ("fallback", "balance"):
        return 1 + len(settings.get("impls", ()))
    return int(settings.get("attempts", 3)) if name == "retry" else 1


def layers_of(options: Options) -> list[Middleware]:
    """The layers of a call, outermost first: its clock, its middleware, its credential, trace, codec and redirects."""
    trace = options.get("trace")
    check_order(options.get("middleware", STACK))
    return [
        timed(),
        *map(layer, linked(options.get("middleware", STACK))),
        *([authorize()] if asks(options) else []),
        *([] if trace is None else [tracing(trace)]),
        codec(classify=careful(options.get("category_of", category_of))),
    ]


def asks(options: Options) -> bool:
    """Whether the credential of the call or of one of its targets is a function."""
    found = map(auth_of, [options, *(target.options for target in targets_in(options))])
    return any(auth is not None and auth["secret"].kind == "function" for auth in found)
