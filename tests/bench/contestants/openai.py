"""openai-python, its blocking client; many at once on threads."""

from __future__ import annotations

from importlib import import_module

from tests.bench.contestants import KEY, Client, Params, blocking

PACKAGES = REQUIRES = ("openai",)
IMPORT = "import openai"


def client(endpoint: str) -> Client:
    create = import_module("openai").OpenAI(api_key=KEY, base_url=endpoint).chat.completions.create

    def call(params: Params) -> str:
        return str(create(**params).choices[0].message.content)

    def stream(params: Params) -> int:
        return sum(1 for event in create(**params) if event.choices[0].delta.content)

    return blocking(call, stream)
