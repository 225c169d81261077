"""A simulated server: what comes in, what is refused, what fails, and when each answer is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify
from math import ceil, inf
from random import Random
from typing import Any, NamedTuple

from chatfn.errors import failure
from chatfn.spec import Request, Response
from chatfn.transports import Done
from chatfn.transports.simulated.bodies import WIRE, Forms, Usage, choices_asked, tokens_asked
from chatfn.transports.simulated.limits import headers_of, meters_of
from chatfn.transports.simulated.settings import Fault, Settings

SOON = 0.02  # seconds until a refusal is there
AWAY = 1.0  # seconds that a server is away after a crash, if nobody says
UNREACHED = failure("unavailable", "the simulated server takes no connection")
UNREACHED = {**UNREACHED, "error": {**UNREACHED["error"], "sent": False}}
TOO_LATE = failure("interrupted", "the simulated server did not answer in time")
CUT = failure("interrupted", "the simulated answer was cut short")
LOST = failure("unavailable", "the simulated server crashed before it answered")

Event = tuple[float, int, Done, Any, str]  # when, a number, whom to tell what, and what that is


class Work(NamedTuple):
    """What a request asks for."""

    data: Any
    usage: Usage
    charge: float  # tokens that it takes of a limit


class Ended(NamedTuple):
    """The end of a request: when, how, and the response then."""

    at: float
    how: str  # "answered", "refused", "failed"
    response: Response


class Server(NamedTuple):
    """A server and its clock."""

    now: Callable[[], float]
    move: Callable[[float], None]  # the clock, to a time
    arrive: Callable[[Request], Ended]  # a request comes now
    leave: Callable[[str], None]  # and its answer goes
    drop: Callable[[int], None]  # so many callers went away before
    heaps: list[list[Event]]  # what is in flight
    report: Callable[[], dict[str, Any]]


def server_of(settings: Settings, forms: Forms = WIRE) -> Server:  # noqa: C901  # functions that share one state
    chance = Random(settings.seed)  # noqa: S311  # chance, and no secret
    meters = meters_of(settings.limits)
    requests, tokens = meters.get("requests"), meters.get("tokens")
    counts = dict.fromkeys(("requests", "answered", "refused", "failed", "dropped"), 0)
    heaps: list[list[Event]] = []
    clock = last = away = 0.0  # the time; when the last request was let in; until when nobody is there
    flying = most = let_in = 0
    charged = 0.0
    ran: dict[Any, list[int]] = {}  # tokens of each model's answers, lost ones too

    def move(time: float) -> None:
        nonlocal clock
        clock = max(clock, time)

    def arrive(request: Request) -> Ended:
        nonlocal flying, most
        counts["requests"] += 1
        flying += 1
        most = max(most, flying)
        fault = fault_for(request) if settings.faults else None
        if clock < away or (fault is not None and fault.kind == "unavailable"):
            return Ended(clock + SOON, "failed", UNREACHED)
        work = work_of(request)
        problem = forms.problem(work.data)
        if problem is not None:
            return Ended(clock + SOON, "failed", error(400, problem["message"], problem.get("code"), {}))
        wait = refused_for(work.charge) if meters else None
        if wait is not None:
            return Ended(clock + SOON, "refused", refusal(wait))
        return outcome(request, enter(work, fault), fault)

    def fault_for(request: Request) -> Fault | None:
        left = chance.random()
        for fault in settings.faults:
            if fault.since <= clock < fault.until and (not fault.url or fault.url in request["url"]):
                left -= fault.rate
                if left < 0:
                    return fault
        return None

    def work_of(request: Request) -> Work:
        data, size = forms.read(request)
        asks = data if isinstance(data, dict) else {}
        given = max(1, ceil(size / settings.bytes_per_token))
        allowed, choices = tokens_asked(asks), choices_asked(asks)
        wanted = max(1, round(settings.output_tokens(chance)))
        cut = wanted > allowed
        written = (int(allowed) if cut else wanted) * choices
        most_counts = settings.limits.counted == "asked" and allowed < inf
        return Work(
            data, Usage(let_in + 1, given, written, cut), given + (allowed * choices if most_counts else written)
        )

    def refused_for(amount: float) -> float | None:
        """Seconds until there is room, or None if there is now, and it is taken."""
        wait = 0.0
        if requests is not None and requests.left(clock) < 1:
            wait = requests.wait(1)
        if tokens is not None and tokens.left(clock) < amount:
            wait = max(wait, tokens.wait(amount))
        if requests is not None and (not wait or settings.limits.punish):
            requests.take(1)
            wait = wait and max(wait, requests.wait(1))
        if tokens is not None and not wait:
            tokens.take(amount)
        return wait or None

    def refusal(wait: float) -> Response:
        named = settings.limits.retry_after and wait < inf
        after = {"retry-after": str(ceil(wait)), "retry-after-ms": str(ceil(1_000 * wait))} if named else {}
        words = f"Please try again in {wait:.3f}s." if wait < inf else "The request is larger than the limit."
        return error(429, f"Rate limit reached. {words}", None, after)

    def enter(work: Work, fault: Fault | None) -> Work:
        nonlocal last, let_in, charged
        last, let_in, charged = clock, let_in + 1, charged + work.charge
        if fault is None or not fault.status:
            entry = ran.setdefault(work.data.get("model"), [0, 0])
            entry[0] += work.usage.prompt
            entry[1] += work.usage.written
        return work

    def outcome(request: Request, work: Work, fault: Fault | None) -> Ended:
        first = settings.latency(chance)
        took = first + work.usage.written * settings.token_latency(chance)
        if flying > settings.capacity:
            took *= flying / settings.capacity
        if fault is not None and fault.kind == "crash":
            return crash(fault)
        if fault is not None and fault.seconds is not None:
            took = fault.seconds
        latest = latest_of(request, first)
        if clock + took > latest or (fault is not None and fault.kind == "timeout"):
            return Ended(clock + took if latest == inf else latest, "failed", TOO_LATE)
        if fault is not None and fault.status:
            return Ended(clock + took, "failed", error(fault.status, fault.message, fault.code, fault.headers))
        broken = fault is not None and fault.kind == "broken" and bool(request.get("stream"))
        if fault is not None and not broken:
            return Ended(clock + took, "failed", CUT)
        response = forms.answer(request, work.data, work.usage, headers(), broken)
        return Ended(clock + took, "failed" if broken else "answered", response)

    def latest_of(request: Request, first: float) -> float:
        """Until when the caller waits."""
        silence = request["timeout"][1] if "timeout" in request else inf
        end = inf if request.get("stream") and first <= silence else clock + silence
        return max(clock, min(end, request.get("due", inf)))

    def headers() -> dict[str, str]:
        found = {"x-request-id": f"req_{counts['requests']}"}
        return found | headers_of(meters, clock) if meters and settings.limits.headers else found

    def error(status: int, message: str, code: str | None, more: Mapping[str, str]) -> Response:
        return forms.error(status, message, code, {**headers(), **more})

    def crash(fault: Fault) -> Ended:
        nonlocal away
        away = clock + (AWAY if fault.seconds is None else fault.seconds)
        for heap in heaps:
            heap[:] = [(clock, number, done, LOST, "failed") for _, number, done, _, _ in heap]
            heapify(heap)
        return Ended(clock, "failed", LOST)

    def leave(how: str) -> None:
        nonlocal flying
        flying -= 1
        counts[how] += 1

    def drop(number: int) -> None:
        nonlocal flying
        flying -= number
        counts["dropped"] += number

    def report() -> dict[str, Any]:
        pairs = [(meter, amount) for meter, amount in ((requests, let_in), (tokens, charged)) if meter is not None]
        shares = [amount / meter.allowed(last) for meter, amount in pairs]
        return {
            "seconds": clock,
            **counts,
            "in_flight": flying,
            "most_in_flight": most,
            "tokens": {model: {"prompt": prompt, "completion": written} for model, (prompt, written) in ran.items()},
            "charged": charged,
            "share": max(shares, default=None),
            "ideal": max((meter.earliest(amount) for meter, amount in pairs), default=0.0),
            "last": last,
        }

    return Server(lambda: clock, move, arrive, leave, drop, heaps, report)
