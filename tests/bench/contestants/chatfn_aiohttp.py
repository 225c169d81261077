"""chatfn on its transport ``aiohttp``."""

from __future__ import annotations

from tests.bench.contestants import Client, chatfns

PACKAGES = (*chatfns.NEEDED, "aiohttp")
REQUIRES = (*chatfns.REQUIRES, "aiohttp")
IMPORT = chatfns.IMPORT.format("aiohttp")


def client(endpoint: str) -> Client:
    return chatfns.client_on("aiohttp", endpoint, awaits=True)
