"""litellm, its blocking function; many at once on threads.  A thousand streams at once would take it a minute."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tests.bench.contestants import KEY, Client, Params, blocking

PACKAGES = REQUIRES = ("litellm",)
IMPORT = "import litellm"


def settings(endpoint: str, params: Params) -> dict[str, Any]:
    return {**params, "model": f"openai/{params['model']}", "api_base": endpoint, "api_key": KEY}


def client(endpoint: str) -> Client:
    completion = import_module("litellm").completion

    def call(params: Params) -> str:
        return str(completion(**settings(endpoint, params)).choices[0].message.content)

    def stream(params: Params) -> int:
        return sum(1 for event in completion(**settings(endpoint, params)) if event.choices[0].delta.content)

    return blocking(call, stream)._replace(streams=None)
