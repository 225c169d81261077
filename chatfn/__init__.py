"""The chat completion as a function on plain data."""

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
    "aresponder",
    "build_request",
    "collect",
    "completion_of",
    "create_chat_completion",
    "events_of",
    "middleware",
    "responder",
    "text_deltas",
    "text_of",
    "wire_headers",
]


def __getattr__(name: str) -> object:
    if name in _LATE:
        found: object = getattr(_import_module(_LATE[name]), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
