"""aiohttp, as one writes it by hand: a session, ``await response.json()``, and no policy at all."""

from __future__ import annotations

import asyncio
import json
from importlib import import_module
from typing import Any

from tests.bench.contestants import KEY, Client, Params, awaited, count_text, text_of

PACKAGES = REQUIRES = ("aiohttp",)
IMPORT = "import aiohttp"


async def session_of(aiohttp: Any) -> Any:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"authorization": f"Bearer {KEY}"},
        timeout=aiohttp.ClientTimeout(total=600),
    )


def client(endpoint: str) -> Client:
    runner = asyncio.Runner()
    session = runner.run(session_of(import_module("aiohttp")))
    url = f"{endpoint}/chat/completions"

    async def call(params: Params) -> str:
        async with session.post(url, json=params, raise_for_status=True) as response:
            return text_of(await response.json())

    async def stream(params: Params) -> int:
        async with session.post(url, json=params, raise_for_status=True) as response:
            return await count_text(response.content, json.loads)

    return awaited(call, stream, runner)
