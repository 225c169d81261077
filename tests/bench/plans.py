"""How much is measured: in seconds to see that it runs, in minutes, or all that was ever asked for."""

from __future__ import annotations

from typing import Any

Plan = dict[str, Any]
LATENCY, MAP_LATENCY = 0.05, 0.02  # seconds that the far server takes for an answer
AT_ONCE = 200  # rows of a map in flight

DEFAULT: Plan = {
    "rounds": 5,
    "calls": 100,
    "events": 1_500,
    "flight": [[10, 100, 2], [100, 500, 2], [1_000, 2_000, 2], [5_000, 5_000, 1]],  # at once, calls, rounds
    "streams": [1_000, 5, 2],  # at once, events of each, rounds
    "sizes": [[1_000, 50], [100_000, 20], [10_000_000, 1]],  # characters of question and answer, calls
    "size_rounds": 2,
    "map": 20_000,  # rows
    "map_rounds": 1,
    "alone": {"null_calls": 3_000, "null_events": 30_000, "bare": 10_000},
    "memory": [20_000, 200_000],  # rows
    "answers": 50_000,  # in the journal that is replayed
    "share": 50,  # seconds for one table, after which no further round begins
    "seconds": 120,  # for one figure of one contestant; it is left out of a measure that takes it longer
}
FULL: Plan = {
    **DEFAULT,
    "rounds": 9,
    "flight": [[10, 200, 5], [100, 1_000, 5], [1_000, 5_000, 5], [5_000, 10_000, 5]],
    "streams": [1_000, 20, 5],
    "size_rounds": 5,
    "map_rounds": 3,
    "memory": [20_000, 2_000_000],
    "answers": 1_000_000,
    "share": 600,
    "seconds": 1_800,
}
QUICK: Plan = {
    "rounds": 2,
    "calls": 5,
    "events": 100,
    "flight": [[10, 20, 2], [50, 50, 1]],
    "streams": [10, 3, 2],
    "sizes": [[100_000, 1]],
    "size_rounds": 2,
    "map": 200,
    "map_rounds": 1,
    "alone": {"null_calls": 50, "null_events": 500, "bare": 200},
    "memory": [200, 1_000],
    "answers": 300,
    "share": 10,
    "seconds": 60,
}
