"""A map that is only simulated: how long it would take, what would be refused, what it would cost.

The rows are read once, and of each is kept what counts: its model, its tokens, and how many it allows its answer.
Then the middleware of the options, as it is, and the engine of the maps run on a simulated server, for each number of
calls in flight, with requests that are as large and say nothing.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from queue import SimpleQueue
from random import Random
from threading import Event
from typing import Any, NamedTuple

from chatfn.atom import Atom
from chatfn.client import resolved
from chatfn.core import NO_OPTIONS, requester
from chatfn.cost import Counts, attos_of, rates_for
from chatfn.errors import ChatError
from chatfn.middleware import Flow, composed
from chatfn.middleware.budget import budget
from chatfn.middleware.call import timed
from chatfn.middleware.health import NOTHING_KNOWN
from chatfn.middleware.limit.sizes import BYTES_A_TOKEN
from chatfn.middleware.targets import LAYERS
from chatfn.pipeline.engine import Pool, pool_of
from chatfn.pipeline.maps import NUDGE, answered
from chatfn.pipeline.rows import params_in
from chatfn.pipeline.tokens import quarter, size_of
from chatfn.plain import without
from chatfn.prices import ATTOS, Lookup, Price, lookup_of
from chatfn.sealing import sealed
from chatfn.spec import Json, Options, Request, Response
from chatfn.stack import STACK, layer
from chatfn.transports import named
from chatfn.transports.simulated import driver_of
from chatfn.transports.simulated.bodies import DATA
from chatfn.transports.simulated.server import server_of
from chatfn.transports.simulated.settings import Settings, settings_of

ASIDE = ("journal", "cost")  # middleware of files and sums
EXACT = 8  # bits of a size: requests that differ by less are of one size
LEARNING = ("limit", "fallback", "balance")
NEARLY = 1.05
NUMBER = count()
NO_COUNTS = Counts(*[0] * len(Counts._fields))


class Shape(NamedTuple):
    """What counts of a request."""

    model: Any
    input: int  # tokens
    most: int | None  # tokens of one choice
    choices: int


class Shapes(NamedTuple):
    """Rows in the order of their coming."""

    known: dict[Shape, int]
    rows: array[int]  # the number of each row's shape
    bad: int


def simulate(
    rows: Iterable[Any],
    options: Options | Json = NO_OPTIONS,
    settings: Json | None = None,
    *,
    concurrency: int | Sequence[int] = 16,
    params_of: Callable[[Any], Json] | None = None,
    prices: Json | None = None,
) -> dict[str, Any]:
    """What ``map_chat(rows, options)`` would come to on a server of ``settings``, as JSON data; nothing is sent.

    ``settings``: as of the transport ``simulated``.  ``concurrency``: a number, or several, one run for each.  Journals
    are left out, so that equal rows count as often as they come.  ``prices``: as of the middleware ``cost``.
    ``{"rows", "bad", "runs", "best"}``: of each run ``seconds``, ``rows_per_second``, ``answered`` rows and ``errors``
    by category, ``requests``, of these ``refused`` by a limit, ``tokens``, ``cost`` in US dollars (low: of the answers;
    high: of those that got lost too), ``share`` of what the limits allow, ``stopped``: why, if a budget did.  ``best``:
    the smallest concurrency that is within 5 % of the fastest, of those that answer the most rows.
    Raises ``ValueError`` for options and settings, and what ``rows`` raises.

    >>> rows = [{"params": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}] * 100
    >>> found = simulate(rows, {}, {"latency": 2, "output_tokens": 10}, concurrency=[10, 50])
    >>> [(run["concurrency"], run["seconds"], run["answered"]) for run in found["runs"]], found["best"]
    ([(10, 20.0, 100), (50, 4.0, 100)], 50)
    """
    options = sealed(options)
    whole = resolved(options)
    server_settings, lookup = settings_of(settings or {}), lookup_of(prices)
    several = [concurrency] if isinstance(concurrency, int) else list(concurrency)
    for number in several:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"concurrency is {number!r}; give a whole number greater than 0")
    shapes = shapes_of(rows, params_of)
    runs = [run_of(shapes, whole, server_settings, number, lookup) for number in several]
    return {"rows": len(shapes.rows), "bad": shapes.bad, "runs": runs, "best": best_of(runs)}


def shapes_of(rows: Iterable[Any], params_of: Callable[[Any], Json] | None) -> Shapes:
    known: dict[Shape, int] = {}
    found, bad = array("L"), 0
    for row in rows:
        try:
            shape = shape_of(params_in(row, params_of))
        except (TypeError, ValueError, KeyError, AttributeError):
            bad += 1
        else:
            found.append(known.setdefault(shape, len(known)))
    return Shapes(known, found, bad)


def shape_of(params: Json) -> Shape:
    """What counts of params.

    >>> shape_of({"model": "m", "messages": [{"role": "user", "content": "x" * 4100}], "max_tokens": 9})
    Shape(model='m', input=1032, most=9, choices=1)
    """
    size = size_of(params, quarter, (1, sys.maxsize), None)
    capped = "max_tokens" in params or "max_completion_tokens" in params
    step = 1 << max(0, size.input.bit_length() - EXACT)
    most = None if not capped or size.high is None else size.high // size.low
    return Shape(params.get("model"), -(-size.input // step) * step, most, size.low)


def request_like(request_of: Callable[[Json], Request], shape: Shape) -> Request:
    """A request of a shape."""
    choices = {} if shape.choices == 1 else {"n": shape.choices}
    most = {} if shape.most is None else {"max_completion_tokens": shape.most}
    messages = [{"role": "user", "content": "x" * (BYTES_A_TOKEN * shape.input)}]
    return request_of({"model": shape.model or "model", "messages": messages, **most, **choices})


def run_of(shapes: Shapes, options: Options, settings: Settings, concurrency: int, lookup: Lookup) -> dict[str, Any]:
    """One run."""
    if not any(listens(item) for item in options.get("middleware", STACK)):
        settings = settings._replace(limits=settings.limits._replace(headers=False))  # nobody would read them
    server = server_of(settings, DATA)
    results: SimpleQueue[Any] = SimpleQueue()
    rows: Any = shapes.rows
    request_of, stopped = requester(options), Event()
    requests = [request_like(request_of, shape) for shape in shapes.known]
    flow = flow_of(options, settings.seed)

    def begin(task: tuple[int, int]) -> Flow:
        return flow({**requests[task[1]], "cancelled": stopped.is_set})

    def start() -> Pool:
        return pool_of(begin, driver_of(server), results.put, partial(results.put, NUDGE), concurrency, threaded=False)

    errors: Counter[str] = Counter()
    sums = [[0, 0, 0] for _ in requests]  # of each shape's answers: their number, their tokens
    why = None
    try:
        for row in answered(rows, start, results, stopped, Event(), concurrency, True):
            if "error" in row:
                errors[row["error"]["category"]] += 1
            else:
                usage, entry = row["usage"], sums[row["row"]]
                entry[0] += 1
                entry[1] += usage["prompt_tokens"]
                entry[2] += usage["completion_tokens"]
    except ChatError as exc:  # of a budget that is spent
        why = str(exc)
    number, read, written = (sum(entry[place] for entry in sums) for place in range(3))
    told = server.report()
    return {
        "concurrency": concurrency,
        "seconds": told["seconds"],
        "rows_per_second": number / told["seconds"] if told["seconds"] else 0.0,
        "answered": number,
        "errors": dict(errors),
        **{name: told[name] for name in ("requests", "refused", "most_in_flight", "share")},
        "tokens": {"input": read, "output": written},
        "cost": cost_of(zip(shapes.known, requests, sums, strict=True), told["tokens"], lookup),
        "stopped": why,
    }


def flow_of(options: Options, seed: Any) -> Callable[[Request], Flow]:
    """The flow of the options' middleware, of whose state nothing is shared with anyone."""
    chance = Random(seed)  # noqa: S311  # chance, and no secret
    number = next(NUMBER)
    flows = [timed().flow]  # type: ignore[attr-defined]  # of every middleware that is a flow
    place = 1
    for item in options.get("middleware", STACK):
        found: Any = item if callable(item) else own_layer(*named(item, "middleware"), chance, number)
        if found is None:
            continue
        if not hasattr(found, "flow"):
            raise ValueError(f"{item!r} is no flow, so it can't be simulated; make it with @chatfn.middleware")
        flows.append(found.flow)
        if not callable(item) and named(item, "middleware")[0] in LAYERS:
            place = len(flows)
    if any(listens(item) for item in options.get("middleware", STACK)):
        flows.insert(place, partial(renamed, f"/simulation-{number}"))
    return composed(flows)


def listens(item: Any) -> bool:
    """Whether middleware may read what a server says of its limits, or keep what it learns."""
    return callable(item) or named(item, "middleware")[0] in LEARNING


def own_layer(name: str, settings: Json, chance: Random, number: int) -> Any:
    """A layer of the table, with chance from ``chance``; None for one that is left out."""
    if name in ASIDE:
        return None
    if name == "budget":
        return budget(**without(settings, "journal"), key=f"simulation {number}")
    more: dict[str, Any] = {}
    if name == "retry":
        more = {"jitter": chance.random}
    if name == "balance":
        more = {"chance": chance.random, "state": Atom(NOTHING_KNOWN)}
    return layer([name, {**more, **settings}])


def renamed(suffix: str, request: Request) -> Flow:
    """The request to another URL, for there is state that is kept by it, which must not meet that of real requests."""
    response: Response = yield {**request, "url": request["url"] + suffix}
    return response


def cost_of(
    shapes: Iterable[tuple[Shape, Request, Sequence[int]]], ran: Mapping[Any, Json], lookup: Lookup
) -> dict[str, Any]:
    """US dollars, of what was answered and of all that may have been paid; None and why, if a price is unknown."""
    low = high = 0
    left = {model: [tokens["prompt"], tokens["completion"]] for model, tokens in ran.items()}
    prices: dict[Any, Price] = {}
    for shape, request, (number, read, written) in shapes:
        model = request["body"].get("model", shape.model)
        price = lookup(str(model), request["url"], None, None)
        attos = price if isinstance(price, str) else attos_for(price, shape.input, read, written)
        if isinstance(price, str) or isinstance(attos, str):
            return {"low": None, "high": None, "unknown": str(attos)}
        low += attos + number * (rates_for(price, shape.input).request or 0)
        prices[model] = price
        if model in left:
            left[model] = [left[model][0] - read, left[model][1] - written]
    for model, (read, written) in left.items():
        more = attos_for(prices[model], 0, read, written)
        high += 0 if isinstance(more, str) else more
    return {"low": low / ATTOS, "high": (low + high) / ATTOS}


def attos_for(price: Price, size: int, read: int, written: int) -> int | str:
    rates = rates_for(price, size)._replace(request=None)
    return attos_of(NO_COUNTS._replace(input=read, output=written), rates)


def best_of(runs: Sequence[Json]) -> int | None:
    """The smallest concurrency within 5 % of the fastest run, of those that answer the most rows.

    >>> best_of([{"concurrency": n, "seconds": s, "answered": 9} for n, s in ((10, 9.0), (50, 2.1), (200, 2.0))])
    50
    """
    good = [run for run in runs if run["answered"]]
    if not good:
        return None
    most = max(run["answered"] for run in good)
    full = [run for run in good if run["answered"] >= 0.999 * most]
    fastest = min(run["seconds"] for run in full)
    return int(min(run["concurrency"] for run in full if run["seconds"] <= NEARLY * fastest))
