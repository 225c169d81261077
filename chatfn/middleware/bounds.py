"""The most that a request can cost, and what an attempt of it has cost.

The worst case of input: no byte-level BPE makes more tokens of a text than it has bytes of UTF-8, and the JSON around
the texts has more bytes than the chat format has tokens of its own; ``FORMAT`` is for what servers add before all.
Parts that are no text have no such bound: the setting ``parts`` has to say how many tokens one has at most.
The worst case of output: ``max_completion_tokens`` (or ``max_tokens``) times ``n``, or what the model can say at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

from chatfn.cost import Ceiling, at_most, ceiling, charged, counts_of
from chatfn.middleware.ledger import NOTHING, Amount, Cap
from chatfn.prices import TIERS, Lookup, Price
from chatfn.spec import Json, Request
from chatfn.usage import is_free, model_asked, own_usage, said_of

FORMAT = 256  # tokens that a server may put before the messages: its own instructions, the frame of tools
TEXTS = ("text", "refusal")
ADDED = ("web_search_options", "data_sources")  # of a body: the server looks up text, and charges for it as input
KINDS = {"image_url": ("image",), "file": ("image",), "input_audio": ("audio",), "audio": ("audio",)}
UNBOUNDED = (
    'how long its answer can be is not known; give "max_completion_tokens" in params, '
    'or the model\'s "max_output_tokens" in "prices"'
)


class Budget(NamedTuple):
    cap: Cap
    lookup: Lookup
    provider: str | None
    parts: Json
    wait: float
    key: str
    begin: Callable[[Budget], Amount] | None = None  # what is spent already


def bound_of(request: Request, budget: Budget) -> Amount | str:
    """The most that a request can cost, or why there is no bound, and what would make one."""
    body = request["body"]
    if not isinstance(body, Mapping):
        return "its body is no map"
    given = input_bound(body, budget.parts)
    if isinstance(given, str):
        return given
    asked = [n for name in ("max_completion_tokens", "max_tokens") if type(n := body.get(name)) is int and n > 0]
    found: tuple[int | None, Ceiling | str] = (None, ())
    if budget.cap.attos is not None or not asked:
        tier = body.get("service_tier")
        tier = tier if isinstance(tier, str) else None
        found = known(budget.lookup, model_asked(request) or "", budget.provider or request["url"], tier, given[1])
    longest, steps = found
    if not asked and longest is None:
        return UNBOUNDED
    choices = body.get("n")
    made = (max(asked) if asked else cast(int, longest)) * (choices if type(choices) is int and choices > 1 else 1)
    if budget.cap.attos is None:
        return Amount(0, given[0] + made)
    return steps if isinstance(steps, str) else Amount(at_most(steps, given[0], made), given[0] + made)


@lru_cache(1_024)  # asked for every attempt, and there are few models
def known(
    lookup: Lookup, model: str, where: str, tier: str | None, kinds: tuple[str, ...]
) -> tuple[int | None, Ceiling | str]:
    """How long an answer of a model can be, and what its tokens cost at the dearest tier that a request may be served
    at; each, if it is known."""
    price = lookup(model, where, None, None)
    if isinstance(price, str):
        return None, price
    found = [ceiling(price, kinds)]
    for other in {tier} & set(TIERS) or ({"priority"} if tier in (None, "auto") else ()):
        special = lookup(model, where, other, None)
        if isinstance(special, Price):
            found.append(ceiling(special, kinds))
        elif tier == other:
            found.append(special)
    problem = next((steps for steps in found if isinstance(steps, str)), None)
    return price.longest, problem or tuple(step for steps in found for step in cast(Ceiling, steps))


def input_bound(body: Json, parts: Json) -> tuple[int, tuple[str, ...]] | str:
    """The most tokens that a body is as input, and what kinds there are beside text; or why there is no bound.

    >>> input_bound({"messages": [{"role": "user", "content": "hi"}]}, {})
    (301, ())
    """
    foreign, plain = foreign_in(body)
    for name in foreign:
        if name not in parts:
            fix = f'{{"{name}": 1500}}'
            return f'nobody knows the tokens of {name!r}; say how many it can be in the budget\'s "parts": {fix}'
    kinds = {kind for name in foreign for kind in KINDS.get(name, ())}
    if "audio" in (body.get("modalities") or ()):
        kinds.add("audio")
    size = len(encode(plain).encode("utf-8", "surrogatepass"))
    return size + FORMAT + sum(parts[name] for name in foreign), tuple(sorted(kinds))


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def foreign_in(body: Json) -> tuple[list[str], Json]:
    """The kinds of the parts that are no text, one by one, and the body without them."""
    foreign = [name for name in ADDED if body.get(name) is not None]
    messages = body.get("messages")
    if not isinstance(messages, list) or all(type(m) is dict and type(m.get("content")) is str and "audio" not in m
                                             for m in messages):  # fmt: skip
        return foreign, body
    lean: list[Any] = []
    for message in messages:
        if isinstance(message, dict) and message.get("audio") is not None:
            foreign.append("audio")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            foreign += [name for part in content if (name := kind_of(part)) not in TEXTS]
            message = {**message, "content": [part for part in content if kind_of(part) in TEXTS]}
        lean.append(message)
    return foreign, {**body, "messages": lean}


def kind_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else None
    return kind if isinstance(kind, str) else "a part without a type"


def used_of(request: Request, response: Json, budget: Budget) -> Amount | None:
    """What an attempt used; None if nobody knows."""
    usage = own_usage(response)
    if usage is None:
        return NOTHING if is_free(response) else None
    counts = counts_of(usage)
    if counts is None:
        return None
    if budget.cap.attos is None:
        return Amount(0, sum(counts))
    said = cast(Json, said_of(response))
    for model in (said.get("model"), model_asked(request)):  # an answer may name a model that no table has
        where, tier = budget.provider or request["url"], said.get("service_tier")
        found = charged(counts, model, budget.lookup, where, tier, said.get("created"))
        if not isinstance(found, str):
            return Amount(found[0], sum(counts))
    return None
