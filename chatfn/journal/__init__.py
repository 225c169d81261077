"""The memory of calls: each is paid for once, and all of them are in one SQLite file.

A request has a key (``key``), a file (``files``) has calls in ``tables``, as ``rows``, and the layer around a call
(``flow``) writes its intent before the send and its outcome after it.  Whole, good answers are given again from the
file; errors are kept, and sent again.  ``claims`` says who may send, ``store`` is one journal of this process and
``stores`` are all; ``locks`` knows who is alive, ``report`` and ``spent`` what a file holds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from chatfn.journal.key import canonical, request_key
from chatfn.spec import Json, Middleware

__all__ = ["JournalError", "budget", "canonical", "journal", "request_key"]


class JournalError(OSError):
    """A journal that can't be read or written any more: a full disk, a damaged file."""


def journal(
    path: str | os.PathLike[str],
    *,
    sync: Literal["normal", "full"] = "normal",
    errors: Literal["resend", "keep"] = "resend",
) -> Middleware:
    """Middleware that answers a call from the journal at ``path``, or sends it and keeps what came of it.

    The file is made if there is none.  Equal calls in flight, on threads, in tasks or in other processes on the same
    file, are sent once.  ``sync``: "normal" is safe against the end of the process at any moment, "full" against that
    of the power too, at a flush to the disk for every write.  ``errors``: "resend" a call that failed, or "keep" its
    last error for an answer.
    Raises ``ValueError`` for a path that can't be a journal, ``JournalError`` when a write fails before the send.  If
    one fails after it, the response comes with the reason as ``unkept``, and a ``RuntimeWarning``.
    """
    for name, value, known in (("sync", sync, ("normal", "full")), ("errors", errors, ("resend", "keep"))):
        if value not in known:
            raise ValueError(f"the journal's {name!r} is {value!r}; give {known[0]!r} or {known[1]!r}")
    from chatfn.journal.flow import journaled  # at its first use: sqlite3 is slow to import
    from chatfn.journal.stores import store_of

    return journaled(store_of(path, sync == "full"), errors == "keep")


def budget(
    usd: float | str | None = None,
    tokens: int | None = None,
    prices: Json | None = None,
    provider: str | None = None,
    parts: Mapping[str, int] | None = None,
    wait: float = 600.0,
    journal: str | os.PathLike[str] | None = None,
    attempts: int = 3,
) -> Middleware:
    """Middleware that sends no attempt that could pass a cap of dollars (``usd``), of ``tokens``, or of either.

    Each attempt reserves the most that it can cost before it is sent, and waits up to ``wait`` seconds for those in
    flight to cost less.  What does not fit is an error map of category "forbidden" and code "budget_exceeded", and ends
    a map.  Equal settings share one budget in a process; with a ``journal``, which by itself is that of the same option
    ``middleware``, all budgets of that file do, and what earlier runs have paid for counts.
    ``attempts``, by itself what the layers around allow: how many a call of the journal may have had of which nothing
    is known, for its process was killed.  ``prices``, ``provider``: as of the middleware ``cost``.  ``parts``: the most
    tokens of a part that is no text, by its type: ``{"image_url": 1500}``.
    Raises ``ValueError`` for settings that can't be a budget, and for a file that is no journal.
    """
    settings: Any = {"usd": usd, "tokens": tokens, "prices": prices, "provider": provider, "parts": parts, "wait": wait}
    if journal is None:
        from chatfn.middleware.budget import budget as capped

        return capped(**settings)
    from chatfn.journal.spent import budget_in  # at its first use: sqlite3 is slow to import

    return budget_in(journal, attempts, settings)
