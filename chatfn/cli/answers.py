"""The rows of a map as they are written: as they were read, with their answers or errors."""

from __future__ import annotations

import json
from typing import Any

from chatfn.cli.shown import answer_of, choices_of
from chatfn.cli.table import Row
from chatfn.errors import ChatError
from chatfn.plain import without

# The columns that a run adds, and what they hold where columns have types.
ANSWER = {"answer": "text", "error": "text"}
FULL = {"response": "text", "error": "text", "attempts": "integer", "usage": "text"}


def written_row(row: Row, full: bool, parse: bool) -> Row:
    """A row as it is written: as it was read, with its results."""
    if full:
        return {**without(row["row"], *FULL), **{name: row[name] for name in FULL if name in row}}
    result = {"error": error_text(row["error"])} if "error" in row else {"answer": answer_in(row["response"], parse)}
    return {**without(row["row"], *ANSWER), **result}


def error_text(error: Any) -> str:
    return " ".join(str(ChatError(error)).split())


def answer_in(completion: Any, parse: bool) -> Any:
    """What a completion says, as text or as the JSON that it is; of several choices a list.

    >>> answer_in({"choices": [{"message": {"content": '{"a": 1}'}}]}, True)
    {'a': 1}
    """
    texts = [answer_of(choice) for choice in choices_of(completion)]
    found = [parsed(text) for text in texts] if parse else texts
    return found[0] if len(found) == 1 else found or ""


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
