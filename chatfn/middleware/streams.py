"""Bodies of streams in middleware: what flows make of their bytes, and what looks on as their events pass."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from chatfn.errors import ChatError
from chatfn.middleware import aperform, perform
from chatfn.middleware.reading import StreamFlow, aread, read
from chatfn.spec import Error
from chatfn.transports import aclose, close

E = TypeVar("E")
BEGUN: Any = None
CLOSED: Error = {"category": "interrupted", "message": "closed by its reader", "status": 0}


def events(steps: StreamFlow, body: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """The events of a flow that yields lists of them, and None for what ``body`` has next; closing them closes it."""
    try:
        step = next(steps)
        while True:
            if step is None:
                step = steps.send(read(body))
            elif isinstance(step, list):
                yield from step
                step = next(steps)
            else:
                step = steps.send(perform(step))
    except StopIteration:
        return
    finally:
        steps.close()
        close(body)


async def aevents(steps: StreamFlow, body: AsyncIterator[Any]) -> AsyncIterator[dict[str, Any]]:
    """The same, of an asynchronous ``body``."""
    try:
        step = next(steps)
        while True:
            if step is None:
                step = steps.send(await aread(body))
            elif isinstance(step, list):
                for event in step:
                    yield event
                step = next(steps)
            else:
                step = steps.send(await aperform(step))
    except StopIteration:
        return
    finally:
        steps.close()
        await aclose(body)


def tapped(body: Any, add: Callable[[Any], object], end: Callable[[Error | None], object]) -> Any:
    """A stream of events that shows each to ``add``, and calls ``end`` once, with the error that ended it or None.

    It is begun, up to its first event, for a generator that never began ends without a word when it is closed.
    """
    begun: Any = (atap if hasattr(body, "__aiter__") else tap)(body, add, end)
    if hasattr(begun, "__anext__"):
        with suppress(StopIteration):
            begun.__anext__().send(None)
    else:
        next(begun)
    return begun


def tap(body: Iterator[E], add: Callable[[E], object], end: Callable[[Error | None], object]) -> Iterator[E]:
    error: Error | None = CLOSED
    try:
        yield BEGUN
        for event in body:
            add(event)
            yield event
        error = None
    except ChatError as exc:
        error = exc.error
        raise
    finally:
        close(body)
        end(error)


async def atap(
    body: AsyncIterator[E], add: Callable[[E], object], end: Callable[[Error | None], object]
) -> AsyncIterator[E]:
    error: Error | None = CLOSED
    try:
        yield BEGUN
        async for event in body:
            add(event)
            yield event
        error = None
    except ChatError as exc:
        error = exc.error
        raise
    finally:
        await aclose(body)
        end(error)


def whoever() -> object:
    """Who is running: a task, or a thread."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        with suppress(RuntimeError):  # no loop runs here
            return asyncio.current_task() or threading.get_ident()
    return threading.get_ident()
