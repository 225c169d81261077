"""What a model's tokens cost: by the caller's own table, and by the data that come with ``genai-prices``."""

from __future__ import annotations

from chatfn.prices.library import NO_LIBRARY, has_library, library_name, library_price
from chatfn.prices.own import checked, decimal_of, name_in, own_price
from chatfn.prices.rates import ATTOS, TIERS, Lookup, Price, Rates, attos_of
from chatfn.spec import Json

__all__ = [
    "ATTOS",
    "NO_LIBRARY",
    "TIERS",
    "Lookup",
    "Price",
    "Rates",
    "attos_of",
    "decimal_of",
    "has_library",
    "library_name",
    "lookup_of",
    "name_in",
]


def lookup_of(prices: Json | None = None) -> Lookup:
    """A function that finds prices: in the table ``prices``, then in the library, if that is installed.

    ``prices``: model -> a map of US dollars per million tokens, by the names of ``Rates`` (``request``: dollars a
    request).  Without a price of their own cached, audio, image and reasoning tokens cost as others of their direction.
    ``above``: ``{272000: {"input": …}}``, what differs if there are more input tokens; ``flex``, ``priority``, ``fast``
    and ``batch``: what differs at that service tier, or a factor; ``max_output_tokens``: of one choice.  A string in
    place of a map is the name of another model.  A model is found by its name, with or without the date at its end.
    Raises ``ValueError`` for a table that is wrong.

    >>> find = lookup_of({"my-model": {"input": 0.5, "output": "1.5"}})
    >>> find("my-model-2026-01-31", None, None, None).steps[0][1][:2]
    (500000000000, 1500000000000)
    """
    table = {} if prices is None else dict(checked(prices))
    found: dict[tuple[str, str | None], Price | str] = {}

    def find(model: str, provider: str | None, tier: str | None, at: float | None) -> Price | str:
        seen: list[str] = []
        while (name := name_in(table, model)) is not None and isinstance(table[name], str) and name not in seen:
            seen.append(name)
            model = table[name]
        if name is None or name in seen:
            return library_price(model, provider, tier, at)
        key = name, tier if tier in TIERS else None
        if key not in found:
            found[key] = own_price(name, table[name], key[1])
        return found[key]

    return find
