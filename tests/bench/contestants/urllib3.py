"""urllib3: a pool, ``request(…)``, ``read1``."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from tests.bench.contestants import KEY, THREADS, Client, Params, blocking, has_text, text_of

PACKAGES = REQUIRES = ("urllib3",)
IMPORT = "import urllib3"


def client(endpoint: str) -> Client:
    pool = import_module("urllib3").PoolManager(maxsize=THREADS)
    url = f"{endpoint}/chat/completions"
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

    def post(params: Params, **settings: Any) -> Any:
        response = pool.request("POST", url, body=json.dumps(params).encode(), headers=headers, **settings)
        if response.status != 200:
            raise RuntimeError(f"status {response.status}")
        return response

    def call(params: Params) -> str:
        return text_of(json.loads(post(params).data))

    def stream(params: Params) -> int:
        response, rest, counted = post(params, preload_content=False), b"", 0
        while piece := response.read1(65_536):
            *blocks, rest = (rest + piece).split(b"\n\n")
            counted += sum(has_text(json.loads(block[6:])) for block in blocks if block != b"data: [DONE]")
        response.release_conn()
        return counted

    return blocking(call, stream)
