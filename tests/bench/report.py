"""Rounds to rows of medians and quartiles, to the bars that they are held to, and to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

from tests.bench.plans import AT_ONCE, LATENCY, MAP_LATENCY
from tests.bench.processes import Figures, Rounds

MICRO, MILLI = ("µs", 1e6), ("ms", 1e3)
TITLES = {
    "calls": "one call after another",
    "events": "a streamed event",
    "flight": f"{{:,}} calls in flight, answers after {LATENCY * 1e3:g} ms",
    "streams": "an event, {:,} streams at once",
    "size": "a call with {:,} characters of question and of answer",
    "map": f"a map, {AT_ONCE} in flight, {MAP_LATENCY * 1e3:g} ms, 2 % fail at first; chatfn's with a journal",
    "imports": "an import, without Python's own start",
    "alone": "what chatfn adds: on a transport that answers at once",
}
ALONE = {
    "null_calls": "a call",
    "null_events": "a streamed event",
    "bare": "a row of a map",
    "kept": "a row, with the journal",
}
REFERENCE = {"calls": "openai", "events": "openai", "size": "openai", "imports": "openai"}  # else openai_async
NOTES = {"socket": "the floor, and so the server's own ceiling"}


class Bar(NamedTuple):
    """What is promised: ``figure`` of ``measure``, ``over`` that of another if there is one, is ``least`` or ``most``."""

    says: str
    measure: str
    figure: str
    of: str
    over: str | None = None
    least: float | None = None
    most: float | None = None


BARS = (
    Bar(
        "1,000 in flight: calls/s, curl to openai's async",
        "flight 1000",
        "rate",
        "chatfn_curl",
        "openai_async",
        least=20,
    ),
    Bar("1,000 in flight: CPU, curl to the raw sockets", "flight 1000", "cpu", "chatfn_curl", "socket", most=3),
    Bar("1,000 in flight: peak memory of curl, MB", "flight 1000", "peak", "chatfn_curl", most=80),
    Bar("one after another: CPU, openai to requests", "calls", "cpu", "openai", "chatfn_requests", least=3.5),
    Bar("one after another: CPU, openai to curl", "calls", "cpu", "openai", "chatfn_curl", least=12),
    Bar("a streamed event: CPU, openai to requests", "events", "cpu", "openai", "chatfn_requests", least=12),
    Bar("a streamed event: CPU, openai to curl", "events", "cpu", "openai", "chatfn_curl", least=12),
    Bar("a map: rows/s, requests to openai's async", "map", "rate", "chatfn_requests", "openai_async", least=2.5),
    Bar("a map: rows/s, curl to openai's async", "map", "rate", "chatfn_curl", "openai_async", least=8),
    Bar("a map: rows/s, curl to a script that keeps no journal", "map", "rate", "chatfn_curl", "script", least=1),
    Bar("5,000 in flight: calls/s of curl, without errors", "flight 5000", "rate", "chatfn_curl", least=1),
    Bar("1,000 streams at once: events/s of curl", "streams 1000", "rate", "chatfn_curl", least=1),
    Bar("chatfn adds to a call, µs", "alone", "cpu", "null_calls", most=40),
    Bar("chatfn adds to an event, µs", "alone", "cpu", "null_events", most=3),
    Bar("chatfn adds to a row, µs", "alone", "cpu", "bare", most=60),
    Bar("chatfn adds to a row with the journal, µs", "alone", "cpu", "kept", most=120),
)
FIGURES: Mapping[str, Callable[[Figures], float]] = {
    "cpu": lambda turn: turn["cpu"],
    "wall": lambda turn: turn["wall"],
    "rate": lambda turn: 1 / turn["wall"],
    "peak": lambda turn: turn["peak"] / 1e6,
    "p50": lambda turn: turn["p50"] - LATENCY,
    "p99": lambda turn: turn["p99"] - LATENCY,
}


def spread(values: Sequence[float]) -> dict[str, float]:
    """The quartiles of ``values``; of one, what it is."""
    cuts = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return dict(zip(("low", "median", "high"), cuts, strict=True))


def good(turns: Iterable[Figures]) -> bool:
    turns = list(turns)
    return bool(turns) and not any("error" in turn for turn in turns)


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], figure: str) -> float:
    """The median of the rounds' ratios: both were measured in the same round."""
    value = FIGURES[figure]
    return median(value(our) / value(their) for our, their in zip(ours, theirs, strict=True))


def title_of(measure: str) -> str:
    kind, _, number = measure.partition(" ")
    return TITLES[kind].format(int(number)) if number else TITLES[kind]


def unit_of(measure: str) -> tuple[str, float]:
    return MILLI if measure == "imports" or (measure.startswith("size ") and len(measure) > 10) else MICRO


def rows(measure: str, found: Rounds) -> Iterator[dict[str, Any]]:
    """A row for each contestant: its figures in the measure's unit, and how many times less CPU it takes than openai."""
    unit, scale = unit_of(measure)
    base = found.get(REFERENCE.get(measure.split()[0], "openai_async"), [])
    for name, turns in found.items():
        row: dict[str, Any] = {"measure": measure, "contestant": name, "unit": unit, "rounds": len(turns)}
        if not good(turns):
            yield {**row, "error": turns[-1]["error"] if turns else "not measured"}
            continue
        for figure, value in FIGURES.items():
            if figure in turns[0] or figure == "rate":
                by = 1 if figure in ("rate", "peak") else scale if figure in ("cpu", "wall") else 1e3
                row[figure] = spread([value(turn) * by for turn in turns])
        if good(base) and len(base) == len(turns):
            row["times_less"] = ratio(base, turns, "cpu")
        yield row


def bars(rounds: Mapping[str, Rounds]) -> Iterator[dict[str, Any]]:
    """The bars whose contestants were measured, and whether they are met."""
    for bar in BARS:
        found = rounds.get(bar.measure, {})
        ours, theirs = found.get(bar.of, []), found.get(bar.over or "", [])
        if not ours or (bar.over and not good(theirs)):
            continue
        wanted = {"at_least": bar.least} if bar.least is not None else {"at_most": bar.most}
        if not good(ours):
            yield {"bar": bar.says, **wanted, "value": None, "met": False}
            continue
        scale = unit_of(bar.measure)[1] if bar.figure == "cpu" else 1
        value = ratio(ours, theirs, bar.figure) if bar.over else scale * median(map(FIGURES[bar.figure], ours))
        met = value >= bar.least if bar.least is not None else value <= (bar.most or 0)
        yield {"bar": bar.says, **wanted, "value": value, "met": met}


def cell(figure: Mapping[str, float], form: str = ",.1f") -> str:
    between = f"{figure['low']:{form}} to {figure['high']:{form}}"
    return f"{figure['median']:>11{form}}  {between:<21}"


def table(measure: str, found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows of a measure as text."""
    unit = unit_of(measure)[0]
    rounds = max(row["rounds"] for row in found)
    late = any("p50" in row for row in found)
    yield f"\n{title_of(measure)}: medians and quartiles of {rounds} round{'s' * (rounds > 1)}"
    more = f"{'late p50':>10}{'p99 ms':>9}" if late else ""
    heads = f"{'CPU ' + unit:>11}{'':<23}{'wall ' + unit:>11}{'':<23}{'a second':>11}{more}{'peak MB':>9}"
    yield f"{'':<24}{heads}  less CPU than openai"
    for row in found:
        name = ALONE.get(row["contestant"], row["contestant"])
        if "error" in row:
            yield f"{name:<24}{row['error']}"
            continue
        added = f"{row['p50']['median']:>10.1f}{row['p99']['median']:>9.1f}" if "p50" in row else " " * len(more)
        peak = f"{row['peak']['high']:>9.0f}" if "peak" in row else " " * 9
        times = f"{row['times_less']:>8.1f}x" if "times_less" in row else " " * 9
        rate = f"{row['rate']['median']:>11,.0f}" if measure != "imports" else " " * 11
        line = f"{name:<24}{cell(row['cpu'])}{cell(row['wall'])}"
        yield f"{line}{rate}{added}{peak}{times}  {NOTES.get(row['contestant'], '')}".rstrip()


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The report as text."""
    yield f"{told['date']}  {told['command']}"
    yield f"{told['python']} on {told['machine']}"
    packages = {name: number for found in told["packages"].values() for name, number in found.items()}
    yield ", ".join(f"{name} {number}" for name, number in sorted(packages.items()))
    yield from (f"{name} is left out: {why}" for name, why in told["left_out"].items())
    for measure in dict.fromkeys(row["measure"] for row in told["rows"]):
        yield from table(measure, [row for row in told["rows"] if row["measure"] == measure])
    yield from memory_lines(told.get("memory", {}))
    yield from journal_lines(told.get("journal", {}))
    if told["bars"]:
        yield "\nbars, in this run"
    for bar in told["bars"]:
        wanted = f"at least {bar['at_least']:g}" if "at_least" in bar else f"at most {bar['at_most']:g}"
        value = "failed" if bar["value"] is None else f"{bar['value']:,.1f}"
        yield f"{'met  ' if bar['met'] else 'MISSED'} {bar['bar']}: {value} ({wanted})"


def memory_lines(found: Figures) -> Iterator[str]:
    if "error" in found:
        yield f"\na map's memory: {found['error']}"
    elif found:
        span = f"{found['few']:,} to {found['many']:,} rows"
        yield f"\na map's memory grows by {found['growth'] / 2**20:.1f} MiB from {span}, after {found['before'] / 2**20:.0f} MiB"


def journal_lines(found: Figures) -> Iterator[str]:
    steps = {"kept": "written", "replayed": "read again", "resumed": "read again, one of a hundred sent"}
    if found:
        yield f"\na journal of {found['answers']:,} answers, {found['bytes'] / 2**20:.0f} MiB"
    for step, words in steps.items():
        figures = found.get(step, {})
        if "error" in figures:
            yield f"{words}: {figures['error']}"
        elif figures:
            first = f"; the first call goes out after {figures['first']:.2f} s" if step != "kept" else ""
            yield f"{words}: {1 / figures['wall']:,.0f} rows/s, {figures['cpu'] * 1e6:.0f} µs of CPU a row{first}"
