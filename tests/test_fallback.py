"""A call that goes on to the next target: over real HTTP, and as a flow."""

import asyncio
import json
import pickle
import traceback
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rawserver import STREAM_HEAD, answer, chunked, delta, event, raw_server, stream

from chatfn import IMPLS, ChatError, acreate_chat_completion, collect, create_chat_completion, map_chat, text_of
from chatfn.client import resolved
from chatfn.core import requester
from chatfn.middleware import Call, Sleep, WoundDown
from chatfn.middleware.fallback import failing_over, fallback
from chatfn.middleware.targets import Target, targets_in
from chatfn.middleware.ways import (
    CONDITIONS,
    Way,
    as_asked,
    asked_model,
    concluded,
    first_event,
    reasons,
    rebuilt,
    resumed,
)
from chatfn.options import resolve
from chatfn.sealing import sealed
from chatfn.stack import layers_of

PARAMS = {"messages": [{"role": "user", "content": "hé"}], "model": "m", "seed": 1}
DONE = {"id": "c", "object": "chat.completion", "choices": [{"finish_reason": "stop"}], "usage": {"total_tokens": 3}}
FILTERED = {"id": "f", "choices": [{"finish_reason": "content_filter"}], "usage": {"total_tokens": 2}}
QUOTA = {"error": {"message": "pay", "code": "insufficient_quota"}}
PROMPT = {"error": {"message": "no", "code": "content_filter"}}
OWN, OTHER = "sk-own-0123456789abcdef", "sk-other-0123456789abcdef"
ONCE = ["retry", {"attempts": 1}]
NO_KEYS = ("OPENAI_API_KEY", "OPENAI_API_ENDPOINT", "OPENAI_BASE_URL", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch):
    for name in (*NO_KEYS, "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_ENDPOINT", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)


def beside(server, *targets, **settings):
    """Options of a call of its own at ``server``, with targets after it."""
    layers = [["fallback", {"impls": list(targets), **settings}], ONCE]
    return {"api_key": OWN, "api_endpoint": server.url, "middleware": layers, "full_response": True}


def at(server, **options):
    return {"api_endpoint": server.url, "api_key": OTHER, **options}


def targets(**options):
    return list(targets_in(resolved(sealed(options))))


def hosts(servers):
    return [server.url.split("/")[2] for server in servers]


# --- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [create_chat_completion, lambda p, o: asyncio.run(acreate_chat_completion(p, o))])
def test_each_server_sees_its_own_key_only_and_the_answer_says_who_gave_it(call):
    with raw_server([answer(QUOTA, 429)]) as a, raw_server([answer(DONE)]) as b:
        options = beside(a, at(b, request={"headers": {"x-other": "1"}}))
        response = call(PARAMS, {**options, "request": {"headers": {"x-own": "1"}}})
        assert response["body"] == DONE
        assert response["target"] == f"openai@{hosts([b])[0]}"
        assert response["attempts"] == 2
        (first,), (second,) = a.requests, b.requests
        assert first["headers"]["authorization"] == f"Bearer {OWN}"
        assert second["headers"]["authorization"] == f"Bearer {OTHER}"
        assert first["body"] == second["body"]
        assert ("x-own" in second["headers"], "x-other" in second["headers"]) == (False, True)
        assert OTHER not in str(first)
        assert OWN not in str(second)


def test_from_azure_and_back_the_model_is_the_one_that_was_asked():
    with raw_server([answer(DONE, 503)]) as a, raw_server([answer(DONE, 503)]) as b, raw_server([answer(DONE)]) as c:
        azure = {"impl": "azure", "api_endpoint": a.url.removesuffix("/v1")}
        other = {"impl": "azure", "api_endpoint": b.url.removesuffix("/v1"), "api_key": OTHER, "deployment": "west"}
        last = at(c, impl="openai", model="m2")
        response = create_chat_completion(PARAMS, {**beside(a, other, last), **azure})
        assert [s.requests[0]["path"].partition("?")[0] for s in (a, b, c)] == [
            "/openai/deployments/m/chat/completions",
            "/openai/deployments/west/chat/completions",
            "/v1/chat/completions",
        ]
        rest = {name: PARAMS[name] for name in ("messages", "seed")}
        assert [json.loads(s.requests[0]["body"]) for s in (a, b, c)] == [rest, rest, {"model": "m2", **rest}]
        assert [s.requests[0]["headers"].get("api-key") for s in (a, b, c)] == [OWN, OTHER, None]
        assert c.requests[0]["headers"]["authorization"] == f"Bearer {OTHER}"
        assert response["target"] == f"m2@{hosts([c])[0]}"
        assert response["attempts"] == 3


@pytest.mark.parametrize(
    ("failure", "condition"),
    [
        (answer({}, 429), "busy"),
        (answer({}, 502), "unavailable"),
        (answer(QUOTA, 429), "quota"),
        (answer(PROMPT, 400), "content_filter"),
        (answer(FILTERED), "content_filter"),
        (answer({}, 500), "fault"),
        (answer({}, 401), "forbidden"),
        (answer({}, 404), "not_found"),
    ],
)
def test_it_goes_on_at_what_the_settings_name_and_at_nothing_else(failure, condition):
    with raw_server([failure]) as a, raw_server([answer(DONE)]) as b:
        for on in (
            None,
            [condition],
            [name for name in CONDITIONS if name not in (condition, "forbidden", "incorrect")],
        ):
            a.requests.clear(), b.requests.clear()
            settings = {} if on is None else {"on": on}
            response = create_chat_completion(PARAMS, beside(a, at(b), **settings))
            moved = condition in (on or ("busy", "unavailable", "quota", "content_filter"))
            assert (len(a.requests), len(b.requests)) == (1, int(moved))
            assert (response["body"] == DONE) is moved
            assert response["target"].endswith(hosts([b if moved else a])[0])


def test_a_target_that_refuses_connections_is_passed_over():
    with raw_server([answer(DONE)]) as gone:
        pass
    with raw_server([answer(DONE)]) as b:
        assert create_chat_completion(PARAMS, beside(gone, at(b)))["target"].endswith(hosts([b])[0])


def test_if_all_fail_the_last_error_is_returned_with_the_attempts_of_all():
    with raw_server([answer({}, 503, retry_after=0)]) as a, raw_server([answer({}, 429, retry_after=0)]) as b:
        options = {**beside(a, at(b)), "full_response": False}
        options["middleware"] = [options["middleware"][0], ["retry", {"attempts": 3}]]
        with pytest.raises(ChatError) as caught:
            create_chat_completion(PARAMS, options)
        assert caught.value.error["status"] == 429
        assert caught.value.error["attempts"] == len(a.requests) + len(b.requests) == 6
        assert caught.value.error["target"].endswith(hosts([b])[0])
        assert OWN not in repr(caught.value.error)


def test_a_target_gets_the_attempts_of_the_setting_and_the_last_those_of_retry():
    with raw_server([answer({}, 503, retry_after=0)]) as a, raw_server([answer({}, 503, retry_after=0)]) as b:
        options = beside(a, at(b), attempts=1)
        seen = []
        options["middleware"] = [options["middleware"][0], ["retry", {"attempts": 3}]]
        options["trace"] = lambda request, response: seen.append(request["attempt"])
        assert create_chat_completion(PARAMS, options)["attempts"] == 4
        assert (len(a.requests), len(b.requests)) == (1, 3)
        assert seen == [1, 2, 3, 4]


def test_a_completion_cut_by_the_filter_is_better_than_no_answer_and_all_that_was_paid_is_said():
    with raw_server([answer(FILTERED)]) as a, raw_server([answer({}, 500)]) as b, raw_server([answer(DONE)]) as c:
        response = create_chat_completion(PARAMS, beside(a, at(b)))
        assert response["body"] == FILTERED
        assert response["attempts"] == 2
        assert "error" not in response
        assert response["target"].endswith(hosts([a])[0])
        response = create_chat_completion(PARAMS, beside(a, at(c)))
        assert response["body"] == DONE
        assert response["usage"] == {"total_tokens": 5}
        assert [(paid["usage"], paid["url"]) for paid in response["paid"]] == [
            ({"total_tokens": 2}, f"{a.url}/chat/completions")
        ]


def test_a_target_has_limits_of_its_own():
    """A limit of no tokens at all refuses what a call takes, so that nothing is sent there."""
    with raw_server([answer({}, 503)]) as a, raw_server([answer(DONE)]) as b, raw_server([answer(DONE)]) as c:
        seen = []
        options = beside(a, at(b, limits={"tpm": 1}), at(c), on=["busy", "incorrect"])
        options["middleware"] = [*options["middleware"], ["limit", {"rpm": 6_000}]]
        options["trace"] = lambda request, response: seen.append(request.get("limits"))
        assert create_chat_completion(PARAMS, options)["target"].endswith(hosts([c])[0])
        assert (len(a.requests), len(b.requests), len(c.requests)) == (1, 0, 1)
        assert seen == [None, None]
        other = beside(a, at(b, limits={"rpm": 6_000, "concurrency": 1}))
        other["middleware"] = [*other["middleware"], ["limit", {"tpm": 1_000_000}]]
        assert create_chat_completion(PARAMS, {**other, "trace": options["trace"]})["body"] == DONE
        assert seen[2:] == [None, {"rpm": 6_000, "concurrency": 1}]


ERROR_EVENT = [STREAM_HEAD + chunked(event({"error": {"message": "later", "code": 503}}))]


@pytest.mark.parametrize("failure", [[answer({}, 503)], ERROR_EVENT])
@pytest.mark.parametrize("awaited", [False, True])
def test_a_stream_goes_on_to_the_next_target_before_its_first_event(failure, awaited):
    params = {**PARAMS, "stream": True}

    async def collected(options):
        return collect([event async for event in await acreate_chat_completion(params, options)])

    with raw_server(failure) as a, raw_server([stream("a", "b")]) as b:
        options = {**beside(a, at(b), on=["busy", "fault"]), "full_response": False}
        whole = asyncio.run(collected(options)) if awaited else collect(create_chat_completion(params, options))
        assert text_of(whole) == "ab"
        assert json.loads(b.requests[0]["body"])["stream"] is True


def test_a_stream_that_breaks_after_its_first_event_stays_broken():
    broken = [STREAM_HEAD + chunked(event(delta("one")), event({"error": {"message": "later", "code": 503}}))]
    with raw_server([answer({}, 503)]) as a, raw_server(broken) as b, raw_server([stream("a")]) as c:
        options = {**beside(a, at(b), at(c)), "full_response": False}
        events = create_chat_completion({**PARAMS, "stream": True}, options)
        with pytest.raises(ChatError) as caught:
            list(events)
        assert text_of(caught.value.error["partial"]) == "one"
        assert caught.value.error["attempts"] == 2
        assert c.requests == []


def test_the_journal_keeps_the_answer_of_another_target_under_the_request_as_asked(tmp_path):
    with raw_server([answer({}, 503)]) as a, raw_server([answer(DONE)]) as b:
        options = beside(a, at(b))
        kept = ["journal", {"path": str(tmp_path / "j.db")}]
        options["middleware"] = [kept, *options["middleware"]]
        assert create_chat_completion(PARAMS, options)["target"].endswith(hosts([b])[0])
        again = create_chat_completion(PARAMS, {**options, "middleware": [kept]})
        assert (again["body"], again["cached"]) == (DONE, True)
        assert (len(a.requests), len(b.requests)) == (1, 1)
        kept_bytes = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert OWN.encode() not in kept_bytes
        assert OTHER.encode() not in kept_bytes


@pytest.mark.parametrize("transport", ["requests", "aiohttp"])
def test_the_rows_of_a_map_say_who_answered(transport):
    params = [PARAMS, {**PARAMS, "stream": True}, {**PARAMS, "seed": 2}]

    def reply(request):
        return [stream("a") if b'"stream":true' in request["body"] else answer(DONE)]

    with raw_server([answer({}, 503)]) as a, raw_server(reply) as b:
        options = {**beside(a, at(b)), "transport": transport}
        options = pickle.loads(pickle.dumps(options))  # as it goes to a worker
        rows = list(map_chat([{"params": each} for each in params], options, concurrency=3))
        assert [row.get("error") for row in rows] == [None] * 3
        assert {row["target"] for row in rows} == {f"openai@{hosts([b])[0]}"}
        assert {row["attempts"] for row in rows} == {2}


# --- options and secrets ------------------------------------------------------------------------------------------


def test_a_target_without_a_credential_is_refused_before_anything_is_sent():
    with raw_server([answer({}, 503)]) as a:
        lacking = {"impl": "azure", "api_endpoint": "https://w.openai.azure.com"}
        with pytest.raises(ValueError, match=r"the target azure@w.openai.azure.com: no Azure OpenAI key.*api_key"):
            create_chat_completion(PARAMS, beside(a, "groq" and lacking))
        with pytest.raises(ValueError, match=r"the target groq@api.groq.com: no API key.*GROQ_API_KEY"):
            list(map_chat([{"params": PARAMS}], beside(a, "groq")))
        with pytest.raises(ValueError, match=r"impls\[1\] of 'fallback': no endpoint"):
            create_chat_completion(PARAMS, beside(a, at(a), "azure"))
        assert a.requests == []


def test_the_environment_of_a_targets_impl_is_read_at_the_call(monkeypatch):
    with raw_server([answer({}, 503)]) as a, raw_server([answer(DONE)]) as b:
        options = beside(a, "azure")
        monkeypatch.setenv("AZURE_OPENAI_API_ENDPOINT", b.url.removesuffix("/v1"))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "from-the-environment")
        assert create_chat_completion(PARAMS, options)["target"] == f"azure@{hosts([b])[0]}"
        assert b.requests[0]["headers"]["api-key"] == "from-the-environment"


def test_a_key_of_the_environment_goes_to_its_own_endpoint_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", OWN)
    layers = [["fallback", {"impls": [{"api_endpoint": "https://b.example/v1"}]}]]
    with pytest.raises(ValueError, match=r"the target openai@b.example: no API key"):
        create_chat_completion(PARAMS, {"middleware": layers})
    (target,) = targets(middleware=layers)
    assert target.options.get("api_key") is None
    with pytest.raises(ValueError, match=r"both to openai@a.example and to openai@api.openai.com"):
        targets(api_endpoint="https://a.example/v1", middleware=[["fallback", {"impls": ["openai"]}]])
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", OTHER)
    two = [{"impl": "azure", "api_endpoint": f"https://{name}.example"} for name in "ab"]
    with pytest.raises(ValueError, match=r"both to azure@a.example and to azure@b.example"):
        targets(middleware=[["fallback", {"impls": two}]])
    (target,) = targets(middleware=[["fallback", {"impls": two[:1]}]])
    assert target.options["api_key"].reveal() == OTHER


def test_the_key_in_an_impls_defaults_goes_to_the_endpoint_in_its_defaults_only():
    defaults = {"api_endpoint": "https://a.example/v1", "api_key": OTHER}
    impl = {**IMPLS["openai"], "defaults": defaults}
    home, away = targets(
        middleware=[["fallback", {"impls": [{"impl": impl}, {"impl": impl, "api_endpoint": "https://b.example"}]}]]
    )
    assert home.name == "a.example"
    assert home.options["api_key"].reveal() == OTHER
    assert away.options.get("api_key") is None


def test_the_credential_function_of_a_target_is_asked_once_more_after_401():
    tokens = iter(["stale-token", "fresh-token"])
    with raw_server([answer(QUOTA, 429)]) as a, raw_server([answer({}, 401)], [answer(DONE)]) as b:
        response = create_chat_completion(PARAMS, beside(a, at(b, api_key=lambda: next(tokens))))
        assert response["body"] == DONE
        assert [request["headers"]["authorization"] for request in b.requests] == [
            "Bearer stale-token",
            "Bearer fresh-token",
        ]


def test_a_target_of_the_calls_own_service_has_its_options_but_for_its_own():
    own = {
        "api_key": OWN,
        "api_endpoint": "https://a.example/v1",
        "organization": "o",
        "request": {"headers": {"x-a": "1", "x-b": "1"}, "timeout": 3},
    }
    other = {"model": "m2", "request": {"headers": {"x-b": "2"}}}
    (target,) = targets(**own, middleware=[["fallback", {"impls": [other]}]])
    request = requester(target.options)({"model": "m"})
    assert request["url"] == "https://a.example/v1/chat/completions"
    assert request["auth"]["secret"].reveal() == OWN
    assert {name: request["headers"][name] for name in ("x-a", "x-b", "openai-organization")} == {
        "x-a": "1",
        "x-b": "2",
        "openai-organization": "o",
    }
    assert request["timeout"] == (3.0, 3.0)
    assert (target.name, target.model) == ("m2@a.example", "m2")


def test_a_credential_of_a_target_takes_the_place_of_all_of_the_calls():
    own = {"impl": "azure", "ad_token": OWN, "api_endpoint": "https://a.example", "deployment": "d"}
    (target,) = targets(**own, middleware=[["fallback", {"impls": [{"api_key": OTHER, "model": "e"}]}]])
    request = requester(target.options)({"model": "m"})
    assert (request["auth"]["header"], request["auth"]["secret"].reveal()) == ("api-key", OTHER)
    assert target.name == "e@a.example"
    assert "/deployments/e/" in request["url"]
    own = {"request": {"headers": {"Authorization": OWN}}}
    (target,) = targets(**own, middleware=[["fallback", {"impls": [{"api_key": OTHER}]}]])
    request = requester(target.options)({"model": "m"})
    assert request["auth"]["secret"].reveal() == OTHER
    assert "authorization" not in request["headers"]


def test_a_target_of_another_service_has_nothing_of_the_calls_but_the_network():
    own = {
        "api_key": OWN,
        "organization": "o",
        "project": "p",
        "allow_http": True,
        "bounds": {"body": 5},
        "request": {
            "headers": {"authorization": OWN, "x-a": "1"},
            "query": {"q": "1"},
            "timeout": 3,
            "proxies": {"https": "http://proxy"},
            "verify": False,
            "cert": "mine.pem",
        },
    }
    other = {"impl": "groq", "api_key": OTHER}
    (target,) = targets(**own, middleware=[["fallback", {"impls": [other]}]])
    request = requester(target.options)({"model": "m"})
    assert request["auth"]["secret"].reveal() == OTHER
    assert request["url"] == "https://api.groq.com/openai/v1/chat/completions"
    assert set(request["headers"]) == {"accept", "content-type", "user-agent"}
    assert (request["timeout"], request["proxies"]) == ((3.0, 3.0), {"https": "http://proxy"})
    assert request["bounds"]["body"] == 5
    assert not {"verify", "cert"} & set(request)
    assert target.options["allow_http"] is False
    own["request"]["verify"] = "ca.pem"
    (target,) = targets(**own, middleware=[["fallback", {"impls": [other]}]])
    assert requester(target.options)({"model": "m"})["verify"] == "ca.pem"


def test_targets_that_share_a_name_are_numbered():
    found = targets(api_key=OWN, middleware=[["fallback", {"impls": [{"api_key": OTHER}, {"api_key": "k3"}]}]])
    assert [target.name for target in found] == ["openai@api.openai.com#2", "openai@api.openai.com#3"]


WRONG = [
    [["fallback", {"impls": [{"api_key": OTHER, "oops": OTHER}]}]],
    [["fallback", {"impls": [{"api-key": OTHER, "impl": "nope"}]}]],
    [["fallback", {"impls": {"api_key": OTHER}}]],
    [["fallback", {"impls": [[{"api_key": OTHER}]]}]],
    [["fallback", {"impls": [{"api_key": OTHER, "model": 5}]}]],
    [["fallback", {"impls": [{"api_key": OTHER, "limits": 5}]}]],
    [["fallback", {"impls": [{"api_key": OTHER, "limits": {"rps": 5}}]}]],
    [["fallback", {"impls": [{"api_key": OTHER, "limits": {"rpm": 0}}]}]],
    [["fallback", {"impls": [{"api_key": [OTHER]}]}]],
    [["fallback", {"impls": [{"api_endpoint": f"https://me:{OTHER}@h/v1"}]}]],
    [["fallback", {"impls": [{"request": {"headers": {"api-key": OTHER + "\n"}}}]}]],
    [["fallback", {"impls": [{"request": {"headers": [OTHER], "token": OTHER}}]}]],
    [["fallback", {"impls": [{"request": OTHER}]}]],
    [["fallback", {"impls": [{"api_key": OTHER, "ad_token": OTHER}]}]],
    [["fallback", {"impls": [{"api_key": OTHER}], "oops": 1}]],
    [["fallback", {"impls": [{"api_key": OTHER}], "on": ["oops"]}]],
    [["fallback", {"impls": [{"api_key": OTHER}], "on": "busy"}]],
    [["fallback", {"impls": [{"api_key": OTHER}], "attempts": 0}]],
    [["fallback", {"impls": [{"api_key": OTHER, "impl": "openai"}]}], ["journal", {"path": "x"}]],
    [["retry"], ["fallback", {"impls": [{"api_key": OTHER, "transport": "echo"}]}]],
    [["fallback", [{"api_key": OTHER}]]],
    [["fallback", {"impls": [{"impl": "azure", "api_key": OTHER}]}]],
    [["fallback", {"impls": []}]],
    ["fallback"],
]


@pytest.mark.parametrize("layers", WRONG)
def test_wrong_settings_are_named_and_no_secret_is_in_the_message_or_in_any_frame(layers):
    with pytest.raises((ValueError, TypeError)) as caught:
        create_chat_completion(PARAMS, {"api_key": OWN, "transport": "echo", "middleware": layers})
    report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = "".join(str(frame.locals) for frame in report.stack if "/chatfn/" in frame.filename)
    assert OTHER not in str(caught.value) + inside
    assert OWN not in str(caught.value) + inside
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_no_secret_shows_in_options_that_are_sealed_nor_in_their_pickles():
    given = [["fallback", {"impls": [{"api-key": OTHER, "request": {"headers": {"x-api-key": OTHER}}}]}]]
    options = sealed({"middleware": given, "api_key": OWN})
    whole = resolved(options)
    for shown in (repr(options), repr(whole), repr(list(targets_in(whole)))):
        assert OTHER not in shown
        assert OWN not in shown
    assert OTHER.encode() not in pickle.dumps(options)
    assert given[0][1]["impls"][0]["api-key"] == OTHER
    assert sealed(options) == options


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["fallback", "journal"], "outside of the journal"),
        (["fallback", "balance"], "name one"),
        (["balance", "balance"], "name one"),
        (["budget", "fallback"], "a budget outside of the fallback"),
        (["limit", "balance"], "a limit outside of the balance"),
        (["balance", "cost"], "a cost inside a balance"),
    ],
)
def test_an_order_of_layers_that_would_undo_them_is_refused(names, said):
    settings = {"journal": {"path": "x"}, "fallback": {"impls": ["groq"]}, "balance": {"impls": ["groq"]}}
    layers = [[name, settings.get(name, {})] for name in names]
    with pytest.raises(ValueError, match=said):
        create_chat_completion(PARAMS, {"transport": "echo", "middleware": layers})


def test_as_a_function_it_says_how_it_is_used():
    with pytest.raises(TypeError, match="name it in the option 'middleware'"):
        fallback(["azure"])


def test_layers_without_targets_pass_untouched():
    layers = ("retry", lambda handler: handler)
    assert resolved({"middleware": layers})["middleware"] == layers
    assert len(layers_of(resolved({"middleware": layers}))) == 4


# --- the flow -----------------------------------------------------------------------------------------------------

REQUEST = {"url": "https://a/v1", "headers": {}, "body": {"model": "m"}, "deadline": 9.0, "stream": False}
WAYS = [Way("a", as_asked), Way("b", lambda request: {**request, "url": "https://b/v1"})]
BUSY = {"status": 503, "headers": {}, "body": None, "error": {"category": "busy", "message": ""}}
OK = {"status": 200, "headers": {}, "body": {"id": "c"}}


def finish(flow, send):
    with pytest.raises(StopIteration) as stop:
        send(flow)
    return stop.value.value


def flow_of(request=REQUEST, **settings):
    return failing_over.__wrapped__(request, WAYS, frozenset({"busy"}), **settings)


def test_the_flow_sends_to_one_after_the_other():
    flow = flow_of(attempts=2)
    assert next(flow) == {**REQUEST, "attempt": 1, "attempts": 2}
    assert flow.send({**BUSY, "attempts": 2}) == {**REQUEST, "url": "https://b/v1", "attempt": 3}
    assert finish(flow, lambda flow: flow.send(OK)) == {**OK, "url": "https://b/v1", "attempts": 3, "target": "b"}


def test_nothing_is_sent_after_the_deadline_or_for_one_who_has_gone():
    flow = flow_of({**REQUEST, "due": 5.0})
    next(flow)
    assert flow.send(BUSY) == Sleep(0)
    assert finish(flow, lambda flow: flow.send(5.0))["error"]["category"] == "busy"
    flow = flow_of({**REQUEST, "cancelled": lambda: True})
    next(flow)
    assert finish(flow, lambda flow: flow.send(BUSY))["target"] == "a"


def test_wound_down_it_returns_what_it_has():
    flow = flow_of()
    next(flow)
    flow.send(BUSY)
    assert finish(flow, lambda flow: flow.throw(WoundDown()))["error"]["target"] == "a"
    flow = flow_of()
    next(flow)
    with pytest.raises(WoundDown):
        flow.throw(WoundDown())


@pytest.mark.parametrize("model", [{}, {"model": ".."}, {"model": 5}])
def test_params_whose_model_is_no_name_are_refused_before_anything_is_sent(model):
    with raw_server([answer({}, 503)]) as a:
        azure = {"impl": "azure", "api_endpoint": "https://w.example", "api_key": OTHER}
        with pytest.raises(ValueError, match=r"no deployment|is no name"):
            create_chat_completion({"messages": [], **model}, beside(a, azure))
        assert a.requests == []


JSON = st.dictionaries(st.sampled_from(["messages", "seed", "stream", "user"]), st.integers(), max_size=4)


@settings(deadline=None)
@given(
    JSON,
    st.sampled_from([None, "m", "m2"]),
    st.sampled_from([None, "other"]),
    st.sampled_from(["openai", "azure"]),
    st.sampled_from([None, {"rpm": 5}]),
)
def test_rebuilding_changes_what_is_the_services_and_nothing_else(params, asked, model, impl, limits):
    own = requester(resolve(sealed({"impl": impl, "api_key": OWN, "api_endpoint": "https://a", "deployment": "d"})))
    other = requester(resolve(sealed({"api_key": OTHER, "api_endpoint": "https://b/v1", "request": {"timeout": 2}})))
    whole = params if asked is None else {**params, "model": asked}
    more = {"due": 7.0, "sample": 3, "attempt": 2, "cancelled": bool, "mine": 1}
    request = {**own(whole), **more, "verify": False}
    assert asked_model(request) == asked
    found = rebuilt(other, Target("b", {}, model, limits, own=False, lent=()), request)
    name = model or asked
    assert found == {
        **other({**params, **({} if name is None else {"model": name})}),
        **more,
        **({} if limits is None else {"limits": limits}),
        "deadline": request["deadline"],
    }
    assert found["auth"]["secret"].reveal() == OTHER


def test_outcomes_conclude_in_the_last_or_in_the_answer_before_it():
    sent = {"url": "u"}
    assert concluded([(sent, BUSY), (sent, {**OK, "attempts": 2})]) == {**OK, "attempts": 3}
    assert concluded([(sent, OK), (sent, BUSY)]) == {**OK, "attempts": 2}
    assert concluded([(sent, BUSY)]) == {**BUSY, "attempts": 1}


@settings(deadline=None)
@given(st.sampled_from(CONDITIONS[:-2]), st.sampled_from([None, "content_filter", "insufficient_quota", 5]))
def test_the_reasons_of_an_error_are_its_category_and_what_its_code_says(category, code):
    found = reasons({**BUSY, "error": {"category": category, "message": "", "code": code}})
    more = {"content_filter": {"content_filter"}, "insufficient_quota": {"quota"}}.get(code, set())
    assert found == {category} | more


@pytest.mark.parametrize("body", [None, b"", "text", {}, {"choices": None}, {"choices": [5, {}]}, iter(())])
def test_an_answer_of_any_form_has_no_reasons_unless_the_filter_cut_it(body):
    assert reasons({**OK, "body": body}) == frozenset()


# --- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_whose_first_event_was_read_closes_what_it_reads():
    closed = []

    def body():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    for read in (lambda found: found.close(), lambda found: (next(found), found.close()), list):
        source = body()
        found = resumed(first_event(source)[0], source)
        read(found)
        assert closed.pop()
    assert list(resumed(1, iter([2]))) == [1, 2]


def test_the_same_of_an_asynchronous_stream():
    closed = []

    async def body():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def run():
        for count in (0, 1, 2):
            source = body()
            found = resumed((await first_event(source))[0], source)
            got = [await anext(found) for _ in range(count)]
            assert got == [1, 2][:count]
            await found.aclose()
            assert closed.pop()

    asyncio.run(run())


def test_an_empty_stream_is_passed_on():
    flow = flow_of({**REQUEST, "stream": True})
    next(flow)
    body = iter(())
    step = flow.send({**OK, "body": body})
    assert type(step) is Call
    assert finish(flow, lambda flow: flow.send(step.function()))["body"] is body
    assert isinstance(step.function, partial)
