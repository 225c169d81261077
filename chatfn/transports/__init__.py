"""Transports: request map to response map.  The only room that sends; one file each, imported at its first use.

A transport is a handler below the codec: the ``body`` it is given is bytes, the one that it returns is bytes, or for a
stream (``request["stream"]``, a 2xx) an iterator of bytes.  What goes wrong on the way is an ``error`` in its response
map, or, within a stream, a ``ChatError`` from the iterator.

A transport function may have attributes: ``awaited``, itself as an asynchronous handler; ``driver``, which makes a
``Driver``; ``configured``, which makes a transport of settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, isawaitable, signature
from typing import Any, NamedTuple

from pyrsistent import PMap, pmap

from chatfn.options import nearest
from chatfn.spec import Request, Response

TRANSPORTS: PMap[str, str] = pmap(
    {
        "requests": "chatfn.transports.requests:send",
        "aiohttp": "chatfn.transports.aiohttp:send",
        "curl": "chatfn.transports.curl:curl",
        "echo": "chatfn.transports.echo:echo",
        "record": "chatfn.transports.tape:record",
        "replay": "chatfn.transports.tape:replay",
        "scripted": "chatfn.transports.scripted:scripted",
        "simulated": "chatfn.transports.simulated:simulated",
    }
)
MAKERS = frozenset({"record", "replay", "scripted", "simulated"})  # functions of settings that return a transport
NETWORK = frozenset({"requests", "aiohttp", "curl"})  # these need a credential
EXTRAS = {"aiohttp": "async", "curl": "curl"}  # what is to be installed for a transport

Done = Callable[[Response | None, Exception | None], object]  # a response map, or what was raised in place of one
CallDone = Callable[[Any, Exception | None], object]


class Driver(NamedTuple):
    """What carries many requests at once for one thread, which calls ``wait`` again and again.

    A transport that can carry them without threads has a function ``driver`` that makes one.  Every ``done`` is called
    once, inside ``wait``, and not at all after ``close``.
    """

    send: Callable[[Request, Done], None]  # begin to send a request map
    call: Callable[[Callable[[], Any], CallDone], None]  # begin to call a function that may block
    wait: Callable[[float | None], None]  # work until something is done, ``wake`` is called, or the seconds are over
    wake: Callable[[], None]  # make ``wait`` return, from any thread
    now: Callable[[], float]  # the time, in seconds of a monotonic clock
    close: Callable[[], None]  # end what is in flight


def transport_of(option: Any) -> Any:
    """The transport of an option: a function as it is, a name, or a name with its settings.

    >>> transport_of("echo").__name__
    'echo'
    """
    if callable(option):
        return option
    name, settings = named(option, "transport")
    if name not in TRANSPORTS:
        raise ValueError(
            f"unknown transport {name!r}{nearest(name, TRANSPORTS)}; known: {', '.join(sorted(TRANSPORTS))}"
        )
    found = transport_function(name)
    maker = found if name in MAKERS else getattr(found, "configured", None) if settings else None
    check_settings(name, settings, maker)
    return found if maker is None else maker(**settings)


def check_settings(name: str, settings: Mapping[str, Any], maker: Any) -> None:
    """Raise for settings that a transport does not have, and for one that it needs."""
    if settings and maker is None:
        raise ValueError(f"the transport {name!r} has no settings; name it alone")
    known = signature(maker).parameters if settings else {}
    for setting in settings:
        if setting not in known and all(one.kind is not Parameter.VAR_KEYWORD for one in known.values()):
            raise ValueError(f"unknown setting {setting!r} of {name!r}{nearest(setting, known)}")
    check_needs(name, settings, () if maker is None else needs_of(maker))


def needs_of(maker: Any) -> tuple[str, ...]:
    """The names of the settings that have no default."""
    some = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    known = signature(maker).parameters.values()
    return tuple(one.name for one in known if one.default is Parameter.empty and one.kind not in some)


def check_needs(name: str, settings: Mapping[str, Any], needs: Iterable[str]) -> None:
    """Raise for a setting that is needed and not given."""
    for setting in needs:
        if setting not in settings:
            raise ValueError(f'{name!r} needs the setting {setting!r}: ["{name}", {{"{setting}": …}}]')


def transport_function(name: str) -> Any:
    """The function that goes by a name in ``TRANSPORTS``, imported now."""
    module, attribute = TRANSPORTS[name].split(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as exc:
        lacking = exc.name
    raise ValueError(
        f"the transport {name!r} needs the package {lacking!r}: pip install 'chatfn[{EXTRAS.get(name, 'cli')}]'"
    )


def named(option: Any, what: str) -> tuple[str, Mapping[str, Any]]:
    """The name and the settings of ``"name"`` or ``["name", {…}]``."""
    pair = (option,) if isinstance(option, str) else option if isinstance(option, (list, tuple, Sequence)) else ()
    name, settings = (*pair, {})[:2] if len(pair) in (1, 2) else (None, {})
    if not isinstance(name, str) or not isinstance(settings, Mapping):
        raise TypeError(f"the {what} {option!r} is no function, name or [name, settings]")
    return name, settings


def default_async() -> str:
    """The transport of awaited calls: aiohttp where it is installed, else requests on threads."""
    return "aiohttp" if find_spec("aiohttp") else "requests"


def close(body: Any) -> None:
    """Close a body, if it is one that can be closed."""
    getattr(body, "close", bool)()


async def aclose(body: Any) -> None:
    """The same, of an asynchronous body."""
    closed = getattr(body, "aclose", bool)()
    if isawaitable(closed):
        await closed
