"""The calls, over real HTTP and on the transports that need none."""

import asyncio
import json
import pickle
import warnings
from contextlib import nullcontext

import pytest
from pyrsistent import freeze, thaw
from rawserver import CLOSE, STREAM_HEAD, answer, chunked, delta, event, raw_server, stream

import chatfn
from chatfn import ChatError, acreate_chat_completion, aresponder, create_chat_completion, responder, wire_headers

PARAMS = {"model": "m", "messages": [{"role": "user", "content": "hé"}]}
STREAM = {**PARAMS, "stream": True}
DONE = {"id": "c", "object": "chat.completion", "choices": []}
QUICK = {"middleware": [["retry", {"base": 0.001}]]}


def at(server, **options):
    return {"api_key": "sk-secret-123456789", "api_endpoint": server.url, **QUICK, **options}


def both(params, options):
    """The call and the awaited call, which must agree."""
    first = create_chat_completion(params, options)
    second = asyncio.run(acreate_chat_completion(params, options))
    assert first == second
    return first


def test_a_call_is_one_post_of_the_params_with_the_key_in_one_header():
    with raw_server([answer(DONE)]) as server:
        assert both(PARAMS, at(server)) == DONE
        for request in server.requests:
            assert (request["method"], request["path"]) == ("POST", "/v1/chat/completions")
            assert request["body"] == json.dumps(PARAMS, ensure_ascii=False, separators=(",", ":")).encode()
            assert request["headers"]["authorization"] == "Bearer sk-secret-123456789"
            assert request["headers"]["content-type"] == "application/json"
            names = [line.partition(":")[0].lower() for line in request["lines"]]
            assert len(names) == len(set(names))


def test_azure_names_the_deployment_in_the_path_and_the_key_in_api_key():
    with raw_server([answer(DONE)]) as server:
        options = at(server, impl="azure", api_endpoint=server.url.removesuffix("/v1"))
        assert both({**PARAMS, "model": "../x"}, options) == DONE
        request = server.requests[0]
        assert request["path"] == "/openai/deployments/..%2Fx/chat/completions?api-version=2024-10-21"
        assert json.loads(request["body"]) == {"messages": PARAMS["messages"]}
        assert request["headers"]["api-key"] == "sk-secret-123456789"
        assert "authorization" not in request["headers"]


def test_frozen_arguments_are_accepted_and_plain_dicts_come_out():
    with raw_server([answer(DONE)]) as server:
        got = create_chat_completion(freeze(PARAMS), freeze(at(server, middleware=())))
        assert type(got) is dict
        assert json.loads(server.requests[0]["body"]) == thaw(freeze(PARAMS))


def test_attempts_are_counted_in_the_result_and_in_the_error():
    with raw_server([answer({"error": "no"}, 500)], [answer({"error": "no"}, 429)], [answer(DONE)]) as server:
        assert create_chat_completion(PARAMS, at(server, full_response=True))["attempts"] == 3
    with raw_server([answer({"error": {"message": "no"}}, 503, retry_after=0)]) as server:
        with pytest.raises(ChatError) as caught:
            create_chat_completion(PARAMS, at(server))
        assert caught.value.error["attempts"] == len(server.requests) == 3
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_full_response_has_everything():
    with raw_server([answer(DONE, x_request_id="req_1")]) as server:
        response = create_chat_completion(PARAMS, at(server, full_response=True))
        assert response["status"] == 200
        assert response["body"] == DONE
        assert response["request_id"] == response["headers"]["x-request-id"] == "req_1"
        assert response["attempts"] == 1
        assert response["elapsed"] > 0


def test_a_stream_gives_its_events_and_gives_its_connection_back():
    with raw_server([stream("a", "b", "c")]) as server:
        for _ in range(20):
            events = create_chat_completion(STREAM, at(server))
            assert "".join(chatfn.text_deltas(events)) == "abc"
        assert len(server.connections) == 1


def test_on_next_gets_each_event_in_order_and_the_call_returns_the_fold():
    with raw_server([stream("a", "b")]) as server:
        seen = []
        whole = both(STREAM, at(server, on_next=seen.append))
        assert chatfn.text_of(whole) == "ab"
        assert len(seen) == 6
        assert chatfn.collect(seen[:3]) == whole
        assert create_chat_completion({**STREAM, "on_next": seen.append}, at(server)) == whole
        assert b"on_next" not in server.requests[-1]["body"]


def test_on_next_of_a_whole_call_is_refused():
    with pytest.raises(ValueError, match="stream"):
        create_chat_completion(PARAMS, {"transport": "echo", "on_next": print})
    with pytest.raises(TypeError, match="on_next"):
        create_chat_completion({**STREAM, "on_next": 1}, {"transport": "echo"})


def test_a_broken_stream_keeps_what_had_arrived():
    from rawserver import STREAM_HEAD

    part = event(delta("one "))
    with raw_server([STREAM_HEAD + b"%x\r\n%s\r\n" % (len(part), part), CLOSE]) as server:
        for run in (
            lambda: list(create_chat_completion(STREAM, at(server))),
            lambda: create_chat_completion(STREAM, at(server, on_next=len)),
            lambda: asyncio.run(acreate_chat_completion(STREAM, at(server, on_next=len))),
        ):
            with pytest.raises(ChatError) as caught:
                run()
            error = caught.value.error
            assert error["category"] == "interrupted"
            assert chatfn.text_of(error["partial"]) == "one "
            assert error["attempts"] == 1
            assert pickle.loads(pickle.dumps(caught.value)).error == error
            assert json.loads(json.dumps(error)) == error
        response = create_chat_completion(STREAM, at(server, on_next=len, full_response=True))
        assert response["error"]["category"] == "interrupted"


def test_trace_sees_every_attempt_and_both_ends_of_a_stream_and_no_secret():
    seen = []

    def trace(request, response):
        seen.append((request, response))

    with raw_server([answer({"error": "sk-secret-123456789"}, 500)], [stream("a", "b")]) as server:
        list(create_chat_completion(STREAM, at(server, trace=trace)))
    assert [response["status"] for _, response in seen] == [500, 200, 200]
    assert [request["attempt"] for request, _ in seen] == [1, 2, 2]
    assert seen[1][1]["body"] is None
    assert chatfn.text_of(seen[2][1]["body"]) == "ab"
    assert "sk-secret" not in repr(seen)


def test_trace_sees_how_a_stream_ended():
    seen = []
    options = {"transport": "echo", "trace": lambda request, response: seen.append(response)}
    params = {"model": "m", "messages": [{"role": "user", "content": "!break 2 a b c"}], "stream": True}
    with pytest.raises(ChatError):
        list(create_chat_completion(params, options))
    assert seen[-1]["error"]["category"] == "interrupted"
    events = create_chat_completion({**params, "messages": [{"role": "user", "content": "a b"}]}, options)
    next(events)
    events.close()
    assert seen[-1]["error"]["message"] == "closed by its reader"

    async def run():
        async for _ in await acreate_chat_completion(params, options):
            pass

    with pytest.raises(ChatError):
        asyncio.run(run())
    assert seen[-1]["error"]["category"] == "interrupted"


def test_a_trace_that_fails_is_a_warning_and_not_the_loss_of_the_answer():
    def trace(request, response):
        raise KeyError("x")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert create_chat_completion(PARAMS, {"transport": "echo", "trace": trace})["choices"]
    assert "KeyError" in str(caught[0].message)


def test_responders_never_raise_for_what_the_world_did():
    options = {"api_key": "k", "api_endpoint": "http://127.0.0.1:9/v1", **QUICK}
    assert responder(options)(PARAMS)["error"]["category"] == "unavailable"
    assert asyncio.run(aresponder(options)(PARAMS))["error"]["category"] == "unavailable"


def test_options_pickle_and_work_on_the_other_side():
    options = pickle.loads(pickle.dumps({"transport": "echo", "middleware": [["retry", {"attempts": 2}]]}))
    assert create_chat_completion(PARAMS, options)["choices"]


@pytest.mark.parametrize("name", ["aiohttp"])
def test_a_blocking_call_on_an_asynchronous_transport_is_refused(name):
    pytest.importorskip(name)
    with pytest.raises(ValueError, match="acreate_chat_completion"):
        create_chat_completion(PARAMS, {"transport": name, "api_key": "k"})


def test_no_key_is_an_error_that_says_what_to_set(monkeypatch):
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_API_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    with pytest.raises(ValueError, match='"api_key" or set OPENAI_API_KEY'):
        create_chat_completion(PARAMS)
    with pytest.raises(ValueError, match="AZURE_OPENAI_API_ENDPOINT or AZURE_OPENAI_ENDPOINT"):
        create_chat_completion(PARAMS, {"impl": "azure", "api_key": "k"})
    with pytest.raises(ValueError, match=r"AZURE_OPENAI_API_KEY.*AZURE_OPENAI_AD_TOKEN"):
        create_chat_completion(PARAMS, {"impl": "azure", "api_endpoint": "https://h"})
    with pytest.raises(ValueError, match="OPENROUTER_API_KEY"):
        asyncio.run(acreate_chat_completion(PARAMS, {"impl": "openrouter"}))


def test_a_transport_of_the_callers_own_may_stream_lists_iterators_and_asynchronous_iterators():
    chunks = [event(delta("a")) + event(delta("", "stop"))[:7], event(delta("", "stop"))[7:]]

    async def asynchronous(request):
        async def body():
            for chunk in chunks:
                yield chunk

        return {"status": 200, "headers": {}, "body": body()}

    for body in (list, iter, b"".join):
        options = {"transport": lambda request, body=body: {"status": 200, "headers": {}, "body": body(chunks)}}
        assert chatfn.text_of(create_chat_completion(STREAM, {**options, "on_next": len})) == "a"
    whole = asyncio.run(acreate_chat_completion(STREAM, {"transport": asynchronous, "on_next": len}))
    assert chatfn.text_of(whole) == "a"


def test_an_os_error_of_a_transport_of_the_callers_own_is_data():
    for raised, category in ((ConnectionRefusedError(), "unavailable"), (TimeoutError(), "interrupted")):
        options = {"transport": ["scripted", {"responses": [raised]}], "middleware": [], "full_response": True}
        assert create_chat_completion(PARAMS, options)["error"]["category"] == category


def test_a_classifier_of_the_callers_own_decides_what_is_retried():
    script = [{"status": 418, "body": {"error": "teapot"}}, DONE]
    options = {"transport": ["scripted", {"responses": script}], "full_response": True, **QUICK}
    response = create_chat_completion(PARAMS, {**options, "category_of": lambda status, wire: "busy"})
    assert (response["attempts"], response["body"]) == (2, DONE)


@pytest.mark.parametrize(
    ("params", "reply", "category"),
    [
        (PARAMS, answer({"error": {"message": "no"}}, 401), "forbidden"),
        (STREAM, answer({"error": {"message": "no"}}), "fault"),
        (STREAM, STREAM_HEAD + chunked(event({"error": {"message": "no"}})), "fault"),
    ],
)
def test_a_classifier_that_fails_is_a_warning_and_its_frames_show_no_key(params, reply, category):
    def failing(status, wire):
        raise ZeroDivisionError

    def call(server):
        options = at(server, category_of=failing, middleware=[])
        with pytest.raises(ChatError) as caught:
            list(create_chat_completion(params, options))
        return caught.value.error["category"]

    with raw_server([reply]) as server, pytest.warns(RuntimeWarning, match="category_of raised ZeroDivisionError"):
        assert call(server) == category


def test_more_requests_than_a_script_has_is_an_error():
    with pytest.raises(LookupError):
        create_chat_completion(PARAMS, {"transport": ["scripted", {"responses": []}]})


def test_what_is_recorded_is_replayed_and_nothing_else_is_known(tmp_path):
    tape = tmp_path / "tape.jsonl"
    with raw_server([answer(DONE)], [stream("a", "b")], [answer({"error": "no sk-secret-123456789"}, 400)]) as server:
        options = at(server, transport=["record", {"path": str(tape)}])
        first = create_chat_completion(PARAMS, options)
        second = list(create_chat_completion(STREAM, options))
        with pytest.raises(ChatError) as third:
            create_chat_completion({**PARAMS, "n": 2}, options)
    assert tape.stat().st_mode & 0o777 == 0o600
    assert "sk-secret" not in tape.read_text()
    options = {**options, "transport": ["replay", {"path": str(tape)}]}
    assert create_chat_completion(PARAMS, options) == first
    assert list(create_chat_completion(STREAM, options)) == second
    with pytest.raises(ChatError) as again:
        create_chat_completion({**PARAMS, "n": 2}, options)
    assert again.value.error == third.value.error
    with pytest.raises(ChatError, match="no recording"):
        create_chat_completion({**PARAMS, "n": 3}, options)


def test_a_tape_with_a_line_that_is_no_call_names_the_line(tmp_path):
    tape = tmp_path / "tape.jsonl"
    tape.write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1"):
        create_chat_completion(PARAMS, {"transport": ["replay", {"path": str(tape)}]})


def test_unknown_transports_and_middleware_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'requests'"):
        create_chat_completion(PARAMS, {"transport": "request"})
    with pytest.raises(ValueError, match="did you mean 'retry'"):
        create_chat_completion(PARAMS, {"transport": "echo", "middleware": ["retyr"]})


def test_a_call_uses_what_its_options_and_the_environment_say_then(monkeypatch):
    """What a call is made with is kept for the next that says the same: a changed key, endpoint or function is seen."""
    sent = []

    def transport(request):
        sent.append((request["url"].split("/")[2], wire_headers(request)["authorization"].removeprefix("Bearer ")))
        return {"status": 200, "headers": {}, "body": json.dumps(DONE).encode()}

    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-environment")
    options = {"transport": transport, "api_endpoint": "https://one.example/v1"}
    for change in ({}, {"api_key": "a"}, {"api_key": "b"}, {"api_endpoint": "https://two.example/v1"}, {}):
        options |= change
        both(PARAMS, {**options})
    del options["api_key"]
    monkeypatch.setenv("OPENAI_API_KEY", "another-of-the-environment")
    create_chat_completion(PARAMS, options)
    create_chat_completion(PARAMS, {**options, "api_key": lambda: "of-a-function"})
    assert sent == [
        *[("one.example", "key-of-the-environment")] * 2,
        *[("one.example", "a")] * 2,
        *[("one.example", "b")] * 2,
        *[("two.example", "b")] * 4,
        ("two.example", "another-of-the-environment"),
        ("two.example", "of-a-function"),
    ]


def test_functions_for_keys_that_say_they_are_equal_are_each_asked_for_their_own():
    class Equal:
        def __init__(self, key):
            self.key = key

        def __call__(self):
            return self.key

        def __eq__(self, other):
            return True

    class Hashed(Equal):
        __hash__ = object.__hash__

    class Constant(Equal):
        def __hash__(self):
            return 1

    class Text(str):
        __eq__ = Equal.__eq__
        __hash__ = Constant.__hash__

    with raw_server([answer(DONE)]) as server:
        for kind in (Equal, Hashed, Constant, Text):
            for key in ("sk-1", "sk-2"):
                both(PARAMS, {"api_key": kind(key), "api_endpoint": server.url})
                assert [r["headers"]["authorization"] for r in server.requests[-2:]] == [f"Bearer {key}"] * 2


def test_options_that_were_fine_once_are_still_refused_when_they_are_not():
    for wrong, error in ((True, TypeError), (1, None), (1.0, None), ("1", TypeError)):
        with pytest.raises(error) if error else nullcontext():
            create_chat_completion(PARAMS, {"transport": "echo", "deadline": wrong})


@pytest.mark.parametrize(
    ("transport", "words"),
    [
        (["echo", {"model": "m"}], "the transport 'echo' has no settings"),
        (["requests", {"http": "2"}], "the transport 'requests' has no settings"),
        (["replay", {"pth": "calls.jsonl"}], "unknown setting 'pth' of 'replay': did you mean 'path'"),
        ("replay", "'replay' needs the setting 'path'"),
        (["scripted"], "'scripted' needs the setting 'responses'"),
    ],
)
def test_a_setting_that_a_transport_does_not_have_or_lacks_is_refused(transport, words):
    with pytest.raises(ValueError, match=words):
        chatfn.responder({"transport": transport, "api_key": "k"})
