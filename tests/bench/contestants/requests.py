"""requests, as one writes it by hand: a session, ``post(…).json()``, ``iter_lines``."""

from __future__ import annotations

import json
from importlib import import_module

from tests.bench.contestants import KEY, THREADS, Client, Params, blocking, has_text, text_of

PACKAGES = REQUIRES = ("requests",)
IMPORT = "import requests"


def client(endpoint: str) -> Client:
    requests = import_module("requests")
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=THREADS))
    url, headers = f"{endpoint}/chat/completions", {"Authorization": f"Bearer {KEY}"}

    def call(params: Params) -> str:
        response = session.post(url, json=params, headers=headers)
        response.raise_for_status()
        return text_of(response.json())

    def stream(params: Params) -> int:
        with session.post(url, json=params, headers=headers, stream=True) as response:
            lines = (line[6:] for line in response.iter_lines() if line not in (b"", b"data: [DONE]"))
            return sum(has_text(json.loads(line)) for line in lines)

    return blocking(call, stream)
