"""What ``fallback`` and ``balance`` share: the targets of a call, and the request rebuilt for each of them.

A *target* is a deployment, model or service that may answer in place of the call's own.  Its options are completed as
those of a call are, once, by ``with_targets``; a *way* is what a flow needs of it: a name, and a function of the
request as asked to the request for the target.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast, get_args
from urllib.parse import urlsplit

from toolz import merge

from chatfn.core import requester
from chatfn.errors import ChatError
from chatfn.impls import azure_endpoint
from chatfn.middleware import BEGUN, Call, Flow, Sleep
from chatfn.middleware.call import origin
from chatfn.options import (
    CREDENTIAL_HEADERS,
    CREDENTIALS,
    impl_of,
    nearest,
    resolve,
    sealed,
    sealed_own,
    spelled,
)
from chatfn.plain import without
from chatfn.secret import Secret, type_name
from chatfn.spec import Category, Error, Impl, Json, Options, Request, Response
from chatfn.transports import aclose, close, named
from chatfn.usage import paid_of, with_paid

T = TypeVar("T")

LAYERS = frozenset({"fallback", "balance"})
SERVICE = frozenset(
    {
        *("impl", "api_key", "ad_token", "api_endpoint", "api_version", "deployment", "request"),
        *("organization", "project", "openai_beta", "bounds", "allow_http"),
    }
)  # the options of a target; the others are the call's, whoever answers
NETWORK = ("timeout", "proxies", "verify")  # in the option ``request``: of the caller's network, not of the service
REBUILT = (
    *("operation", "method", "url", "headers", "auth", "body", "stream", "timeout", "bounds"),
    *("proxies", "verify", "cert", "model"),
)  # the members of a request map that follow from a service's options
FILTERED = frozenset({"content_filter", "content_policy_violation"})
CONDITIONS = (*get_args(Category), "quota", "content_filter")


class Target(NamedTuple):
    """A target with complete options; the first of a layer is the call's own."""

    name: str  # its deployment, model or impl, and its host
    options: Options
    model: str | None
    own: bool
    lent: tuple[Secret, ...]  # credentials that the environment gave


class Way(NamedTuple):
    name: str
    build: Callable[[Request], Request]


Environment = Callable[[Json], dict[str, Any]]


# --- options to targets -------------------------------------------------------------------------------------------


def with_targets(whole: Options, given: Json, found: Json, environment: Environment) -> Options:
    """Resolved options whose layers with targets have them complete, the call's own first.

    ``given`` and ``found``: the options and the environment that ``whole`` was resolved from.  ``environment``: what it
    says of the options of an impl.
    Raises ``ValueError`` or ``TypeError`` that names the target which can't work.
    """
    items = whole.get("middleware", ())
    if not isinstance(items, Sequence) or isinstance(items, str) or not any(map(layer_with_targets, items)):
        return whole
    layers = []
    for item in items:
        if layer_with_targets(item):
            layer, settings = named(item, "middleware")
            own = finished(given, whole, found, None, own=True)
            item = [layer, {**settings, "impls": targets_of(layer, settings.get("impls"), own, given, environment)}]
        layers.append(item)
    return cast(Options, {**whole, "middleware": layers})


def layer_with_targets(item: Any) -> bool:
    return not callable(item) and named(item, "middleware")[0] in LAYERS


def targets_in(options: Options) -> Iterator[Target]:
    """All targets of resolved options but for the call's own."""
    for item in options.get("middleware", ()):
        if layer_with_targets(item):
            yield from named(item, "middleware")[1]["impls"][1:]


def targets_of(layer: str, impls: Any, own: Target, given: Json, environment: Environment) -> tuple[Target, ...]:
    if isinstance(impls, (str, Mapping)) or not isinstance(impls, Sequence) or not impls:
        problem = "is empty" if impls == [] or impls == () else f"is {type_name(impls)}"
        raise TypeError(f"'impls' of {layer!r} {problem}; give a list of names of impls, or maps of options")
    found = [own]
    for number, item in enumerate(impls):
        make = partial(target_of, item, own.options, given, environment)
        found.append(told(f"impls[{number}] of {layer!r}", make))
    check_lent(found)
    return distinct(found)


def told(where: str, function: Callable[[], T]) -> T:
    """What ``function`` returns; what it has to complain of says ``where``."""
    try:
        return function()
    except (TypeError, ValueError) as exc:
        kind, problem = TypeError if isinstance(exc, TypeError) else ValueError, str(exc)
    raise kind(f"{where}: {problem}")


def target_of(item: Any, whole: Options, given: Json, environment: Environment) -> Target:
    """The target of a name or a map: one that names neither an impl nor an endpoint is the call's own service."""
    said = {"impl": item} if isinstance(item, str) else item
    if not isinstance(said, Mapping):
        raise TypeError(f"is {type_name(said)}; give the name of an impl, or a map of options")
    said = {spelled(name): value for name, value in said.items() if value is not None}
    model = said.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise TypeError(f"'model' is {type(model).__name__}; give a string")
    for name in said:
        if name not in SERVICE:
            known = f"{nearest(name, SERVICE | {'model'})}; a target has options of a service, and 'model'"
            raise ValueError(f"unknown option {name!r} of a target{known}")
    said = sealed(said)
    if said.keys() & {"impl", "api_endpoint"}:
        asked = alone(said, given)
        found = environment(asked)
        asked, found = with_home_only(asked, found)
    else:
        asked = beside(said, given, whole, model)
        found = environment(asked)
    return finished(asked, resolve(asked, found), found, model)


def finished(asked: Json, whole: Options, found: Json, model: str | None, own: bool = False) -> Target:
    url = requester(whole)({"model": model or "model"})["url"]  # raises now what it would raise when it is too late
    impl = asked.get("impl") or "openai"
    label = deployment_of(whole) or model or (impl if isinstance(impl, str) else None)
    host = urlsplit(url).netloc
    values = cast("dict[str, Any]", whole)
    lent = tuple(values[name] for name in CREDENTIALS & found.keys() if values.get(name) is found[name])
    return Target(f"{label}@{host}" if label else host, whole, model, own, lent)


def deployment_of(options: Options) -> str | None:
    """The deployment that options name, or their endpoint does."""
    return options.get("deployment") or (azure_endpoint(options)[1] if options.get("api_endpoint") else None)


def beside(said: Json, given: Json, whole: Options, model: str | None) -> dict[str, Any]:
    """The options of a target of the call's own service: the call's, but for what is ``said``."""
    kept = {name: value for name, value in given.items() if name in SERVICE and value is not None}
    request = dict(kept.get("request", {}))
    if said.keys() & CREDENTIALS:  # one that is given is the only one
        kept = without(kept, *CREDENTIALS)
        headers = request.get("headers") or {}
        request["headers"] = {name: headers[name] for name in headers if name.lower() not in CREDENTIAL_HEADERS}
    if model is not None and deployment_of(whole):
        kept["deployment"] = model
    return merge(kept, said, request_option(request, said))


def alone(said: Json, given: Json) -> dict[str, Any]:
    """The options of a target of another service: of the call's only what has nothing to do with a service."""
    request = {name: value for name, value in (given.get("request") or {}).items() if name in NETWORK}
    if not isinstance(request.get("verify"), str):  # not to verify is for the one server that it was said of
        request.pop("verify", None)
    bounds = {} if given.get("bounds") is None else {"bounds": given["bounds"]}
    return merge(bounds, said, request_option(request, said))


def request_option(request: Json, said: Json) -> dict[str, Any]:
    """The option ``request`` of a target, its headers and query merged key by key."""
    more = said.get("request", {})
    if not isinstance(more, Mapping):
        return {"request": more}  # its type is complained of with all others
    both = {
        name: merge(request[name], more[name])
        for name in ("headers", "query")
        if request.get(name) and isinstance(more.get(name), Mapping)
    }
    found = merge(request, more, both)
    return {"request": found} if found else {}


def with_home_only(asked: dict[str, Any], found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and environment without the credentials of another origin: one that stands beside an endpoint, in the
    environment or in the impl's defaults, is for that endpoint."""
    impl = impl_of(asked)
    defaults = sealed_own(impl["defaults"])
    home = found.get("api_endpoint") or defaults.get("api_endpoint")
    endpoint = asked.get("api_endpoint")
    if not endpoint or not home or origin(endpoint) == origin(home):
        return asked, found
    lone = cast(Impl, {**impl, "defaults": without(defaults, *CREDENTIALS)})
    kept = lone if defaults.keys() & CREDENTIALS else asked.get("impl")
    return {**asked, **({} if kept is None else {"impl": kept})}, without(found, *CREDENTIALS)


def check_lent(targets: Iterable[Target]) -> None:
    """Raise if a credential of the environment would go to two origins."""
    seen: dict[str, Target] = {}
    for target in targets:
        for secret in target.lent:
            other = seen.setdefault(secret.reveal(), target)
            if host_of(other) != host_of(target):
                raise ValueError(
                    f"the credential in the environment would go both to {other.name} and to {target.name}: "
                    'give each target its own, as "api_key"'
                )


def host_of(target: Target) -> str:
    return target.name.rpartition("@")[2]


def distinct(targets: Iterable[Target]) -> tuple[Target, ...]:
    """The targets with names that differ: of those that share one, the second ends in ``#2``."""
    found: dict[str, Target] = {}
    for target in targets:
        name, number = target.name, 1
        while name in found:
            number += 1
            name = f"{target.name}#{number}"
        found[name] = target._replace(name=name)
    return tuple(found.values())


# --- settings -----------------------------------------------------------------------------------------------------


def ways_of(layer: str, targets: Sequence[Any]) -> tuple[Way, ...]:
    """The ways to the targets of a layer, the request as asked first."""
    if not targets or not all(isinstance(target, Target) for target in targets):
        raise TypeError(
            f"the targets of {layer!r} are made by the call: name it in the option 'middleware', "
            f"as [{layer!r}, {{'impls': […]}}]"
        )
    return tuple(
        Way(target.name, as_asked if target.own else partial(rebuilt, requester(target.options), target.model))
        for target in targets
    )


def conditions_of(layer: str, on: Any) -> frozenset[str]:
    """What a layer moves on at, checked."""
    if isinstance(on, str) or not isinstance(on, (Sequence, set, frozenset)):
        raise TypeError(f"'on' of {layer!r} is {on!r}; give a list, of {', '.join(CONDITIONS)}")
    for name in on:
        if name not in CONDITIONS:
            raise ValueError(
                f"unknown condition {name!r} in 'on' of {layer!r}{nearest(name, CONDITIONS)}; "
                f"known: {', '.join(CONDITIONS)}"
            )
    return frozenset(on)


def check_attempts(layer: str, attempts: Any) -> None:
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
        raise ValueError(f"'attempts' of {layer!r} is {attempts!r}; give a whole number greater than 0, or None")


# --- requests -----------------------------------------------------------------------------------------------------


def as_asked(request: Request) -> Request:
    return request


def asked_model(request: Request) -> str | None:
    """The model in the params of a request, whatever its impl made of it in the body."""
    found = request["model"] if "model" in request else request["body"].get("model")
    return cast("str | None", found)


def rebuilt(request_of: Callable[[Json], Request], model: str | None, request: Request) -> Request:
    """The request for a target: its URL, headers, credential and body, and all else as it was asked."""
    name, body = model or asked_model(request), request["body"]
    params = without(body, "model")
    if name is not None:
        params = {**body, "model": name} if "model" in body else {"model": name, **params}
    kept = without(request, *REBUILT)
    return cast(Request, {**kept, **request_of(params), "deadline": request["deadline"]})


def check_buildable(ways: Iterable[Way], request: Request) -> None:
    """Raise now, and not after something was sent, for params without a model where a target needs one."""
    if asked_model(request) is None:
        for way in ways:
            way.build(request)


# --- outcomes -----------------------------------------------------------------------------------------------------

Outcome = tuple[Request, Response]  # what was sent, and what came of it


def asked_of(request: Request, way: Way, outcomes: Sequence[Outcome], attempts: int | None) -> Request:
    """The request to send on a way: its attempts are counted on from those that were made, and are ``attempts`` at
    most."""
    number = request.get("attempt", 1) + attempts_of(outcomes)
    few = {} if attempts is None else {"attempts": attempts}
    return cast(Request, {**way.build(request), "attempt": number, **few})


def outcome_of(asked: Request, response: Response, way: Way) -> Outcome:
    """What came of a request, with the name of the target that it was sent to, and its URL, which prices depend on."""
    found: dict[str, Any] = {"url": asked["url"], **response, "target": way.name}
    if "error" in response:
        found["error"] = {**response["error"], "target": way.name}
    return asked, cast(Response, found)


def attempts_of(outcomes: Sequence[Outcome]) -> int:
    return sum(response.get("attempts", 1) for _, response in outcomes)


def concluded(outcomes: Sequence[Outcome]) -> Response:
    """The last response; or, if that failed, a completion before it, which the content filter had cut short.

    Its ``attempts`` are those of all, and what the others used is ``paid``.
    """
    index = len(outcomes) - 1
    if "error" in outcomes[index][1]:
        index = next((n for n, (_, response) in enumerate(outcomes) if "error" not in response), index)
    paid = [item for n, outcome in enumerate(outcomes) if n != index for item in paid_of(*outcome)]
    response: Response = {**outcomes[index][1], "attempts": attempts_of(outcomes)}
    return with_paid(response, paid)


def reasons(response: Response) -> frozenset[str]:
    """The conditions that a response fulfils: the category of its error, ``quota``, ``content_filter``.

    >>> sorted(reasons({"status": 429, "headers": {}, "body": None,
    ...     "error": {"category": "forbidden", "message": "", "code": "insufficient_quota"}}))
    ['forbidden', 'quota']
    """
    error = response.get("error")
    if error is None:
        body = response["body"]
        choices = body.get("choices") if isinstance(body, Mapping) else None
        ends = [choice.get("finish_reason") for choice in choices or () if isinstance(choice, Mapping)]
        return frozenset({"content_filter"} & set(ends))
    codes = {error.get("code"), error.get("type")}
    quota = {"quota"} if "insufficient_quota" in codes else set()
    return frozenset({error["category"], *quota, *({"content_filter"} if codes & FILTERED else ())})


def over(request: Request) -> Any:
    """Whether the caller waits no longer; a part of a flow."""
    due = request.get("due")
    return request.get("cancelled", bool)() or (due is not None and (yield Sleep(0)) >= due)


# --- streams ------------------------------------------------------------------------------------------------------


def begun(request: Request) -> Flow:
    """The response to a request; that of a stream once its first event is there, or the error in its place."""
    response: Response = yield request
    body = response["body"]
    if "error" in response or not (hasattr(body, "__next__") or hasattr(body, "__anext__")):
        return response
    event, error = yield Call(partial(first_event, body), blocks="arrived" not in response)
    if error is not None:
        return {**response, "body": None, "error": error}
    return response if event is None else {**response, "body": resumed(event, body)}


def first_event(body: Any) -> Any:
    """The first event of a stream, or None, and the error in its place, or None; awaited, of an asynchronous one."""
    if hasattr(body, "__anext__"):
        return afirst_event(body)
    try:
        return next(body, None), None
    except ChatError as exc:
        return None, exc.error


async def afirst_event(body: AsyncIterator[Any]) -> tuple[Any, Error | None]:
    try:
        return await anext(body, None), None
    except ChatError as exc:
        return None, exc.error


def resumed(event: Any, body: Any) -> Any:
    """A stream whose first event was read.  It is begun, so that to close it closes ``body``."""
    found: Any = (aresume if hasattr(body, "__anext__") else resume)(event, body)
    if hasattr(found, "__anext__"):
        with suppress(StopIteration):
            found.__anext__().send(None)
    else:
        next(found)
    return found


def resume(event: Any, body: Iterator[Any]) -> Iterator[Any]:
    try:
        yield BEGUN
        yield event
        yield from body
    finally:
        close(body)


async def aresume(event: Any, body: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        yield BEGUN
        yield event
        async for item in body:
            yield item
    finally:
        await aclose(body)
