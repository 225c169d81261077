"""The script that people write today: aiohttp, a semaphore, ``gather``, and retries by hand; it remembers nothing."""

from __future__ import annotations

import asyncio
import random
from importlib import import_module
from typing import Any

from tests.bench.contestants import Client, Params, awaited, gathered, params_of, text_of
from tests.bench.contestants.aiohttp import IMPORT as IMPORT
from tests.bench.contestants.aiohttp import PACKAGES as PACKAGES
from tests.bench.contestants.aiohttp import REQUIRES as REQUIRES
from tests.bench.contestants.aiohttp import session_of

ATTEMPTS = 5


def client(endpoint: str) -> Client:
    aiohttp, runner = import_module("aiohttp"), asyncio.Runner()
    session = runner.run(session_of(aiohttp))
    url = f"{endpoint}/chat/completions"

    async def ask(params: Params) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                async with session.post(url, json=params) as response:
                    if response.status not in (429, 500, 502, 503, 504):
                        response.raise_for_status()
                        return await response.json()
                    wait = float(response.headers.get("retry-after", 0.5 * 2**attempt * random.random()))
            except aiohttp.ClientConnectionError:
                wait = 0.5 * 2**attempt * random.random()
            await asyncio.sleep(wait)
        raise RuntimeError("no attempts left")

    async def call(params: Params) -> str:
        return text_of(await ask(params))

    async def answer(question: str, gate: asyncio.Semaphore) -> str:
        async with gate:
            return text_of(await ask(params_of(question)))

    return awaited(call, None, runner)._replace(mapped=gathered(runner.run, answer))
