"""What a call cost, in its response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from chatfn.cost import NO_USAGE, paid_attos
from chatfn.middleware import Flow, middleware
from chatfn.middleware.streams import tapped
from chatfn.prices import ATTOS, NO_LIBRARY, Lookup, has_library, lookup_of
from chatfn.spec import Error, Json, Middleware, Request, Response
from chatfn.usage import is_free, is_stream, own_usage, paid_of

NOT_ENDED = "the stream has not ended yet"


def cost(prices: Json | None = None, provider: str | None = None) -> Middleware:
    """Middleware that adds ``cost`` to a response: ``{"usd": …, "model": …, "prices": …}``, over all attempts.

    Where the model's price or the usage is not known it is ``{"usd": None, "unknown": why}``.  Of a stream it is that
    until the stream has ended, and then the same map holds the cost.  An answer from a journal has the cost that it
    had when it was paid.
    ``prices``: a table as ``chatfn.prices.lookup_of`` has it, before the library's data; ``provider``: whose prices
    these are, "azure" say, if the URL does not tell.
    Raises ``ValueError`` for a wrong table, or if there is none and no library either.
    """
    if not prices and not has_library():
        raise ValueError(f'the middleware "cost" has no prices: {NO_LIBRARY}')
    return costed(lookup_of(prices), provider)


@middleware
def costed(request: Request, lookup: Lookup, provider: str | None = None) -> Flow:
    response: Response = yield request
    if not is_stream(response):
        return cast(Response, {**response, "cost": cost_in(request, response, lookup, provider)})
    found: dict[str, Any] = {"usd": None, "unknown": NOT_ENDED}
    add, last = usage_watch()

    def end(error: Error | None) -> None:
        now = cost_in(request, streamed(response, last(), error), lookup, provider)
        found.clear()
        found.update(now)

    return cast(Response, {**response, "body": tapped(response["body"], add, end), "cost": found})


def cost_in(request: Request, response: Json, lookup: Lookup, provider: str | None) -> dict[str, Any]:
    """The cost that a response map says."""
    paid = paid_of(request, response)
    if own_usage(response) is None and not is_free(response):
        return {"usd": None, "unknown": NO_USAGE}
    found = paid_attos(paid, lookup, provider)
    if isinstance(found, str):
        return {"usd": None, "unknown": found}
    attos, price = found
    return {"usd": attos / ATTOS, **({} if price is None else {"model": price.model, "prices": price.source})}


def usage_watch() -> tuple[Callable[[dict[str, Any]], None], Callable[[], dict[str, Any] | None]]:
    """Two functions: one to show each event of a stream to, and one for the last event that said a usage."""
    seen: list[dict[str, Any]] = []

    def add(event: dict[str, Any]) -> None:
        if event.get("usage"):
            seen[:] = [event]

    return add, lambda: seen[0] if seen else None


def streamed(response: Response, event: Json | None, error: Error | None) -> Json:
    """A response map of a stream that has ended: its body, or its ``partial``, is the event with its usage."""
    if error is None:
        return {**response, "body": event}
    return {**response, "body": None, "error": {**error, "partial": event or error.get("partial")}}
