"""How far a map is: counted as data, and shown on standard error while it runs."""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple, TextIO

from pyrsistent import PMap, pmap

from chatfn.cli.shown import choices_of, several
from chatfn.middleware.budget import usd_text
from chatfn.prices import ATTOS
from chatfn.spec import Json

ON_TERMINAL, ELSEWHERE = 0.2, 10.0  # seconds between two looks
WINDOW = 30.0  # seconds that a rate is taken over
LONG = 100 * 3600.0  # seconds; what is left of more is no estimate

NO_ERRORS: PMap[str, int] = pmap()


class Tally(NamedTuple):
    """What became of the rows until now."""

    rows: int = 0
    cached: int = 0  # answered from the journal
    errors: PMap[str, int] = NO_ERRORS  # by category
    tokens: int = 0  # that this run used
    cut: int = 0  # answers that end at their limit of tokens
    bad: int = 0  # rows that could not be read
    usd: Decimal | None = None  # what this run cost, as far as it is known
    unpriced: int = 0  # rows of unknown cost
    prices: str | None = None  # whose they are
    first: str | None = None  # what the first error says


class Look(NamedTuple):
    """A tally, and when it was taken."""

    at: float
    rows: int
    tokens: int


def counted(tally: Tally, row: Json) -> Tally:
    """The tally with one more row of a map; the tokens of an answer from the journal were used before.

    >>> counted(Tally(), {"response": {"usage": None}, "usage": {"total_tokens": 7}})
    ... # doctest: +NORMALIZE_WHITESPACE
    Tally(rows=1, cached=0, errors=pmap({}), tokens=7, cut=0, bad=0, usd=None, unpriced=0,
    prices=None, first=None)
    """
    tokens = 0 if row.get("cached") else (row.get("usage") or {}).get("total_tokens")
    reasons = [choice.get("finish_reason") for choice in choices_of(row.get("response")) if isinstance(choice, dict)]
    errors, first = tally.errors, tally.first
    if "error" in row:
        category, first = row["error"]["category"], first or row["error"]["message"]
        errors = errors.set(category, errors.get(category, 0) + 1)
    return Tally(
        tally.rows + 1,
        tally.cached + bool(row.get("cached")),
        errors,
        tally.tokens + (tokens if isinstance(tokens, int) else 0),
        tally.cut + ("length" in reasons),
        tally.bad,
        *costs(tally, row),
        first,
    )


def costs(tally: Tally, row: Json) -> tuple[Decimal | None, int, str | None]:
    """The cost of a tally with one more row; an answer from the journal was paid for before."""
    if "cost" not in row or row.get("cached"):
        return tally.usd, tally.unpriced, tally.prices
    usd = row["cost"]["usd"]
    if usd is None:
        return tally.usd, tally.unpriced + 1, tally.prices
    return (tally.usd or Decimal(0)) + Decimal(str(usd)), tally.unpriced, row["cost"].get("prices") or tally.prices


def cost_text(usd: Decimal | float | None, unpriced: int) -> str | None:
    """
    >>> cost_text(Decimal("1.5"), 0), cost_text(Decimal("0.00021"), 3), cost_text(None, 3), cost_text(None, 0)
    ('$1.50', '$0.00021 and 3 of unknown cost', '3 of unknown cost', None)
    """
    parts = [
        *([] if usd is None else [usd_text(round(usd * ATTOS))]),
        *([f"{unpriced:,} of unknown cost"] if unpriced else []),
    ]
    return " and ".join(parts) or None


def progress_text(tally: Tally, total: int | None, first: Look, last: Look) -> str:
    """A tally in one line, its rates those between two looks.

    >>> progress_text(Tally(1200, 200, tokens=9000), 2000, Look(10, 1000, 0), Look(12, 1200, 9000))
    '1,200 of 2,000 rows, 200 from the journal, 0 errors, 100 rows/s, 4,500 tokens/s, 0:08 left'
    """
    seconds = max(last.at - first.at, 1e-9)
    speed = (last.rows - first.rows) / seconds
    parts = [
        f"{tally.rows:,} of {total:,} rows" if total is not None else f"{tally.rows:,} rows",
        *([f"{tally.cached:,} from the journal"] if tally.cached else []),
        f"{sum(tally.errors.values()):,} errors",
        f"{speed:,.0f} rows/s" if speed >= 10 or not speed else f"{speed:.2g} rows/s",
        f"{(last.tokens - first.tokens) / seconds:,.0f} tokens/s",
    ]
    cost = cost_text(tally.usd, tally.unpriced)
    if cost:
        parts.append(cost)
    if total is not None and speed and (total - tally.rows) / speed < LONG:
        parts.append(f"{clock((total - tally.rows) / speed)} left")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """
    >>> clock(8), clock(3725)
    ('0:08', '1:02:05')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def summary_text(tally: Tally, seconds: float) -> str:
    """What a map came to.

    >>> summary_text(Tally(3, 1, pmap({"busy": 1}), 40), 2.0)
    '3 rows: 2 answered, 1 with an error (1 busy); 1 from the journal; 40 tokens; 2.0 s'
    """
    errors = sum(tally.errors.values())
    kinds = ", ".join(f"{count:,} {category}" for category, count in sorted(tally.errors.items()))
    parts = [
        f"{tally.rows - errors:,} answered",
        *([f"{errors:,} with an error ({kinds})"] if errors else []),
        *([several(tally.bad, "bad line")] if tally.bad else []),
    ]
    cost = cost_text(tally.usd, tally.unpriced)
    source = f" by {tally.prices}" if tally.prices else ""
    kept = f"; {tally.cached:,} from the journal" if tally.cached else ""
    used = f"{several(tally.tokens, 'token')}{f', {cost}{source}' if cost else ''}"
    return f"{several(tally.rows, 'row')}: {', '.join(parts)}{kept}; {used}; {seconds:.1f} s"


@contextmanager
def progress(tally: Callable[[], Tally], total: int | None, stream: TextIO) -> Iterator[None]:
    """Show a tally on a stream until the block ends: on a terminal in one line that changes, else a line at times."""
    terminal = stream.isatty()
    looks: deque[Look] = deque()
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(ON_TERMINAL if terminal else ELSEWHERE):
            now = tally()
            text = progress_text(now, total, *latest(looks, now))
            line = f"\r{text[: shutil.get_terminal_size().columns - 1]}\x1b[K" if terminal else f"chatfn: {text}\n"
            if not written(stream, line):
                return

    latest(looks, tally())
    thread = threading.Thread(target=show, name="chatfn-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if terminal:
            written(stream, "\r\x1b[K")


def latest(looks: deque[Look], tally: Tally) -> tuple[Look, Look]:
    """The oldest and the newest look of a window that ends now."""
    looks.append(Look(time.monotonic(), tally.rows, tally.tokens))
    while len(looks) > 2 and looks[-1].at - looks[1].at >= WINDOW:
        looks.popleft()
    return looks[0], looks[-1]


def written(stream: Any, text: str) -> bool:
    """Whether anyone reads a stream: a map goes on when its terminal has gone."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return False
    return True
