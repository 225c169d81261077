"""openai-python, its asynchronous client; a map by a semaphore and ``gather``."""

from __future__ import annotations

import asyncio
from importlib import import_module

from tests.bench.contestants import KEY, Client, Params, awaited, gathered, params_of
from tests.bench.contestants.openai import IMPORT as IMPORT
from tests.bench.contestants.openai import PACKAGES as PACKAGES
from tests.bench.contestants.openai import REQUIRES as REQUIRES


def client(endpoint: str) -> Client:
    create = import_module("openai").AsyncOpenAI(api_key=KEY, base_url=endpoint).chat.completions.create
    runner = asyncio.Runner()

    async def call(params: Params) -> str:
        return str((await create(**params)).choices[0].message.content)

    async def stream(params: Params) -> int:
        return sum([1 async for event in await create(**params) if event.choices[0].delta.content])

    async def answer(question: str, gate: asyncio.Semaphore) -> str:
        async with gate:
            return await call(params_of(question))

    return awaited(call, stream, runner)._replace(mapped=gathered(runner.run, answer))
