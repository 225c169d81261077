"""What carries the requests of a map: threads for a blocking transport, an event loop for an awaitable one.

Both are driven by the one thread that calls ``wait``; a transport that can carry many requests itself brings its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from queue import Empty, SimpleQueue
from typing import Any

from chatfn.middleware import Call, is_async, perform
from chatfn.spec import AsyncHandler, Handler, Request
from chatfn.transports import CallDone, Done, Driver

THREAD = "chatfn-map"  # the name of each thread of a map


def driver_of(transport: Any, size: int) -> Driver:
    """The driver for at most ``size`` requests at once on a transport."""
    if hasattr(transport, "driver"):
        own: Driver = transport.driver()
        return own
    return loop_driver(transport) if is_async(transport) else thread_driver(transport, size)


def thread_driver(handler: Handler, size: int) -> Driver:  # noqa: C901  # small functions that share one state
    """At most ``size`` threads that do nothing but wait for a blocking handler."""
    jobs: SimpleQueue[Any] = SimpleQueue()  # (a function, its done)
    ended: SimpleQueue[Any] = SimpleQueue()  # (done, an answer, an exception in place of one)
    threads: list[threading.Thread] = []
    out = 0  # jobs that are not done

    def work() -> None:
        while (job := jobs.get()) is not None:
            function, done = job
            try:
                answer, problem = function(), None
            except Exception as exc:
                answer, problem = None, exc
            except BaseException as exc:  # of a transport of the caller's own: its row must not get lost
                answer, problem = None, stranger(exc)
            ended.put((done, answer, problem))

    def call(function: Callable[[], Any], done: CallDone) -> None:
        nonlocal out
        out += 1
        if len(threads) < min(out, size):
            threads.append(threading.Thread(target=work, name=THREAD, daemon=True))
            threads[-1].start()
        jobs.put((function, done))

    def send(request: Request, done: Done) -> None:
        call(partial(handler, request), done)

    def wait(seconds: float | None) -> None:
        nonlocal out
        with suppress(Empty):
            item = ended.get(timeout=seconds) if seconds != 0 else ended.get_nowait()
            while True:
                if item is not None:
                    out -= 1
                    item[0](item[1], item[2])
                item = ended.get_nowait()

    def close() -> None:
        for _ in threads:
            jobs.put(None)
        while out:
            wait(None)
        for thread in threads:
            thread.join()

    return Driver(
        send=send,
        call=lambda function, done: call(partial(perform, Call(function)), done),
        wait=wait,
        wake=partial(ended.put, None),
        now=time.monotonic,
        close=close,
    )


def loop_driver(handler: AsyncHandler) -> Driver:  # noqa: C901  # as above
    """An event loop that runs while it is waited for."""
    import asyncio  # here, for other drivers do without

    loop = asyncio.new_event_loop()
    tasks: set[asyncio.Task[None]] = set()
    closing = False

    def stop() -> None:
        if not closing:
            loop.stop()

    async def answer(awaitable: Awaitable[Any], done: CallDone) -> None:
        try:
            answer, problem = await awaitable, None
        except Exception as exc:
            answer, problem = None, exc
        except BaseException as exc:  # of a transport of the caller's own, unless the map has ended
            if closing:
                raise
            answer, problem = None, stranger(exc)
        done(answer, problem)
        stop()

    def begin(awaitable: Awaitable[Any], done: CallDone) -> None:
        task = loop.create_task(answer(awaitable, done))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def called(function: Callable[[], Any]) -> Any:
        answer = function()
        return await answer if isawaitable(answer) else answer

    def wait(seconds: float | None) -> None:
        timer = None if seconds is None else loop.call_later(seconds, loop.stop)
        loop.run_forever()
        if timer is not None:
            timer.cancel()

    def wake() -> None:
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(stop)

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await loop.shutdown_asyncgens()

    def close() -> None:
        nonlocal closing
        closing = True
        loop.run_until_complete(end())
        loop.close()

    return Driver(
        send=lambda request, done: begin(handler(request), done),
        call=lambda function, done: begin(called(function), done),
        wait=wait,
        wake=wake,
        now=time.monotonic,
        close=close,
    )


def stranger(exc: BaseException) -> RuntimeError:
    return RuntimeError(f"{type(exc).__name__}: {exc}")
