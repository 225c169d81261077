"""What is shown of completions and failures, to a terminal or to a file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import reduce
from typing import Any, TextIO

from chatfn.errors import ChatError
from chatfn.spec import Category, Json
from chatfn.unfold import words_of

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed: a terminal would obey them
KEY_OPTION = re.compile(r'(give )?the option "(api_key|ad_token)" or ')
OPTION = re.compile(r"""(?:the )?option ["'](impl|transport|api_endpoint|api_version|deployment)["']""")
SPOKEN: Mapping[str, str] = {  # the library's advice, and the command's
    "give a table as 'prices'": "give --prices FILE",
    "give one in a table, as 'prices'": "give one in --prices FILE",
    "give one as 'prices'": "give one in --prices FILE",
    'give "max_completion_tokens" in params': "give --param max_completion_tokens=N",
    "max_completion_tokens=N, or output_tokens": "max_completion_tokens=N, or --output-tokens",
    '"max_output_tokens" in "prices"': '"max_output_tokens" in --prices',
    "no limits are given: ": "no --limits are given: ",
    "make it with plan(…, keys=True)": "make it with chatfn map IN OUT --plan --json",
    'use https, or give the option {"allow_http": True}': "use https",
    "raise usd of the budget": "raise --budget",
    'the budget\'s "usd"': "--budget",
}
HINTS: Mapping[Category, str] = {
    "unavailable": "check the network and --api-endpoint, or try again later",
    "interrupted": "try again",
    "busy": "try again later",
    "forbidden": "check the key in the environment, and what it may do",
    "not_found": "check --model, --deployment and --api-endpoint",
    "unsupported": "check --impl and --api-endpoint",
}


def shown(text: str, terminal: bool) -> str:
    """Text for a reader; a terminal is not told to obey the control characters in it.

    >>> shown("a\\x1b[2Jb", True), shown("a\\x1b[2Jb", False)
    ('a\ufffd[2Jb', 'a\\x1b[2Jb')
    """
    return CONTROLS.sub("\ufffd", text.replace("\r\n", "\n")) if terminal else text


def json_of(data: Any, encoding: str, indent: int | None = None) -> str:
    """JSON in an encoding: what it lacks, and what a terminal would obey, is escaped.

    >>> json_of({"a": "é"}, "utf-8"), json_of({"a": "é"}, "ascii")
    ('{"a": "é"}', '{"a": "\\\\u00e9"}')
    """
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    with suppress(UnicodeEncodeError):
        text.encode(encoding)
        if CONTROLS.search(text) is None:
            return text
    return json.dumps(data, indent=indent)


def spoken(choice: Any) -> str:
    """What a choice says: its content, or its refusal.

    >>> spoken({"message": {"content": None, "refusal": "I can't."}})
    "I can't."
    """
    message = member(choice, "message")
    return words_of(message.get("content")) or words_of(message.get("refusal"))


def calls_of(choice: Any) -> list[str]:
    """The tools that a choice calls, one a line.

    >>> calls_of({"message": {"tool_calls": [{"function": {"name": "find", "arguments": '{"n": 1}'}}]}})
    ['find({"n": 1})']
    """
    message = member(choice, "message")
    found = message.get("tool_calls")
    calls = [*(found if isinstance(found, list) else []), {"function": message.get("function_call")}]
    called = [member(call, "function") or member(call, "custom") for call in calls]
    return [f"{call.get('name')}({call.get('arguments') or call.get('input') or ''})" for call in called if call]


def member(data: Any, name: str) -> dict[str, Any]:
    found = data.get(name) if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def choices_of(completion: Any) -> list[Any]:
    found = completion.get("choices") if isinstance(completion, dict) else None
    return found if isinstance(found, list) else []


def answer_of(choice: Any) -> str:
    """All that a choice says and calls, each on a line of its own."""
    return "\n".join(filter(None, [spoken(choice), *calls_of(choice)]))


def pieces_of(event: Any) -> str:
    """What an event adds to what the first choice says."""
    deltas = [member(choice, "delta") for choice in choices_of(event) if not member({"c": choice}, "c").get("index")]
    return "".join(words_of(delta.get("content")) or words_of(delta.get("refusal")) for delta in deltas)


def notes_of(completion: Json) -> list[str]:
    """What a reader should know of an answer that was shown as text."""
    choices = choices_of(completion)
    reasons = {choice.get("finish_reason") for choice in choices if isinstance(choice, dict)}
    notes = {
        "length": "the answer was cut at its limit of tokens; raise --param max_completion_tokens=…",
        "content_filter": "the answer was cut by the content filter",
    }
    silent = [] if any(map(answer_of, choices)) else ["the answer has no text; --json shows all of it"]
    return [note for reason, note in notes.items() if reason in reasons] + silent


def problem_of(exc: Exception) -> str:
    """A failure in one line, with what to do about it.

    >>> problem_of(ValueError('no API key: give the option "api_key" or set OPENAI_API_KEY'))
    'no API key: set OPENAI_API_KEY'
    >>> problem_of(ChatError({"category": "busy", "message": "slow down", "status": 429, "retry_after": 7.0}))
    'busy (429): slow down; try again in 7 s'
    """
    text = spoken_as_options(system_problem(exc) if isinstance(exc, OSError) else str(exc))
    if isinstance(exc, ChatError):
        wait = exc.error.get("retry_after")
        known = None if exc.error.get("code") == "budget_exceeded" else HINTS.get(exc.error["category"])
        hint = known if wait is None else f"try again in {wait:.4g} s"
        text = f"{text.rstrip('.')}; {hint}" if hint else text
    return shown(" ".join(text.split()), True) or type(exc).__name__


def spoken_as_options(text: str) -> str:
    """What the library says, its options named as the command has them.

    No option of the command takes a key: what is left of that advice is the environment's variable.

    >>> spoken_as_options("the option 'impl' is 1"), spoken_as_options("raise usd of the budget to go on")
    ('--impl is 1', 'raise --budget to go on')
    """
    named = OPTION.sub(lambda found: f"--{found[1].replace('_', '-')}", KEY_OPTION.sub("", text))
    return reduce(lambda said, words: said.replace(*words), SPOKEN.items(), named)


def system_problem(exc: OSError) -> str:
    """
    >>> system_problem(FileNotFoundError(2, "No such file or directory", "in.csv"))
    'in.csv: No such file or directory'
    """
    if exc.strerror is None:
        return str(exc)
    return exc.strerror if exc.filename is None else f"{exc.filename}: {exc.strerror}"


def several(count: int, noun: str) -> str:
    """
    >>> several(1, "row"), several(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def findings_text(findings: Iterable[Json]) -> list[str]:
    """What ``lint`` found, a line each.

    >>> findings_text([{"level": "warning", "message": "user is deprecated"}])
    ['warning: user is deprecated']
    """
    return [shown(f"{found['level']}: {found['message']}", True) for found in findings]


def say(text: str, end: str = "\n") -> None:
    """Write at once.  ``click.echo`` would drop the escape sequences of a text that goes to a file."""
    output().write(text + end)
    output().flush()


def output() -> TextIO:
    if sys.stdout is None:  # closed by who started this
        raise OSError("there is no standard output")
    return sys.stdout


def note(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(f"chatfn: {line}\n")
    sys.stderr.flush()
