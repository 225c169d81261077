"""``map`` for chat completions: rows in, the same rows with their answers out."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import takewhile
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from toolz import compose

from chatfn.client import check_credential, resolved
from chatfn.core import NO_OPTIONS, requester
from chatfn.middleware import composed
from chatfn.pipeline.drivers import driver_of
from chatfn.pipeline.engine import Pool, pool_of
from chatfn.pipeline.rows import Row, fatal_of, is_unsent, outcome, row_flow
from chatfn.sealing import sealed
from chatfn.spec import Json, Options
from chatfn.stack import layers_of, names_of
from chatfn.transports import close, transport_of

if TYPE_CHECKING:
    import asyncio

AHEAD = 16  # times the concurrency: how many rows are out at most, those that wait for their retry included
NEXT = 128  # rows that are taken while their turn to be sent has not come
PULL = 0.05  # seconds between two looks at what is done, while a map waits for its next row
ENDED = object()
NUDGE = object()  # tells a map that waits for results to look again


class Running(NamedTuple):
    """A map in progress: its rows, and the functions that end it from another thread."""

    rows: Iterator[Row]
    stop: Callable[[], None]  # at once
    wind_down: Callable[[], None]  # send nothing more; rows in flight still come out


def map_chat(
    rows: Iterable[Json],
    options: Options | Json = NO_OPTIONS,
    *,
    concurrency: int = 16,
    ordered: bool = True,
    params_of: Callable[[Any], Json] | None = None,
) -> Iterator[Row]:
    """The rows with their ``response`` or ``error``, lazily: never an exception for a row.

    ``rows``: dicts with ``params``, and whatever else is to come out with them; ``params_of`` makes the params of rows
    that have none.  A row's ``sample`` number makes several calls of one request.  Each row comes out once, with
    ``response`` (the completion; of a stream what it folds to) or ``error`` (an error map), ``attempts``, ``usage`` (of
    all attempts, or None), ``cached`` if a journal answered, and ``cost`` if the middleware of that name is there.

    ``concurrency``: how many requests are in flight.  A row that waits to be sent again is not in flight; up to 16
    times as many rows are out at once, and with ``ordered`` none is further ahead of the oldest that is not done.
    With the layer "limit" a row has no deadline unless one is given, for it may wait long until it is its turn.
    What ``rows`` itself raises comes out after the rows before it.  To close the iterator starts nothing more and
    closes what is in flight.

    >>> rows = [{"id": n, "params": {"model": "m", "messages": [{"role": "user", "content": str(n)}]}} for n in (1, 2)]
    >>> [(row["id"], row["response"]["model"], row["attempts"]) for row in map_chat(rows, {"transport": "echo"})]
    [(1, 'm', 1), (2, 'm', 1)]
    """
    options = sealed(options)
    return running(rows, resolved(options), concurrency, ordered, params_of).rows


async def amap_chat(
    rows: Iterable[Json] | AsyncIterable[Json],
    options: Options | Json = NO_OPTIONS,
    *,
    concurrency: int = 16,
    ordered: bool = True,
    params_of: Callable[[Any], Json] | None = None,
) -> AsyncIterator[Row]:
    """The same as an asynchronous iterator, of an iterable or an asynchronous one.

    >>> import asyncio
    >>> async def texts():
    ...     rows = [{"params": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}]
    ...     return [row["response"]["object"] async for row in amap_chat(rows, {"transport": "echo"})]
    >>> asyncio.run(texts())
    ['chat.completion']
    """
    options = sealed(options)
    import asyncio  # here, for it takes memory, and blocking maps do without it

    whole = resolved(options)
    loop = asyncio.get_running_loop()
    ended = Event()
    source = pulled(rows, loop, ended) if isinstance(rows, AsyncIterable) else rows
    found, stop, _ = running(source, whole, concurrency, ordered, params_of)
    thread = ThreadPoolExecutor(1, "chatfn-map-rows")
    try:
        while (row := await loop.run_in_executor(thread, next, found, ENDED)) is not ENDED:
            yield cast(Row, row)
    finally:
        ended.set()
        stop()
        closing = loop.run_in_executor(thread, close, found)
        try:
            await asyncio.shield(closing)
        finally:  # one who is cancelled once more waits for nothing, and nor does the loop
            thread.shutdown(wait=closing.done())


def pulled(rows: AsyncIterable[Json], loop: asyncio.AbstractEventLoop, ended: Event) -> Iterator[Any]:
    """The items of an asynchronous iterable, for another thread than that of its ``loop``, until ``ended``; a ``NUDGE``
    now and then while there is none."""
    import asyncio

    source = aiter(rows)

    async def pull() -> Any:
        return await anext(source, ENDED)

    while not ended.is_set():
        waiting = asyncio.run_coroutine_threadsafe(pull(), loop)
        while not wait([waiting], PULL).done:
            if ended.is_set():
                waiting.cancel()
                return
            yield NUDGE
        row = waiting.result()
        if row is ENDED:
            return
        yield row


def running(
    rows: Iterable[Json],
    options: Options,
    concurrency: int,
    ordered: bool,
    params_of: Callable[[Any], Json] | None,
) -> Running:
    """A map that is about to begin; raises for what can't work before any row is looked at."""
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise ValueError(f"concurrency is {concurrency!r}; give a whole number greater than 0")
    name = options.get("transport", "requests")
    transport = transport_of(name)
    check_credential(options, name)
    layers: list[Any] = layers_of(options)
    if "limit" in names_of(options.get("middleware", ())):
        options = cast(Options, {"deadline": None, **options})  # in line for a slow server is no part of a call
    flows = [layer.flow for layer in takewhile(lambda layer: hasattr(layer, "flow"), layers)]
    transport = compose(*layers[len(flows) :])(transport)  # middleware of another make wraps handlers
    stopped, ending = Event(), Event()
    results: SimpleQueue[Any] = SimpleQueue()
    begin = composed([partial(row_flow, requester(options), params_of, stopped.is_set), *flows])
    threaded = not getattr(transport, "inline", False)

    def start() -> Pool:
        driver = driver_of(transport, concurrency)
        return pool_of(begin, driver, results.put, lambda: results.put(NUDGE), concurrency, threaded=threaded)

    def stop() -> None:
        stopped.set()
        results.put(NUDGE)

    def wind_down() -> None:
        ending.set()
        results.put(NUDGE)

    source = iter(rows)  # now, for what can't be iterated raises
    return Running(answered(source, start, results, stopped, ending, concurrency, ordered), stop, wind_down)


def answered(  # noqa: C901  # one loop, and all of its state
    rows: Iterable[Json],
    start: Callable[[], Pool],
    results: SimpleQueue[Any],
    stopped: Event,
    ending: Event,
    concurrency: int,
    ordered: bool,
) -> Iterator[Row]:
    """The rows as their results come.  Rows are taken when there is room for them, and never while one can go out."""
    source, pool = iter(rows), start()
    most, busy = AHEAD * concurrency, concurrency + min(concurrency, NEXT)
    taken = given = out = 0  # rows taken, rows given out or passed over, rows on their way
    held: dict[int, Row | None] = {}  # done, but not yet their turn
    failure: BaseException | None = None
    more, finishing = True, False
    try:
        while not stopped.is_set():
            while given in held:
                row = held.pop(given)
                given += 1
                if row is not None:
                    yield row
            if ending.is_set() and not finishing:
                more, finishing = False, True
                pool.finish()
            room = taken - given < most and out - pool.waiting() < busy and (results.empty() or out < concurrency)
            if more and room:
                found: Any = NUDGE
                try:
                    found = next(source)
                except StopIteration:
                    more = False
                except Exception as exc:
                    more, failure = False, exc
                if found is not NUDGE:
                    pool.submit((taken, found))
                    taken, out = taken + 1, out + 1
                if found is not NUDGE or results.empty():
                    continue
            if out == 0 and results.empty():
                break
            if pool.turn is not None and results.empty():
                pool.turn()
                continue
            several = results.get()
            for (number, row), got in () if several is NUDGE else several:
                out -= 1
                fatal = fatal_of(got)
                if fatal is not None and failure is None:
                    failure, more, finishing = fatal, False, True
                    pool.finish()
                number = number if ordered else given + len(held)
                held[number] = None if is_unsent(got) else outcome(row, got)
    finally:
        stopped.set()
        pool.close()
    if failure is not None:
        raise failure
