"""Flows are tested with ``next`` and ``send``: no I/O, no clock, no mocks."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfn import Call, Sleep, create_chat_completion, middleware
from chatfn.errors import RETRYABLE
from chatfn.middleware import composed, drive, is_async
from chatfn.middleware.call import authorize, origin, redirected, timed
from chatfn.middleware.retry import backoff, retry
from chatfn.secret import Secret
from chatfn.stack import MIDDLEWARE, layer

REQUEST = {"url": "https://h/v1/chat/completions", "headers": {}, "body": {}, "deadline": 10.0}
OK = {"status": 200, "headers": {}, "body": {"id": "c"}}


def failed(category="busy", **members):
    return {"status": 429, "headers": {}, "body": None, "error": {"category": category, "message": "", **members}}


def finish(flow, answer):
    with pytest.raises(StopIteration) as stop:
        flow.send(answer)
    return stop.value.value


def test_retry_sends_waits_and_sends_again():
    flow = retry.__wrapped__(REQUEST, attempts=3, jitter=lambda: 1.0)
    assert next(flow) == {**REQUEST, "attempt": 1}
    assert flow.send(failed()) == Sleep(0.5)
    assert flow.send(0.5) == {**REQUEST, "attempt": 2}
    assert finish(flow, OK) == {**OK, "attempts": 2}


def test_retry_gives_up_after_its_attempts():
    flow = retry.__wrapped__(REQUEST, attempts=2, jitter=lambda: 0.0)
    next(flow)
    assert flow.send(failed()) == Sleep(0.0)
    flow.send(0.0)
    assert finish(flow, failed())["attempts"] == 2


def test_retry_counts_the_attempts_of_the_layers_below():
    flow = retry.__wrapped__(REQUEST, attempts=3, jitter=lambda: 0.0)
    next(flow)
    flow.send({**failed(), "attempts": 2})
    assert flow.send(0.0)["attempt"] == 3
    assert finish(flow, OK)["attempts"] == 3


def test_no_wait_passes_the_deadline():
    flow = retry.__wrapped__({**REQUEST, "due": 100.0}, attempts=3, jitter=lambda: 1.0)
    next(flow)
    assert flow.send(failed(retry_after=5.0)) == Sleep(0)
    assert finish(flow, 96.0)["attempts"] == 1
    flow = retry.__wrapped__({**REQUEST, "due": 100.0}, attempts=3, jitter=lambda: 1.0)
    next(flow)
    flow.send(failed(retry_after=5.0))
    assert flow.send(94.0) == Sleep(5.0)


def test_a_wait_that_the_server_asks_for_is_taken_exactly_or_not_at_all():
    assert backoff(1, failed(retry_after=119.5)["error"], 0.1) == 119.5
    assert backoff(1, failed(retry_after=120.5)["error"], 0.1) is None


def test_quota_is_never_retried_whatever_the_server_advises():
    assert backoff(1, failed("forbidden", code="insufficient_quota", should_retry=True)["error"]) is None


@pytest.mark.parametrize("advice", [True, False])
@pytest.mark.parametrize("category", ["busy", "incorrect"])
def test_the_servers_advice_outranks_the_table(advice, category):
    assert (backoff(1, failed(category, should_retry=advice)["error"]) is not None) is advice


@pytest.mark.parametrize(
    "category",
    ["unavailable", "interrupted", "busy", "fault", "conflict", "incorrect", "forbidden", "not_found", "unsupported"],
)
def test_which_categories_are_retried(category):
    assert (backoff(1, failed(category)["error"]) is not None) is (category in RETRYABLE)


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.01, 100))
def test_backoff_is_between_nothing_and_its_cap(attempt, jitter, cap):
    wait = backoff(attempt, failed()["error"], jitter, attempts=20_000, cap=cap)
    assert 0 <= wait <= cap


def test_timed_turns_the_deadline_into_a_time_and_says_how_long_it_took():
    flow = timed.__wrapped__(REQUEST)
    assert next(flow) == Sleep(0)
    assert flow.send(100.0)["due"] == 110.0
    assert flow.send({**OK, "headers": {"x-request-id": "r"}}) == Sleep(0)
    response = finish(flow, 102.5)
    assert (response["elapsed"], response["attempts"], response["request_id"]) == (2.5, 1, "r")


def test_no_deadline_is_no_due():
    flow = timed.__wrapped__({**REQUEST, "deadline": None})
    next(flow)
    assert "due" not in flow.send(100.0)


def test_a_function_is_asked_for_its_credential_again_after_401_and_only_once():
    auth = {"header": "authorization", "scheme": "Bearer", "secret": Secret(lambda: "never called here")}
    flow = authorize.__wrapped__({**REQUEST, "auth": auth})
    assert isinstance(next(flow), Call)
    assert flow.send("token-1")["auth"]["secret"].reveal() == "token-1"
    assert isinstance(flow.send({**OK, "status": 401}), Call)
    second = flow.send("token-2")
    assert (second["auth"]["secret"].reveal(), second["attempt"]) == ("token-2", 2)
    assert finish(flow, {**OK, "status": 401})["attempts"] == 2


def test_a_credential_function_that_fails_is_data():
    def broken():
        raise RuntimeError("no identity")

    response = create_chat_completion(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        {"transport": "echo", "api_key": broken, "full_response": True},
    )
    assert response["error"]["category"] == "forbidden"
    assert "raised RuntimeError: no identity" in response["error"]["message"]


def test_a_credential_function_that_returns_none_is_data():
    response = create_chat_completion({}, {"transport": "echo", "api_key": lambda: None, "full_response": True})
    assert response["error"]["category"] == "forbidden"
    assert "NoneType" in response["error"]["message"]


@pytest.mark.parametrize("status", [307, 308])
def test_redirects_to_the_same_origin_are_followed_five_times_at_most(status):
    moved = {"status": status, "headers": {"location": "/v2"}, "body": b""}
    flow = redirected(REQUEST, moved)
    assert next(flow)["url"] == "https://h/v2"
    for _ in range(4):
        assert flow.send(moved)["url"] == "https://h/v2"
    assert finish(flow, moved)["status"] == status


@pytest.mark.parametrize(
    ("status", "location"),
    [
        (302, "/v2"),
        (301, "/v2"),
        (307, "https://other/v2"),
        (307, "http://h/v2"),
        (307, "https://h:444/v2"),
        (307, "https://user@h/v2"),
        (307, "//other/v2"),
        (307, ""),
        (307, None),
    ],
)
def test_any_other_redirect_stays_what_it_is(status, location):
    headers = {} if location is None else {"location": location}
    with pytest.raises(StopIteration) as ended:
        next(redirected(REQUEST, {"status": status, "headers": headers, "body": b""}))
    assert ended.value.value["status"] == status


def test_an_origin_with_a_port_that_is_none_is_none():
    assert origin("https://h:99999/") is None


def test_a_flow_drives_blocking_and_awaitable_handlers_alike():
    @middleware
    def twice(request, word):
        first = yield request
        assert (yield Sleep(0)) > 0
        assert (yield Call(lambda: word)) == word
        second = yield request
        return {**first, "body": [first["body"], second["body"], word]}

    def blocking(request):
        return {**OK, "body": request["n"]}

    async def awaited(request):
        await asyncio.sleep(0)
        return {**OK, "body": request["n"]}

    expected = {**OK, "body": [1, 1, "w"]}
    assert twice("w")(blocking)({"n": 1}) == expected
    assert asyncio.run(twice("w")(awaited)({"n": 1})) == expected
    assert is_async(twice("w")(awaited))
    assert not is_async(twice("w")(blocking))


def test_what_a_handler_raises_is_raised_in_the_flow_which_may_answer_for_it():
    @middleware
    def forgiving(request):
        try:
            response = yield request
        except KeyError:
            response = {**OK, "body": "forgiven"}
        return response

    def blocking(request):
        raise KeyError(1)

    async def awaited(request):
        raise KeyError(1)

    assert forgiving()(blocking)({})["body"] == "forgiven"
    assert asyncio.run(forgiving()(awaited)({}))["body"] == "forgiven"


def test_an_awaitable_in_a_blocking_call_is_a_clear_error():
    @middleware
    def calling(request):
        yield Call(lambda: asyncio.sleep(0))
        return OK

    with pytest.raises(TypeError, match="acreate_chat_completion"):
        calling()(lambda request: OK)({})


def test_an_awaitable_credential_is_awaited():
    from chatfn import acreate_chat_completion

    async def token():
        return "token-1"

    params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert asyncio.run(acreate_chat_completion(params, {"transport": "echo", "api_key": token}))["choices"]


def test_a_function_that_makes_middleware_is_called_first():
    @middleware
    def polite(request, word="please"):
        return (yield request)

    params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    for maker in (polite, retry):
        with pytest.raises(TypeError, match=rf"call it, {maker.__name__}\(\)"):
            create_chat_completion(params, {"transport": "echo", "middleware": [maker]})


def test_middleware_by_name_and_settings():
    assert set(MIDDLEWARE) >= {"cost", "journal", "fallback", "balance", "retry", "budget"}
    with pytest.raises(ValueError, match="did you mean 'retry'"):
        layer(["retri", {}])
    for wrong in ([1], 1, [], {"retry": {}}, ["retry", {}, {}], ["retry", 1]):
        with pytest.raises(TypeError, match="no function, name"):
            layer(wrong)
    for lacking in ("journal", ["journal", {}]):
        with pytest.raises(ValueError, match="'journal' needs the setting 'path': "):
            layer(lacking)


# One flow of several, as a map drives them, against the same layers around a handler.
ACTS = st.sampled_from(["send", "send twice", "send or forgive", "time", "call", "call in vain", "fail", "answer"])
PLANS = st.lists(st.lists(ACTS, max_size=3), min_size=1, max_size=4)


class Refused(Exception):
    """What a layer or a handler raises."""


def planned(number, acts, log):
    """Middleware that does what its plan says; the log has all that it saw, and its end."""

    @middleware
    def flow(request):
        seen = []
        try:
            for act in acts:
                if act.startswith("send"):
                    try:
                        seen.append((yield {**request, "way": (*request["way"], number)})["body"])
                        if act == "send twice":
                            seen.append((yield {**request, "again": True})["body"])
                    except Refused as exc:
                        if act != "send or forgive":
                            raise
                        seen.append(str(exc))
                elif act == "time":
                    seen.append((yield Sleep(0)) > 0)
                elif act == "call":
                    seen.append((yield Call(lambda: number)))
                elif act == "call in vain":
                    try:
                        yield Call(refuse)
                    except Refused as exc:
                        seen.append(str(exc))
                elif act == "fail":
                    raise Refused(number)
                else:
                    break
            return {"status": 200, "headers": {}, "body": [number, *seen]}
        finally:
            log.append(("end", number, seen))

    return flow()


def refuse():
    raise Refused("in vain")


def outcome_of(run, log):
    try:
        return run(), log
    except Refused as exc:
        return str(exc), log


def handler_for(log, failing):
    def handler(request):
        log.append(request)
        if len(log) in failing:
            raise Refused("handler")
        return {"status": 200, "headers": {}, "body": len(log)}

    return handler


@given(PLANS, st.frozensets(st.integers(1, 6)))
def test_one_flow_of_several_does_what_they_do_around_a_handler(plans, failing):
    layered, single = [], []
    handler = handler_for(layered, failing)
    for number, acts in reversed(list(enumerate(plans))):
        handler = planned(number, acts, layered)(handler)
    flow = composed([planned(number, acts, single).flow for number, acts in enumerate(plans)])
    request = {"way": ()}
    expected = outcome_of(lambda: handler(request), layered)
    assert outcome_of(lambda: drive(flow, handler_for(single, failing), request), single) == expected


def test_a_composed_flow_that_is_closed_closes_the_innermost_first():
    log = []
    flow = composed([planned(number, ["send"], log).flow for number in range(3)])({"way": ()})
    assert next(flow)["way"] == (0, 1, 2)
    flow.close()
    assert [number for _, number, _ in log] == [2, 1, 0]
