"""The calls: one chat completion, now or awaited.  The only module that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, NoneType
from typing import Any, TypeVar, cast

from chatfn.atom import Atom
from chatfn.chunks import collector
from chatfn.core import NO_OPTIONS, auth_of, completion_of, requester
from chatfn.errors import ChatError
from chatfn.middleware import is_async
from chatfn.middleware.targets import targets_in, told, with_targets
from chatfn.options import check_secret, impl_of, resolve
from chatfn.plain import MAPPINGS
from chatfn.sealing import sealed, sealed_own
from chatfn.secret import Secret, fingerprint
from chatfn.spec import Json, Options, Response
from chatfn.stack import handler_of
from chatfn.transports import NETWORK, aclose, close, default_async, transport_of

R = TypeVar("R")
COMPARED = frozenset({str, bytes, int, float, bool, NoneType})
MOST_PREPARED = 32
PREPARED: Atom[dict[Any, Any]] = Atom({})  # what single calls are answered by, and would else be made for each


def environment(options: Json, given: Json = NO_OPTIONS) -> dict[str, Any]:
    """What the environment says of the options of their impl but for those that are ``given``, read now; sealed."""
    found: dict[str, Any] = {}
    for option, names in impl_of(options)["env"].items():
        if given.get(option) is None:
            for variable in (names,) if isinstance(names, str) else names:
                value = os.environ.get(variable)
                if value:
                    found[option] = value
                    break
    return sealed_own(found) if found else found


def resolved(options: Any) -> Options:
    """Options complete with the environment's; a transport of the network has its credential."""
    if not isinstance(options, Mapping):
        return resolve(options)
    found = environment(options, options)
    return with_targets(resolve(options, found), options, found, environment)


def check_credential(options: Options, name: Any) -> None:
    """Raise now, and not at the first attempt, if the network's transport would lack a credential."""
    check_own_credential(options, name)
    for target in targets_in(options):
        told(f"the target {target.name}", partial(check_own_credential, target.options, name))


def check_own_credential(options: Options, name: Any) -> None:
    auth = auth_of(options)
    if auth is not None and isinstance(name, str) and name in NETWORK:
        if auth["secret"].kind == "absent":
            auth["secret"].reveal()
        check_secret(f"the secret of the header {auth['header']!r}", auth["secret"])


def on_next_of(options: Any, params: Any) -> Callable[[Any], object] | None:
    """The function of an event in options, or in params, where the Clojure library has it."""
    on_next = options.get("on_next") if isinstance(options, MAPPINGS) else None
    if isinstance(params, MAPPINGS):
        on_next = on_next or params.get("on_next") or params.get("on-next")
        if on_next is not None and not params.get("stream"):
            raise ValueError('"on_next" is for streams: give "stream": True in params')
    if on_next is not None and not callable(on_next):
        raise TypeError(f"on_next is {type(on_next).__name__}; give a function of an event")
    return on_next


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
    return lambda params: handler(request_of(params))


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


def prepared(respond: Callable[[Options], R], options: Any) -> tuple[Options, R]:
    """Sealed options resolved, and what ``respond`` makes of them: again the same for options that say the same."""
    if not isinstance(options, MAPPINGS):
        return resolve(options), respond(resolve(options))
    found = environment(options, options)
    key = identity(respond, options, found)
    made: tuple[Options, R] | None = None if key is None else PREPARED.deref().get(key)
    if made is None:
        whole = with_targets(resolve(options, found), options, found, environment)
        made = whole, respond(whole)
        if key is not None:
            PREPARED.swap(lambda old: {**(old if len(old) < MOST_PREPARED else {}), key: made})
    return made


def identity(respond: object, options: Json, found: Json) -> tuple[Any, ...] | None:
    """What tells options and what the environment says of them from others; None if they hold more than plain values
    and functions, which may change."""
    parts: list[Any] = [respond]
    for name, value in (*options.items(), *found.items()):
        if name == "on_next":
            continue  # of one call, and no part of how it is answered
        kind = type(value)
        if kind is Secret:
            value = fingerprint(value)
        elif kind not in COMPARED and kind is not FunctionType:
            return None
        if value is None and kind is Secret:
            return None
        parts += (name, kind, value)
    return tuple(parts)


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
    on_next = on_next_of(options, params)
    whole, respond = prepared(respond_with, options)
    return finish(respond(params), on_next, whole)


async def acreate_chat_completion(params: Json, options: Options | Json = NO_OPTIONS) -> Any:
    """The same, awaited; with ``"stream": True`` an asynchronous iterator of events.

    >>> import asyncio
    >>> params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    >>> asyncio.run(acreate_chat_completion(params, {"transport": "echo"}))["choices"][0]["finish_reason"]
    'stop'
    """
    options = sealed(options)
    on_next = on_next_of(options, params)
    whole, respond = prepared(arespond_with, options)
    return await afinish(await respond(params), on_next, whole)


def finish(response: Response, on_next: Callable[[Any], object] | None, options: Options) -> Any:
    """What a call returns of its response."""
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


async def afinish(response: Response, on_next: Callable[[Any], object] | None, options: Options) -> Any:
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
