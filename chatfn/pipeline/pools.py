"""Where the rows of a map run: on threads, or on an event loop of their own.

A pool is given tasks and drives the flow of each.  A row that waits for its retry leaves its thread, or its place on
the loop, to another: its flow is put aside until it is due.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

from chatfn.middleware import EFFECTS, Flow, Sleep, adrive_steps, aperform, perform
from chatfn.spec import AsyncHandler, Handler, Request

JOINED = 5.0  # seconds that a thread is waited for when its map is over


class Pool(NamedTuple):
    """Threads or a loop that rows run on."""

    submit: Callable[[Any], None]
    waiting: Callable[[], int]  # how many tasks are put aside until they are due
    close: Callable[[], None]


Begin = Callable[[Any], Flow]
Done = Callable[[Any, Any], None]  # a task, and its response map or the exception that ended it


def thread_pool(begin: Begin, handler: Handler, done: Done, aside: Callable[[], None], size: int) -> Pool:
    """At most ``size`` threads, which drive the flows of tasks on a blocking handler.

    ``begin``: a task's flow.  ``done``: called with a task and what came of it.  ``aside``: called when one waits.
    """
    ready: SimpleQueue[Any] = SimpleQueue()
    threads: list[threading.Thread] = []
    wait, waiting, stop_waiting = sleeper(ready.put)

    def work() -> None:
        while (item := ready.get()) is not None:
            task, steps, answer = item
            try:
                steps = steps or begin(task)
                seconds, result = advance(steps, answer, handler)
            except Exception as exc:
                done(task, exc)
                continue
            if seconds is None:
                done(task, result)
            else:
                wait(seconds, (task, steps, AWAKE))
                aside()

    def submit(task: Any) -> None:
        ready.put((task, None, None))
        if len(threads) < size:
            threads.append(threading.Thread(target=work, name="chatfn-map", daemon=True))
            threads[-1].start()

    def close() -> None:
        stop_waiting()
        while not ready.empty():
            ready.get()
        for _ in threads:
            ready.put(None)
        until = time.monotonic() + JOINED
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    return Pool(submit, waiting, close)


AWAKE = object()


def advance(steps: Flow, answer: Any, handler: Handler) -> tuple[float | None, Any]:
    """Drive a flow until it waits, to the seconds that it wants to; or to its end, to None and its response."""
    if answer is AWAKE:
        answer = time.monotonic()
    try:
        step = steps.send(answer)
        while True:
            if type(step) is Sleep and step.seconds > 0:
                return step.seconds, None
            try:
                answer = perform(step) if type(step) in EFFECTS else handler(cast(Request, step))
            except Exception as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        return None, stop.value


def sleeper(
    wake: Callable[[Any], None],
) -> tuple[Callable[[float, Any], None], Callable[[], int], Callable[[], None]]:
    """Three functions: one that puts an item aside until it is due, which is when it goes to ``wake``; one that says
    how many are put aside; one that ends it.  Due times wait in a heap, on one thread, started at its first use."""
    heap: list[tuple[float, int, Any]] = []
    turn, changed = count(), threading.Condition()
    thread: list[threading.Thread] = []
    ended = False

    def run() -> None:
        with changed:
            while not ended:
                if not heap:
                    changed.wait()
                elif (left := heap[0][0] - time.monotonic()) > 0:
                    changed.wait(left)
                else:
                    wake(heapq.heappop(heap)[2])

    def wait(seconds: float, item: Any) -> None:
        with changed:
            heapq.heappush(heap, (time.monotonic() + seconds, next(turn), item))
            if not thread:
                thread.append(threading.Thread(target=run, name="chatfn-map-due", daemon=True))
                thread[0].start()
            changed.notify()

    def end() -> None:
        nonlocal ended
        with changed:
            ended = True
            for _, _, (_, steps, _) in heap:
                steps.close()
            heap.clear()
            changed.notify()
        for one in thread:
            one.join(JOINED)

    return wait, lambda: len(heap), end


def loop_pool(begin: Begin, handler: AsyncHandler, done: Done, aside: Callable[[], None], size: int) -> Pool:
    """An event loop on a thread of its own, with at most ``size`` requests in flight on an awaitable handler."""
    loop = asyncio.new_event_loop()
    gate = asyncio.Semaphore(size)
    asleep = 0

    async def answer(step: Any) -> Any:
        nonlocal asleep
        if type(step) is not Sleep:
            async with gate:
                return await (aperform(step) if type(step) in EFFECTS else handler(step))
        asleep += 1
        aside()
        try:
            return await aperform(step)
        finally:
            asleep -= 1

    async def run(task: Any) -> None:
        try:
            done(task, await adrive_steps(begin(task), answer))
        except Exception as exc:
            done(task, exc)

    async def end() -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await loop.shutdown_asyncgens()
        loop.stop()

    def submit(task: Any) -> None:
        asyncio.run_coroutine_threadsafe(run(task), loop)

    thread = threading.Thread(target=loop.run_forever, name="chatfn-map", daemon=True)
    thread.start()

    def close() -> None:
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(JOINED)
        if not thread.is_alive():
            loop.close()

    return Pool(submit, lambda: asleep, close)
