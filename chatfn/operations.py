"""The endpoints of the API as data."""

from __future__ import annotations

from typing import cast

from pyrsistent import PMap, freeze

from chatfn.spec import Operation

OPERATIONS = cast(
    "PMap[str, Operation]",
    freeze({"create_chat_completion": {"method": "POST", "path": "/chat/completions"}}),
)
