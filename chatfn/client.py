"""The calls: one chat completion, now or awaited.  The only module that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any, cast

from pyrsistent import PMap, pmap
from toolz import compose

from chatfn.chunks import collector
from chatfn.core import NO_OPTIONS, auth_of, completion_of, requester
from chatfn.errors import ChatError, category_of
from chatfn.impls import variables_of
from chatfn.journal import budget, journal
from chatfn.middleware import is_async
from chatfn.middleware.balance import balance
from chatfn.middleware.call import authorize, redirected, timed, tracing
from chatfn.middleware.codec import codec
from chatfn.middleware.cost import cost
from chatfn.middleware.fallback import fallback
from chatfn.middleware.limit import limit
from chatfn.middleware.retry import retry
from chatfn.middleware.targets import LAYERS, targets_in, told, with_targets
from chatfn.options import CREDENTIALS, check_secret, headers_of, impl_of, nearest, resolve, sealed
from chatfn.secret import seal
from chatfn.spec import AsyncHandler, Handler, Json, Middleware, Options, Response
from chatfn.transports import NETWORK, aclose, close, default_async, named, transport_of

TABLE: dict[str, Callable[..., Middleware]] = {
    "cost": cost,
    "journal": journal,
    "fallback": fallback,
    "balance": balance,
    "retry": retry,
    "budget": budget,
    "limit": limit,
}
MIDDLEWARE: PMap[str, Callable[..., Middleware]] = pmap(TABLE)
STACK = (["retry", {"attempts": 3}],)
MONEY = (  # outer, inner, and why not the other way round
    ("retry", "budget", "a budget outside a retry would hold one attempt and pay for several"),
    ("budget", "limit", "a budget inside a limit would hold up those who wait for their turn"),
    ("journal", "budget", "a budget outside a journal would hold money for answers that are at hand"),
    ("cost", "journal", "a cost inside a journal would not be there for answers that are at hand"),
    ("cost", "fallback", "a cost inside a fallback would be that of one target"),
    ("cost", "balance", "a cost inside a balance would be that of one target"),
    ("cost", "retry", "a cost inside a retry would be that of the last attempt"),
    ("cost", "fallback", "a cost inside a fallback would be that of one target"),
    ("cost", "balance", "a cost inside a balance would be that of one target"),
    ("cost", "budget", "a cost inside a budget would be that of one attempt"),
)
INSIDE = ("limit", "budget")  # of each target its own


def environment(options: Json) -> dict[str, Any]:
    """What the environment says of the options of their impl, read now; credentials sealed."""
    impl = impl_of(options)
    found: dict[str, Any] = {}
    for option in impl["env"]:
        for variable in variables_of(impl, option):
            if os.environ.get(variable) and option not in found:
                found[option] = seal(os.environ[variable]) if option in CREDENTIALS else os.environ[variable]
    return found


def resolved(options: Any) -> Options:
    """Options complete with the environment's; a transport of the network has its credential."""
    if not isinstance(options, Mapping):
        return resolve(options)
    found = environment(options)
    return with_targets(resolve(options, found), options, found, environment)


def layer(item: Any) -> Middleware:
    """Middleware as it is, or by its name in ``MIDDLEWARE``, with its settings.

    >>> layer(["retry", {"attempts": 6}]).__name__
    'wrap'
    """
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
    return MIDDLEWARE[name](**settings)


@cache
def settings_of(name: str) -> frozenset[str]:
    """The names of the settings of a middleware of the table."""
    return frozenset(signature(MIDDLEWARE[name]).parameters) - {"request"}


def handler_of(options: Options, transport: Handler | AsyncHandler) -> Any:
    """The handler of a call: its layers around the transport."""
    return compose(*layers_of(options))(transport)


def check_order(items: Any) -> None:
    """Raise for layers that would undo each other."""
    names = [None if callable(item) else named(item, "middleware")[0] for item in items]
    if names.count("journal") > 1:
        raise ValueError("two journals around one call would wait for each other; name one in the option 'middleware'")
    if "journal" in names and "retry" in names[: names.index("journal")]:
        raise ValueError(
            "a journal inside a retry would take each attempt for a call of its own; "
            'put "journal" before "retry" in the option \'middleware\''
        )
    check_order_of_targets(names)
    check_order_of_money(names)
    check_order_of_limits(names)


def check_order_of_targets(names: Sequence[str | None]) -> None:
    """Raise for a layer on the wrong side of one that sends a call to other targets."""
    places = [place for place, name in enumerate(names) if name in LAYERS]
    if len(places) > 1:
        raise ValueError('both "fallback" and "balance" try all targets; name one, once, in the option \'middleware\'')
    for place in places:
        if "journal" in names[place:]:
            raise ValueError(
                f"a {names[place]} outside of the journal would have each target's answer kept as that of a call of "
                f'its own; put "journal" before "{names[place]}" in the option \'middleware\''
            )
        for name in INSIDE:
            if name in names[:place]:
                raise ValueError(
                    f"a {name} outside of the {names[place]} can't tell one target from another; "
                    f'put "{names[place]}" before "{name}" in the option \'middleware\''
                )


def check_order_of_money(names: Sequence[str | None]) -> None:
    """Raise for a layer that would not see all that is paid, or that would count what is not."""
    if names.count("budget") > 1:
        raise ValueError('two budgets around one call; give "usd" and "tokens" to one')
    for outer, inner, why in MONEY:
        if outer in names and inner in names[: names.index(outer)]:
            raise ValueError(f'{why}; put "{outer}" before "{inner}" in the option \'middleware\'')


def check_order_of_limits(names: Sequence[str | None]) -> None:
    """Raise for a limit that would not count every send, or would count one twice."""
    if names.count("limit") > 1:
        raise ValueError('two limits around one call would count each request twice; give all settings to one "limit"')
    for name in ("retry", "journal"):
        if name in names and "limit" in names[: names.index(name)]:
            why = "would not see what is sent again" if name == "retry" else "would hold up answers that are at hand"
            raise ValueError(
                f'a limit outside a {name} {why}; put "{name}" before "limit" in the option \'middleware\''
            )


def linked(items: Sequence[Any]) -> list[Any]:
    """The middleware with what layers have to know of each other: a budget counts what its journal has paid for."""
    found = [(None, {}) if callable(item) else named(item, "middleware") for item in items]
    path = next((settings.get("path") for name, settings in found if name == "journal"), None)
    return [
        [name, {"journal": path, **settings}] if name == "budget" and path is not None else item
        for item, (name, settings) in zip(items, found, strict=True)
    ]


def layers_of(options: Options) -> list[Middleware]:
    """The layers of a call, outermost first: its clock, its middleware, its credential, trace, codec and redirects."""
    trace = options.get("trace")
    check_order(options.get("middleware", STACK))
    return [
        timed(),
        *map(layer, linked(options.get("middleware", STACK))),
        authorize(),
        *([] if trace is None else [tracing(trace)]),
        codec(options.get("category_of", category_of)),
        redirected(),
    ]


def check_credential(options: Options, name: Any) -> None:
    """Raise now, and not at the first attempt, if the network's transport would lack a credential."""
    check_own_credential(options, name)
    for target in targets_in(options):
        told(f"the target {target.name}", partial(check_own_credential, target.options, name))


def check_own_credential(options: Options, name: Any) -> None:
    auth = auth_of(options, headers_of(options.get("request", {}).get("headers") or {}))
    if auth is not None and isinstance(name, str) and name in NETWORK:
        if auth["secret"].kind == "absent":
            auth["secret"].reveal()
        check_secret(f"the secret of the header {auth['header']!r}", auth["secret"])


def with_params(options: Options, params: Any) -> Options:
    """The options, with the ``on_next`` that the Clojure library has in params."""
    if isinstance(params, Mapping):
        on_next = params.get("on_next") or params.get("on-next")
        if on_next is not None and "on_next" not in options:
            options = {**options, "on_next": on_next}
        if options.get("on_next") is not None and not params.get("stream"):
            raise ValueError('"on_next" is for streams: give "stream": True in params')
    if options.get("on_next") is not None and not callable(options["on_next"]):
        raise TypeError(f"on_next is {type(options['on_next']).__name__}; give a function of an event")
    return options


def responder(options: Options | Json = NO_OPTIONS) -> Callable[[Json], Response]:
    """A function of params to a response map, which never raises for what the world did: that is its ``error``.

    What the caller did wrong raises ``ValueError`` or ``TypeError`` before anything is sent.

    >>> respond = responder({"transport": "echo"})
    >>> respond({"model": "m", "messages": [{"role": "user", "content": "hi"}]})["status"]
    200
    """
    options = sealed(options)
    return respond_with(resolved(options))


def respond_with(options: Options) -> Callable[[Json], Response]:
    name = options.get("transport", "requests")
    transport = transport_of(name)
    if is_async(transport):
        raise ValueError(f"the transport {name!r} is asynchronous; use acreate_chat_completion")
    check_credential(options, name)
    handler, request_of = handler_of(options, transport), requester(options)
    return lambda params: cast(Response, handler(request_of(params)))


def aresponder(options: Options | Json = NO_OPTIONS) -> Callable[[Json], Awaitable[Response]]:
    """The same, awaited; a blocking transport runs on threads."""
    options = sealed(options)
    return arespond_with(resolved(options))


def arespond_with(options: Options) -> Callable[[Json], Awaitable[Response]]:
    from chatfn.transports.threads import threaded

    name = options.get("transport", default_async())
    transport = transport_of(name)
    check_credential(options, name)
    awaited = transport if is_async(transport) else getattr(transport, "awaited", None) or threaded(transport)
    handler = handler_of(options, awaited)

    request_of = requester(options)

    async def respond(params: Json) -> Response:
        return cast(Response, await handler(request_of(params)))

    return respond


def create_chat_completion(params: Json, options: Options | Json = NO_OPTIONS) -> Any:
    """The completion of a params map, as a dict; with ``"stream": True`` an iterator of its events, as dicts.

    ``params``: the JSON body of the API.  With ``on_next`` each event of a stream goes to that function, and the whole
    completion is returned.  With ``full_response`` the response map is returned instead, errors included.
    Raises ``ChatError`` for what the world did, ``ValueError`` or ``TypeError`` for what the caller did wrong.
    Source: https://platform.openai.com/docs/api-reference/chat/create

    >>> create_chat_completion(
    ...     {"model": "m", "messages": [{"role": "user", "content": "hi"}]}, {"transport": "echo"}
    ... )["choices"][0]["message"]["content"]
    'hi'
    """
    options = sealed(options)
    whole = with_params(resolved(options), params)
    return finish(respond_with(whole)(params), whole)


async def acreate_chat_completion(params: Json, options: Options | Json = NO_OPTIONS) -> Any:
    """The same, awaited; with ``"stream": True`` an asynchronous iterator of events.

    >>> import asyncio
    >>> params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    >>> asyncio.run(acreate_chat_completion(params, {"transport": "echo"}))["choices"][0]["finish_reason"]
    'stop'
    """
    options = sealed(options)
    whole = with_params(resolved(options), params)
    return await afinish(await arespond_with(whole)(params), whole)


def finish(response: Response, options: Options) -> Any:
    """What a call returns of its response."""
    on_next = options.get("on_next")
    if on_next is not None and isinstance(response["body"], Iterator):
        body = response["body"]
        response = {**response, "body": None}
        fold = collector()
        try:
            for event in body:
                fold.add(event)
                on_next(event)
            response = {**response, "body": fold.completion()}
        except ChatError as exc:
            response = {**response, "error": exc.error}
        finally:
            close(body)
    return response if options.get("full_response") else completion_of(response)


async def afinish(response: Response, options: Options) -> Any:
    on_next = options.get("on_next")
    if on_next is not None and hasattr(response["body"], "__anext__"):
        body = response["body"]
        response = {**response, "body": None}
        fold = collector()
        try:
            async for event in body:
                fold.add(event)
                on_next(event)
            response = {**response, "body": fold.completion()}
        except ChatError as exc:
            response = {**response, "error": exc.error}
        finally:
            await aclose(body)
    return response if options.get("full_response") else completion_of(response)
