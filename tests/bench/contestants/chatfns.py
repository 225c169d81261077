"""chatfn on any of its transports: the calls as its README shows them, many at once by ``map_chat``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import repeat
from typing import Any

from tests.bench.contestants import KEY, Client, Params, Timed, awaited, blocking, has_text, params_of, text_of

IMPORT = "import chatfn.transports; chatfn.transports.transport_of({!r})"  # as far as the others' imports go
NEEDED = ("requests", "toolz", "pyrsistent")
REQUIRES = ("requests>=2.32.3", "urllib3>=2.6.3", "toolz>=1.0", "pyrsistent>=0.20", "orjson>=3.10")


def client_on(transport: str, endpoint: str, *, awaits: bool = False) -> Client:
    chatfn = import_module("chatfn")
    options = {"api_key": KEY, "api_endpoint": endpoint, "transport": transport}

    def call(params: Params) -> str:
        return text_of(chatfn.create_chat_completion(params, options))

    def stream(params: Params) -> int:
        return sum(map(has_text, chatfn.create_chat_completion(params, options)))

    async def acall(params: Params) -> str:
        return text_of(await chatfn.acreate_chat_completion(params, options))

    async def astream(params: Params) -> int:
        return sum([has_text(event) async for event in await chatfn.acreate_chat_completion(params, options)])

    @chatfn.middleware  # type: ignore[untyped-decorator]  # the package is imported by its name
    def stopwatch(request: Any, seconds: list[float]) -> Any:
        began = time.perf_counter()
        response = yield request
        seconds.append(time.perf_counter() - began)
        return response

    def flight(params: Params, count: int, at_once: int) -> Iterable[Timed]:
        seconds: list[float] = []
        watched = {**options, "middleware": [stopwatch(seconds), "retry"]}
        rows = chatfn.map_chat(repeat({"params": params}, count), watched, concurrency=at_once, ordered=False)
        return list(zip([text_of(row["response"]) for row in rows], seconds, strict=True))

    def mapped(questions: Iterable[str], at_once: int, journal: str) -> Iterator[tuple[str, str]]:
        kept = {**options, "middleware": [["journal", {"path": journal}], "retry"]}
        for row in chatfn.map_chat(questions, kept, concurrency=at_once, params_of=params_of):
            yield row["row"], text_of(row["response"])

    runner = asyncio.Runner()
    whole = awaited(acall, astream, runner)
    found = whole if awaits else blocking(call, stream)
    carried = awaits or hasattr(import_module("chatfn.transports").transport_function(transport), "driver")
    most, streams = (whole.most, whole.streams) if carried else (found.most, found.streams)
    return found._replace(flight=flight, most=most, streams=streams, mapped=mapped)
