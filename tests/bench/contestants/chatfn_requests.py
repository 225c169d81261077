"""chatfn on its transport ``requests``."""

from __future__ import annotations

from tests.bench.contestants import Client
from tests.bench.contestants.chatfns import IMPORT as IMPORT
from tests.bench.contestants.chatfns import NEEDED, client_on
from tests.bench.contestants.chatfns import REQUIRES as COMMON

PACKAGES = NEEDED
REQUIRES = COMMON


def client(endpoint: str) -> Client:
    return client_on("requests", endpoint)
