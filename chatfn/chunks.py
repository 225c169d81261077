"""Events to the completion that they spell.

A fold over ``chat.completion.chunk`` maps, by rules that follow from how the API and those who speak it stream
(https://developers.openai.com/api/reference/resources/chat/subresources/completions/streaming-events):

- a null never takes the place of anything; a key that only ever came with null is kept, with null;
- at the top a later value takes the place of an earlier one, unless it is empty (Azure's first chunk has an empty
  ``id`` and ``model``); ``obfuscation`` is random padding and is dropped;
- in a ``delta`` strings are pieces and are joined, except those that name something (``NAMES``) and are repeated by
  some servers; a function's ``name`` is joined too, unless it is the whole name again;
- elsewhere in a choice a later string takes the place of an earlier one, unless it is empty;
- everywhere below the top maps merge key by key, later numbers take the place of earlier ones, items of lists merge by
  their ``index``, tool calls without one by their ``id``, other lists are extended (but what Azure's content filter
  reports again is not doubled);
- where kinds meet that do not belong together, a text is not given up for a number, nor a map or a list for either.

What is kept grows with the text and not with the number of events: pieces go into one ``StringIO`` for each string,
made at the second piece.  Nothing recurses, so no depth of nesting can overflow the stack.  An event that looks as its
predecessor did, but for its content, costs two comparisons of small maps and a write.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import Any, Literal, NamedTuple

from chatfn.plain import without
from chatfn.spec import Json

DONE = "[DONE]"  # the data of the event after the last chunk

NAMES = frozenset(
    {"id", "type", "role", "object", "format", "status", "model", "call_id", "tool_call_id", "mime_type", "media_type"}
)

MAPS = (dict, Mapping)  # dict first: it is found sooner
LISTS = (list, tuple, Sequence)
SCALARS = (str, int, float, type(None))

# How values of one key meet: pieces of text; later values in place of earlier; the same, with lists reported again.
Mode = Literal["pieces", "values", "reports"]


class Items(NamedTuple):
    """A list that items merge into: where those that have an ``index`` (or are tool calls with an ``id``) stand."""

    items: list[Any]
    places: dict[int | str | None, int]  # never None, which looks up as an item without either
    calls: bool


HOLDERS = (dict, list, Items)  # what holds more in a state
Pair = tuple[dict[str, Any], Json]


class Collector(NamedTuple):
    """A fold in progress."""

    add: Callable[[Json], None]
    completion: Callable[[], dict[str, Any]]  # of what came so far; more may follow
    whole: Callable[[], bool]  # every choice has its finish_reason


def collector(choices: int = 1) -> Collector:
    """Three functions that share one fold: ``add(event)``, ``completion()``, ``whole()``.

    ``choices``: how many a whole completion has at least.  No malformed event raises: what can be taken is taken.

    >>> fold = collector()
    >>> fold.add({"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]})
    >>> fold.whole(), fold.completion()["choices"][0]["message"]["content"]
    (False, 'Hel')
    >>> fold.add({"choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}]})
    >>> fold.whole(), fold.completion()["choices"][0]["message"]["content"]
    (True, 'Hello')
    """
    head: dict[str, Any] = {}
    seen: dict[str, Any] = {}  # the last event, if folding it again would change nothing
    # index -> fields of the choice, its message, and how it last was, if folding that again would change nothing
    states: defaultdict[int, tuple[dict[str, Any], ...]] = defaultdict(lambda: ({}, {}, {}))

    def add(event: Json) -> None:
        nonlocal seen
        if not isinstance(event, MAPS):
            return
        parts = seen["choices"] = event.get("choices")  # what may change is held to be the same
        if "obfuscation" in seen:
            seen["obfuscation"] = event.get("obfuscation")
        if event != seen:
            seen = dict(event) if fold_head(head, event) else {}
        for choice in parts if isinstance(parts, LISTS) else ():
            if not isinstance(choice, MAPS):
                continue
            index = choice.get("index")
            index = index if type(index) is int else 0
            fields, message, known = states[index]
            delta = known["delta"] = choice.get("delta")
            if choice != known:
                known.clear()
                known.update(fold_fields(fields, choice))
            piece = delta.get("content") if type(delta) is dict and len(delta) == 1 else None
            written = message.get("content")
            if type(piece) is str and type(written) is StringIO:
                written.write(piece)
            else:
                spoken = delta if isinstance(delta, MAPS) else choice.get("message")
                merge(message, spoken if isinstance(spoken, MAPS) else {}, "pieces")

    def completion() -> dict[str, Any]:
        found = [completed(index, *states[index][:2]) for index in sorted(states)]
        top = copied(head)
        if top.get("object") == "chat.completion.chunk":
            top["object"] = "chat.completion"
        usage = {key: top.pop(key) for key in ("usage",) if key in top}
        return {**top, "choices": found, **usage}

    def whole() -> bool:
        return len(states) >= choices and all(fields.get("finish_reason") for fields, *_ in states.values())

    return Collector(add, completion, whole)


def collect(events: Iterable[Json]) -> dict[str, Any]:
    """The completion that the ``events`` of a stream spell; they are neither changed nor shared with it.

    Choices and tool calls come out sorted by index.  Linear in time; see the module for the rules.

    >>> collect([
    ...     {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "2 + 2 "}}]},
    ...     {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "= 4"}}]},
    ... ])  # doctest: +NORMALIZE_WHITESPACE
    {'object': 'chat.completion', 'choices': [{'index': 0, 'message': {'role': 'assistant', 'content': '2 + 2 = 4'},
     'finish_reason': None}]}
    """
    fold = collector()
    for event in events:
        fold.add(event)
    return fold.completion()


def completed(index: int, fields: Json, message: Json) -> dict[str, Any]:
    """One choice of the completion."""
    said, others = copied(message), copied(fields)
    whole = {"role": said.get("role") or "assistant", "content": None, **without(said, "role")}
    reason = others.get("finish_reason")
    return {"index": index, "message": whole, **without(others, "finish_reason"), "finish_reason": reason}


def fold_head(head: dict[str, Any], top: Json) -> bool:
    """Take the members of an event; whether taking equal ones again would change nothing."""
    for key, value in top.items():
        if key in ("choices", "obfuscation"):
            continue
        if value is None:
            head.setdefault(key, None)
        elif value or value is False or not head.get(key):
            head[key] = copied(value)
    return all(isinstance(value, SCALARS) for key, value in top.items() if key not in ("choices", "obfuscation"))


def fold_fields(old: dict[str, Any], fields: Json) -> dict[str, Any]:
    """Take the members of a choice; a copy of them, if taking equal ones again would change nothing, or else none."""
    reports = {key: value for key, value in fields.items() if key.startswith("content_filter")}
    values = without(fields, "index", "delta", "message", *reports)
    merge(old, values, "values")
    merge(old, reports, "reports")
    same = "message" not in fields and all(isinstance(value, SCALARS) for value in values.values())
    return {**fields, **copied(reports)} if same and is_flat(reports, 4) else {}


def is_flat(value: Any, levels: int) -> bool:
    """Whether ``value`` is at most ``levels`` of maps over scalars: comparing deeper ones could overflow the stack."""
    if isinstance(value, SCALARS):
        return True
    return levels > 0 and isinstance(value, dict) and all(is_flat(member, levels - 1) for member in value.values())


def merge(old: dict[str, Any], new: Json, mode: Mode) -> None:
    """Fold ``new`` into ``old``, which is ours; level by level, in the order of arrival."""
    todo: list[Pair] = [(old, new)]
    for into, delta in todo:  # grows while it is walked: depth costs no stack
        for key, value in delta.items():
            if value is None:
                into.setdefault(key, None)
            elif isinstance(value, str):
                todo += fold_text(into, key, value, mode)
            elif not isinstance(value, (int, float)):
                todo += fold_holder(into, key, value, mode)
            elif not (was := into.get(key)) or isinstance(was, (int, float)):
                into[key] = value


def fold_text(into: dict[str, Any], key: str, value: str, mode: Mode) -> Iterable[Pair]:
    """Fold a string into the member ``key``; the pairs of maps that are still to be merged."""
    was = into.get(key)
    if type(was) is StringIO and key != "name":
        was.write(value)
        return ()
    if isinstance(was, HOLDERS):
        return said_among(was, value) if key == "content" and not isinstance(was, dict) else ()
    if not isinstance(was, (str, StringIO)):
        into[key] = value if value or was is None else was
    elif mode != "pieces" or key in NAMES:
        into[key] = value or was
    elif key != "name" or not same_text(was, value):
        into[key] = joined(was, value)
    return ()


def fold_holder(into: dict[str, Any], key: str, value: Any, mode: Mode) -> Iterable[Pair]:
    """Fold a map or a list into the member ``key``; the pairs of maps that are still to be merged."""
    was = into.get(key)
    if isinstance(value, MAPS):
        if isinstance(was, dict):
            return ((was, value),)
    elif value and isinstance(value, LISTS) and (was is not None or key == "tool_calls"):
        into[key], pairs = extended(listed(key, was), value, mode)
        return pairs
    if value or was is None:
        into[key] = copied(value)
    return ()


def same_text(was: str | StringIO, value: str) -> bool:
    """Whether ``was`` says ``value``; their lengths first, so that many pieces stay cheap."""
    if isinstance(was, str):
        return was == value
    return was.tell() == len(value) and was.getvalue() == value


def joined(was: str | StringIO, value: str) -> str | StringIO:
    if isinstance(was, StringIO):
        was.write(value)
        return was
    if not was or not value:
        return was or value
    both = StringIO()
    both.write(was)
    both.write(value)
    return both


def listed(key: str, was: Any) -> Items:
    """What ``was``, as a list that more items can be merged into."""
    if isinstance(was, Items):
        return was
    if key == "content" and isinstance(was, (str, StringIO)):  # the text becomes a part among parts
        was = [{"type": "text", "text": was}] if was else []
    items = was if isinstance(was, list) else []
    places: dict[int | str | None, int] = {index_of(item): place for place, item in enumerate(items)}
    places.pop(None, None)
    return Items(items, places, key == "tool_calls")


def extended(kept: Items, new: Sequence[Any], mode: Mode) -> tuple[Items, list[Pair]]:
    """The list with the ``new`` items that it lacks, and the pairs to merge for those that it has."""
    pairs: list[Pair] = []
    if mode == "reports" and all(is_flat(item, 4) for item in new) and kept.items[-len(new) :] == list(new):
        return kept, pairs
    for item in new:
        index, name = index_of(item), id_of(item) if kept.calls else None
        place = kept.places.get(name if index is None else index)
        if place is None:
            place = len(kept.items)
            kept.items.append(copied(item))
        else:
            pairs.append((kept.items[place], item))
        if index is not None:
            kept.places[index] = place
        if name is not None:
            kept.places[name] = place
    return kept, pairs


def index_of(item: Any) -> int | None:
    index = item.get("index") if isinstance(item, MAPS) else None
    return index if type(index) is int else None


def id_of(item: Any) -> str | None:
    name = item.get("id") if isinstance(item, MAPS) else None
    return name if isinstance(name, str) and name else None


def said_among(was: list[Any] | Items, value: str) -> Iterable[Pair]:
    """Text that follows parts (Mistral streams thoughts as parts and then the answer as text) is a part of its own."""
    items = was.items if isinstance(was, Items) else was
    last = items[-1] if items else None
    if isinstance(last, dict) and last.get("type") == "text":
        return ((last, {"text": value}),)
    items.append({"type": "text", "text": value})
    return ()


def copied(value: Any) -> Any:
    """A copy that shares no map and no list with ``value``, as dicts and lists; pieces of text become strings."""
    if isinstance(value, SCALARS):
        return value
    root = [value]
    todo: list[tuple[Any, Any]] = [(root, 0)]
    while todo:
        holder, key = todo.pop()
        found = holder[key]
        if isinstance(found, StringIO):
            holder[key] = found.getvalue()
        elif isinstance(found, MAPS):
            holder[key] = copy = dict(found)
            todo += [(copy, name) for name, member in copy.items() if not isinstance(member, SCALARS)]
        elif isinstance(found, LISTS):
            holder[key] = items = in_order(found) if isinstance(found, Items) else list(found)
            todo += [(items, place) for place, item in enumerate(items) if not isinstance(item, SCALARS)]
    return root[0]


def in_order(kept: Items) -> list[Any]:
    """The items by index, then those without one as they came; tool calls without their index, as in a completion."""
    items = sorted(kept.items, key=lambda item: math.inf if (index := index_of(item)) is None else index)
    return [without(item, "index") if kept.calls and isinstance(item, dict) else item for item in items]
