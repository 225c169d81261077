"""Calls that are spread over targets: the law of the choice, the flow, and both over real HTTP."""

import os
import signal
import threading
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import pmap
from rawserver import answer, raw_server, readable, stream

from chatfn import collect, create_chat_completion, map_chat, text_of
from chatfn.atom import Atom
from chatfn.client import responder
from chatfn.middleware import Sleep, WoundDown
from chatfn.middleware.balance import SHARED, balanced, forget, take
from chatfn.middleware.health import (
    LONGEST,
    MOST,
    NEW,
    NOTHING_KNOWN,
    Health,
    Law,
    News,
    Turn,
    chosen,
    drawn,
    grown,
    kind_of,
    learned,
    pause,
    probed,
    released,
    tokens_left,
    weights_of,
)
from chatfn.middleware.limit.headers import Report
from chatfn.middleware.ways import Way, as_asked

PARAMS = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DONE = {"id": "c", "object": "chat.completion", "choices": []}
OWN, OTHER = "sk-own-0123456789abcdef", "sk-other-0123456789abcdef"
NAMES = ["a", "b", "c"]
LAW = Law(1.0, 60.0)
seconds = st.floats(0, 1_000, allow_nan=False)
shares = st.floats(0, 1, exclude_max=True)
KINDS = st.sampled_from(["well", "failing", "nothing"])
reports = st.none() | st.builds(
    Report,
    st.none() | st.floats(1, 1e6),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e3),
)
healths = st.builds(
    Health,
    failures=st.integers(0, 30),
    since=seconds,
    until=seconds,
    probe=st.none() | st.just("call"),
    good=st.floats(0, 1),
    seen=seconds,
    tokens=reports,
    requests=reports,
)
states = st.dictionaries(st.sampled_from(NAMES), healths)


# --- the choice ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(states, st.lists(st.sampled_from(NAMES)), seconds, shares)
def test_a_target_that_is_left_alone_gets_no_call_unless_all_of_them_are(state, tried, now, chance):
    turn = chosen(state, NAMES, tried, now, chance)
    known = {name: state.get(name, NEW) for name in NAMES if name not in tried}
    free = [name for name, health in known.items() if health.probe is None and health.until <= now]
    if turn is None:
        assert tried
        assert not free
    else:
        assert turn.name not in tried
        assert turn.others == (len(free) > 1)
        if free:
            assert turn.name in free
            assert turn.probe == bool(known[turn.name].failures)
        else:
            assert not tried
            assert known[turn.name].until == min(health.until for health in known.values())


@settings(deadline=None, max_examples=300)
@given(states, seconds)
def test_all_that_are_well_get_calls_in_proportion_to_their_weights(state, now):
    well = {name: health._replace(failures=0, until=0.0, probe=None) for name, health in state.items()}
    weights = weights_of({name: well.get(name, NEW) for name in NAMES}, now)
    assert min(weights.values()) > 0
    whole = sum(weights.values())
    point = 0.0
    for name in NAMES:
        middle = (point + weights[name] / 2) / whole
        assert chosen(well, NAMES, [], now, middle) == Turn(name, others=True)
        point += weights[name]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.floats(1e-9, 1e9), min_size=1), st.floats(0, 1))
def test_whatever_the_chance_a_name_is_drawn(weights, chance):
    assert drawn(weights, chance) in weights


@settings(deadline=None)
@given(reports, seconds, seconds)
def test_what_is_left_grows_back_to_the_limit_and_never_shrinks(report, one, two):
    before, after = (grown(report, passed) for passed in sorted((one, two)))
    if report is None or report.remaining is None:
        assert before is after is None
    elif report.limit is None:
        assert before in (report.remaining, None)
    elif report.remaining <= report.limit:
        assert report.remaining <= before * (1 + 1e-9)
        assert before <= after * (1 + 1e-9)
        assert after <= report.limit * (1 + 1e-9)


def test_who_has_no_request_left_has_no_token_left():
    health = Health(tokens=Report(1e4, 5e3, None), requests=Report(60, 0, 60.0))
    assert tokens_left(health, 0.5) == 0.0
    assert tokens_left(health, 1.0) > 5e3


def test_who_has_more_left_gets_more_and_who_failed_lately_gets_less():
    a, b = Health(tokens=Report(None, 300, None)), Health(tokens=Report(None, 100, None))
    assert weights_of({"a": a, "b": b}, 0.0) == {"a": 300, "b": 100}
    assert weights_of({"a": a._replace(good=0.5), "b": b}, 0.0) == {"a": 150, "b": 100}
    nothing = Health(tokens=Report(None, 0, None))
    assert weights_of({"a": nothing, "b": nothing}, 0.0) == {"a": 0.01, "b": 0.01}


# --- what is learned ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(states.map(pmap), KINDS, seconds, st.floats(0, 100), st.floats(0, 1e9))
def test_after_a_failure_a_target_is_left_alone_for_its_pause_and_for_what_it_asked(state, kind, began, took, wait):
    now = began + took
    before, after = state.get("a", NEW), learned(state, "a", News(kind, began, now, wait), LAW)["a"]
    assert 0 <= after.good <= 1
    if kind == "failing":
        assert after.until >= before.until
        assert after.until >= now + min(wait, LONGEST)
        known = began >= before.since
        assert after.failures == before.failures + known
        if known:
            assert after.until >= now + pause(after.failures, LAW)
    elif kind == "well" and began >= before.since:
        assert (after.failures, after.until) == (0, NEW.until)
    else:
        assert (after.failures, after.until) == (before.failures, before.until)


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1, 100))
def test_each_further_failure_doubles_the_pause_up_to_the_cap(one, two):
    assert pause(one, LAW) <= LAW.cap
    assert pause(one + 1, LAW) == min(LAW.cap, 2 * pause(one, LAW))
    assert (pause(one, LAW) <= pause(two, LAW)) or one > two


def test_calls_that_were_in_flight_together_fail_once():
    state = NOTHING_KNOWN
    for ended in (5.0, 5.1, 5.2):
        state = learned(state, "a", News("failing", 1.0, ended), LAW)
    assert (state["a"].failures, state["a"].until) == (1, 6.0)
    state = learned(state, "a", News("well", 1.0, 5.3), LAW)
    assert state["a"].failures == 1
    assert learned(state, "a", News("well", 6.0, 6.1), LAW)["a"].failures == 0


def test_what_headers_say_is_kept_of_errors_too():
    headers = {"x-ratelimit-remaining-tokens": "7", "x-ratelimit-limit-tokens": "10"}
    state = learned(NOTHING_KNOWN, "a", News("failing", 1.0, 2.0, 0.0, headers), LAW)
    assert state["a"].tokens == Report(10.0, 7.0, None)
    assert learned(state, "a", News("well", 9.0, 9.0), LAW)["a"].tokens == Report(10.0, 7.0, None)


def test_no_more_than_so_many_targets_are_known():
    full = pmap({str(number): NEW for number in range(MOST)})
    news = News("failing", 0.0, 0.0)
    assert len(learned(full, "0", news, LAW)) == MOST
    assert list(learned(full, "another", news, LAW)) == ["another"]


def test_one_call_only_sees_whether_a_target_is_well_again():
    state = learned(NOTHING_KNOWN, "a", News("failing", 0.0, 0.0), LAW)
    assert probed(state, "a", 0.5, "x") == state  # left alone
    seen = probed(state, "a", 1.0, "x")
    assert probed(seen, "a", 1.0, "y") == seen
    assert chosen(seen, ["a", "b"], [], 1.0, 0.0).name == "b"
    assert released(seen, "a", "y") == seen
    assert released(seen, "a", "x") == state
    atom = Atom(state)
    assert take(atom, ["a"], [], 1.0, 0.0, "x") == Turn("a", probe=True)
    assert take(atom, ["a", "b"], [], 1.0, 0.0, "y") == Turn("b")


def test_two_that_want_to_see_after_one_target_at_once_go_to_two_targets():
    state = learned(NOTHING_KNOWN, "a", News("failing", 0.0, 0.0), LAW)

    class Raced(Atom):
        """An atom that another call moves between the look at it and the move."""

        def swap(self, f, *args):
            if self.deref()["a"].probe is None:
                super().swap(probed, "a", 1.0, "sooner")
            return super().swap(f, *args)

    assert take(Raced(state), ["a", "b"], [], 1.0, 0.0, "later") == Turn("b")


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["well", "failing", "nothing"]), st.floats(0, 5), shares, st.sampled_from([0.0, 0.0, 7.0])
    ),
    max_size=60,
)


@settings(deadline=None)
@given(EVENTS)
def test_through_any_history_calls_keep_away_from_those_that_are_left_alone(events):
    """One call after the other on a clock that jumps, each target well or not as it comes."""
    atom, now, alone = Atom(NOTHING_KNOWN), 0.0, {}
    for kind, passed, chance, wait in events:
        now += passed
        turn = take(atom, NAMES, [], now, chance, call := object())
        if alone.get(turn.name, 0.0) > now:
            assert all(alone.get(name, 0.0) > now for name in NAMES)
            assert alone[turn.name] == min(alone.values())
        atom.swap(learned, turn.name, News(kind, now, now, wait), LAW)
        atom.swap(released, turn.name, call)
        health = atom.deref()[turn.name]
        assert health.probe is None
        alone[turn.name] = health.until
        assert kind != "failing" or health.until >= now + max(LAW.base, wait)


@settings(deadline=None)
@given(st.lists(shares, min_size=3, max_size=30), st.sets(st.sampled_from(NAMES), max_size=2))
def test_the_calls_go_to_those_that_are_well_and_a_failing_one_is_seen_after_now_and_then(chances, bad):
    atom, sent = Atom(NOTHING_KNOWN), []
    for number, chance in enumerate(chances):
        now = float(number)
        turn = take(atom, NAMES, [], now, chance, call := object())
        sent.append(turn.name)
        atom.swap(learned, turn.name, News("failing" if turn.name in bad else "well", now, now), LAW)
        atom.swap(released, turn.name, call)
    for name in bad:
        assert sent.count(name) <= 1 + len(chances).bit_length()  # 1, 2, 4, … seconds


@pytest.mark.parametrize(
    ("found", "cut", "kind"),
    [
        ({"busy"}, False, "failing"),
        ({"content_filter"}, False, "well"),
        ({"incorrect", "content_filter"}, False, "well"),
        ({"interrupted"}, True, "nothing"),
        ({"interrupted"}, False, "failing"),
        ({"not_found"}, False, "well"),
        (set(), False, "well"),
    ],
)
def test_what_a_response_says_of_its_target(found, cut, kind):
    on = frozenset({"busy", "interrupted", "content_filter"})
    assert kind_of({"status": 200}, frozenset(found), on, cut) == kind
    if kind == "well":
        assert kind_of({"status": 0}, frozenset(found), on, cut) == "nothing"


# --- the flow -----------------------------------------------------------------------------------------------------

REQUEST = {"url": "https://a/v1", "headers": {}, "body": {"model": "m"}, "deadline": 9.0, "stream": False}
WAYS = {"a": Way("a", as_asked), "b": Way("b", lambda request: {**request, "url": "https://b/v1"})}
OK = {"status": 200, "headers": {}, "body": {"id": "c"}}
ON = frozenset({"busy"})


def failed(category="busy", **members):
    return {"status": 503, "headers": {}, "body": None, "error": {"category": category, "message": "", **members}}


def flow_of(state, request=REQUEST, chance=0.0, attempts=1):
    return balanced.__wrapped__(request, WAYS, ON, attempts, LAW, lambda: chance, state)


def sent_by(flow, now):
    """The request that a flow sends at a time."""
    step = next(flow)
    assert step == Sleep(0)
    return flow.send(now)


def answered(flow, response, now):
    """What a flow does next, or returns, when its request is answered at a time."""
    try:
        step = flow.send(response)
        while step == Sleep(0):
            step = flow.send(now)
    except StopIteration as stop:
        return stop.value
    return step


def test_a_call_goes_on_to_another_target_and_the_failing_one_is_left_alone():
    state = Atom(NOTHING_KNOWN)
    flow = flow_of(state)
    assert sent_by(flow, 0.0) == {**REQUEST, "attempt": 1, "attempts": 1}
    assert answered(flow, failed(retry_after=9.0), 1.0) == {**REQUEST, "url": "https://b/v1", "attempt": 2}
    assert answered(flow, OK, 2.0) == {**OK, "url": "https://b/v1", "attempts": 2, "target": "b"}
    for now in (2.0, 9.9):
        flow = flow_of(state)
        assert sent_by(flow, now)["url"] == "https://b/v1"
        answered(flow, OK, now)
    flow = flow_of(state, attempts=5, chance=0.9)
    assert sent_by(flow, 10.0) == {**REQUEST, "attempt": 1, "attempts": 1}  # to see whether it is well
    other = flow_of(state)
    assert sent_by(other, 10.0)["url"] == "https://b/v1"
    answered(flow, OK, 10.1)
    assert state.deref()["a"].failures == 0


def test_if_all_are_left_alone_the_soonest_is_used_and_its_error_is_returned():
    state = Atom(NOTHING_KNOWN)
    flow = flow_of(state)
    sent_by(flow, 0.0)
    answered(flow, failed(retry_after=50.0), 0.0)
    assert answered(flow, failed(retry_after=9.0), 0.0)["error"]["target"] == "b"
    flow = flow_of(state)
    assert sent_by(flow, 1.0) == {**REQUEST, "url": "https://b/v1", "attempt": 1}
    assert answered(flow, OK, 2.0)["target"] == "b"
    assert sent_by(flow_of(state), 2.0)["url"] == "https://b/v1"


@pytest.mark.parametrize("end", ["close", "throw"])
def test_a_call_that_ends_unheard_of_leaves_the_place_of_the_one_that_sees(end):
    state = Atom(learned(NOTHING_KNOWN, "a", News("failing", 0.0, 0.0), LAW))
    flow = flow_of(state)
    assert sent_by(flow, 5.0)["url"] == "https://a/v1"
    assert state.deref()["a"].probe is not None
    if end == "close":
        flow.close()
    else:
        with pytest.raises(LookupError):
            flow.throw(LookupError())
    assert state.deref()["a"].probe is None
    assert state.deref()["a"].failures == 1


def test_wound_down_it_returns_what_it_has():
    flow = flow_of(Atom(NOTHING_KNOWN))
    sent_by(flow, 0.0)
    answered(flow, failed(), 0.0)
    with pytest.raises(StopIteration) as stop:
        flow.throw(WoundDown())
    assert stop.value.value["error"]["category"] == "busy"
    flow = flow_of(Atom(NOTHING_KNOWN))
    sent_by(flow, 0.0)
    with pytest.raises(WoundDown):
        flow.throw(WoundDown())


def test_the_deadline_of_a_call_is_no_failure_of_its_target():
    state = Atom(NOTHING_KNOWN)
    flow = balanced.__wrapped__({**REQUEST, "due": 5.0}, WAYS, frozenset({"interrupted"}), 1, LAW, lambda: 0.0, state)
    sent_by(flow, 0.0)
    assert answered(flow, failed("interrupted"), 5.0)["attempts"] == 1
    assert state.deref()["a"].failures == 0


# --- over HTTP ----------------------------------------------------------------------------------------------------


def around(a, b, **more):
    """Options of a call at one server, and of a target at another."""
    target = {"api_endpoint": b.url, "api_key": OTHER}
    layers = [["balance", {"impls": [target], "state": Atom(NOTHING_KNOWN), **more}], ["retry", {"base": 0.001}]]
    return {"api_key": OWN, "api_endpoint": a.url, "middleware": layers, "full_response": True}


def test_healthy_targets_share_the_calls_each_with_its_own_key():
    with raw_server([answer(DONE)]) as a, raw_server([answer(DONE)]) as b:
        options = around(a, b)
        rows = list(map_chat(({"params": {**PARAMS, "seed": n}} for n in range(60)), options, concurrency=4))
        counts = Counter(row["target"] for row in rows)
        assert sum(counts.values()) == len(a.requests) + len(b.requests) == 60
        assert min(len(a.requests), len(b.requests)) > 3
        for server, key in ((a, OWN), (b, OTHER)):
            assert {request["headers"]["authorization"] for request in server.requests} == {f"Bearer {key}"}


@pytest.mark.parametrize("transport", ["requests", "aiohttp"])
def test_a_failing_target_costs_a_few_calls_an_attempt_and_no_row_its_answer(transport):
    with raw_server([answer({}, 503, retry_after=600)]) as a, raw_server([answer(DONE)]) as b:
        options = {**around(a, b), "transport": transport}
        rows = list(map_chat(({"params": {**PARAMS, "seed": n}} for n in range(60)), options, concurrency=4))
        assert all(row["response"] == DONE for row in rows)
        assert len(a.requests) <= 4
        assert sum(row["attempts"] for row in rows) == 60 + len(a.requests)


def test_the_server_with_more_tokens_left_gets_more_calls():
    def headers(left):
        return {"x_ratelimit_remaining_tokens": left, "x_ratelimit_limit_tokens": left}

    with raw_server([answer(DONE, **headers(90_000))]) as a, raw_server([answer(DONE, **headers(10_000))]) as b:
        chances = iter([0.25, 0.75, *(n / 100 for n in range(100))])
        respond = responder(around(a, b, chance=chances.__next__))
        for _ in range(102):
            respond(PARAMS)
        assert (len(a.requests), len(b.requests)) == (91, 11)


def test_streams_are_balanced_too():
    params = {**PARAMS, "stream": True}
    with raw_server([answer({}, 503)]) as a, raw_server([stream("a", "b")]) as b:
        options = {**around(a, b, chance=lambda: 0.0), "full_response": False}
        assert text_of(collect(create_chat_completion(params, options))) == "ab"
        assert len(a.requests) == 1


def test_all_that_a_process_knows_is_shared_by_its_calls_and_forgotten_in_a_fork():
    with raw_server([answer({}, 503)]) as a, raw_server([answer(DONE)]) as b:
        options = around(a, b, state=None, chance=lambda: 0.0, base=600.0, cap=600.0)
        for _ in range(3):
            assert create_chat_completion(PARAMS, options)["target"].endswith(b.url.split("/")[2])
        assert len(a.requests) == 1
        known = [name for name in SHARED[0].deref() if a.url.split("/")[2] in name]
        assert len(known) == 1
        before = SHARED[0]
        if hasattr(os, "fork"):
            assert in_a_child(lambda: len(SHARED[0].deref())) == 0
        assert SHARED[0] is before
        forget()
        assert len(SHARED[0].deref()) == 0


def in_a_child(function):
    """What a function returns, a small number, in a child that was forked."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the servers', here
        child = os.fork()
    if child == 0:
        os.write(write, str(function()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as reader:
        said = reader.read() if readable(reader, 30) else b"-1"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return int(said)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"impls": []}, "'impls' of 'balance' is empty"),
        ({"impls": ["groq"], "base": 0}, "'base' of 'balance'"),
        ({"impls": ["groq"], "cap": "1"}, "'cap' of 'balance'"),
        ({"impls": ["groq"], "on": ["sometimes"]}, "unknown condition 'sometimes'"),
        ({"impls": ["groq"], "attempts": True}, "'attempts' of 'balance'"),
        ({"impls": ["groq"], "chances": 1}, "did you mean 'chance'"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises((ValueError, TypeError), match=said):
        create_chat_completion(PARAMS, {"transport": "echo", "middleware": [["balance", settings]]})


def test_many_threads_on_one_state_lose_nothing():
    with raw_server([answer(DONE)]) as a, raw_server([answer({}, 503)]) as b:
        options = around(a, b, base=0.001, cap=0.002)
        respond, found = responder(options), []
        threads = [threading.Thread(target=lambda: found.extend(respond(PARAMS) for _ in range(10))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [response["body"] for response in found] == [DONE] * 80
        assert all(health.probe is None for health in options["middleware"][0][1]["state"].deref().values())
