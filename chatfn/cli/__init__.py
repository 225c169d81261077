"""The command ``chatfn``: thin shells of click over functions that need no terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from chatfn.cli.chat import chat_stream, chat_whole, standard_input
from chatfn.cli.shells import as_usage, connection, journal_command, map_command, param_option
from chatfn.cli.shown import findings_text, json_of, note, output, problem_of, say
from chatfn.cli.words import OPENAI_MODEL, chat_params, client_key, options_of
from chatfn.client import resolved
from chatfn.core import request_of
from chatfn.errors import ChatError
from chatfn.lints import lint
from chatfn.sealing import sealed
from chatfn.serve import gateway, serve
from chatfn.spec import __version__

CLOSED_PIPE = 128 + 13  # what a shell sees of a program that SIGPIPE ended
INTERRUPTED = 128 + 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chatfn")
def cli() -> None:
    """Chat completions of OpenAI, Azure OpenAI and those who speak their API.

    Keys are read from the environment (OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ...). No option takes one: it would show
    in the list of processes and in the shell's history.
    """


@cli.command("chat")
@click.argument("question", required=False)
@click.option("--model", help=f"The model; {OPENAI_MODEL} if --impl is openai and none is given.")
@click.option("--system", metavar="TEXT", help="A system message, before all others.")
@param_option("messages=[...] is what was said earlier, between --system and the question.")
@click.option("--stream/--no-stream", default=None, help="Show the answer as it comes (default: on a terminal).")
@click.option("--json", "as_json", is_flag=True, help="Print the completion as JSON; with --stream one event a line.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the request as JSON, and what the API's document says of it on standard error; send nothing.",
)
@connection
def chat_command(
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
    with as_usage():
        options = options_of(where)
    if question is None or question == "-":
        question = standard_input()
    terminal = output().isatty()
    streamed = bool(given.get("stream", terminal and not as_json) if stream is None else stream)
    with as_usage():
        params = chat_params(given, question, system, model, where["impl"], streamed)
    if dry_run:
        whole = resolved(sealed(options))
        say(json_of(request_of(params, whole), output().encoding, 2))
        note(findings_text(lint(params, whole)))
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
    with as_usage():
        options = options_of(where)
        key = client_key(key_env, host, options)
    serve(gateway(options), host, port, key=key, ready=lambda url: say(f"listening on {url}"))


cli.add_command(map_command)
cli.add_command(journal_command)


def run(args: list[str] | None = None) -> int:
    """The exit status of the command; it raises nothing, and a failure is one line on standard error."""
    if sys.stderr is None:  # closed by who started this
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process runs
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", dict)(errors="replace")  # no character can't be printed
    try:
        status = cli.main(args, prog_name="chatfn", standalone_mode=False)
        if sys.stdout is not None:
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
        for line in (problem_of(exc), *getattr(exc, "__notes__", ())):
            click.echo(f"chatfn: {line}", err=True)
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
