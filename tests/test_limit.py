"""Limits on a virtual clock: a discrete-event driver of flows, and servers that keep limits and punish excess."""

import asyncio
import heapq
import json
import math
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfn import ChatError, Sleep, create_chat_completion, map_chat, simulated
from chatfn.client import resolved
from chatfn.middleware import composed, middleware
from chatfn.middleware.limit import DEPLOYMENTS, account_of, limit
from chatfn.middleware.limit.headers import Report, report_of, seconds_of
from chatfn.middleware.limit.learning import Answer, abandoned, heard, settled
from chatfn.middleware.limit.meters import MINUTE, Meter, Seen, kind_of, level_at, ready_at, reported, spent
from chatfn.middleware.limit.sizes import Guess, Size, size_of, taught, tokens_of, weight
from chatfn.middleware.limit.state import Fixed, Slot, Wait, left, looked, state_of
from chatfn.middleware.limit.window import Window, answered, opened, refused
from chatfn.middleware.retry import retry
from chatfn.secret import Secret
from chatfn.stack import layer, layers_of

URL = "https://h/v1/chat/completions"
REQUEST = {"url": URL, "headers": {}, "body": {"model": "m"}, "stream": False, "deadline": None}
OK = {"status": 200, "headers": {}, "body": {"id": "c"}}
SIZE = Size(10.0, 10.0, 1)


@pytest.fixture(autouse=True)
def _nothing_learned():
    account_of.cache_clear()


# ---------------------------------------------------------------- the driver, and servers


def drive_all(flow, arrivals, server, most=10**9, net=(0.01, 0.05), seed=1, shuffled=False):
    """Drive a flow for each of ``arrivals``, pairs of a time and a request, at most so many at once.

    Returns the time of the end, the responses in the order of their coming, the times of all sends, and how many looks
    were needed.
    """
    rnd, turn, heap, out = random.Random(seed), count(), [], {"active": 0, "looks": 0, "end": 0.0}
    source, answers, sends = iter(arrivals), [], []

    def later(at, function, *args):
        heapq.heappush(heap, (at, rnd.random() if shuffled else 0, next(turn), function, args))

    def go(now, steps, answer):
        try:
            step = steps.send(answer)
            while type(step) is Sleep and step.seconds <= 0:
                step = steps.send(now)
            if type(step) is Sleep:
                out["looks"] += 1
                later(now + step.seconds, lambda now: go(now, steps, now))
                return
            sends.append((now, step))
            later(now + rnd.uniform(*net), lambda now: arrived(now, steps, step))
        except StopIteration as stop:
            answers.append(stop.value)
            out["active"], out["end"] = out["active"] - 1, now
            more(now)

    def arrived(now, steps, request):
        latency, response, at_end = server(now, request)
        later(now + latency, lambda now: at_end(now))
        later(now + latency + rnd.uniform(*net), lambda now: go(now, steps, response))

    def more(now):
        while out["active"] < most:
            found = next(source, None)
            if found is None:
                return
            out["active"] += 1
            later(max(now, found[0]), lambda now, request=found[1]: go(now, flow(request), None))

    more(0.0)
    while heap:
        at, _, _, function, args = heapq.heappop(heap)
        function(at, *args)
    return out["end"], answers, sends, out["looks"]


def spelled(seconds):
    if seconds < 1:
        return f"{int(seconds * 1000)}ms"
    return f"{seconds:.3f}s" if seconds < 60 else f"{int(seconds // 60)}m{int(seconds % 60)}s"


def strict_server(rpm, tpm, kind="bucket", counts="real", offset=0.0, headers=True, latency=1.0):
    """A server of a token bucket or a fixed window, where a request that is refused counts too.

    ``counts``: which tokens: "real" ones, those of the prompt and "max_tokens", or at the "end" of a request.
    """
    rnd, limits = random.Random(3), (rpm, tpm)
    its = {"at": 0.0, "level": [float(rpm), float(tpm)], "window": None, "refused": 0, "answered": 0}

    def fill(now):
        if kind == "bucket":
            filled = zip(its["level"], limits, strict=True)
            its["level"] = [min(most, level + (now - its["at"]) * most / 60) for level, most in filled]
        elif (now + offset) // 60 != its["window"]:
            its["window"], its["level"] = (now + offset) // 60, [float(rpm), float(tpm)]
        its["at"] = now

    def said(now):
        found = {}
        for name, level, most in zip(("requests", "tokens"), its["level"], limits, strict=True):
            until = (most - max(0, level)) * 60 / most if kind == "bucket" else 60 - (now + offset) % 60
            found[f"x-ratelimit-limit-{name}"] = str(most)
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(level)))
            found[f"x-ratelimit-reset-{name}"] = spelled(until)
        return found if headers else {}

    def admit(now, request):
        fill(now)
        read, written = request["real"]
        need = {"real": read + written, "end": 1, "max": read + request["body"]["max_tokens"]}[counts]
        fits = its["level"][0] >= 1 and its["level"][1] >= need
        its["level"][0] -= 1
        if not fits:
            its["refused"] += 1
            missing = max(1 - its["level"][0], 0) * 60 / rpm, max(need - its["level"][1], 0) * 60 / tpm
            wait = max(missing) if kind == "bucket" else 60 - (now + offset) % 60
            error = {"category": "busy", "message": "", "status": 429, "retry_after": wait}
            return 0.01, {"status": 429, "headers": said(now), "body": None, "error": error}, lambda now: None
        its["answered"] += 1
        its["level"][1] -= 0 if counts == "end" else need

        def end(now):
            fill(now)
            its["level"][1] -= read + written if counts == "end" else 0

        usage = {"prompt_tokens": read, "completion_tokens": written}
        took = latency * rnd.lognormvariate(0, 0.4)
        return took, {"status": 200, "headers": said(now), "body": {"usage": usage}}, end

    return admit, its


def rows(number, seed=5):
    rnd = random.Random(seed)
    for _ in range(number):
        read, written = int(200 * rnd.lognormvariate(0, 1)) + 5, min(1000, int(150 * rnd.lognormvariate(0, 0.7)) + 1)
        messages = [{"role": "user", "content": "x" * int(4.6 * read)}]
        body = {"model": "m", "messages": messages, "max_tokens": 1000}
        yield 0.0, {**REQUEST, "body": body, "real": (read, written)}


def flow_of(**given_settings):
    return composed([retry(attempts=8).flow, limit(**given_settings).flow])


def steady(latency=1.0, status=200):
    def admit(now, request):
        return latency, {**OK, "status": status}, lambda now: None

    return admit


@pytest.mark.parametrize(
    ("number", "rpm", "tpm", "kind", "counts", "offset"),
    [
        (10_000, 3_000, 1_500_000, "bucket", "real", 0.0),
        (10_000, 3_000, 1_500_000, "window", "real", 33.0),
        (3_000, 900, 10**7, "bucket", "real", 0.0),
        (3_000, 900, 10**7, "window", "real", 25.0),
        (3_000, 10**5, 360_000, "bucket", "end", 0.0),
        (3_000, 10**5, 900_000, "bucket", "max", 0.0),
        (3_000, 10**5, 360_000, "window", "real", 20.0),
    ],
)
def test_rows_keep_the_allowed_rate_and_are_hardly_ever_refused(number, rpm, tpm, kind, counts, offset):
    """From the first minute, untold: at least 95 % of what the server could have answered, under 1 % refused."""
    server, its = strict_server(rpm, tpm, kind, counts, offset)
    end, answers, _, looks = drive_all(flow_of(), rows(number), server, most=number // 10)
    assert len(answers) == number
    assert not [answer for answer in answers if "error" in answer]
    tokens = sum(r + (1000 if counts == "max" else w) for r, w in (row["real"] for _, row in rows(number)))
    if kind == "bucket":
        ideal = max((number - rpm) * 60 / rpm, (tokens - tpm) * 60 / tpm)
    else:
        ideal = 60 * (math.ceil(max(number / rpm, tokens / tpm)) - 1) - offset
    assert ideal / end >= 0.95
    assert its["refused"] < number / 100
    assert looks / number < 14  # of a thousand that wait: about log2(1000) and a few


def test_without_headers_the_rate_is_found_too():
    server, its = strict_server(1_500, 10**7, headers=False)
    end, answers, _, _ = drive_all(flow_of(), rows(3_000), server, most=1_000)
    assert len(answers) == 3_000
    assert not [answer for answer in answers if "error" in answer]
    assert (3_000 - 1_500) * 60 / 1_500 / end >= 0.85
    assert its["refused"] < 3_000 * 0.04


@pytest.mark.parametrize("window", ["bucket", "fixed"])
def test_in_a_map_without_headers_few_are_refused(window):
    limits = {"rpm": 900, "window": window, "punish": True, "headers": False}
    server = simulated(latency={"median": 0.5, "p99": 2}, limits=limits)
    retrying = ["retry", {"attempts": 8, "jitter": random.Random(1).random}]
    assert all("response" in row for row in simulated_map(server, 2_000, 100, [retrying, "limit"]))
    report = server.report()
    assert report["refused"] < 30
    assert (report["ideal"] + 1) / report["last"] >= 0.9


# ---------------------------------------------------------------- fixed limits


ARRIVALS = st.lists(st.floats(0, 200), min_size=1, max_size=60)


@given(ARRIVALS, st.sampled_from([1, 2, 3, 7, 20, 250]), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_never_more_than_the_fixed_requests_are_sent_in_any_minute_and_all_are_in_order(arrivals, rpm, seed):
    account_of.cache_clear()
    arrivals = [(at, {**REQUEST, "id": number}) for number, at in enumerate(sorted(arrivals))]
    _, answers, sends, _ = drive_all(limit(rpm=rpm).flow, arrivals, steady(0.5), seed=seed)
    times = [at for at, _ in sends]
    assert len(answers) == len(arrivals) == len(sends)
    for place, start in enumerate(times):
        assert sum(at < start + MINUTE - 1e-6 for at in times[place:]) <= rpm
    assert times == sorted(times)
    assert [request["id"] for _, request in sends] == [request["id"] for _, request in arrivals]  # nobody starves


@given(st.lists(st.integers(0, 1900), min_size=1, max_size=40), st.sampled_from([1000, 1500, 5000]))
@settings(deadline=None, max_examples=40)
def test_never_more_than_the_fixed_tokens_are_sent_in_any_minute(lengths, tpm):
    account_of.cache_clear()
    requests = []
    for length in lengths:
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * length}], "max_tokens": 10}
        requests.append((0.0, {**REQUEST, "body": body}))
    _, answers, sends, _ = drive_all(limit(tpm=tpm).flow, requests, steady())
    assert len(sends) == len(answers) == len(lengths)
    sent = [(at, tokens_of(Guess(), size_of(request["body"]))) for at, request in sends]
    for place, (start, _) in enumerate(sent):
        assert sum(tokens for at, tokens in sent[place:] if at < start + MINUTE - 1e-6) <= tpm + 1e-3


@given(st.integers(1, 12), st.integers(1, 80), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_never_more_than_the_fixed_concurrency_is_in_flight(concurrency, number, seed):
    account_of.cache_clear()
    flying, seen = [0], []

    def server(now, request):
        flying[0] += 1
        seen.append(flying[0])

        def end(now):
            flying[0] -= 1

        return 1.0, OK, end

    end, answers, _, _ = drive_all(
        limit(concurrency=concurrency).flow, [(0.0, REQUEST)] * number, server, net=(0.0, 0.0), seed=seed
    )
    assert len(answers) == number
    assert max(seen) <= concurrency
    assert end <= 2 * math.ceil(number / min(concurrency, 8)) + 2  # and hardly less


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 30.0]), min_size=1, max_size=50), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_who_looks_first_at_one_time_makes_no_difference(arrivals, seed):
    def times(shuffled):
        account_of.cache_clear()
        found = [(at, REQUEST) for at in sorted(arrivals)]
        _, _, sends, _ = drive_all(limit(rpm=30).flow, found, steady(0.25), (10**9), (0.1, 0.1), seed, shuffled)
        return [round(at, 6) for at, _ in sends]

    assert times(True) == times(False)


def test_a_request_over_the_fixed_tokens_is_an_error_and_is_not_sent():
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 9000}]}
    flow = limit(tpm=1000).flow({**REQUEST, "body": body})
    assert next(flow) == Sleep(0)
    with pytest.raises(StopIteration) as stop:
        flow.send(0.0)
    assert stop.value.value["error"]["category"] == "incorrect"
    assert stop.value.value["attempts"] == 0
    assert "the limit is 1000 a minute" in stop.value.value["error"]["message"]


@pytest.mark.parametrize(
    "given_settings",
    [{"rpm": 0}, {"rpm": -1}, {"rpm": True}, {"rpm": "60"}, {"tpm": math.nan}, {"tpm": math.inf}, {"concurrency": 1.5}],
)
def test_settings_that_make_no_sense_are_named(given_settings):
    with pytest.raises(ValueError, match=f"the setting '{next(iter(given_settings))}' of 'limit' is"):
        layer(["limit", given_settings])


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["limit", "retry"], "would not see what is sent again"),
        ([["limit", {"rpm": 1}], "retry"], '"retry" before "limit"'),
        (["limit", ["journal", {"path": "j.db"}]], "would hold up answers that are at hand"),
        (["retry", "limit", "limit"], "two limits"),
    ],
)
def test_layers_in_an_order_that_undoes_them_are_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        layers_of(resolved({"transport": "echo", "middleware": layers}))


# ---------------------------------------------------------------- refusals


def busy(retry_after=None, headers=None):
    error = {"category": "busy", "message": "", "status": 429}
    if retry_after is not None:
        error["retry_after"] = retry_after
    return {"status": 429, "headers": headers or {}, "body": None, "error": error}


def test_a_refusal_pauses_all_rows_and_nobody_waits_twice():
    sent, refusals = [], iter([busy(20.0)])

    def server(now, request):
        sent.append(now)
        return 0.1, next(refusals, OK), lambda now: None

    arrivals = [(0.0, REQUEST), (1.0, REQUEST), (2.0, REQUEST)]
    drive_all(flow_of(), arrivals, server, net=(0.0, 0.0))
    assert sent[0] == 0.0
    assert sent[1] == pytest.approx(20.1)
    assert all(20.1 <= at < 21.0 for at in sent[1:])
    assert len(sent) == 4


def test_one_deployment_does_not_wait_for_another():
    for model, expected in (("a", True), ("b", False)):
        account = account_of(URL, model, None, Fixed())
        slot = looked(account.atom.deref(), 0.0, None, SIZE).answer
        account.atom.swap(lambda state: looked(state, 0.0, None, SIZE))
        if expected:
            account.atom.swap(settled, 0.1, slot, Answer("busy", 30.0, {}, None, None))
        flow = limit().flow({**REQUEST, "body": {"model": model}})
        next(flow)
        assert (type(flow.send(1.0)) is Sleep) is expected
        flow.close()


def test_one_key_does_not_wait_for_another_on_the_same_endpoint():
    def asked(api_key):
        return {**REQUEST, "auth": {"header": "authorization", "scheme": "Bearer", "secret": Secret(api_key)}}

    asking = [limit(rpm=1).flow(asked(key)) for key in ("one", "two", "one", lambda: "one", lambda: "two")]
    for flow in asking:
        next(flow)
    sent = [type(flow.send(1.0)) is not Sleep for flow in asking]
    assert sent == [True, True, False, True, False]  # whose key a function gives nobody knows


def test_pauses_grow_while_a_server_refuses_without_a_word():
    def server(now, request):
        return 0.01, busy(), lambda now: None

    flow = composed([retry(attempts=7, base=0.0).flow, limit().flow])
    _, _, sends, _ = drive_all(flow, [(0.0, REQUEST)], server, net=(0.0, 0.0))
    gaps = [after - before for (before, _), (after, _) in pairwise(sends)]
    assert gaps == pytest.approx([0.51, 0.76, 1.13, 1.7, 2.54, 3.81], abs=0.05)


def test_many_refusals_of_one_round_trip_are_one_decrease():
    window = Window(size=40.0, flying=40, known=True)
    for number in range(1, 41):
        window = refused(window, 1.0, number, 39, 40, explained=False)
    assert (window.size, window.threshold, window.flying, window.streak) == (8.0, 30.0, 0, 1)
    assert refused(Window(size=4.0), 1.0, 1, 3, 4, explained=False).size == 3.0


def test_a_later_decrease_keeps_what_was_needed_unless_nothing_is_let_in_at_all():
    window = Window(size=100.0, threshold=100.0, flying=100, known=True)
    later = refused(window, 1.0, 1, 99, 100, explained=False, need=60.0)
    assert (later.size, later.threshold) == (48.0, 57.0)
    assert refused(window, 1.0, 1, 99, 100, explained=False, need=2.0).threshold == 50.0  # half of it at most
    shut = []
    for number in (101, 102, 103):
        later = refused(later, 1.0, number, 0, number, explained=False)
        shut.append((later.size, later.threshold))
    assert shut == [(1.0, 57.0), (1.0, 57.0), (1.0, 100.0)]
    assert refused(window, 1.0, 1, 99, 100, explained=True).size == 80.0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 500), st.booleans()), max_size=80))
def test_the_window_is_never_below_one_nor_its_flights_below_none(steps):
    window, newest = Window(), 500
    for good, number, explained in steps:
        if good:
            window = answered(window, 1.0, 0.5, number, number, math.inf)
        else:
            newest += 1
            window = refused(window, 1.0, newest, number, newest, explained)
        assert window.size >= 1
        assert window.flying >= 0


def test_the_window_doubles_a_round_trip_and_grows_slowly_near_its_last_ceiling():
    window = Window()
    for number in range(1, 9):
        window = answered(window, 1.0, 0.5, number, 8, math.inf)
    assert window.size == 16
    assert opened(window, 100.0).size == 75.0
    window = refused(window._replace(size=128.0, flying=128), 1.0, 9, 127, 20, explained=False)
    assert (window.size, window.threshold) == (8, 96)
    assert answered(window, 1.0, 0.5, 20, 8, math.inf).size == 8  # it was sent before that
    sizes = []
    for _ in range(80):
        for _ in range(int(window.size)):
            window = answered(window, 1.0, 0.5, 21, 999, math.inf)
        sizes.append(window.size)
    assert sizes[:3] == [16, 32, 64]
    assert all(1 < after - before < 2.5 for before, after in pairwise(sizes[5:20]))
    assert sizes[-1] > 300  # and once it is far beyond it, quickly


def test_a_server_that_allows_few_at_once_is_used_well_without_headers():
    flying, refusals = [0], [0]

    def server(now, request):
        if flying[0] >= 20:
            refusals[0] += 1
            return 0.01, busy(), lambda now: None
        flying[0] += 1

        def end(now):
            flying[0] -= 1

        return 1.0, OK, end

    end, answers, _, _ = drive_all(flow_of(), [(0.0, REQUEST)] * 2_000, server, most=500)
    assert len(answers) == 2_000
    assert refusals[0] < 60
    assert end < 2_000 / 20 * 1.5


def test_a_pause_of_more_than_two_minutes_is_told_at_once():
    flow = limit().flow(REQUEST)
    next(flow)
    flow.send(0.0)
    flow.send(busy(300.0))
    with pytest.raises(StopIteration):
        flow.send(0.1)
    flow = limit().flow(REQUEST)
    next(flow)
    with pytest.raises(StopIteration) as stop:
        flow.send(0.1)
    error = stop.value.value["error"]
    assert (error["category"], error["retry_after"], error["should_retry"]) == ("busy", 300.0, False)


def test_a_row_that_cannot_be_sent_before_its_deadline_is_told_at_once():
    flow = limit(rpm=1).flow(REQUEST)
    next(flow)
    assert "url" in flow.send(0.0)
    late = limit(rpm=1).flow({**REQUEST, "due": 30.0})
    next(late)
    with pytest.raises(StopIteration) as stop:
        late.send(1.0)
    response = stop.value.value
    assert (response["error"]["category"], response["attempts"]) == ("interrupted", 0)
    assert "within the deadline" in response["error"]["message"]
    in_time = limit(rpm=1).flow({**REQUEST, "due": 70.0})
    next(in_time)
    assert type(in_time.send(1.0)) is Sleep  # the place of the one who left is free
    assert account_of(URL, "m", None, Fixed(1)).atom.deref().line.waiting == 1


def test_a_row_whose_map_is_over_does_not_wait():
    flow = limit(rpm=1).flow(REQUEST)
    next(flow)
    flow.send(0.0)
    cancelled = limit(rpm=1).flow({**REQUEST, "cancelled": lambda: True})
    next(cancelled)
    with pytest.raises(StopIteration) as stop:
        cancelled.send(0.0)
    assert stop.value.value["error"]["message"] == "the call was cancelled"


# ---------------------------------------------------------------- what is held is given back


FREE = Fixed()


def now_of(fixed=FREE):
    """The state after all that was noted."""
    flow = limit(fixed.rpm, fixed.tpm, None if fixed.concurrency == math.inf else int(fixed.concurrency)).flow(REQUEST)
    next(flow)
    flow.send(1e6)
    state = account_of(URL, "m", None, fixed).atom.deref()
    flow.close()
    return state


def test_a_flow_that_is_closed_gives_back_its_ticket_or_its_place():
    first, second, third = (limit(concurrency=1).flow(REQUEST) for _ in range(3))
    for flow in (first, second, third):
        next(flow)
    assert "url" in first.send(0.0)
    assert type(second.send(0.0)) is Sleep
    assert type(third.send(0.0)) is Sleep
    second.close()
    first.close()
    assert "url" in third.send(0.5)
    with pytest.raises(ZeroDivisionError):
        third.throw(ZeroDivisionError())
    assert now_of(Fixed(concurrency=1)).window.flying == 1  # that of the look itself
    assert now_of(Fixed(concurrency=1)).line.waiting == 0


STREAMING = {**REQUEST, "stream": True}
HEADERS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
}


def streamed(events, how):
    flow = limit().flow(STREAMING)
    next(flow)
    flow.send(0.0)
    flow.send({"status": 200, "headers": HEADERS, "body": iter(events)})
    with pytest.raises(StopIteration) as stop:
        flow.send(0.2)
    account = account_of(URL, "m", None, Fixed())
    assert account.atom.deref().requests.capacity == 60  # known before the stream ends
    assert account.atom.deref().window.flying == 1
    how(stop.value.value["body"])
    return now_of()


def test_a_stream_holds_its_place_until_its_end_and_its_usage_counts():
    usage = {"prompt_tokens": 10, "completion_tokens": 33}
    state = streamed([{"choices": []}, {"choices": [], "usage": usage}], list)
    assert state.window.flying == 1
    assert state.guess.output == 33


def test_a_stream_that_is_closed_or_breaks_gives_back_its_place():
    assert streamed([{}, {}], lambda body: body.close()).window.flying == 1
    account_of.cache_clear()

    def breaking():
        yield {}
        raise ChatError({"category": "interrupted", "message": "", "status": 200})

    def read(body):
        with pytest.raises(ChatError):
            list(body)

    assert streamed(breaking(), read).window.flying == 1


class Model:
    """What a state should hold: open slots and tickets."""

    def __init__(self, fixed):
        self.state, self.slots, self.tickets, self.now = state_of(fixed, 0.0), [], [], 0.0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "look", "leave", "answer", "refuse", "fail", "abandon", "hear"]),
        st.integers(0, 50),
        st.floats(0, 20),
        st.sampled_from([None, "0", "5", "59", "x"]),
    ),
    max_size=60,
)
FIXED = st.builds(
    Fixed, st.sampled_from([None, 5.0, 60.0]), st.sampled_from([None, 100.0, 5000.0]), st.sampled_from([math.inf, 3])
)


@given(FIXED, STEPS)
@settings(deadline=None, max_examples=200)
def test_each_reservation_is_settled_once_and_nothing_is_below_zero(fixed, steps):
    model = Model(fixed)
    for kind, which, passing, remaining in steps:
        model.now += passing
        step(model, kind, which, remaining)
        state = model.state
        assert state.window.flying == len(model.slots)
        assert state.reserved == pytest.approx(sum(slot.tokens for slot in model.slots), abs=1e-6)
        assert state.line.waiting == len(model.tickets)
        assert state.line.tokens == pytest.approx(sum(ticket.tokens for ticket in model.tickets), abs=1e-6)
        assert state.window.size >= 1
        assert state.guess.output >= 0
        assert 0.75 <= state.charge <= 64


def step(model, kind, which, remaining):
    state, now = model.state, model.now
    headers = {} if remaining is None else {**HEADERS, "x-ratelimit-remaining-requests": remaining}
    headers |= {name.replace("requests", "tokens"): value for name, value in headers.items()}
    ticket = model.tickets[which % len(model.tickets)] if model.tickets else None
    slot = model.slots[which % len(model.slots)] if model.slots else None
    if kind == "come" or (kind == "look" and ticket is not None):
        model.state = looked(state, now, None if kind == "come" else ticket, SIZE)
        answer = model.state.answer
        assert type(answer) is Slot or answer.until > now
        if kind == "look" and type(answer) is Slot:
            model.tickets.remove(ticket)
        if type(answer) is Slot:
            model.slots.append(answer)
        elif kind == "come":
            model.tickets.append(answer.ticket)
    elif kind == "leave" and ticket is not None:
        model.tickets.remove(ticket)
        model.state = left(state, ticket)
    elif kind == "hear" and slot is not None:
        model.state = heard(state, now, slot, Answer(None, None, headers, None, None))
    elif kind in ("answer", "refuse", "fail", "abandon") and slot is not None:
        model.slots.remove(slot)
        answers = {
            "answer": Answer(None, None, headers, 7, which),
            "refuse": Answer("busy", 1.0 if which % 2 else None, headers, None, None),
            "fail": Answer("fault", None, headers, None, None),
        }
        model.state = abandoned(state, slot) if kind == "abandon" else settled(state, now, slot, answers[kind])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=60))
def test_a_ticket_knows_who_stands_before_it(steps):
    """The first in line goes first: none passes while too few are free for those before it."""
    state, waiting = state_of(Fixed(concurrency=1), 0.0), []
    state = looked(state, 0.0, None, SIZE)
    slot, now = state.answer, 0.0
    for kind, which in steps:
        now += 1
        if kind <= 1:
            state = looked(state, now, None, SIZE)
            assert type(state.answer) is Wait
            waiting.append(state.answer.ticket)
        elif kind == 2 and waiting:
            state = left(state, waiting.pop(which % len(waiting)))
        elif waiting:
            state = settled(state, now, slot, Answer(None, None, {}, None, None))
            for ticket in waiting[:0:-1]:
                state = looked(state, now, ticket, SIZE)
                assert type(state.answer) is Wait
            state = looked(state, now, waiting.pop(0), SIZE)
            assert type(state.answer) is Slot
            slot = state.answer


# ---------------------------------------------------------------- headers, meters, sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("1", 1), ("0.5", 0.5), ("0s", 0), ("1d", 86400)),
        *(("17us", 17e-6), ("-1s", None), ("", None), ("1s2", None), ("2026-11-23T00:00:00Z", None)),
        ("1700000000", None),
    ],
)
def test_forms_of_a_reset(text, seconds):
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=20), st.text("0123456789.hms", max_size=12))
def test_nonsense_in_headers_is_ignored(wild, tame):
    for text in (wild, tame):
        report = report_of({f"x-ratelimit-{name}-tokens": text for name in ("limit", "remaining", "reset")}, "tokens")
        if report is not None:
            assert all(value is None or 0 <= value < math.inf for value in report)
            reported(None, None, report, 1.0, 1.5, 3.0, 0.1, 1.0)


@given(st.floats(1, 1e6), st.floats(0.01, 1e4), st.floats(-1e3, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e3))
def test_a_meter_has_room_when_it_says_so(capacity, rate, level, ahead, own):
    bucket = Meter(capacity, rate, min(level, capacity), 100.0)
    window = Meter(capacity, 0.0, min(level, capacity), 100.0, reset=130.0)
    for meter in (bucket, window):
        due = ready_at(meter, 101.0, ahead, own)
        assert due >= 101.0
        if ahead + own <= capacity:
            assert level_at(meter, due) >= ahead + own - 1e-3
            assert spent(meter, due, ahead + own).level >= -1e-3


def test_a_bucket_and_a_window_are_told_apart():
    bucket = reported(None, None, Report(3000, 2900, 2.0), 10.0, 10.5, 0.0, 0.1, 1.0)
    assert (bucket.rate, bucket.level) == (50.0, 2925.0)
    window = reported(None, None, Report(3000, 2900, 40.0), 10.0, 10.5, 5.0, 0.1, 1.0)
    assert (window.rate, window.level, window.reset) == (0.0, 2895.0, 50.1)
    seen = Seen(1, 10.0, 2900, 50.0, 1.0, 0)
    assert kind_of(window, seen, 3000, 2950, 60.0, 50.5, 50.6) == (60.0, 110.0)
    assert kind_of(window, seen, 3000, 2950, 30.0, 15.0, 21.0) == (60.0, 50.0)  # it had waited to be sent
    daily = Seen(1, 10.0, 14370, 190.0, 30.0, 0)  # 6 s for each of 14,400 a day
    old = reported(None, None, Report(14400, 14370, 180.0), 10.0, 10.0, 0.0, 0.1, 1.0)
    assert kind_of(old, daily, 14400, 14360, 240.0, 11.0, 11.0) == (86400.0, math.inf)
    assert kind_of(None, None, 60, 10, None, 1.0, 1.0) == (60.0, math.inf)
    assert kind_of(window, seen, 3000, 2950, None, 20.0, 20.0)[1] == window.reset
    assert kind_of(window, seen, 3000, 3000, 60.0, 20.0, 20.0) == (60.0, 80.0)


def test_reports_that_say_half_are_understood():
    assert reported(None, None, Report(60, None, None), 0.0, 0.0, 1.0, 0.1, 1.0).level == 59
    assert reported(None, None, Report(None, 30, None), 0.0, 0.0, 1.0, 0.1, 1.0).capacity == 30
    old = Meter(60, 1.0, 50, 0.0)
    assert reported(old, None, Report(120, None, None), 0.0, 0.0, 1.0, 0.1, 1.0).rate == 2.0
    window = Meter(60, 0.0, 50, 0.0, reset=30.0)
    assert reported(window, None, Report(120, None, None), 0.0, 0.0, 1.0, 0.1, 1.0).capacity == 120
    stale = reported(None, None, Report(60, 50, 20.0), 0.0, 25.0, 0.0, 0.1, 1.0)
    assert (stale.level, stale.reset) == (60, 20.1)


def test_a_burst_that_a_server_does_not_like_is_not_repeated():
    state = looked(state_of(Fixed(), 0.0), 0.0, None, SIZE)
    state = settled(state, 1.0, state.answer, Answer("busy", None, HEADERS, None, None))
    assert state.burst == 0.25
    assert state.pause == 1.5


def test_a_state_of_another_clock_is_no_more():
    """A simulator's clock begins at 0, whatever was known before."""
    state = looked(state_of(Fixed(rpm=60.0), 0.0), 5_000.0, None, SIZE)
    old = state.answer
    state = looked(state, 5_000.0, None, SIZE)
    waiting = state.answer.ticket
    state = looked(state, 1.0, None, SIZE)
    assert (type(state.answer), state.number, state.line.waiting) == (Slot, 1, 0)
    assert left(state, waiting) == state
    late = old._replace(number=7)
    assert settled(state, 1.0, late, Answer(None, None, HEADERS, 1, 1)) == state
    assert heard(state, 1.0, late, Answer(None, None, HEADERS, 1, 1)) == state
    assert abandoned(state, late) == state


def test_reports_that_come_thick_are_not_all_read():
    state = state_of(Fixed(), 0.0)
    slots = []
    for _ in range(2):
        state = looked(state, 0.0, None, SIZE)
        slots.append(state.answer)
    state = settled(state, 1.0, slots[0], Answer(None, None, HEADERS, 1, 1))
    state = settled(state, 1.001, slots[1], Answer(None, None, {**HEADERS, "x-ratelimit-limit-requests": "9"}, 1, 1))
    assert (state.requests.capacity, state.newest, state.window.flying) == (60, 1, 0)


@given(st.lists(st.integers(1, 1000), min_size=300, max_size=300))
@settings(deadline=None, max_examples=20)
def test_the_guess_learns_its_own_error(written):
    guess, size = Guess(), Size(100.0, math.inf, 2)
    for tokens in written:
        guess = taught(guess, size, 150, 2 * tokens)
    assert guess.real / guess.guessed == pytest.approx(1.5, rel=0.05)
    assert min(written) <= guess.output <= max(written)


def test_sizes_of_bodies():
    parts = [{"type": "text", "text": "é"}, {"type": "image_url", "image_url": {"url": "x" * 99}}]
    assert weight(parts) == 4 + 2 + 9 + 4000
    assert weight([None, 1, True]) == 8
    body = {"messages": [{"content": parts, "tool_calls": ["ab"]}, {"content": "é"}, "odd"], "tools": ["abc"], "n": 3}
    assert size_of(body) == Size((4015 + 2 + 2 + 3 + 3) / 4 + 12, math.inf, 3)
    assert size_of(["12345678"]) == Size(2.0, math.inf, 1)
    assert tokens_of(Guess(output=900.0), Size(10.0, 20, 1)) == 30


# ---------------------------------------------------------------- calls


def ask(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def test_calls_on_threads_and_in_tasks_share_one_state():
    together, most, lock = [0], [0], threading.Lock()

    def blocking(request):
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        threading.Event().wait(0.005)
        with lock:
            together[0] -= 1
        return OK

    async def awaitable(request):
        together[0] += 1
        most[0] = max(most[0], together[0])
        await asyncio.sleep(0.005)
        together[0] -= 1
        return OK

    handler = limit(concurrency=2)(blocking)
    threads = [threading.Thread(target=handler, args=(REQUEST,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    async def tasks():
        return await asyncio.gather(*(limit(concurrency=2)(awaitable)(REQUEST) for _ in range(8)))

    assert len(asyncio.run(tasks())) == 8
    assert most[0] == 2
    assert account_of(URL, "m", None, Fixed(concurrency=2)).atom.deref().window.flying == 0


def test_the_single_call_takes_a_limit_streams_too():
    options = {"transport": "echo", "middleware": ["retry", ["limit", {"rpm": 6000}]], "full_response": True}
    response = create_chat_completion(ask("hi"), options)
    assert (response["status"], response["waited"] < 30) == (200, True)
    events = create_chat_completion({**ask("hi"), "stream": True}, {**options, "full_response": False})
    assert len(list(events)) > 1


FORK = """
import os
from chatfn.middleware.limit import Fixed, account_of
account_of("u", "m", None, Fixed())
child = os.fork()
if child == 0:
    os._exit(account_of.cache_info().currsize)
print(os.waitpid(child, 0)[1], account_of.cache_info().currsize)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_child_process_begins_anew():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "1"]


def test_the_number_of_states_is_bounded():
    for number in range(DEPLOYMENTS + 10):
        account_of(URL, str(number), None, Fixed())
    assert account_of.cache_info().currsize == DEPLOYMENTS


def simulated_map(server, number, concurrency, layers):
    asked = [{"params": ask("x" * (40 + 37 * n % 4000))} for n in range(number)]
    options = {"api_key": "k", "transport": server, "middleware": layers}
    return list(map_chat(asked, options, concurrency=concurrency))


@pytest.mark.parametrize("window", ["bucket", "fixed"])
@pytest.mark.parametrize("limits", [{"rpm": 600}, {"tpm": 500_000}, {"rpm": 600, "tpm": 350_000, "counted": "asked"}])
def test_a_map_keeps_the_allowed_rate_too(window, limits):
    latency, tokens = {"median": 0.5, "p99": 2}, {"median": 100, "p99": 600}
    server = simulated(latency=latency, output_tokens=tokens, limits={**limits, "window": window, "punish": True})
    retrying = ["retry", {"attempts": 6, "jitter": random.Random(1).random}]
    found = simulated_map(server, 1_000, 100, [retrying, "limit"])
    report = server.report()
    assert not [row for row in found if "error" in row]
    assert report["refused"] < 10
    assert (report["ideal"] + 1) / report["last"] >= 0.95  # which needs more than a moment, with so few at once


def test_a_row_of_a_map_is_sent_when_it_is_let_go_and_not_later():
    """Who is awake waits for a place in flight before it asks, not after."""
    server, late = simulated(latency={"uniform": [0.5, 2]}, limits={"rpm": 600, "window": "fixed"}), []

    @middleware
    def watched(request):
        now = yield Sleep(0)
        response = yield {**request, "let": now}
        return response

    def watching():
        driver = server.driver()

        def send(request, done):
            late.append(driver.now() - request["let"])
            driver.send(request, done)

        return driver._replace(send=send)

    def transport(request):
        return server(request)

    transport.driver, transport.inline = watching, True
    assert len(simulated_map(transport, 700, 10, ["limit", watched()])) == 700
    assert late == [0.0] * 700


def test_a_map_against_a_server_that_limits_is_hardly_ever_refused():
    """In real time: 600 requests a minute, and few of them left at the start."""
    its = {"level": 10.0, "at": None, "refused": 0}
    lock = threading.Lock()

    class Limiting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            import time

            self.rfile.read(int(self.headers["content-length"]))
            with lock:
                now = time.monotonic()
                its["level"] = min(600.0, its["level"] + (now - (its["at"] or now)) * 10)
                its["at"] = now
                its["level"] -= 1
                good, left = its["level"] >= 0, max(0.0, its["level"])
                its["refused"] += not good
            message = {"role": "assistant", "content": "yes"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
            body = json.dumps(answer if good else {"error": {"message": "slow down"}}).encode()
            self.send_response(200 if good else 429)
            self.send_header("content-length", str(len(body)))
            self.send_header("content-type", "application/json")
            self.send_header("x-ratelimit-limit-requests", "600")
            self.send_header("x-ratelimit-remaining-requests", str(int(left)))
            self.send_header("x-ratelimit-reset-requests", f"{(600 - left) / 10:.3f}s")
            if not good:
                self.send_header("retry-after-ms", "100")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Limiting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = {
            "api_endpoint": f"http://127.0.0.1:{server.server_port}/v1",
            "api_key": "k",
            "middleware": [["retry", {"attempts": 6}], "limit"],
        }
        found = list(map_chat([{"params": ask(str(n))} for n in range(20)], options, concurrency=8))
    finally:
        server.shutdown()
        server.server_close()
    assert [row for row in found if "response" not in row] == []
    assert its["refused"] <= 6  # on a machine that is busy with other things
