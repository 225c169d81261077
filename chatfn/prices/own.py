"""Prices of the caller's own table: checked, and found by the names under which servers answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from chatfn.prices.rates import TIERS, Price, Rates, attos_of
from chatfn.spec import Json

OWN_KEYS = (*Rates._fields, "above", "max_output_tokens", *TIERS)
DATED = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$")


def name_in(table: Json, model: str) -> str | None:
    """The name under which a table has a model, which servers answer with a date at its end.

    >>> name_in({"gpt-4o": 1}, "gpt-4o-2024-08-06"), name_in({"ft:gpt-4o": 1}, "ft:gpt-4o-2024-08-06:acme::x1")
    ('gpt-4o', 'ft:gpt-4o')
    """
    if not table or model in table:
        return model if table else None
    tuned = ":".join(model.split(":")[:2]) if model.startswith("ft:") else model
    for name in (DATED.sub("", model), tuned, DATED.sub("", tuned)):
        if name in table:
            return name
    return None


def checked(prices: Any) -> Json:
    """A caller's table; raises ``ValueError`` for what is wrong with it, at its first use and not at the first call."""
    if not isinstance(prices, Mapping):
        raise ValueError(f"prices are {type(prices).__name__}; give a map of models to dollars per million tokens")
    for model, entry in prices.items():
        if not isinstance(entry, str):
            for tier in (None, *TIERS):
                own_price(model, entry, tier)
    return prices


def own_price(model: str, entry: Any, tier: str | None) -> Price | str:
    """The price that an entry of a caller's table says; raises ``ValueError`` for a wrong one."""
    check_entry(model, entry, OWN_KEYS)
    if tier is not None and tier not in entry:
        return f"the table has no price of {model!r} at the service tier {tier!r}; add {{{tier!r}: {{…}}}} to it"
    special = {} if tier is None else entry[tier]
    longest = entry.get("max_output_tokens")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise ValueError(f"the price of {model!r}: max_output_tokens is {longest!r}; give a whole number")
    above = entry.get("above") or {}
    check_map(model, "above", above)
    if isinstance(special, Mapping):
        check_entry(model, special, (*Rates._fields, "above"))
        above = {**above, **(special.get("above") or {})} if "above" in special or not special else {}
        own, factor = {**entry, **special}, Decimal(1)
    else:
        own, factor = dict(entry), decimal_of(model, str(tier), special)
    steps = [(0, own_rates(model, own, factor))]
    for start in sorted(above, key=int):
        check_entry(model, above[start], Rates._fields)
        steps.append((int(start), own_rates(model, {**own, **above[start]}, factor)))
    return Price(model, "the caller's table", tuple(steps), longest)


def check_entry(model: str, entry: Any, known: tuple[str, ...]) -> None:
    check_map(model, "its entry", entry)
    for name in entry:
        if name not in known:
            close = get_close_matches(str(name), known, 1, 0.5)
            meant = f": did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"the price of {model!r}: unknown key {name!r}{meant}; known: {', '.join(known)}")


def check_map(model: str, what: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"the price of {model!r}: {what} is {type(value).__name__}; give a map")


def own_rates(model: str, entry: Json, factor: Decimal) -> Rates:
    found = {
        name: attos_of(decimal_of(model, name, entry[name]) * factor * (10**6 if name == "request" else 1))
        for name in Rates._fields
        if entry.get(name) is not None
    }
    return Rates(**found)


def decimal_of(model: str, name: str, value: Any) -> Decimal:
    number = None
    if isinstance(value, (int, float, str, Decimal)) and not isinstance(value, bool):
        try:
            number = Decimal(str(value))
        except ArithmeticError:
            number = None
    if number is None or not number.is_finite() or number < 0:
        raise ValueError(f"the price of {model!r}: {name} is {value!r}; give dollars per million tokens, 0 or more")
    return number
