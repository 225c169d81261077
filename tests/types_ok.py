"""For type checkers alone: calls that must be accepted, and those that must not."""

from typing import Any

from chatfn import build_request, create_chat_completion, lint, map_chat, plan, responder, scripted

options: dict[str, Any] = {"impl": "azure"}
create_chat_completion({"model": "m", "messages": []}, options)
create_chat_completion({"model": "m", "messages": []}, {"impl": "azure", "api_key": "k"})
responder({"transport": "echo", "middleware": [["retry", {"attempts": 2}]]})
build_request({"model": "m"})["url"] = "changed"  # type: ignore[typeddict-readonly-mutated]  # maps are read-only
[row["response"] for row in map_chat([{"params": {"model": "m"}}], {"transport": scripted([])})]
plan([], options)["rows"], lint({"model": "m"})[0]["rule"]
