"""litellm, its asynchronous function.  A thousand streams, or more calls at once, would take it a minute."""

from __future__ import annotations

from importlib import import_module

from tests.bench.contestants import Client, Params, awaited
from tests.bench.contestants.litellm import IMPORT as IMPORT
from tests.bench.contestants.litellm import PACKAGES as PACKAGES
from tests.bench.contestants.litellm import REQUIRES as REQUIRES
from tests.bench.contestants.litellm import settings


def client(endpoint: str) -> Client:
    completion = import_module("litellm").acompletion

    async def call(params: Params) -> str:
        return str((await completion(**settings(endpoint, params))).choices[0].message.content)

    async def stream(params: Params) -> int:
        events = await completion(**settings(endpoint, params))
        return sum([1 async for event in events if event.choices[0].delta.content])

    return awaited(call, stream)._replace(most=1_000, streams=None)
