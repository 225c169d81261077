"""The journal: a call is paid for once, and nothing that was paid for is lost."""

import asyncio
import gc
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
from rawserver import CLOSE, STREAM_HEAD, answer, chunked, delta, event, raw_server, stream

import chatfn
from chatfn import (
    ChatError,
    acreate_chat_completion,
    build_request,
    cli,
    collect,
    create_chat_completion,
    map_chat,
    plan,
    responder,
    scripted,
)
from chatfn.journal import JournalError, journal, locks, request_key, stores
from chatfn.journal import store as store_module
from chatfn.journal.claims import Asked, Claim, Held
from chatfn.journal.files import connect
from chatfn.journal.report import export, reading, summary
from chatfn.journal.spent import by_day
from chatfn.journal.tables import APPLICATION, schema
from chatfn.prices import lookup_of

KEY = "sk-secret-1234567890123456"
PARAMS = {"model": "m", "messages": [{"role": "user", "content": "hé"}]}
STREAM = {**PARAMS, "stream": True}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": "so it is"}, "finish_reason": "stop"}
DONE = {"id": "c", "object": "chat.completion", "model": "m-1", "choices": [CHOICE], "usage": USAGE}
SOURCE = str(Path(chatfn.__file__).parents[1])


@pytest.fixture
def path(tmp_path):
    yield str(tmp_path / "run.db")
    stores.close_all()


def with_journal(path, transport="echo", *inner, **settings):
    return {"transport": transport, "middleware": [["journal", {"path": path, **settings}], *inner], "api_key": KEY}


def counted(reply=DONE, pause=0.0):
    """A transport that notes its requests, and the notes."""
    sent, lock = [], threading.Lock()

    def send(request):
        with lock:
            sent.append(request)
        time.sleep(pause)
        return {"status": 200, "headers": {}, "body": json.dumps(reply).encode()}

    return send, sent


def rows(path, sql="SELECT state FROM calls ORDER BY id"):
    with closing(sqlite3.connect(path)) as db:
        return [row[0] if len(row) == 1 else row for row in db.execute(sql)]


def full(params, options):
    return create_chat_completion(params, {**options, "full_response": True})


# Replaying


def test_a_finished_call_is_answered_from_the_file(path):
    send, sent = counted()
    options = with_journal(path, send)
    first, again = full(PARAMS, options), full(PARAMS, options)
    assert first["body"] == again["body"] == DONE
    assert len(sent) == 1
    assert "cached" not in first
    assert (again["cached"], again["status"], again["headers"], again["attempts"]) == (True, 200, {}, 1)


def test_an_awaited_call_is_too(path):
    async def twice():
        async def send(request):
            sent.append(request)
            return {"status": 200, "headers": {}, "body": json.dumps(DONE).encode()}

        options = with_journal(path, send)
        return [await acreate_chat_completion(PARAMS, options) for _ in range(2)]

    sent = []
    assert asyncio.run(twice()) == [DONE, DONE]
    assert len(sent) == 1
    assert create_chat_completion(PARAMS, with_journal(path, scripted([]))) == DONE


def test_a_stream_and_a_whole_answer_are_one_call(path):
    options = with_journal(path)
    none = with_journal(path, scripted([]))
    other = {**PARAMS, "messages": [{"role": "user", "content": "the other way"}]}
    whole = create_chat_completion(PARAMS, options)
    assert collect(create_chat_completion(STREAM, none)) == whole
    told = collect(create_chat_completion({**other, "stream": True}, options))
    assert create_chat_completion(other, none) == told
    assert all(event["choices"] for event in create_chat_completion(STREAM, none))
    asked = {**STREAM, "stream_options": {"include_usage": True}}
    *events, last = create_chat_completion(asked, none)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert collect([*events, last]) == whole


def test_an_awaited_stream_comes_from_the_file_too(path):
    async def told(options):
        return collect([event async for event in await acreate_chat_completion(STREAM, options)])

    first = asyncio.run(told(with_journal(path)))
    assert asyncio.run(told(with_journal(path, scripted([])))) == first
    assert rows(path) == ["answered"]


def test_on_next_sees_the_events_of_an_answer_from_the_file(path):
    whole, seen = create_chat_completion(PARAMS, with_journal(path)), []
    again = create_chat_completion(STREAM, {**with_journal(path, scripted([])), "on_next": seen.append})
    assert again == whole
    assert len(seen) > 2


def test_it_works_over_http_on_both_transports(path):
    with raw_server([answer(DONE)], [stream("a", "b")]) as server:
        for transport in ("requests", "aiohttp"):
            options = {**with_journal(path, transport), "api_endpoint": server.url}
            assert asyncio.run(acreate_chat_completion(PARAMS, options)) == DONE
        options = {**with_journal(path, "requests"), "api_endpoint": server.url}
        told = {**STREAM, "model": "other"}
        first = collect(create_chat_completion(told, options))
        assert collect(create_chat_completion(told, options)) == first
        assert len(server.requests) == 2


def test_sample_numbers_give_several_answers_to_one_prompt(path):
    send, sent = counted()
    handler = journal(path)(
        lambda request: {"status": 200, "headers": {}, "body": {"id": len(sent) + bool(sent.append(1))}}
    )
    request = build_request(PARAMS)
    answers = [
        handler({**request, **sample})["body"]["id"] for _ in range(2) for sample in ({}, {"sample": 1}, {"sample": 2})
    ]
    assert answers == [0, 1, 2, 0, 1, 2]
    assert rows(path, "SELECT json_extract(request, '$.sample') FROM calls ORDER BY id") == [None, 1, 2]
    assert send
    assert len(sent) == 3


def test_what_json_can_carry_comes_back_as_it_was(path):
    odd = {**DONE, "x": ["\ud800", "\0", "é😀", 2**70, 1e300, float("inf"), {"": None}]}
    whole = {"status": 200, "headers": {}, "body": json.dumps(odd).encode()}
    first = create_chat_completion(PARAMS, with_journal(path, lambda request: whole))
    assert create_chat_completion(PARAMS, with_journal(path, scripted([]))) == first == odd


def test_arguments_are_not_changed_and_the_journal_is_found_by_any_of_its_names(path, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    send, sent = counted()
    for name in (path, "run.db", Path("run.db"), str(tmp_path / "link" / "run.db"), os.fsencode(path)):
        assert create_chat_completion(PARAMS, with_journal(name, send)) == DONE
    assert len(sent) == 1
    assert len({id(stores.store_of(name, False)) for name in (path, "run.db")}) == 1


# Errors


def test_errors_are_kept_and_sent_again(path):
    script = scripted([{"status": 500, "body": {"error": {"message": "no"}}}, DONE])
    with pytest.raises(ChatError):
        create_chat_completion(PARAMS, with_journal(path, script))
    assert create_chat_completion(PARAMS, with_journal(path, script)) == DONE
    assert rows(path, "SELECT state, category, status, live FROM calls ORDER BY id") == [
        ("failed", "fault", 500, None),
        ("answered", None, 200, 1),
    ]


def test_a_kept_error_is_given_back_as_it_was(path):
    retry = ["retry", {"attempts": 2, "base": 0.0}]
    script = scripted([{"status": 503, "headers": {"x-request-id": "r"}, "body": {"error": {"message": "no"}}}] * 2)
    first = full(PARAMS, with_journal(path, script, retry, errors="keep"))
    again = full(PARAMS, with_journal(path, script, retry, errors="keep"))
    assert json.dumps(again["error"]) == json.dumps(first["error"])
    assert (again["cached"], again["status"], again["attempts"], again["body"]) == (True, 503, 2, None)
    assert full(STREAM, with_journal(path, scripted([]), errors="keep"))["error"] == first["error"]
    assert create_chat_completion(PARAMS, with_journal(path, scripted([DONE]))) == DONE
    assert create_chat_completion(PARAMS, with_journal(path, scripted([]), errors="keep")) == DONE


def test_a_retry_inside_is_one_call_with_its_attempts(path):
    script = scripted([{"status": 503, "headers": {"retry-after": "0"}}, DONE])
    create_chat_completion(PARAMS, with_journal(path, script, "retry"))
    assert rows(path, "SELECT state, attempts, model, prompt_tokens, total_tokens FROM calls") == [
        ("answered", 2, "m", 3, 7)
    ]


@pytest.mark.parametrize(
    "layers", [["retry", "journal"], [["retry", {}], lambda handler: handler, ["journal", {}]], ["journal", "journal"]]
)
def test_layers_that_would_undo_each_other_are_refused(layers):
    with pytest.raises(ValueError, match="journal"):
        responder({"transport": "echo", "middleware": layers})


def test_an_exception_leaves_a_call_of_unknown_outcome(path):
    def send(request):
        raise RuntimeError(f"broken {KEY}")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            create_chat_completion(PARAMS, with_journal(path, send))
    found = rows(path, "SELECT state, json_extract(error, '$.message') FROM calls")
    assert found == [("unknown", "RuntimeError: broken ***")] * 2
    assert create_chat_completion(PARAMS, with_journal(path, scripted([DONE]))) == DONE


# Streams that do not end well


def test_a_broken_stream_is_kept_with_what_had_arrived_and_sent_again(path):
    broken = [STREAM_HEAD + b"%x\r\n%s\r\n" % (len(event(delta("so"))), event(delta("so"))), CLOSE]
    with raw_server(broken, [stream("a", "b")]) as server:
        options = {**with_journal(path, "requests"), "api_endpoint": server.url}
        with pytest.raises(ChatError):
            list(create_chat_completion(STREAM, options))
        list(create_chat_completion(STREAM, options))
        assert create_chat_completion(PARAMS, options)["choices"][0]["message"]["content"] == "ab"
    found = rows(
        path, "SELECT state, json_extract(error, '$.partial.choices[0].message.content') FROM calls ORDER BY id"
    )
    assert found == [("failed", "so"), ("answered", None)]


@pytest.mark.parametrize("read", [0, 1])
@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_stream_that_is_left_is_of_unknown_outcome_and_sent_again(path, read, leave):
    events = create_chat_completion(STREAM, with_journal(path))
    for _ in range(read):
        next(events)
    if leave == "close":
        events.close()
    else:
        del events
        gc.collect()
    assert rows(path) == ["unknown"]
    assert list(create_chat_completion(STREAM, with_journal(path)))
    assert rows(path) == ["unknown", "answered"]


@pytest.mark.parametrize("read", [0, 1])
def test_an_awaited_stream_that_is_left_likewise(path, read):
    async def leave():
        events = await acreate_chat_completion(STREAM, with_journal(path))
        for _ in range(read):
            await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert rows(path) == ["unknown"]


def test_two_equal_streams_open_in_one_thread_do_not_wait_for_ever(path):
    events = create_chat_completion(STREAM, with_journal(path))
    next(events)
    error = full(STREAM, with_journal(path))["error"]
    assert (error["category"], error["attempts"]) == ("conflict", 0)
    list(events)
    assert full(STREAM, with_journal(path))["cached"]


def test_a_cancelled_task_leaves_a_call_of_unknown_outcome(path):
    async def run():
        async def send(request):
            begun.set()
            await asyncio.sleep(60)

        begun = asyncio.Event()
        task = asyncio.create_task(acreate_chat_completion(PARAMS, with_journal(path, send)))
        await begun.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert rows(path) == ["unknown"]


# Equal calls in flight


def test_equal_calls_on_threads_are_sent_once(path):
    send, sent = counted(pause=0.1)
    respond, got = responder(with_journal(path, send)), []
    threads = [threading.Thread(target=lambda: got.append(respond(PARAMS))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 1
    assert [response["body"] for response in got] == [DONE] * 12
    assert sum(response.get("cached", False) for response in got) == 11


def test_equal_calls_in_tasks_are_sent_once_streams_included(path):
    async def run():
        async def ask(params):
            got = await acreate_chat_completion(params, with_journal(path, "requests") | {"api_endpoint": server.url})
            return collect([event async for event in got]) if params.get("stream") else got

        return await asyncio.gather(*(ask(params) for params in [STREAM, PARAMS] * 6))

    with raw_server([0.1, stream("a", "b")], [0.1, answer(DONE)]) as server:
        got = asyncio.run(run())
        assert len(server.requests) == 1
    assert all(one == got[0] for one in got)


def test_who_waits_for_an_equal_call_waits_no_longer_than_its_deadline(path):
    events = create_chat_completion(STREAM, with_journal(path))
    got = []
    options = {**with_journal(path), "deadline": 0.1}
    thread = threading.Thread(target=lambda: got.append(full(PARAMS, options)))
    thread.start()
    thread.join(5)
    assert (got[0]["error"]["category"], got[0]["attempts"]) == ("interrupted", 0)
    events.close()


def ask_all(path, url, number):
    options = {**with_journal(path, "requests"), "api_endpoint": url}
    prompts = [f"{n}" for n in range(20)]
    asked = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in prompts]
    for params in asked[number:] + asked[:number]:
        assert create_chat_completion(params, options) == DONE


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_equal_calls_in_four_processes_on_one_file_are_sent_once(path, method):
    context = get_context(method)
    if method == "fork":
        create_chat_completion(PARAMS, with_journal(path))
    with raw_server([0.02, answer(DONE)]) as server:
        processes = [context.Process(target=ask_all, args=(path, server.url, 5 * n)) for n in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0] * 4
        assert len(server.requests) == len({request["body"] for request in server.requests}) == 20
    assert set(rows(path)) == {"answered"}
    assert create_chat_completion(PARAMS, with_journal(path))


def test_processes_that_make_the_file_at_the_same_time_share_it(path):
    code = (
        "import sys; from chatfn import create_chat_completion as ask; sys.stdin.readline()\n"
        "for n in range(50): ask({'model': 'm', 'seed': n, 'messages': [{'role': 'user', 'content': 'hi'}]},"
        " {'transport': 'echo', 'middleware': [['journal', {'path': sys.argv[1]}]]})"
    )
    command = [sys.executable, "-c", code, path]
    settings = {"env": {**os.environ, "PYTHONPATH": SOURCE}, "stdin": subprocess.PIPE}
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, **settings)) for _ in range(6)]
        for running in processes:
            running.stdin.write(b"\n")
            running.stdin.flush()
        assert [running.wait(30) for running in processes] == [0] * 6
    assert rows(path) == ["answered"] * 50


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_settle_the_calls_of_its_parent(path):
    events = create_chat_completion(STREAM, with_journal(path))
    next(events)
    child = os.fork()
    if child == 0:
        events.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert rows(path) == ["sent"]
    list(events)
    assert rows(path) == ["answered"]


# The end of the process


SEND = """
import sys
from chatfn import create_chat_completion
params = {"model": "m", "messages": [{"role": "user", "content": "hé"}], "stream": len(sys.argv) > 3}
options = {"transport": "requests", "api_key": "k" * 20, "api_endpoint": sys.argv[2], "deadline": None,
    "middleware": [["journal", {"path": sys.argv[1]}]]}
got = create_chat_completion(params, options)
next(got) if len(sys.argv) > 3 else None
print("begun", flush=True)
import time; time.sleep(60)
"""


@contextmanager
def process(*args):
    command = [sys.executable, "-c", *args]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": SOURCE}, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_of_a_killed_process_is_unknown_and_sent_again(path, streamed):
    first = [STREAM_HEAD + b"%x\r\n%s\r\n" % (len(event(delta("so"))), event(delta("so"))), 60] if streamed else [60]
    with raw_server(first, [answer(DONE)]) as server:
        with process(SEND, path, server.url, *["stream"] * streamed) as running:
            if streamed:
                running.stdout.readline()
            until(lambda: server.requests)
            assert rows(path) == ["sent"]
            assert summary(path)["in_flight"] == 1
            assert summary(path)["unknown"] == []
            assert beside(path) == ["-lock", "-shm", "-wal"], "those of the run stay"
            running.send_signal(signal.SIGKILL)
            running.wait()
        found = summary(path)
        assert found == summary(path)
        assert beside(path) == ["-lock"]
        assert found["in_flight"] == 0
        request = build_request(PARAMS, {"api_endpoint": server.url})
        assert [(call["id"], call["key"], call["model"]) for call in found["unknown"]] == [
            (1, request_key(request), "m")
        ]
        options = {**with_journal(path, "requests"), "api_endpoint": server.url}
        assert create_chat_completion(PARAMS, options) == DONE
        assert len(server.requests) == 2
    assert rows(path) == ["unknown", "answered"]
    assert [call["id"] for call in summary(path)["unknown"]] == [1]


def test_while_it_lives_another_process_holds_its_call(path):
    with raw_server([60]) as server:
        with process(SEND, path, server.url):
            until(lambda: server.requests)
            options = {**with_journal(path, "requests"), "api_endpoint": server.url, "deadline": 0.3}
            assert full(PARAMS, options)["error"]["message"].startswith("an equal call in flight")
        assert len(server.requests) == 1


def test_a_claim_that_nobody_has_any_more_is_taken_over(path):
    store = stores.store_of(path, False)
    request = build_request(PARAMS)
    asked = [Asked("k", request, False)]
    (claim,) = store.claim(asked)
    assert store.claim(asked) == [Held(None)]
    del claim
    assert isinstance(store.claim(asked)[0], Claim)
    assert rows(path) == ["unknown", "sent"]


def test_a_run_number_whose_lock_is_taken_is_passed_over(path):
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 1); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, path + locks.SUFFIX]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        create_chat_completion(PARAMS, with_journal(path))
        running.communicate(b"\n")
    assert rows(path, "SELECT run FROM calls") == [2]


def test_a_process_that_goes_from_journal_to_journal_keeps_few_of_them_open(tmp_path):
    stores.close_all()
    send, sent = counted()
    paths = [str(tmp_path / f"{number}.db") for number in range(stores.MOST_OPEN + 20)]
    busy = stores.store_of(tmp_path / "busy.db", False)
    asked = [Asked("k", build_request(PARAMS), False)]
    claims = busy.claim(asked)
    first = responder({**with_journal(paths[0], send), "full_response": True})
    for path in paths:
        assert create_chat_completion(PARAMS, with_journal(path, send)) == DONE
    opened = [store.path for store in stores.stores.values() if store.db is not None]
    assert set(opened) == {busy.path, *paths[-stores.MOST_OPEN :]}
    assert {path for path in locks.files if path.startswith(str(tmp_path))} == set(opened)
    assert busy.claim(asked) == [Held(None)], "what is in flight is known"
    assert len(claims) == 1
    assert first(PARAMS)["cached"] is True, "a handler of one that was closed opens it again"
    assert len(sent) == len(paths)
    assert rows(paths[0], "SELECT state, run FROM calls") == [("answered", 1)]
    stores.close_all()


def test_a_journal_that_can_not_begin_is_closed(path, monkeypatch):
    opened = []
    monkeypatch.setattr(store_module, "connect", lambda *args: opened.append(connect(*args)) or opened[0])
    monkeypatch.setattr(locks, "hold", refuse_to_hold)
    with pytest.raises(JournalError, match="no locks here"):
        stores.store_of(path, False)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


def refuse_to_hold(path, run):
    raise OSError("no locks here")


# Maps


@pytest.mark.parametrize("transport", ["requests", "aiohttp"])
def test_equal_streams_in_a_map_are_sent_once_however_long_they_take(path, transport):
    pieces = [
        piece for text in "ab" for piece in (0.7, b"%x\r\n%s\r\n" % (len(event(delta(text))), event(delta(text))))
    ]
    last = chunked(event(delta("", "stop")), event(b"[DONE]"))
    with raw_server([STREAM_HEAD, *pieces, last]) as server:
        options = {**with_journal(path, transport), "api_endpoint": server.url}
        found = list(map_chat([{"params": STREAM}] * 4, options, concurrency=4))
        assert len(server.requests) == 1
    assert [row["response"]["choices"][0]["message"]["content"] for row in found] == ["ab"] * 4
    assert [row.get("cached", False) for row in found].count(True) == 3


def test_a_map_stops_paying_when_its_journal_can_not_be_written(path):
    send, sent = counted({**DONE, "id": "x" * 5_000})
    journal(path)
    fill(path)
    rows = ({"params": {**PARAMS, "seed": n}} for n in range(1_000))
    with pytest.raises(OSError, match="full"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        list(map_chat(rows, with_journal(path, send), concurrency=4))
    assert len(sent) <= 8


# Secrets


def test_no_secret_is_in_the_file(path):
    said = {**PARAMS, "messages": [{"role": "user", "content": f"my key is {KEY}"}]}
    headers = {"request": {"headers": {"x-token": "header-secret-98765432109876"}}}
    options = {**with_journal(path, "requests"), **headers}
    error = answer({"error": {"message": f"no such key {KEY}"}}, 401)
    with raw_server([answer({**DONE, "id": KEY})], [error]) as server:
        create_chat_completion(said, {**options, "api_endpoint": server.url})
        with pytest.raises(ChatError):
            create_chat_completion(PARAMS, {**options, "api_endpoint": server.url})
    files = [file.read_bytes() for file in Path(path).parent.iterdir()]
    assert len(files) >= 4
    assert any(b"my key is ***" in data for data in files)
    for data in files:
        assert KEY.encode() not in data
        assert b"header-secret" not in data


def test_its_files_are_for_their_owner_alone(path):
    old = os.umask(0)
    try:
        create_chat_completion(PARAMS, with_journal(path))
        files = sorted(Path(path).parent.iterdir())
        assert [file.name for file in files] == ["run.db", "run.db-lock", "run.db-shm", "run.db-wal"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(old)


# What is refused


def refusal(path):
    with pytest.raises(ValueError) as caught:
        journal(path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return str(caught.value)


def edited(path, *statements):
    create_chat_completion(PARAMS, with_journal(path))
    stores.close_all()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def test_a_newer_journal_is_refused(path):
    edited(path, "PRAGMA user_version = 2")
    assert "version 2" in refusal(path)
    assert "pip install -U chatfn" in refusal(path)
    with pytest.raises(ValueError, match="version 2"):
        summary(path)


def test_another_program_s_database_is_refused_and_left_as_it_is(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (a)")
    before = Path(path).read_bytes()
    assert "no journal of chatfn" in refusal(path)
    with pytest.raises(ValueError, match="no journal of chatfn"):
        summary(path)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"no database at all, but long enough to look like one" * 100,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-100],
        lambda data: data[: len(data) // 2] + b"\xff" * (len(data) // 2),
        lambda data: b"\0" * 100 + data[100:],
    ],
)
def test_a_damaged_journal_is_refused_with_the_way_to_salvage_it(path, harm):
    options = with_journal(path)
    for number in range(20):
        create_chat_completion({**PARAMS, "seed": number}, options)
    stores.close_all()
    Path(path).write_bytes(harm(Path(path).read_bytes()))
    said = refusal(path)
    assert path in said
    assert ".recover" in said
    with pytest.raises((ValueError, JournalError), match=r"\.recover|read"):
        summary(path)


def test_an_answer_that_is_not_what_was_written_is_never_given(path):
    edited(path, "UPDATE calls SET response = replace(response, 'h', 'j')")
    with pytest.raises(JournalError, match=r"call 1 .*\.recover"):
        create_chat_completion(PARAMS, with_journal(path, scripted([])))
    edited(path + "2", "UPDATE calls SET response = '{', crc = NULL")
    with pytest.raises(JournalError, match=r"\.recover"):
        create_chat_completion(PARAMS, with_journal(path + "2", scripted([])))
    edited(path + "3", "UPDATE calls SET response = CAST(x'ff' AS TEXT)")
    with pytest.raises(JournalError, match=r"\.recover"):
        create_chat_completion(PARAMS, with_journal(path + "3", scripted([])))


def test_a_log_that_is_cut_or_garbled_costs_its_last_calls_at_most(path):
    code = (
        "import os, sys; from chatfn import create_chat_completion as ask\n"
        "for n in range(20): ask({'model': 'm', 'seed': n, 'messages': [{'role': 'user', 'content': 'hi'}]},"
        " {'transport': 'echo', 'middleware': [['journal', {'path': sys.argv[1]}]]})\n"
        "os._exit(0)"
    )
    for harm in (lambda data: data[:-1000], lambda data: data[:-6000] + os.urandom(6000)):
        with process(code, path) as running:
            assert running.wait() == 0
        log = Path(path + "-wal")
        log.write_bytes(harm(log.read_bytes()))
        send, sent = counted()
        for number in range(20):
            params = {"model": "m", "seed": number, "messages": [{"role": "user", "content": "hi"}]}
            create_chat_completion(params, with_journal(path, send))
        assert 1 <= len(sent) <= 4
        stores.close_all()
        for file in Path(path).parent.iterdir():
            file.unlink()


def test_a_path_that_is_or_has_no_folder_is_refused(tmp_path):
    assert "is a folder" in refusal(str(tmp_path))
    assert "does not exist" in refusal(str(tmp_path / "none" / "run.db"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no journal"):
        summary(tmp_path / "run.db")
    with pytest.raises(ValueError, match="no journal"):
        next(export(tmp_path / "run.db"))


@pytest.mark.parametrize(
    "harm", ["UPDATE calls SET error = printf('%.3000c', 'x') WHERE id > 500", "DELETE FROM calls"]
)
def test_who_may_only_read_a_journal_is_told_that_it_was_written_to_meanwhile(path, harm):
    list(map_chat([{"params": {**PARAMS, "seed": n}} for n in range(1_200)], with_journal(path)))
    stores.close_all()
    assert sum(1 for _ in export(path)) == 1_200
    os.chmod(path, 0o444)
    with ExitStack() as stack:
        for parent in Path(path).parents[:3]:
            stack.callback(os.chmod, parent, os.stat(parent).st_mode)
            os.chmod(parent, 0o755)
        stack.enter_context(somebody(os.path.dirname(path)))
        read = export(path)
        next(read)
    os.chmod(path, 0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(harm)
        db.execute("VACUUM")
    with pytest.raises(JournalError, match="read it again"):
        list(read)
    list(export(path))


@contextmanager
def somebody(folder):
    """Be a user who is not root, if this one is."""
    os.chmod(folder, 0o777)
    if os.geteuid():
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_or_folder_that_is_read_only_is_refused():
    with tempfile.TemporaryDirectory() as folder, somebody(folder):
        path = os.path.join(folder, "run.db")
        create_chat_completion(PARAMS, with_journal(path))
        stores.close_all()
        os.chmod(path, 0o400)
        assert "make it writable" in refusal(path)
        assert summary(path)["answered"] == 1
        assert beside(path) == ["-lock"]
        os.chmod(path, 0o600)
        inner = os.path.join(folder, "inner")
        os.mkdir(inner)
        os.rename(path, os.path.join(inner, "run.db"))
        os.chmod(inner, 0o500)
        said = refusal(os.path.join(inner, "run.db"))
        assert inner in said
        assert "can't be written to" in said
        assert "can't be written to" in refusal(os.path.join(inner, "other.db"))
        assert summary(os.path.join(inner, "run.db"))["answered"] == 1
        os.chmod(inner, 0o700)


@pytest.mark.parametrize("settings", [{"sync": "off"}, {"errors": "drop"}])
def test_settings_that_cannot_be_are_refused(path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        journal(path, **settings)
    assert not os.path.exists(path)


# A disk that fills up


def fill(path):
    """Let the journal grow no more."""
    db = stores.store_of(path, False).db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    return db


def test_a_full_disk_stops_before_the_send_and_keeps_what_was_paid(path):
    send, sent = counted()
    options = with_journal(path, send)
    create_chat_completion(PARAMS, options)
    fill(path)
    with pytest.raises(JournalError, match=f"{path}.*full"):
        for number in range(50):
            create_chat_completion({**PARAMS, "seed": number, "user": "x" * 500}, options)
    assert len(sent) == len(rows(path))
    assert full(PARAMS, options)["cached"]


def test_an_answer_that_cannot_be_kept_is_not_lost(path):
    large = {**DONE, "id": "x" * 50_000}
    options = with_journal(path, scripted([large]))
    journal(path)
    db = fill(path)
    with pytest.warns(RuntimeWarning, match="full"):
        response = full(PARAMS, options)
    assert response["body"] == large
    assert path in response["unkept"]
    with pytest.raises(JournalError):
        full({**PARAMS, "seed": 2}, options)
    db.execute("PRAGMA max_page_count = 4294967294")
    again = full(PARAMS, options)
    assert again["cached"]
    assert again["body"] == large


def test_a_stream_that_cannot_be_kept_is_not_lost(path):
    journal(path)
    fill(path)
    large = scripted([{"body": [delta("x" * 50_000), delta("", "stop")]}])
    with pytest.warns(RuntimeWarning, match="full"):
        assert len(list(create_chat_completion(STREAM, with_journal(path, large)))) == 2


LIMITED = """
import resource, sys, warnings
from chatfn import create_chat_completion
from chatfn.journal import JournalError
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
paid = []
def send(request):
    paid.append(1)
    return {"status": 200, "headers": {}, "body": b'{"id": "c", "choices": []}'}
options = {"transport": send, "middleware": [["journal", {"path": sys.argv[1]}]], "full_response": True}
unkept = 0
warnings.simplefilter("ignore")
try:
    for seed in range(10_000):
        response = create_chat_completion({"model": "m", "messages": [], "seed": seed}, options)
        unkept += "unkept" in response
except JournalError as exc:
    print(len(paid), unkept, sys.argv[1] in str(exc))
"""


def test_a_file_that_may_grow_no_more_stops_the_paying(path):
    with process(LIMITED, path) as running:
        paid, unkept, named = running.communicate()[0].split()
    found = summary(path)
    assert named == "True"
    assert int(unkept) <= 1
    assert found["answered"] == int(paid) - int(unkept)
    assert len(found["unknown"]) <= 1
    send, sent = counted()
    for seed in range(int(paid)):
        create_chat_completion({"model": "m", "messages": [], "seed": seed}, with_journal(path, send))
    assert len(sent) == int(unkept)


def test_a_file_that_is_deleted_is_made_anew(path):
    send, sent = counted()
    for _ in range(2):
        create_chat_completion(PARAMS, with_journal(path, send))
        for file in Path(path).parent.iterdir():
            file.unlink()
    assert len(sent) == 2


def test_full_sync_is_a_setting_and_the_stronger_one_holds(path):
    for sync, level in (("normal", 1), ("full", 2), ("normal", 2)):
        journal(path, sync=sync)
        assert stores.store_of(path, False).db.execute("PRAGMA synchronous").fetchone() == (level,)


# The file is for everyone to read


def test_its_schema_is_that_which_is_printed(path):
    create_chat_completion(PARAMS, with_journal(path))
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema())
        wanted = db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    assert rows(path, "SELECT type, name, sql FROM sqlite_schema ORDER BY name") == wanted
    assert rows(path, "PRAGMA application_id") == [APPLICATION]
    assert rows(path, "PRAGMA journal_mode") == ["wal"]


def test_others_read_it_with_plain_sqlite_while_it_is_written(path):
    options, stop, seen = with_journal(path), threading.Event(), []
    create_chat_completion(PARAMS, options)

    def read():
        with closing(sqlite3.connect(path, timeout=0)) as db:
            while not stop.is_set():
                seen.append(db.execute("SELECT count(*) FROM calls WHERE state = 'answered'").fetchone()[0])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        create_chat_completion({**PARAMS, "seed": number}, options)
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert summary(path)["answered"] == 201


def test_the_summary_counts_what_became_of_the_calls(path):
    script = scripted([DONE, {"status": 429}, {"status": 400}, {"status": 429}, DONE])
    options = with_journal(path, script)
    began = time.time()
    for seed in (1, 2, 3, 4, 5, 1, 5):
        full({**PARAMS, "seed": seed}, options)
    create_chat_completion({**STREAM, "seed": 6}, with_journal(path)).close()
    stores.close_all()
    found = summary(path)
    assert (found["calls"], found["answered"], found["cached"], found["in_flight"]) == (6, 2, 2, 0)
    assert found["failed"] == {"busy": 2, "incorrect": 1}
    assert [call["id"] for call in found["unknown"]] == [6]
    assert found["tokens"] == {"prompt": 6, "completion": 8, "total": 14}
    assert began <= found["first"] <= found["last"] <= time.time()
    assert len(found["slowest"]) == 5
    assert found["slowest"][0]["seconds"] >= found["slowest"][1]["seconds"] >= 0


def beside(path):
    """What stands beside a journal, less its name."""
    return sorted(
        file.name.removeprefix(Path(path).name) for file in Path(path).parent.glob("run.db*") if str(file) != path
    )


def test_who_reads_a_journal_leaves_nothing_beside_it_and_changes_nothing(path):
    for seed in range(5):
        create_chat_completion({**PARAMS, "seed": seed}, with_journal(path))
    assert summary(path)["answered"] == 5
    assert beside(path) == ["-lock", "-shm", "-wal"], "it is open here"
    stores.close_all()
    before = Path(path).read_bytes(), os.stat(path).st_mtime_ns
    summary(path)
    list(export(path))
    left = export(path)
    next(left)
    left.close()
    by_day(path, lookup_of())
    plan([{"params": PARAMS}], with_journal(path))
    for args in ([], ["--json"], ["--export", str(Path(path).with_name("e.jsonl"))]):
        assert cli.run(["journal", path, *args]) == 0
    assert beside(path) == ["-lock"]
    assert (Path(path).read_bytes(), os.stat(path).st_mtime_ns) == before
    with reading(path) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("UPDATE calls SET url = ''")


def test_the_export_is_every_answered_call_in_order(path):
    options = with_journal(path, lambda request: {"status": 200, "headers": {}, "body": request["body"]})
    asked = [{**PARAMS, "seed": seed} for seed in range(1_003)]
    for params in asked:
        create_chat_completion(params, options)
    assert list(export(path)) == [{"params": params, "completion": params} for params in asked]


def test_what_is_empty_is_counted_too(path):
    journal(path)
    found = summary(path)
    assert (found["calls"], found["first"], found["slowest"], found["tokens"]["total"]) == (0, None, [], 0)
    assert list(export(path)) == []
