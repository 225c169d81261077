"""``chatfn chat``: one question, and its answer as it comes or whole."""

from __future__ import annotations

import sys
from contextlib import closing

from chatfn.chunks import collector
from chatfn.cli.shown import answer_of, calls_of, choices_of, json_of, note, notes_of, output, pieces_of, say, shown
from chatfn.client import create_chat_completion
from chatfn.spec import Json, Options


def chat_whole(params: Json, options: Options, as_json: bool) -> None:
    completion = create_chat_completion(params, options)
    if as_json:
        say(json_of(completion, output().encoding, 2))
        return
    answers = map(answer_of, choices_of(completion))
    say(shown("\n\n".join(filter(None, answers)), output().isatty()))
    note(notes_of(completion))


def chat_stream(params: Json, options: Options, as_json: bool) -> None:
    """Show a stream as it comes; the connection is closed however this ends."""
    fold, last, terminal = collector(), "\n", output().isatty()
    with closing(create_chat_completion(params, options)) as events:
        try:
            for event in events:
                piece = "" if as_json else shown(pieces_of(event), terminal)
                last = piece or last
                fold.add(event)
                say(json_of(event, output().encoding) if as_json else piece, "\n" if as_json else "")
        finally:
            if not last.endswith("\n"):
                say("")
    if as_json:
        return
    completion = fold.completion()
    choices = choices_of(completion)
    rest = [*(line for choice in choices[:1] for line in calls_of(choice)), *map(answer_of, choices[1:])]
    for line in filter(None, rest):
        say(shown(line, terminal))
    note(notes_of(completion))


def standard_input() -> str | None:
    """What standard input says, or None if it is a terminal, or says nothing."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    text = sys.stdin.buffer.read().decode("utf-8-sig", "replace").rstrip("\r\n")
    return text if text.strip() else None
