"""The chat completion as a function on plain data."""

import typing as _typing
from importlib import import_module as _import_module

from chatfn.chunks import collect
from chatfn.client import acreate_chat_completion, aresponder, create_chat_completion, responder
from chatfn.core import build_request, completion_of, wire_headers
from chatfn.errors import ChatError
from chatfn.impls import IMPLS
from chatfn.middleware import Call, Sleep, middleware
from chatfn.spec import __version__
from chatfn.stack import MIDDLEWARE
from chatfn.transports import TRANSPORTS
from chatfn.unfold import events_of, text_deltas, text_of

if _typing.TYPE_CHECKING:
    from chatfn.lints import lint
    from chatfn.pipeline import amap_chat, map_chat
    from chatfn.pipeline.diffs import diff_plans
    from chatfn.pipeline.plans import plan
    from chatfn.pipeline.simulations import simulate
    from chatfn.transports.echo import echo
    from chatfn.transports.scripted import scripted
    from chatfn.transports.simulated import simulated
    from chatfn.transports.tape import record, replay

_LATE = {  # imported at their first use
    "amap_chat": "chatfn.pipeline",
    "diff_plans": "chatfn.pipeline.diffs",
    "echo": "chatfn.transports.echo",
    "lint": "chatfn.lints",
    "map_chat": "chatfn.pipeline",
    "plan": "chatfn.pipeline.plans",
    "record": "chatfn.transports.tape",
    "replay": "chatfn.transports.tape",
    "scripted": "chatfn.transports.scripted",
    "simulate": "chatfn.pipeline.simulations",
    "simulated": "chatfn.transports.simulated",
}

__all__ = [
    "IMPLS",
    "MIDDLEWARE",
    "TRANSPORTS",
    "Call",
    "ChatError",
    "Sleep",
    "__version__",
    "acreate_chat_completion",
    "amap_chat",
    "aresponder",
    "build_request",
    "collect",
    "completion_of",
    "create_chat_completion",
    "diff_plans",
    "echo",
    "events_of",
    "lint",
    "map_chat",
    "middleware",
    "plan",
    "record",
    "replay",
    "responder",
    "scripted",
    "simulate",
    "simulated",
    "text_deltas",
    "text_of",
    "wire_headers",
]


def __getattr__(name: str) -> object:
    if name in _LATE:
        found: object = getattr(_import_module(_LATE[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
