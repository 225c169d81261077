"""pycurl: a handle for each thread, ``perform()``."""

from __future__ import annotations

import json
from importlib import import_module
from io import BytesIO
from threading import local
from typing import Any

from tests.bench.contestants import KEY, Client, Params, blocking, has_text, text_of

PACKAGES = REQUIRES = ("pycurl",)
IMPORT = "import pycurl"


def client(endpoint: str) -> Client:
    pycurl = import_module("pycurl")
    url = f"{endpoint}/chat/completions"
    headers = [f"authorization: Bearer {KEY}", "content-type: application/json", "expect:"]
    own = local()

    def perform(params: Params, write: Any) -> None:
        handle = own.__dict__.setdefault("handle", None) or pycurl.Curl()
        own.handle = handle
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.HTTPHEADER, headers)
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.POSTFIELDS, json.dumps(params).encode())
        handle.setopt(pycurl.WRITEFUNCTION, write)
        handle.perform()
        if handle.getinfo(pycurl.RESPONSE_CODE) != 200:
            raise RuntimeError(f"status {handle.getinfo(pycurl.RESPONSE_CODE)}")

    def call(params: Params) -> str:
        body = BytesIO()
        perform(params, body.write)
        return text_of(json.loads(body.getvalue()))

    def stream(params: Params) -> int:
        rest, counted = b"", 0

        def write(piece: bytes) -> None:
            nonlocal rest, counted
            *blocks, rest = (rest + piece).split(b"\n\n")
            counted += sum(has_text(json.loads(block[6:])) for block in blocks if block != b"data: [DONE]")

        perform(params, write)
        return counted

    return blocking(call, stream)
