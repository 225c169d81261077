"""A simulated server: what comes in, what is refused, what fails, and when each answer is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify
from math import ceil, inf
from random import Random
from typing import Any, NamedTuple, cast

from chatfn.core import parse
from chatfn.errors import failure
from chatfn.spec import Request, Response
from chatfn.transports import Done
from chatfn.transports.simulated.bodies import (
    answer_of,
    choices_asked,
    error_body,
    problem_of,
    stream_of,
    tokens_asked,
)
from chatfn.transports.simulated.limits import headers_of, meters_of
from chatfn.transports.simulated.settings import Fault, Settings

SOON = 0.02  # seconds until a refusal is there
AWAY = 1.0  # seconds that a server is away after a crash, if nobody says
LOST = failure("unavailable", "the simulated server crashed before it answered")

Event = tuple[float, int, Done, Any, str]  # when, a number, whom to tell what, and what that is


class Work(NamedTuple):
    """What a request asks for."""

    data: Any
    prompt: int
    written: int
    cut: bool  # at the limit of tokens that it named
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
    leave: Callable[[Ended], None]  # and its answer goes
    drop: Callable[[int], None]  # so many callers went away before
    heaps: list[list[Event]]  # what is in flight
    report: Callable[[], dict[str, Any]]


def server_of(settings: Settings) -> Server:  # noqa: C901  # small functions that share one state
    chance = Random(settings.seed)  # noqa: S311  # chance, and no secret
    meters = meters_of(settings.limits)
    requests, tokens = meters.get("requests"), meters.get("tokens")
    counts = dict.fromkeys(("requests", "answered", "refused", "failed", "dropped"), 0)
    heaps: list[list[Event]] = []
    clock = last = away = 0.0  # the time; when the last request was let in; until when nobody is there
    flying = most = let_in = prompt = written = 0
    charged = 0.0

    def move(time: float) -> None:
        nonlocal clock
        clock = max(clock, time)

    def arrive(request: Request) -> Ended:
        nonlocal flying, most, away
        counts["requests"] += 1
        flying += 1
        most = max(most, flying)
        fault = fault_now()
        if clock < away or (fault is not None and fault.kind == "unavailable"):
            return Ended(clock + SOON, "failed", unreached())
        work = work_of(request)
        problem = problem_of(work.data)
        if problem is not None:
            return Ended(clock + SOON, "failed", said(400, error_body(400, problem["message"], problem.get("code"))))
        wait = refused_for(work.charge)
        if wait is not None:
            return Ended(clock + SOON, "refused", refusal(wait))
        enter(work, fault)
        return outcome(request, work, fault)

    def fault_now() -> Fault | None:
        if not settings.faults:
            return None
        left = chance.random()
        for fault in settings.faults:
            if fault.since <= clock < fault.until:
                left -= fault.rate
                if left < 0:
                    return fault
        return None

    def work_of(request: Request) -> Work:
        body = cast(bytes, request["body"])
        try:
            data = parse(body)
        except ValueError:
            data = None
        asks = data if isinstance(data, dict) else {}
        given = max(1, ceil(len(body) / settings.bytes_per_token))
        allowed, choices = tokens_asked(asks), choices_asked(asks)
        wanted = max(1, round(settings.output_tokens(chance)))
        made = int(min(wanted, allowed)) * choices
        counts_most = settings.limits.counted == "asked" and allowed < inf
        charge = given + (allowed * choices if counts_most else made)
        return Work(data, given, made, wanted > allowed, charge)

    def refused_for(amount: float) -> float | None:
        """Seconds until there is room, or None if there is now."""
        wait = 0.0
        if requests is not None and requests.left(clock) < 1:
            wait = requests.wait(1)
        if tokens is not None and tokens.left(clock) < amount:
            wait = max(wait, tokens.wait(amount))
        if wait == 0 and (requests is not None):
            requests.take(1)
        if wait == 0 and (tokens is not None):
            tokens.take(amount)
        if wait and settings.limits.punish and requests is not None:
            requests.take(1)
            wait = max(wait, requests.wait(1))
        return wait or None

    def refusal(wait: float) -> Response:
        named = settings.limits.retry_after and wait < inf
        after = {"retry-after": str(ceil(wait)), "retry-after-ms": str(ceil(1_000 * wait))} if named else {}
        words = f"Please try again in {wait:.3f}s." if wait < inf else "The request is larger than the limit."
        return said(429, error_body(429, f"Rate limit reached. {words}", None), after)

    def enter(work: Work, fault: Fault | None) -> None:
        nonlocal last, let_in, charged, prompt, written
        last, let_in, charged = clock, let_in + 1, charged + work.charge
        if fault is None or not fault.status:
            prompt, written = prompt + work.prompt, written + work.written

    def outcome(request: Request, work: Work, fault: Fault | None) -> Ended:
        first = settings.latency(chance)
        took = (first + work.written * settings.token_latency(chance)) * max(1.0, flying / settings.capacity)
        if fault is not None and fault.kind == "crash":
            return crash(fault)
        if fault is not None and fault.seconds is not None:
            took = fault.seconds
        stream = request.get("stream")
        silence = request["timeout"][1] if "timeout" in request else inf
        due = request.get("due")
        end = clock + took
        latest = min(inf if due is None else due, inf if stream and first <= silence else clock + silence)
        if end > latest or (fault is not None and fault.kind == "timeout"):
            latest = clock + took if latest == inf else max(clock, latest)
            return Ended(latest, "failed", failure("interrupted", "the simulated server did not answer in time"))
        if fault is not None and fault.status:
            body = error_body(fault.status, fault.message, fault.code)
            return Ended(end, "failed", said(fault.status, body, fault.headers))
        if fault is not None and not (stream and fault.kind == "broken"):
            return Ended(end, "failed", failure("interrupted", "the simulated answer was cut short"))
        body = answer_of(work.data, let_in, work.prompt, work.written, work.cut)
        if not stream:
            return Ended(end, "answered", said(200, body))
        found: Any = said(200, b"", {"content-type": "text/event-stream"})
        found = {**found, "body": stream_of(body, work.data, fault is not None), "arrived": True}
        return Ended(end, "answered" if fault is None else "failed", found)

    def said(status: int, body: bytes, more: Mapping[str, str] | None = None) -> Response:
        headers = {"content-type": "application/json", "x-request-id": f"req_{counts['requests']}"}
        if meters and settings.limits.headers:
            headers |= headers_of(meters, clock)
        if more:
            headers |= more
        return {"status": status, "headers": headers, "body": body}

    def crash(fault: Fault) -> Ended:
        nonlocal away
        away = clock + (AWAY if fault.seconds is None else fault.seconds)
        for heap in heaps:
            heap[:] = [(clock, number, done, LOST, "failed") for _, number, done, _, _ in heap]
            heapify(heap)
        return Ended(clock, "failed", LOST)

    def leave(ended: Ended) -> None:
        nonlocal flying
        flying -= 1
        counts[ended.how] += 1

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
            "tokens": {"prompt": prompt, "completion": written},
            "share": max(shares, default=None),
            "ideal": max((meter.earliest(amount) for meter, amount in pairs), default=0.0),
            "last": last,
        }

    return Server(lambda: clock, move, arrive, leave, drop, heaps, report)


def unreached() -> Response:
    response = failure("unavailable", "the simulated server takes no connection")
    return {**response, "error": {**response["error"], "sent": False}}
