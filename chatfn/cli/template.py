"""Rows to params: templates, which are data, and the columns ``params`` and ``messages``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from chatfn.cli.words import Misused, json_problem, messages_of
from chatfn.plain import without
from chatfn.secret import type_name
from chatfn.spec import Json

PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
DOUBLED = {"{{": "{", "}}": "}"}
NAME = re.compile(r"[^a-zA-Z0-9_-]+")
NAME_CHARACTERS = 64  # of a schema, says the API
SHOWN_COLUMNS = 12


class Column(NamedTuple):
    name: str


Template = tuple[str | Column, ...]


def template_of(text: str) -> Template:
    """The parts of a template: its text, and its columns, which stand in braces; doubled braces are braces.

    >>> template_of('Is "{word}" in {{"a": 1}}?')
    ('Is "', Column(name='word'), '" in ', '{', '"a": 1', '}', '?')
    >>> template_of("{a")
    Traceback (most recent call last):
    chatfn.cli.words.Misused: a lone { at character 1 of the template; double it to mean the brace itself
    """
    return tuple(parts_of(text))


def parts_of(text: str) -> Iterator[str | Column]:
    for found in PIECE.finditer(text):
        piece = found[0]
        if piece in ("{", "}"):
            at = f"at character {found.start() + 1} of the template"
            raise Misused(f"a lone {piece} {at}; double it to mean the brace itself")
        if found[1] == "":
            raise Misused(f"{{}} at character {found.start() + 1} of the template names no column")
        yield DOUBLED.get(piece, piece) if found[1] is None else Column(found[1])


def columns_of(template: Template) -> list[str]:
    return [part.name for part in template if isinstance(part, Column)]


def needs_of(prompt: Template | None, system: Template | None) -> frozenset[str] | None:
    """The columns that make a row good, if it needs nothing else; None if its values are to be looked at too.

    >>> sorted(needs_of(template_of("{n} x {what}"), None)), needs_of(template_of("{what}"), None)
    (['n', 'what'], None)
    """
    if prompt is None or not any(isinstance(part, str) and part.strip() for part in prompt):
        return None
    return frozenset([*columns_of(prompt), *columns_of(system or ())])


def check_columns(template: Template, known: Mapping[str, Any]) -> None:
    """Raise if a template names a column that a table does not have."""
    for name in columns_of(template):
        if name not in known:
            raise Misused(no_column(name, known))


def no_column(name: str, known: Mapping[str, Any]) -> str:
    shown = ", ".join(map(str, list(known)[:SHOWN_COLUMNS])) or "none"
    more = ", …" if len(known) > SHOWN_COLUMNS else ""
    return f"no column {name!r}; there are {shown}{more} (braces that are meant are doubled: {{{{ }}}})"


def filled(template: Template, row: Json) -> str:
    """The text of a template with a row's values in it.

    >>> filled(template_of("{n} x {what}"), {"n": 2, "what": "tea"})
    '2 x tea'
    """
    return "".join(text_in(row, part.name) if isinstance(part, Column) else part for part in template)


def text_in(row: Json, name: str) -> str:
    """A value as text: null is empty, what is neither text nor a date is JSON."""
    if name not in row:
        raise ValueError(no_column(name, row))
    value = row[name]
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (bytes, bytearray)):
        raise ValueError(f"the column {name!r} has bytes, and no text")
    return json.dumps(value, ensure_ascii=False, default=str)


def params_maker(
    prompt: Template | None, system: Template | None, given: Json, default: Callable[[], Json]
) -> Callable[[Json], dict[str, Any]]:
    """A function of a row to its params: the prompt's, or those that its columns hold, under those that are given.

    It raises ``ValueError`` if a row has none.  ``default``: what names the model of a row that names none.
    """
    return partial(params_in, prompt, system, given, default)


def params_in(
    prompt: Template | None, system: Template | None, given: Json, default: Callable[[], Json], row: Json
) -> dict[str, Any]:
    own, messages = (without(given, "messages"), given.get("messages")) if prompt else own_params(row, given)
    question = None if prompt is None else filled(prompt, row)
    if question is not None and not question.strip():
        raise ValueError("the prompt is empty")
    first = None if system is None else filled(system, row)
    named = {} if own.get("model") else default()
    return {**own, **named, "messages": messages_of(question, first, messages)}


def own_params(row: Json, given: Json) -> tuple[dict[str, Any], Any]:
    """The params of a row but for its messages, and these."""
    params = data_in(row, "params", dict)
    messages = data_in(row, "messages", list) if params is None else params.get("messages")
    if not isinstance(messages, list):
        where = (
            "no params and no messages in it; give --prompt" if params is None else "params without a list of messages"
        )
        raise ValueError(where)
    return without({**(params or {}), **given}, "messages"), messages


def data_in(row: Json, name: str, kind: type) -> Any:
    """A column's list or dict, or the one that its text spells; None if there is none."""
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        value = parsed(value, name)
    if value is None or value == "" or isinstance(value, kind):
        return value or None
    raise ValueError(f"the column {name!r} has {type_name(value)}; give {'an object' if kind is dict else 'a list'}")


def parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        problem = json_problem(exc)
    raise ValueError(f"the column {name!r} has {problem}")


def response_format_of(text: str, stem: str) -> dict[str, Any]:
    """What makes answers fit a JSON Schema, which goes by its title, or by the name of its file.

    >>> response_format_of('{"type": "object", "title": "A date"}', "date")["json_schema"]["name"]
    'A_date'
    """
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError(f"the schema is {type_name(schema)}; give an object: {{...}}")
    title = schema.get("title")
    name = NAME.sub("_", title if isinstance(title, str) and title else stem)[:NAME_CHARACTERS].strip("_")
    return {"type": "json_schema", "json_schema": {"name": name or "answer", "schema": schema, "strict": True}}
