"""The targets of a call: who may answer in place of its own impl, deployment and model.

Each has options of its own, which are completed and checked as those of a call are, once, by ``with_targets``.  What
is the call's own service shares the call's options; any other has nothing of them that could be a credential.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from toolz import merge

from chatfn.core import requester
from chatfn.impls import azure_endpoint
from chatfn.middleware.call import origin
from chatfn.middleware.limit import fixed_of
from chatfn.middleware.limit.state import Fixed
from chatfn.options import CREDENTIAL_HEADERS, impl_of, nearest, resolve
from chatfn.plain import without
from chatfn.sealing import CREDENTIALS, OF_TARGETS, sealed, sealed_own, spelled
from chatfn.secret import Secret, type_name
from chatfn.spec import Impl, Json, Options
from chatfn.transports import named

T = TypeVar("T")

LAYERS = frozenset({"fallback", "balance"})
SERVICE = frozenset(
    {
        *("impl", "api_key", "ad_token", "api_endpoint", "api_version", "deployment", "request"),
        *("organization", "project", "openai_beta", "bounds", "allow_http"),
    }
)  # the options of a target; the others are the call's, whoever answers
NETWORK = ("timeout", "proxies", "verify")  # in the option ``request``: of the caller's network, not of the service


class Target(NamedTuple):
    """A target with complete options; the first of a layer is the call's own."""

    name: str  # its deployment, model or impl, and its host
    options: Options
    model: str | None
    limits: Json | None  # rpm, tpm, concurrency
    own: bool
    lent: tuple[Secret, ...]  # credentials that the environment gave


Environment = Callable[[Json], dict[str, Any]]


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
            own = finished(given, whole, found, {}, own=True)
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
    check_target(said)
    more = {name: said[name] for name in OF_TARGETS if name in said}
    said = sealed(without(said, *OF_TARGETS))
    if said.keys() & {"impl", "api_endpoint"}:
        asked = alone(said, given)
        found = environment(asked)
        asked, found = with_home_only(asked, found)
    else:
        asked = beside(said, given, whole, more.get("model"))
        found = environment(asked)
    return finished(asked, resolve(asked, found), found, more)


def check_target(said: Json) -> None:
    """Raise for what no target has, and for what a target has beside options, if it is wrong."""
    for name in said:
        if name not in SERVICE and name not in OF_TARGETS:
            known = f"{nearest(name, SERVICE.union(OF_TARGETS))}; a target has options of a service, model and limits"
            raise ValueError(f"unknown option {name!r} of a target{known}")
    model, limits = said.get("model", ""), said.get("limits", {})
    if not isinstance(model, str):
        raise TypeError(f"'model' is {type(model).__name__}; give a string")
    if not isinstance(limits, Mapping) or not limits.keys() <= set(Fixed._fields):
        what = f"of {', '.join(map(str, limits))}" if isinstance(limits, Mapping) else type_name(limits)
        raise TypeError(f"'limits' are {what}; give a mapping of {', '.join(Fixed._fields)}")
    fixed_of(**limits)


def finished(asked: Json, whole: Options, found: Json, more: Json, own: bool = False) -> Target:
    model, limits = more.get("model"), more.get("limits")
    url = requester(whole)({"model": model or "model"})["url"]  # raises now what it would raise when it is too late
    impl = asked.get("impl") or "openai"
    label = deployment_of(whole) or model or (impl if isinstance(impl, str) else None)
    host = urlsplit(url).netloc
    values = cast("dict[str, Any]", whole)
    of_environment = (name for name in CREDENTIALS & found.keys() if asked.get(name) is None)
    lent = tuple(values[name] for name in of_environment if values.get(name) is found[name])
    return Target(f"{label}@{host}" if label else host, whole, model, limits, own, lent)


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
