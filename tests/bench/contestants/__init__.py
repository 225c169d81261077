"""The clients that are compared: a file each, a ``Client`` behind the same few functions.

A file says which ``PACKAGES`` it needs (names to import), which ``REQUIRES`` pip is given for a virtual environment of
its own, how it is imported (``IMPORT``), and makes its ``client(endpoint)``.  Nothing of a client is imported before
that.  Every function reads what a user would read, so that nothing lazy looks cheap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

NAMES = (
    *("chatfn_requests", "chatfn_aiohttp", "chatfn_curl", "requests", "urllib3", "pycurl", "aiohttp", "script"),
    *("openai", "openai_async", "litellm", "litellm_async", "socket"),
)
FLOOR = "socket"  # no client at all: what is left is the server's own ceiling
KEY = "k"
QUESTION = "What is a transducer, in one sentence?"
SYSTEM = {"role": "system", "content": "Be brief."}
REST = {"temperature": 0.2, "max_tokens": 100}
THREADS = 1_000  # more are no client's way of having many calls in flight
WINDOW = 2_000  # rows that are gathered at once by those who gather

Params = Mapping[str, Any]
Timed = tuple[str, float]  # a text, and the seconds until it was there


class Client(NamedTuple):
    """What a contestant can do; None for what it has no own way of doing."""

    calls: Callable[[Params, int], Iterable[str]]  # texts of so many calls, one after another
    events: Callable[[Params], int] | None = None  # a stream's events with text
    flight: Callable[[Params, int, int], Iterable[Timed]] | None = None  # so many calls, so many of them at once
    most: int = 5_000  # how many at once
    streams: Callable[[Params, int], int] | None = None  # the events with text of so many streams at once
    mapped: Callable[[Iterable[str], int, str], Iterable[tuple[str, str]]] | None = None  # questions, how many, journal


def params_of(question: str = QUESTION, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [SYSTEM, {"role": "user", "content": question}], **REST, **more}


def module_of(name: str) -> Any:
    return import_module(f"tests.bench.contestants.{name}")


def lacking(name: str) -> list[str]:
    """Which of a contestant's packages this Python does not have."""
    return [package for package in module_of(name).PACKAGES if not find_spec(package)]


def text_of(completion: Any) -> str:
    return str(completion["choices"][0]["message"]["content"])


def has_text(event: Any) -> bool:
    return bool(event["choices"][0]["delta"].get("content"))


def blocking(call: Callable[[Params], str], stream: Callable[[Params], int] | None = None) -> Client:
    """A client of blocking functions; many at once on threads."""

    def calls(params: Params, count: int) -> Iterator[str]:
        return map(call, repeat(params, count))

    def timed(params: Params) -> Timed:
        began = time.perf_counter()
        return call(params), time.perf_counter() - began

    def flight(params: Params, count: int, at_once: int) -> Iterable[Timed]:
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(timed, repeat(params, count)))

    def streams(params: Params, count: int) -> int:
        with ThreadPoolExecutor(count) as threads:
            return sum(threads.map(stream, repeat(params, count))) if stream else 0

    return Client(calls, stream, flight, THREADS, streams if stream else None)


def awaited(
    call: Callable[[Params], Awaitable[str]],
    stream: Callable[[Params], Awaitable[int]] | None = None,
    runner: asyncio.Runner | None = None,
) -> Client:
    """A client of coroutines; many at once as tasks of one loop."""
    run = (runner or asyncio.Runner()).run

    async def drawn(source: Iterator[Params], found: list[Timed]) -> None:
        for params in source:
            began = time.perf_counter()
            text = await call(params)
            found.append((text, time.perf_counter() - began))

    async def at_once(params: Params, count: int, number: int) -> list[Timed]:
        source, found = repeat(params, count), list[Timed]()
        await asyncio.gather(*(drawn(source, found) for _ in range(number)))
        return found

    async def all_of(params: Params, count: int) -> int:
        return sum(await asyncio.gather(*(stream(params) for _ in range(count)))) if stream else 0

    def calls(params: Params, count: int) -> Iterator[str]:
        return (text for text, _ in run(at_once(params, count, 1)))

    def flight(params: Params, count: int, number: int) -> Iterable[Timed]:
        return run(at_once(params, count, number))

    def streams(params: Params, count: int) -> int:
        return run(all_of(params, count))

    def events(params: Params) -> int:
        return streams(params, 1)

    return Client(calls, events if stream else None, flight, streams=streams if stream else None)


def gathered(
    run: Callable[[Any], Any], answer: Callable[[str, asyncio.Semaphore], Awaitable[str]]
) -> Callable[[Iterable[str], int, str], Iterable[tuple[str, str]]]:
    """A map by ``asyncio.gather`` and a semaphore, some thousand rows at a time."""

    async def one(question: str, gate: asyncio.Semaphore) -> tuple[str, str]:
        return question, await answer(question, gate)

    async def all_of(questions: list[str], gate: asyncio.Semaphore) -> list[tuple[str, str]]:
        return await asyncio.gather(*(one(question, gate) for question in questions))

    def mapped(questions: Iterable[str], at_once: int, journal: str) -> Iterator[tuple[str, str]]:
        source, gate = iter(questions), asyncio.Semaphore(at_once)
        windows = iter(partial(lambda: list(islice(source, WINDOW))), [])
        return chain.from_iterable(run(all_of(window, gate)) for window in windows)

    return mapped


async def count_text(lines: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> int:
    """The events with text among the lines of an event stream."""
    counted = 0
    async for line in lines:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            counted += has_text(parse(line[6:]))
    return counted
