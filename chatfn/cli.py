"""The command: ``chatfn chat`` and ``chatfn serve``.  Thin shells of click over functions that need no terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from functools import reduce
from typing import Any, NoReturn, cast

import click

from chatfn.chunks import collector
from chatfn.client import create_chat_completion, resolved
from chatfn.core import request_of
from chatfn.errors import ChatError
from chatfn.impls import IMPLS
from chatfn.options import is_loopback, sealed
from chatfn.plain import without
from chatfn.secret import Secret
from chatfn.serve import gateway, serve
from chatfn.spec import Category, Json, Options, __version__
from chatfn.transports import NETWORK
from chatfn.unfold import words_of

OPENAI_MODEL = "gpt-4o-mini"
CLOSED_PIPE = 128 + 13  # what a shell sees of a program that SIGPIPE ended
INTERRUPTED = 128 + 2

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed: a terminal would obey them
KEY_OPTION = re.compile(r'(give )?the option "(api_key|ad_token)" or ')
OPTION = re.compile(r"""(?:the )?option ["'](impl|transport|api_endpoint|api_version|deployment)["']""")
HINTS: Mapping[Category, str] = {
    "unavailable": "check the network and --api-endpoint, or try again later",
    "interrupted": "try again",
    "busy": "try again later",
    "forbidden": "check the key in the environment, and what it may do",
    "not_found": "check --model, --deployment and --api-endpoint",
    "unsupported": "check --impl and --api-endpoint",
}


# What the words of the command mean.


def param_of(text: str) -> tuple[str, Any]:
    """The name and the value of ``name=value``: the value is JSON if it can be read so, else text.

    >>> param_of("temperature=0.2"), param_of("user=me"), param_of('stop=["."]')
    (('temperature', 0.2), ('user', 'me'), ('stop', ['.']))
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is no key=value")
    with suppress(ValueError, RecursionError):
        return name, json.loads(value)
    return name, value


def params_of(texts: Iterable[str]) -> dict[str, Any]:
    """The params that ``name=value`` texts spell, later ones in place of earlier.

    >>> params_of(["n=2", "n=3", "user=me"])
    {'n': 3, 'user': 'me'}
    """
    return dict(map(param_of, texts))


def messages_of(question: str | None, system: str | None, earlier: Any = None) -> list[Any]:
    """The messages of a chat: the system's words, what was said earlier, the question.

    >>> messages_of("Where?", "Be brief.", [{"role": "user", "content": "Who won?"}])
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Who won?'},
     {'role': 'user', 'content': 'Where?'}]
    """
    if not isinstance(earlier or [], list):
        raise ValueError(f"--param messages is {type(earlier).__name__}; give a JSON list of messages")
    first = [] if system is None else [{"role": "system", "content": system}]
    last = [] if question is None else [{"role": "user", "content": question}]
    return [*first, *(earlier or []), *last]


def chat_params(
    given: Json, question: str | None, system: str | None, model: str | None, impl: str, stream: bool
) -> dict[str, Any]:
    """The params of a chat.  OpenAI has a default model; elsewhere its name is anyone's guess."""
    name = model or given.get("model") or (OPENAI_MODEL if impl == "openai" else None)
    messages = messages_of(question, system, given.get("messages"))
    if not any(message.get("role") != "system" for message in messages if isinstance(message, dict)):
        raise click.UsageError('no question: give one, as in chatfn chat "Why is the sky blue?", or on standard input')
    if name is None and impl != "azure":  # Azure may name it by its deployment
        raise click.UsageError(f"--impl {impl} has no default model: give --model")
    head = {} if name is None else {"model": name}
    return {**head, "messages": messages, **without(given, "model", "messages", "stream"), "stream": stream}


def options_of(where: Json) -> Options:
    """The options that the command line gives; a broken character must not stop a question."""
    given = {name: value for name, value in where.items() if value is not None}
    if "transport" in given:
        given["transport"] = named_transport(given["transport"])
    return cast(Options, {**given, "surrogates": "replace"})


def named_transport(text: str) -> Any:
    """A transport's name, or its name with settings as JSON.

    >>> named_transport("echo"), named_transport('["replay", {"path": "calls.jsonl"}]')
    ('echo', ['replay', {'path': 'calls.jsonl'}])
    """
    return json.loads(text) if text.startswith("[") else text


# What is shown.


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
    text = OPTION.sub(lambda found: f"--{found[1].replace('_', '-')}", KEY_OPTION.sub(set_key, str(exc)))
    if isinstance(exc, ChatError):
        wait = exc.error.get("retry_after")
        hint = HINTS.get(exc.error["category"]) if wait is None else f"try again in {wait:.4g} s"
        text = f"{text.rstrip('.')}; {hint}" if hint else text
    return shown(" ".join(text.split()), True) or type(exc).__name__


def set_key(found: re.Match[str]) -> str:
    """No option of the command takes a key: what is left of the advice is the environment's variable."""
    return ""


# What the commands do.


def chat_whole(params: Json, options: Options, as_json: bool) -> None:
    completion = create_chat_completion(params, options)
    if as_json:
        say(json_of(completion, sys.stdout.encoding, 2))
        return
    answers = map(answer_of, choices_of(completion))
    say(shown("\n\n".join(filter(None, answers)), sys.stdout.isatty()))
    note(notes_of(completion))


def chat_stream(params: Json, options: Options, as_json: bool) -> None:
    """Show a stream as it comes; the connection is closed however this ends."""
    fold, last, terminal = collector(), "\n", sys.stdout.isatty()
    with closing(create_chat_completion(params, options)) as events:
        try:
            for event in events:
                piece = "" if as_json else shown(pieces_of(event), terminal)
                last = piece or last
                fold.add(event)
                say(json_of(event, sys.stdout.encoding) if as_json else piece, "\n" if as_json else "")
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


def say(text: str, end: str = "\n") -> None:
    """Write at once.  ``click.echo`` would drop the escape sequences of a text that goes to a file."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def note(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"chatfn: {line}", err=True)


def standard_input() -> str | None:
    """What standard input says, or None if it is a terminal, or says nothing."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    text = sys.stdin.buffer.read().decode("utf-8-sig", "replace").rstrip("\r\n")
    return text if text.strip() else None


def client_key(variable: str | None, host: str, options: Options) -> Secret | None:
    """What clients of the server must give; needed where others could spend."""
    if variable is None:
        transport = options.get("transport", "requests")
        if not is_loopback(host) and (transport in NETWORK or not isinstance(transport, str)):
            raise click.UsageError(f"--host {host} lets others spend your key: give --key-env with a key for them")
        return None
    if not os.environ.get(variable):
        raise ValueError(f"the variable {variable} is not set; put into it the key that clients must give")
    return Secret(os.environ[variable])


# The shells.


def params_option(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    try:
        return params_of(texts)
    except ValueError as exc:
        problem = str(exc)
    raise click.BadParameter(problem)


CONNECTION = (
    click.option("--impl", type=click.Choice(sorted(IMPLS)), default="openai", show_default=True, help="Whose API."),
    click.option(
        "--transport",
        metavar="NAME",
        help="What sends: requests (default), echo (a model in the process), or a name with its settings as JSON: "
        """'["replay", {"path": "calls.jsonl"}]'.""",
    ),
    click.option("--api-endpoint", metavar="URL", help="Where the API is; else --impl or the environment says."),
    click.option("--deployment", metavar="NAME", help="Azure: the deployment."),
    click.option("--api-version", metavar="VERSION", help="Azure: the version of the API, dated or v1."),
)


def connection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options that both have."""
    return reduce(lambda known, option: option(known), reversed(CONNECTION), command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chatfn")
def cli() -> None:
    """Chat completions of OpenAI, Azure OpenAI and those who speak their API.

    Keys are read from the environment (OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ...). No option takes one: it would show
    in the list of processes and in the shell's history.
    """


@cli.command()
@click.argument("question", required=False)
@click.option("--model", help=f"The model; {OPENAI_MODEL} if --impl is openai and none is given.")
@click.option("--system", metavar="TEXT", help="A system message, before all others.")
@click.option(
    "--param", "given", multiple=True, metavar="KEY=VALUE", callback=params_option,
    help="Any parameter of the API, as JSON if it can be read so, else as text; may be repeated. "
    "messages=[...] is what was said earlier, between --system and the question.",
)  # fmt: skip
@click.option("--stream/--no-stream", default=None, help="Show the answer as it comes (default: on a terminal).")
@click.option("--json", "as_json", is_flag=True, help="Print the completion as JSON; with --stream one event a line.")
@click.option("--dry-run", is_flag=True, help="Print the request as JSON, and send nothing; needs no key.")
@connection
def chat(
    question: str | None,
    model: str | None,
    system: str | None,
    given: dict[str, Any],
    stream: bool | None,
    as_json: bool,
    dry_run: bool,
    **where: Any,
) -> None:
    """Ask QUESTION, or what is on standard input, and print the answer.

    Keys are read from the environment (OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ...). No option takes one: it would show
    in the list of processes and in the shell's history.
    """
    options = options_of(where)
    if question is None or question == "-":
        question = standard_input()
    streamed = bool(given.get("stream", sys.stdout.isatty() and not as_json) if stream is None else stream)
    params = chat_params(given, question, system, model, where["impl"], streamed)
    if dry_run:
        say(json_of(request_of(params, resolved(sealed(options))), sys.stdout.encoding, 2))
    else:
        (chat_stream if streamed else chat_whole)(params, options, as_json)


@cli.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--key-env", metavar="VAR", help="The environment variable with the key that clients must give.")
@connection
def serve_command(host: str, port: int, key_env: str | None, **where: Any) -> None:
    """Serve OpenAI's and Azure's chat routes over HTTP until Ctrl-C.

    What answers is --transport echo, or the API that --impl and the environment name: then this is a gateway, whose
    clients need no key of that API.
    """
    options = options_of(where)
    key = client_key(key_env, host, options)
    serve(gateway(options), host, port, key=key, ready=lambda url: say(f"listening on {url}"))


def run(args: list[str] | None = None) -> int:
    """The exit status of the command; it raises nothing, and a failure is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", dict)(errors="replace")  # no character can't be printed
    try:
        status = cli.main(args, prog_name="chatfn", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # click makes the one of the other
        return quiet_end()
    except (ChatError, ValueError, TypeError, OSError) as exc:
        return failed(exc)


def failed(exc: Exception) -> int:
    try:
        click.echo(f"chatfn: {problem_of(exc)}", err=True)
    except BrokenPipeError:
        return quiet_end()
    return 1


def quiet_end() -> int:
    """The status of a command whose reader has left; what is still to be written goes nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def main() -> NoReturn:
    """Run the command and leave with its status: the console script ``chatfn``."""
    sys.exit(run())


if __name__ == "__main__":
    main()
