"""chatfn on its transport ``requests``."""

from __future__ import annotations

from tests.bench.contestants import Client, chatfns

PACKAGES = chatfns.NEEDED
REQUIRES = chatfns.REQUIRES
IMPORT = chatfns.IMPORT.format("requests")


def client(endpoint: str) -> Client:
    return chatfns.client_on("requests", endpoint)
