"""Where the rows of a map run: on threads, or on an event loop of their own.

A pool is given tasks and drives the flow of each.  A row that waits for its retry leaves its thread, or its place on
the loop, to another: its flow is put aside until it is due.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from chatfn.middleware import EFFECTS, Call, Flow, Sleep, adrive_steps, aperform, perform
from chatfn.spec import AsyncHandler, Handler
from chatfn.transports import close as close_body

JOINED = 5.0  # seconds that a thread is waited for when its map is over


NOTHING: tuple[None, None, None, None] = (None, None, None, None)


class Pool(NamedTuple):
    """Threads or a loop that rows run on."""

    submit: Callable[[Any], None]
    waiting: Callable[[], int]  # how many tasks are put aside until they are due
    close: Callable[[], None]


Begin = Callable[[Any], Flow]
Done = Callable[[Any, Any], None]  # a task, and its response map or the exception that ended it


def thread_pool(  # noqa: C901  # small functions that share one state
    begin: Begin, handler: Handler, done: Done, aside: Callable[[], None], size: int
) -> Pool:
    """One thread that drives the flows of tasks, and at most ``size`` that do nothing but wait for a blocking handler.

    ``begin``: a task's flow.  ``done``: called with a task and what came of it.  ``aside``: called when one waits.
    So the work on a row, the writing of its journal too, is done by one thread, and contends with no other.
    """
    inbox: SimpleQueue[Any] = SimpleQueue()  # (task, its flow, an answer, an exception in place of one)
    jobs: SimpleQueue[Any] = SimpleQueue()  # (task, its flow, a function that may block)
    due: list[tuple[float, int, Any, Flow]] = []  # a heap of what is put aside
    turn = count()
    backlog: deque[Any] = deque()  # tasks that are not begun: what is begun may be written down as on its way
    threads: list[threading.Thread] = []
    busy = 0

    def wait_for_answers() -> None:
        while (job := jobs.get()) is not None:
            task, steps, function = job
            try:
                answer, problem = function(), None
            except Exception as exc:
                answer, problem = None, exc
            except BaseException as exc:  # of a transport of the caller's own: its row must not get lost
                answer, problem = None, RuntimeError(f"{type(exc).__name__}: {exc}")
            inbox.put((task, steps, answer, problem))

    def direct() -> None:
        nonlocal busy
        while True:
            try:
                item = inbox.get(timeout=max(0.0, due[0][0] - time.monotonic()) if due else None)
            except Empty:
                _, _, task, steps = heapq.heappop(due)
                go_on(task, steps, time.monotonic(), None)
                continue
            if item is None:
                break
            if item[1] is None:
                backlog.append(item[0])
            else:
                busy -= 1
                go_on(*item)
            while backlog and busy < size:
                go_on(backlog.popleft(), None, None, None)
        for _, _, _, waiting in due:
            waiting.close()
        due.clear()
        while not jobs.empty():
            busy -= 1
            jobs.get()[1].close()
        for _ in threads:
            jobs.put(None)
        while busy > 0:
            _, left, answer, _ = inbox.get() or NOTHING
            if left is not None:
                busy -= 1
                close_body(answer.get("body") if isinstance(answer, dict) else None)
                left.close()

    def go_on(task: Any, steps: Flow | None, answer: Any, exc: Exception | None) -> None:
        nonlocal busy
        try:
            steps = begin(task) if steps is None else steps
            step = advance(steps, answer, exc)
        except StopIteration as stop:
            done(task, stop.value)
        except Exception as problem:
            done(task, problem)
        else:
            if type(step) is Sleep:
                heapq.heappush(due, (time.monotonic() + step.seconds, next(turn), task, steps))
                aside()
            else:
                busy += 1
                jobs.put((task, steps, step.function if type(step) is Call else partial(handler, step)))

    def start(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work, name="chatfn-map", daemon=True))
        threads[-1].start()

    def submit(task: Any) -> None:
        if not threads:
            start(direct)
        if len(threads) <= size:
            start(wait_for_answers)
        inbox.put((task, None, None, None))

    def close() -> None:
        inbox.put(None)
        until = time.monotonic() + JOINED
        for thread in () if threading.current_thread() in threads else threads:  # one may collect a forgotten map
            thread.join(max(0.0, until - time.monotonic()))

    return Pool(submit, lambda: len(due), close)


def advance(steps: Flow, answer: Any, exc: Exception | None) -> Any:
    """The next step of a flow that takes time: a request, a ``Sleep``, or a ``Call`` that may block."""
    step = steps.send(answer) if exc is None else steps.throw(exc)
    while (type(step) is Sleep and step.seconds <= 0) or (type(step) is Call and not step.blocks):
        try:
            answer = perform(step)
        except Exception as problem:
            step = steps.throw(problem)
        else:
            step = steps.send(answer)
    return step


def loop_pool(  # noqa: C901  # as above
    begin: Begin, handler: AsyncHandler, done: Done, aside: Callable[[], None], size: int
) -> Pool:
    """An event loop on a thread of its own, with at most ``size`` requests in flight on an awaitable handler."""
    loop = asyncio.new_event_loop()
    gate = asyncio.Semaphore(size)
    asleep, ended = 0, False

    async def answer(step: Any) -> Any:
        nonlocal asleep
        if type(step) is not Sleep or step.seconds <= 0:
            return await guarded(aperform(step) if type(step) in EFFECTS else handler(step))
        asleep += 1
        gate.release()  # one who waits to be sent again leaves its place to another
        aside()
        try:
            return await aperform(step)
        finally:
            asleep -= 1
            await gate.acquire()

    async def guarded(answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except Exception:
            raise
        except BaseException as exc:  # of a transport of the caller's own, unless the map has ended
            if ended:
                raise
            problem = RuntimeError(f"{type(exc).__name__}: {exc}")
        raise problem

    async def run(task: Any) -> None:
        async with gate:
            try:
                done(task, await adrive_steps(begin(task), answer))
            except Exception as exc:
                done(task, exc)

    async def end() -> None:
        nonlocal ended
        ended = True
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await loop.shutdown_asyncgens()
        loop.stop()

    def submit(task: Any) -> None:
        asyncio.run_coroutine_threadsafe(run(task), loop)

    def run_loop() -> None:
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=run_loop, name="chatfn-map", daemon=True)
    thread.start()

    def close() -> None:
        asyncio.run_coroutine_threadsafe(end(), loop)
        if thread is not threading.current_thread():
            thread.join(JOINED)

    return Pool(submit, lambda: asleep, close)
