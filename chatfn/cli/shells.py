"""Shells of click: options that commands share, ``chatfn map`` and ``chatfn journal``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any

import click

from chatfn.cli.journal import show_journal
from chatfn.cli.map import STANDARD_OUTPUT, journal_of, run_map
from chatfn.cli.rows import Job
from chatfn.cli.template import needs_of, params_maker, response_format_of, template_of
from chatfn.cli.words import OPENAI_MODEL, Misused, default_model, json_problem, options_of, params_of
from chatfn.impls import IMPLS
from chatfn.prices import lookup_of


@contextmanager
def as_usage() -> Iterator[None]:
    """What is misused as click says it, with the command's usage and status 2."""
    try:
        yield
    except Misused as exc:
        problem = str(exc)
    else:
        return
    raise click.UsageError(problem)


def params_option(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    try:
        return params_of(texts)
    except ValueError as exc:
        problem = str(exc)
    raise click.BadParameter(problem)


def flight_option(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise click.BadParameter(f"{text!r} is no whole number greater than 0, nor several with commas between them")
    return tuple(map(int, numbers))


CONNECTION = (
    click.option("--impl", type=click.Choice(sorted(IMPLS)), default="openai", show_default=True, help="Whose API."),
    click.option(
        "--transport",
        metavar="NAME",
        help="What sends: requests (default), curl (many at once), echo (a model in the process), or a name with its "
        "settings as JSON: "
        """'["replay", {"path": "calls.jsonl"}]'.""",
    ),
    click.option("--api-endpoint", metavar="URL", help="Where the API is; else --impl or the environment says."),
    click.option("--deployment", metavar="NAME", help="Azure: the deployment."),
    click.option("--api-version", metavar="VERSION", help="Azure: the version of the API, dated or v1."),
)


def connection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options that both have."""
    return reduce(lambda known, option: option(known), reversed(CONNECTION), command)


def param_option(more: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = f"Any parameter of the API, as JSON if it can be read so, else as text; may be repeated. {more}"
    return click.option("--param", "given", multiple=True, metavar="KEY=VALUE", callback=params_option, help=text)


LIMITS_HELP = (
    """--plan: '{"rpm": …, "tpm": …, "concurrency": …, "latency": …}': a minute's requests and tokens, and seconds."""
)
FLIGHT_HELP = "Calls in flight; for --simulate also several to compare, such as 10,50,200."
SIMULATE_HELP = "Print how long this would take on the server that FILE describes, and send nothing."
PRICES_HELP = "A JSON map of models to dollars per million tokens, which goes before the known prices."


@click.command("map", short_help="Ask for every row of a table.")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--prompt", metavar="TEXT", help="What each row asks, with its values where a {column} stands.")
@click.option("--system", metavar="TEXT", help="A system message, before all others; may have {column}s too.")
@click.option("--model", help=f"The model; {OPENAI_MODEL} if --impl is openai and neither this nor a row names one.")
@param_option("Goes over what a row says.")
@click.option(
    "--schema", metavar="FILE", help="A JSON Schema that answers are to fit; they are then JSON, and no text."
)
@click.option("--journal", metavar="FILE", help="The memory of the run (default: OUT.journal.db; of a pipe none).")
@click.option("--concurrency", metavar="N", default="16", show_default=True, callback=flight_option, help=FLIGHT_HELP)
@click.option("--retry-errors", is_flag=True, help="Send rows again that the journal has errors of.")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="The first N rows only.")
@click.option("--full", is_flag=True, help="Write each row's whole response or error, and its usage.")
@click.option("--budget", metavar="USD", help="Dollars that this run and earlier ones of its journal may cost at most.")
@click.option("--prices", metavar="FILE", help=PRICES_HELP)
@click.option("--bad", metavar="FILE", help="Where lines go that can't be read; without it they stop the run.")
@click.option("--plan", "planned", is_flag=True, help="Print what this would send and cost, and send nothing.")
@click.option("--simulate", "server", metavar="FILE", help=SIMULATE_HELP)
@click.option("--json", "as_json", is_flag=True, help="--plan as JSON, to be saved and compared with; or --simulate.")
@click.option(
    "--against", metavar="FILE", help="--plan: which rows differ from those of that saved plan, and their cost."
)
@click.option("--limits", metavar="JSON", help=LIMITS_HELP)
@click.option("--output-tokens", metavar="LOW-HIGH", help="--plan: how long answers are, if the params do not say.")
@connection
def map_command(
    source: str,
    target: str,
    prompt: str | None,
    system: str | None,
    model: str | None,
    given: dict[str, Any],
    schema: str | None,
    journal: str | None,
    retry_errors: bool,
    budget: str | None,
    prices: str | None,
    concurrency: tuple[int, ...],
    planned: bool,
    server: str | None,
    as_json: bool,
    against: str | None,
    limits: str | None,
    output_tokens: str | None,
    **rest: Any,
) -> int:
    """Ask for every row of IN, and write the rows to OUT with an answer, or an error, each.

    IN and OUT are JSON lines, CSV or Parquet by the ending of their names (.jsonl, .csv, .tsv, .parquet), packed if
    .gz or .zst follows; - is standard input or output, as JSON lines. A row asks what --prompt says, or it has a
    column "params" (the JSON body of the API) or "messages". In --prompt and --system {column} stands for the value
    of a column, {{ and }} for braces; no code runs from them.

    All of IN is read before anything is sent. If bad lines have a place to go to, --bad, the rows of a pipe are sent as
    they come.

    OUT appears whole, in the order of IN, or not at all. Every call is in the journal before it is sent, so that the
    same command again goes on where a run ended, and pays for nothing twice; of a run that is done it sends nothing.
    The first Ctrl-C or SIGTERM waits for the calls in flight, the second does not.

    Exit status: 0 if every row has an answer, 3 if some have an error or could not be read, 1 if there is no OUT, 2 if
    the command can't be meant, 128 and the number of the signal that stopped it (130, 143).
    """
    with as_usage():
        asked, said = [None if text is None else template_of(text) for text in (prompt, system)]
        where = {name: rest.pop(name) for name in ("impl", "transport", "api_endpoint", "deployment", "api_version")}
        form = {} if schema is None else {"response_format": schema_format(schema)}
        named = model or given.get("model")
        params = {**given, **form, **({} if named is None else {"model": named})}
        target = "-" if target in STANDARD_OUTPUT else target
        job = Job(
            source,
            target,
            params_maker(asked, said, params, partial(default_model, where["impl"])),
            options_of(where),
            templates=tuple(template for template in (asked, said) if template is not None),
            needs=needs_of(asked, said),
            journal=journal or journal_of(target),
            retry_errors=retry_errors,
            parse=schema is not None,
            budget=budget,
            prices=prices_in(prices),
            concurrency=concurrency[0],
            **rest,
        )
        if planned and server is not None:
            raise Misused("--plan and --simulate are two things: give one of them")
        if planned:
            from chatfn.cli.plan import Asked, limits_in, output_in, show_plan  # at its first use

            return show_plan(job, Asked(limits_in(limits), output_in(output_tokens), as_json, against))
        if server is not None and not (against or limits or output_tokens):
            from chatfn.cli.simulate import show_simulation  # at its first use

            return show_simulation(job, server, concurrency, as_json)
        if len(concurrency) > 1:
            raise Misused("--concurrency takes several numbers for --simulate only")
        if against or limits or output_tokens:
            raise Misused("--against, --limits and --output-tokens are for --plan")
        if as_json:
            raise Misused("--json is for --plan and --simulate")
        return run_map(job)


def schema_format(path: str) -> dict[str, Any]:
    try:
        return response_format_of(Path(path).read_text(encoding="utf-8-sig"), os.path.basename(path).partition(".")[0])
    except ValueError as exc:
        problem = f"{path}: {json_problem(exc)}"
    raise ValueError(problem)


def prices_in(path: str | None) -> dict[str, Any] | None:
    """The price table in a file; raises ``ValueError`` for a wrong one."""
    if path is None:
        return None
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"), parse_float=str)
        lookup_of(table)
    except ValueError as exc:
        problem = f"{path}: {json_problem(exc)}"
    else:
        return dict(table)
    raise ValueError(problem)


@click.command("journal", short_help="Show what a journal knows.")
@click.argument("path", metavar="FILE", required=False)
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
@click.option(
    "--export",
    metavar="OUT",
    help="Write JSON lines of params and completion; - is standard output.",
)
@click.option("--prices", metavar="FILE", help=PRICES_HELP)
@click.option("--sql", is_flag=True, help="Print the SQL schema of journals; needs no FILE.")
def journal_command(path: str | None, as_json: bool, export: str | None, prices: str | None, sql: bool) -> None:
    """Show what the journal FILE knows: calls, answers, errors, calls whose outcome is not known, tokens, times, and
    what was used and paid on each day for each model."""
    with as_usage():
        show_journal(path, as_json, export, sql, prices_in(prices))
