"""chatfn on its transport ``curl``."""

from __future__ import annotations

from tests.bench.contestants import Client
from tests.bench.contestants.chatfns import IMPORT as IMPORT
from tests.bench.contestants.chatfns import NEEDED, client_on
from tests.bench.contestants.chatfns import REQUIRES as COMMON

PACKAGES = (*NEEDED, "pycurl")
REQUIRES = (*COMMON, "pycurl")


def client(endpoint: str) -> Client:
    return client_on("curl", endpoint)
