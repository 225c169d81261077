"""The command, as a shell meets it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from rawserver import STREAM_HEAD, answer, chunked, delta, event, raw_server

import chatfn
from chatfn import cli
from chatfn.cli import chat, shown, words

WAIT = 20.0  # seconds that anything may take
COMMAND = [sys.executable, "-m", "chatfn.cli"]
EARLIER = [
    {"role": "user", "content": "Who won the world series in 2020?"},
    {"role": "assistant", "content": "The Los Angeles Dodgers won the World Series in 2020."},
]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
VARIABLES = ("OPENAI_", "AZURE_", "GROQ_", "CHATFN_")


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    # Python's unbuffered text streams take a write that was cut short for a whole one: no test of a closed pipe.
    return {**kept, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "error", **variables}


def shell(*args: str | bytes, stdin: bytes = b"", **variables: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of the command as a process of its own."""
    done = subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, env=environment(**variables), timeout=WAIT
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)


def click_run(*args: str, **settings: Any) -> Result:
    """The same in this process, without what stands around click."""
    return CliRunner().invoke(cli.cli, args, **settings)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """The same in this process."""
    status = cli.run(list(args))
    return status, *capsys.readouterr()


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, name: str = "stdout") -> Iterator[None]:
    with monkeypatch.context() as context:
        context.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)
        yield


# The words of the command.


def test_values_are_json_if_they_can_be_read_so() -> None:
    texts = [
        "a=1",
        "b=0.5",
        "c=true",
        "d=null",
        'e={"x": [1]}',
        "f=text",
        "g=",
        "h=a=b",
        'i="1"',
        "j={",
        "a=2",
        "k=" + "[" * 99_999,
    ]
    assert words.params_of(texts) == {
        "a": 2, "b": 0.5, "c": True, "d": None, "e": {"x": [1]}, "f": "text", "g": "", "h": "a=b", "i": "1", "j": "{",
        "k": "[" * 99_999,
    }  # fmt: skip
    for text in ("a", "=1", ""):
        with pytest.raises(ValueError, match="is no key=value"):
            words.param_of(text)


def test_messages_are_the_systems_the_earlier_ones_and_the_question() -> None:
    system, question = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
    assert words.messages_of("q", "s", EARLIER) == [system, *EARLIER, question]
    assert words.messages_of(None, None, EARLIER) == EARLIER
    assert words.messages_of("q", None) == [question]
    with pytest.raises(ValueError, match="give a JSON list"):
        words.messages_of("q", None, "text")


def test_the_params_of_a_chat() -> None:
    given = {"messages": EARLIER[:1], "stream": False, "n": 2}
    assert words.chat_params(given, "q", None, None, "openai", True) == {
        "model": words.OPENAI_MODEL,
        "messages": [*EARLIER[:1], {"role": "user", "content": "q"}],
        "n": 2,
        "stream": True,
    }
    assert words.chat_params({"model": "a"}, "q", None, None, "groq", True)["model"] == "a"
    assert words.chat_params({"model": "a"}, "q", None, "b", "groq", True)["model"] == "b"
    assert "model" not in words.chat_params({}, "q", None, None, "azure", True)
    with pytest.raises(words.Misused, match="give --model"):
        words.chat_params({}, "q", None, None, "groq", True)
    with pytest.raises(words.Misused, match="no question"):
        words.chat_params({}, None, "s", None, "openai", True)


def test_options_are_those_that_are_given() -> None:
    where = {"impl": "azure", "transport": '["replay", {"path": "p"}]', "deployment": None}
    found: Any = words.options_of(where)
    assert found == {"impl": "azure", "transport": ["replay", {"path": "p"}], "surrogates": "replace"}


# Answers.


def test_the_reference_conversation_is_answered() -> None:
    args = [
        "--transport",
        "echo",
        "--system",
        "You are a helpful assistant.",
        "--param",
        f"messages={json.dumps(EARLIER)}",
    ]
    assert shell("chat", *args, "Where was it played?") == (0, "Where was it played?\n", "")


def test_a_question_comes_from_standard_input_when_none_is_given() -> None:
    for args in ([], ["-"]):
        assert shell("chat", "--transport", "echo", *args, stdin="\ufeffWo? Ä\r\n".encode()) == (0, "Wo? Ä\n", "")
    assert shell("chat", "--transport", "echo", "this", stdin=b"not this") == (0, "this\n", "")
    messages = f"messages={json.dumps(EARLIER[:1])}"
    assert shell("chat", "--transport", "echo", "--param", messages)[1] == "Who won the world series in 2020?\n"


@pytest.mark.parametrize("stdin", [b"", b" \n"])
def test_no_question_is_a_usage_error(stdin: bytes) -> None:
    status, out, err = shell("chat", "--transport", "echo", stdin=stdin)
    assert (status, out) == (2, "")
    assert "no question: give one" in err


def test_a_terminal_as_standard_input_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stdin"):
        assert chat.standard_input() is None
    monkeypatch.setattr(sys, "stdin", None)
    assert chat.standard_input() is None


def test_a_terminal_is_given_a_stream(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(cli, "chat_stream", lambda *args: seen.append(True))
    monkeypatch.setattr(cli, "chat_whole", lambda *args: seen.append(False))
    with terminal(monkeypatch):
        for extra in ([], ["--json"], ["--no-stream"], ["--param", "stream=false"], ["--json", "--stream"]):
            assert run(capsys, "chat", "--transport", "echo", "hi", *extra)[0] == 0
    assert seen == [True, False, False, False, True]
    for extra in ([], ["--stream"], ["--param", "stream=true"], ["--param", "stream=true", "--no-stream"]):
        assert run(capsys, "chat", "--transport", "echo", "hi", *extra)[0] == 0
    assert seen[5:] == [False, True, True, False]


def test_json_is_the_whole_completion() -> None:
    params = {"model": "m", "messages": [{"role": "user", "content": "hi ✓"}]}
    wanted = chatfn.create_chat_completion({**params, "stream": False}, {"transport": "echo"})
    for encoding in ("utf-8", "ascii", "latin-1"):
        status, out, err = shell(
            "chat", "--transport", "echo", "--model", "m", "--json", "hi ✓", PYTHONIOENCODING=encoding
        )
        assert (status, json.loads(out), err) == (0, wanted, "")


def test_json_of_a_stream_is_one_event_a_line() -> None:
    status, out, _ = shell("chat", "--transport", "echo", "--json", "--stream", "hi you")
    events = [json.loads(line) for line in out.splitlines()]
    assert (status, chatfn.text_of(chatfn.collect(events))) == (0, "hi you")
    assert {found["object"] for found in events} == {"chat.completion.chunk"}


def test_a_dry_run_prints_the_request_and_sends_nothing() -> None:
    variables = {"OPENAI_API_KEY": "sk-hidden", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    settings: list[Any] = [variables, {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}]
    for given in settings:
        status, out, err = shell("chat", "--dry-run", "--param", "temperature=0.5", "hi", **given)
        assert (status, err) == (0, "")
        request = json.loads(out)
        assert request["url"] == "http://127.0.0.1:1/v1/chat/completions"
        assert request["auth"] == {"header": "authorization", "scheme": "Bearer", "secret": "***"}
        assert request["body"]["temperature"] == 0.5
    azure = [
        "--impl",
        "azure",
        "--api-endpoint",
        "https://x.example",
        "--deployment",
        "d",
        "--api-version",
        "2024-06-01",
    ]
    status, out, _ = shell("chat", "--dry-run", *azure, "hi")
    assert (status, json.loads(out)["url"]) == (
        0,
        "https://x.example/openai/deployments/d/chat/completions?api-version=2024-06-01",
    )


@pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
def test_tool_calls_are_shown_as_calls(flag: str) -> None:
    tools = ["--param", f"tools={json.dumps([TOOL])}", "--param", "tool_choice=required"]
    assert shell("chat", "--transport", "echo", flag, *tools, "hi") == (0, "find({})\n", "")


def choice(**message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (choice(content="yes"), "yes"),
        (choice(content=[{"type": "text", "text": "yes"}]), "yes"),
        (choice(refusal="no"), "no"),
        (choice(content="I look", tool_calls=[{"custom": {"name": "f", "input": "x"}}]), "I look\nf(x)"),
        (choice(function_call={"name": "f", "arguments": "{}"}), "f({})"),
        (choice(tool_calls="?"), ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_a_choice_says_its_content_its_refusal_and_its_calls(found: Any, text: str) -> None:
    assert shown.answer_of(found) == text
    assert shown.notes_of({"choices": [found]}) == ([] if text else ["the answer has no text; --json shows all of it"])


@pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
def test_every_choice_and_every_refusal_is_shown(flag: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    choices = [choice(refusal="I can not."), {**choice(content="yes"), "index": 1, "finish_reason": "length"}]
    completion = {"object": "chat.completion", "choices": choices}
    made: dict[str, Any] = {"--stream": chatfn.events_of(completion), "--no-stream": completion}
    monkeypatch.setattr(chat, "create_chat_completion", lambda params, options: made[flag])
    status, out, err = run(capsys, "chat", flag, "hi")
    assert (status, out.split("\n")) == (0, ["I can not.", *[""] * (flag != "--stream"), "yes", ""])
    assert err.startswith("chatfn: the answer was cut at its limit of tokens")


def test_malformed_events_show_nothing() -> None:
    for found in ({}, {"choices": None}, {"choices": [None, {"delta": None}, {"delta": {"content": 1}}]}, None):
        assert shown.pieces_of(found) == ""
    assert shown.pieces_of({"choices": [{"index": 1, "delta": {"content": "b"}}, {"delta": {"content": "a"}}]}) == "a"


def test_tokens_are_shown_as_they_come() -> None:
    seen = threading.Event()
    steps = [
        STREAM_HEAD,
        chunked(event(delta("Arl")))[:-5],
        lambda *_: seen.wait(WAIT),
        chunked(event(delta("ington", "stop")), event(b"[DONE]")),
    ]
    with raw_server(steps) as server, process(server.url, "chat", "--stream", "hi") as found:
        assert found.stdout.read(3) == b"Arl"
        seen.set()
        assert found.stdout.read() == b"ington\n"
        assert found.wait(WAIT) == 0


@contextmanager
def process(url: str, *args: str) -> Iterator[Any]:
    variables = environment(OPENAI_API_KEY="sk-hidden", OPENAI_BASE_URL=url)
    with subprocess.Popen(
        [*COMMAND, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        bufsize=0,
    ) as found:
        try:
            yield found
        finally:
            found.kill()


def test_an_interrupt_ends_with_130_and_closes_the_connection() -> None:
    closed = threading.Event()

    def until_closed(connection: socket.socket, stopped: threading.Event) -> None:
        connection.settimeout(WAIT)
        if connection.recv(1) == b"":
            closed.set()

    steps = [STREAM_HEAD, chunked(event(delta("Arl")))[:-5], until_closed]
    with raw_server(steps) as server, process(server.url, "chat", "--stream", "hi") as found:
        assert found.stdout.read(3) == b"Arl"
        found.send_signal(signal.SIGINT)
        assert found.wait(WAIT) == 130
        assert closed.wait(WAIT)
        assert found.stdout.read() == b"\n"
        assert found.stderr.read().strip() == b""


@pytest.mark.parametrize("args", [["--stream"], ["--stream", "--json"], ["--no-stream", "--param", "n=64"]])
def test_a_closed_pipe_is_silent(args: list[str]) -> None:
    text = "words " * 20_000
    command = [*COMMAND, "chat", "--transport", "echo", *args, text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as found:
        assert found.stdout is not None
        assert found.stderr is not None
        assert found.stdout.read(1)
        found.stdout.close()
        assert found.stderr.read() == b""
        assert found.wait(WAIT) == 141


def test_unprintable_characters_are_replaced() -> None:
    assert shell("chat", "--transport", "echo", b"a\xffb") == (0, "a\ufffdb\n", "")
    assert shell("chat", "--transport", "echo", "ä✓", PYTHONIOENCODING="ascii")[:2] == (0, "??\n")
    lone = answer(b'{"choices": [{"index": 0, "message": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}')
    pieces = [
        STREAM_HEAD + chunked(event(b'{"choices": [{"delta": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'))
    ]
    for steps, args in (([lone], []), ([lone], ["--json"]), (pieces, ["--stream"]), (pieces, ["--stream", "--json"])):
        with raw_server(steps) as server:
            status, out, err = shell("chat", "hi", *args, OPENAI_API_KEY="k", OPENAI_BASE_URL=server.url)
        assert (status, err) == (0, "")
        assert ("a\\ud800b" if "--json" in args else "a?b\n") in out


def test_a_terminal_is_not_told_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[2Jb\r\n\tc\x9bd"
    for flag in ("--stream", "--no-stream"):
        assert run(capsys, "chat", "--transport", "echo", flag, text)[1] == f"{text}\n"
        with terminal(monkeypatch):
            assert "\x1b" not in run(capsys, "chat", "--transport", "echo", flag, text)[1]
    assert shown.shown(text, True) == "a\ufffd[2Jb\n\tc\ufffdd"
    assert shown.json_of("\x9b", "utf-8") == '"\\u009b"'


# Failures.


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hi"], "no API key: set OPENAI_API_KEY\n"),
        (["--impl", "groq", "--model", "m", "hi"], "no API key: set GROQ_API_KEY\n"),
        (
            ["--impl", "azure", "--api-endpoint", "https://h", "hi"],
            "set AZURE_OPENAI_API_KEY, or AZURE_OPENAI_AD_TOKEN\n",
        ),
        (["--impl", "azure", "--dry-run", "hi"], "give --api-endpoint or set AZURE_OPENAI_API_ENDPOINT"),
        (["--impl", "azure", "--dry-run", "--api-endpoint", "https://h", "hi"], "give --deployment"),
        (["--transport", "ehco", "hi"], "did you mean 'echo'?"),
        (["--transport", "echo", "--param", "temperature=NaN", "hi"], "temperature: nan is no JSON number"),
        (["--transport", "echo", "--param", "messages=1", "hi"], "give a JSON list"),
        (["--transport", "echo", "!error 404 no such model"], "no such model; check --model"),
        (["--transport", "echo", "!error 429 insufficient_quota"], "check the key"),
        (["--transport", "echo", "!error 400 so\nit is"], "so it is\n"),
        (["--transport", "echo", "--stream", "!break 3 a b"], "try again\n"),
        (["--transport", '["replay", {"path": "/none"}]', "hi"], ""),
        (
            ["--api-endpoint", "http://127.0.0.1:1/v1", "--transport", "requests", "--param", "on_next=1", "hi"],
            "on_next",
        ),
    ],
)
def test_a_failure_is_one_line_with_the_fix_and_status_1(
    capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    status, _, err = run(capsys, "chat", *args)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("chatfn: ")
    assert words in err
    assert "Traceback" not in err


def test_a_failure_of_the_network_is_one_line() -> None:
    status, out, err = shell("chat", "hi", OPENAI_API_KEY="sk-hidden", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "check the network and --api-endpoint" in err
    assert "sk-hidden" not in err


@pytest.mark.parametrize("flags", [[], ["--json"], ["--stream"], ["--dry-run"]])
def test_without_standard_output_nothing_is_asked(flags: list[str]) -> None:
    script = ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "chat", "--api-endpoint", "http://127.0.0.1:1/v1", "hi", *flags]
    done = subprocess.run(script, capture_output=True, env=environment(OPENAI_API_KEY="k"), timeout=60)
    assert (done.returncode, done.stderr) == (1, b"chatfn: there is no standard output\n")


def test_a_stream_that_breaks_keeps_what_came(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "chat", "--transport", "echo", "--stream", "!break 3 a b c d")
    assert (status, out, err.count("\n")) == (1, "a b\n", 1)


@pytest.mark.parametrize(
    "args",
    [
        ["chat", "--no-such-option"],
        ["chat", "--param", "x", "hi"],
        ["chat", "--impl", "openia", "hi"],
        ["chat", "--impl", "groq", "hi"],
        ["chat", "--transport", "[", "hi"],
        ["serve", "--transport", "["],
        ["serve", "--port", "x"],
        ["serve", "--host", "0.0.0.0"],
        ["no-such-command"],
    ],
)
def test_a_wrong_word_is_a_usage_error(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    status, out, err = run(capsys, *args)
    assert (status, out) == (2, "")
    assert "Error: " in err
    assert click_run(*args).exit_code == 2


def test_a_failure_that_nobody_reads_is_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def gone(*args: Any, **settings: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "quiet_end", lambda: 141)
    assert cli.failed(ValueError("")) == 1
    monkeypatch.setattr(click, "echo", gone)
    assert cli.failed(ValueError("")) == 141


def test_a_failure_without_words_has_its_name() -> None:
    assert shown.problem_of(ValueError()) == "ValueError"
    assert shown.problem_of(ValueError("the option 'impl' is 1\x1b[2J")) == "--impl is 1\ufffd[2J"
    advice = 'send the key unencrypted; use https, or give the option {"allow_http": True}'
    assert shown.problem_of(ValueError(advice)) == "send the key unencrypted; use https"
    assert shown.problem_of(OSError("no socket")) == "no socket"
    assert shown.problem_of(OSError(28, "No space left on device")) == "No space left on device"


def test_version_and_help() -> None:
    assert shell("--version") == (0, f"chatfn, version {chatfn.__version__}\n", "")
    for command in ("chat", "serve"):
        found = click_run(command, "-h")
        assert (found.exit_code, "--key " in found.output, "--api-key" in found.output) == (0, False, False)
        assert "--transport" in found.output
    assert "list of processes" in " ".join(click_run("chat", "--help").output.split())


# Serving.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_its_url_answers_and_ends_cleanly(number: int) -> None:
    command = [*COMMAND, "serve", "--transport", "echo", "--port", "0", "--key-env", "CHATFN_CLIENT_KEY"]
    variables = environment(CHATFN_CLIENT_KEY="sk-client")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as found:
        assert found.stdout is not None
        url = found.stdout.readline().removeprefix("listening on ").strip()
        params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        for key in ("sk-client", "sk-other"):
            try:
                got = chatfn.create_chat_completion(params, {"api_endpoint": url, "api_key": key})
            except chatfn.ChatError as exc:
                got = exc.error
            assert (chatfn.text_of(got), got.get("status")) == (("hi", None) if key == "sk-client" else ("", 401))
        found.send_signal(number)
        out, err = found.communicate(timeout=WAIT)
        assert (found.returncode, out, err) == (0, "", "")


def test_serve_says_what_keeps_it_from_serving() -> None:
    status, _, err = shell("serve", "--port", "0", "--transport", "echo", "--key-env", "CHATFN_NO_SUCH")
    assert (status, "the variable CHATFN_NO_SUCH is not set" in err) == (1, True)
    status, _, err = shell("serve", "--port", "0")
    assert (status, err) == (1, "chatfn: no API key: set OPENAI_API_KEY\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, _, err = shell("serve", "--transport", "echo", "--port", port, PYTHONWARNINGS="ignore")
    assert (status, "in use" in err, "Traceback" in err) == (1, True, False)


def test_others_may_call_the_embedded_model_but_not_spend_a_key() -> None:
    assert words.client_key(None, "0.0.0.0", {"transport": "echo"}) is None
    assert words.client_key(None, "localhost", {}) is None
    with pytest.raises(words.Misused, match="--key-env"):
        words.client_key(None, "0.0.0.0", {})


WITHOUT_CLICK = """
import sys
sys.modules["click"] = None
from chatfn.__main__ import main
main()
"""


def test_without_click_the_command_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_CLICK], capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 1
    assert done.stderr == "chatfn: the command needs the package 'click': pip install 'chatfn[cli]'\n"


def test_python_dash_m_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "chatfn", "--version"], capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout) == (0, f"chatfn, version {chatfn.__version__}\n")
