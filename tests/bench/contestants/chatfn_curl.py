"""chatfn on its transport ``curl``."""

from __future__ import annotations

from tests.bench.contestants import Client, chatfns

PACKAGES = (*chatfns.NEEDED, "pycurl")
REQUIRES = (*chatfns.REQUIRES, "pycurl")
IMPORT = chatfns.IMPORT.format("curl")


def client(endpoint: str) -> Client:
    return chatfns.client_on("curl", endpoint)
