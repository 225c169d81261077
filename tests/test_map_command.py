"""``chatfn map`` and ``chatfn journal``, as a shell meets them."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rawserver import Server, answer, raw_server
from test_cli import COMMAND, WAIT, environment

from chatfn import cli
from chatfn.cli.answers import answer_in
from chatfn.cli.lines import lines_of
from chatfn.cli.map import advice
from chatfn.cli.output import whole_file
from chatfn.cli.progress import Look, Tally, progress, progress_text
from chatfn.cli.rows import Job
from chatfn.cli.table import Bad, format_of, read_table
from chatfn.cli.template import Column, filled, params_maker, response_format_of, template_of
from chatfn.cli.words import Misused
from chatfn.cli.writing import json_text, kind_of, wider

ECHO = ["--transport", "echo"]


def run_map(capfd: Any, *args: Any) -> tuple[int, str, str]:
    """Status, standard output and standard error of the command in this process."""
    status = cli.run(["map", *map(str, args)])
    return status, *capfd.readouterr()


def shell(*args: Any, stdin: bytes = b"", **variables: str) -> tuple[int, str, str]:
    command = [*COMMAND, *map(str, args)]
    done = subprocess.run(command, input=stdin, capture_output=True, env=environment(**variables), timeout=WAIT)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbered(path: Path, count: int) -> Path:
    return write_rows(path, ({"n": n} for n in range(count)))


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix == ".part"]


@contextmanager
def paid_server(seconds: float = 0.0) -> Iterator[Server]:
    """A server that answers what it is asked, after some time; ``requests`` are the paid ones."""

    def answers(request: dict[str, Any]) -> list[Any]:
        asked = json.loads(request["body"])["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"re {asked}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return [seconds, answer({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})]

    with raw_server(answers) as server:
        yield server


def asked_of(server: Server) -> list[str]:
    return [json.loads(request["body"])["messages"][-1]["content"] for request in server.requests]


@contextmanager
def started(server: Server, *args: Any) -> Iterator[Any]:
    variables = environment(OPENAI_API_KEY="sk-hidden", OPENAI_BASE_URL=server.url)
    command = [*COMMAND, "map", *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    ) as found:
        try:
            yield found
        finally:
            found.kill()


def until_asked(server: Server, count: int) -> None:
    end = time.monotonic() + WAIT
    while len(server.requests) < count:
        assert time.monotonic() < end
        time.sleep(0.005)


# Templates.


def test_a_template_is_text_and_columns_and_runs_no_code() -> None:
    template = template_of("{a} {{b}} {c.d} {e!r:>9} {{{f}}} ä")
    assert [part.name for part in template if isinstance(part, Column)] == ["a", "c.d", "e!r:>9", "f"]
    row = {"a": "x{b}", "c.d": [1, "é"], "e!r:>9": None, "f": 0.5}
    assert filled(template, row) == 'x{b} {b} [1, "é"]  {0.5} ä'
    assert filled(template_of(""), {}) == ""


@pytest.mark.parametrize("text", ["{", "}", "{a", "a}", "{}", "{{a}", "{a}}", "{a{b}}", "}}{"])
def test_a_lone_brace_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(Misused, match=r"at character [0-9]"):
        template_of(text)


def test_a_row_without_the_column_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no column 'x'; there are a, b \(braces"):
        filled(template_of("{x}"), {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="has bytes"):
        filled(template_of("{x}"), {"x": b""})


def test_params_come_from_the_prompt_or_from_columns_and_what_is_given_goes_over_them() -> None:
    def default() -> Any:
        return {"model": "d"}

    make = params_maker(template_of("{q}?"), template_of("be {how}"), {"n": 2}, default)
    system, user = {"role": "system", "content": "be nice"}, {"role": "user", "content": "why?"}
    assert make({"q": "why", "how": "nice"}) == {"n": 2, "model": "d", "messages": [system, user]}
    make = params_maker(None, None, {"n": 2}, default)
    for own in ({"model": "m", "n": 1, "messages": [user]}, json.dumps({"model": "m", "messages": [user]})):
        assert make({"params": own}) == {"model": "m", "n": 2, "messages": [user]}
    assert make({"messages": json.dumps([user])}) == {"n": 2, "model": "d", "messages": [user]}
    for row in ({}, {"params": {}}, {"params": "["}, {"params": [1]}, {"messages": "{}"}, {"messages": {"a": 1}}):
        with pytest.raises(ValueError):
            make(row)
    with pytest.raises(ValueError, match="empty"):
        params_maker(template_of("{q}"), None, {}, default)({"q": None})
    with pytest.raises(ValueError, match="the column 'messages' has no JSON: "):
        make({"messages": "hello"})


def test_a_schema_is_named_by_its_title_or_its_file() -> None:
    assert response_format_of('{"title": "A b!"}', "s")["json_schema"] == {
        "name": "A_b", "schema": {"title": "A b!"}, "strict": True,
    }  # fmt: skip
    assert response_format_of("{}", "s" * 99)["json_schema"]["name"] == "s" * 64
    with pytest.raises(ValueError, match="list"):
        response_format_of("[]", "s")


# Tables.


def test_a_format_is_what_the_name_ends_in() -> None:
    names = ["-", "a", "A.JSONL", "a.b.ndjson.gz", "a.csv.zst", "a.tsv", "a.parquet", "/dev/fd/63", ".gz"]
    kinds = ["jsonl", "jsonl", "jsonl", "jsonl", "csv", "tsv", "parquet", "jsonl", "jsonl"]
    assert [format_of(name).kind for name in names] == kinds
    for name in ("a.json", "a.txt", "a.parquet.gz", "a.xlsx", "a.csv.bz2"):
        with pytest.raises(Misused, match="a name ends in"):
            format_of(name)


def test_lines_do_not_depend_on_chunks() -> None:
    data = b"ab\n\nc\xc3\xa9\nrest"
    for size in range(1, len(data) + 1):
        assert list(lines_of(data[at : at + size] for at in range(0, len(data), size))) == data.splitlines(
            keepends=True
        )


def test_bad_json_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'\xef\xbb\xbf{"a": 1}', b"", b"[1]", b"{", b'{"a": NaN}', b'{"a": "\xff"}', b"[" * 99_999, b'{"b": 2}']
    path.write_bytes(b"\r\n".join(lines))
    found = list(read_table(str(path)).rows)
    assert [item.line for item in found] == [1, 3, 4, 5, 6, 7, 8]
    assert [type(item) is Bad for item in found] == [False, True, True, True, True, True, False]
    errors = [item.error for item in found if isinstance(item, Bad)]
    assert errors[:4] == [
        "list is no row; give an object: {...}",
        "no JSON: Expecting property name enclosed in double quotes at character 2",
        "NaN is no JSON number",
        "no UTF-8 at byte 8",
    ]


def test_bad_csv_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n\r\n1\r\n\xff,2\r\n1,2,3\r\n5,"6"7\r\n7,"8')
    table = read_table(str(path))
    assert list(table.columns or ()) == ["a", "b"]
    found = list(table.rows)
    assert [(item.line, isinstance(item, Bad)) for item in found] == [
        (2, False), (5, True), (6, True), (7, True), (8, True), (9, True),
    ]  # fmt: skip
    assert [item.error.split(":")[0] for item in found if isinstance(item, Bad)] == [
        "1 cell; there are 2 columns", "no UTF-8", "3 cells; there are 2 columns", "no CSV", "no CSV",
    ]  # fmt: skip
    assert found[-1] == Bad(9, "no CSV: unexpected end of data", '7,"8')
    for text in ("", "a,a\n1,2\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="line 1"):
            read_table(str(path))
    path.write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(ValueError, match="line 1: no UTF-8"):
        read_table(str(path))


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_a_file_that_was_cut_is_no_short_file(tmp_path: Path, packing: str) -> None:
    pack = pytest.importorskip("zstandard").ZstdCompressor().compress if packing == "zst" else gzip.compress
    path = tmp_path / f"a.jsonl.{packing}"
    lines = b"".join(b'{"n": %d}\n' % n for n in range(50_000))
    whole = pack(lines) + pack(b'{"n": "last"}\n')
    path.write_bytes(whole)
    assert sum(1 for _ in read_table(str(path)).rows) == 50_001
    for broken in (whole[:-3], whole[: len(whole) // 2], b"no" + whole):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=re.escape(path.name)):
            list(read_table(str(path)).rows)


def test_kinds_of_columns_widen() -> None:
    assert wider("integer", "number") == wider("number", "integer") == "number"
    assert wider("integer", "boolean") == "text"
    assert (wider(None, "integer"), wider("text", None), wider(None, None)) == ("integer", "text", None)
    assert kind_of(-(2**63)) == "integer"
    assert json_text({"a": [float("inf")], "b": b"x"}) == b'{"a": [null], "b": "eA=="}'


# The command.


def test_the_rows_come_out_in_order_with_answers_or_errors(tmp_path: Path, capfd: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"q": "a", "error": "old"}, {"q": "!error 400 n\no"}, {"q": "é\ud800"}])
    out = tmp_path / "out.jsonl"
    status, said, noted = run_map(capfd, source, out, "--prompt", "{q}", *ECHO)
    assert (status, said) == (3, "")
    assert rows_in(out) == [
        {"q": "a", "answer": "a"},
        {"q": "!error 400 n\no", "error": "incorrect (400): n o"},
        {"q": "é\ud800", "answer": "é\ufffd"},
    ]
    assert noted.startswith("chatfn: 3 rows: 2 answered, 1 with an error (1 incorrect); ")
    assert stat.S_IMODE(os.stat(f"{out}.journal.db").st_mode) == 0o600


@pytest.mark.parametrize("flags", [[], ["--full"]])
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "tsv", "parquet"])
def test_running_again_sends_nothing_and_gives_the_same_bytes(
    tmp_path: Path, capfd: Any, ending: str, flags: Any
) -> None:
    if ending.endswith(("zst", "parquet")):
        pytest.importorskip("zstandard" if ending.endswith("zst") else "pyarrow")
    rows = [{"q": "a", "n": 1}, {"q": "!error 400 no", "x": [1.5]}, {"q": "b\r\nc, d", "n": None}, {"q": "a", "n": 2.5}]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / f"out.{ending}"
    args = [source, out, "--prompt", "{q}", "--concurrency", "1", *ECHO, *flags]
    assert run_map(capfd, *args)[0] == 3
    first = out.read_bytes()
    status, _, noted = run_map(capfd, *args)
    assert (status, out.read_bytes()) == (3, first)
    assert "1 with an error (1 incorrect); 4 from the journal; 0 tokens" in noted
    table = read_table(str(out))
    read = [item.row for item in table.rows if not isinstance(item, Bad)]
    assert [row["q"] for row in read] == [row["q"] for row in rows]
    if not flags:
        assert [row.get("answer") or None for row in read] == ["a", None, "b\r\nc, d", "a"]
    status, _, noted = run_map(capfd, *args, "--retry-errors")
    assert (status, out.read_bytes()) == (3, first)
    assert "1 with an error (1 incorrect); 3 from the journal; 0 tokens" in noted
    assert parts(tmp_path) == []


def test_a_full_row_says_of_its_attempts_the_same_when_it_comes_from_the_journal(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 9), tmp_path / "out.jsonl"
    failed = set[str]()

    def answers(request: dict[str, Any]) -> list[Any]:
        asked = json.loads(request["body"])["messages"][-1]["content"]
        if int(asked) % 3 == 2 or (asked not in failed and int(asked) % 3):
            failed.add(asked)
            return [answer({"error": {"message": "later"}}, 429, retry_after_ms=1)]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return [answer({"id": "c", "choices": [{"index": 0, "message": {"content": "a"}}], "usage": usage})]

    with raw_server(answers) as server:
        args = ["map", source, out, "--prompt", "{n}", "--full"]
        variables = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": server.url}
        assert shell(*args, **variables)[0] == 3
        first, sent = out.read_bytes(), len(server.requests)
        assert [row["attempts"] for row in rows_in(out)] == [1, 2, 3] * 3
        assert [row["usage"] and row["usage"]["total_tokens"] for row in rows_in(out)] == [2, 2, None] * 3
        assert shell(*args, **variables)[0] == 3
        assert (out.read_bytes(), len(server.requests)) == (first, sent)


def test_columns_keep_their_kinds_in_parquet(tmp_path: Path, capfd: Any) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    moment = __import__("datetime").datetime(2026, 1, 2, 3, 4, 5)
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    rows = [
        {"q": "a", "n": 1, "t": moment, "b": b"x", "f": float("nan")},
        {"q": None, "n": None, "t": None, "b": b"", "f": 1.0},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), source)
    assert run_map(capfd, source, out, "--prompt", "Say {q} at {t}", *ECHO)[0] == 0
    schema = parquet.read_schema(source)
    found = parquet.read_table(out)
    assert [found.schema.field(name).type for name in schema.names] == schema.types
    assert found.column("answer").to_pylist() == ['Say a at "2026-01-02 03:04:05"', "Say  at "]
    for ending in ("jsonl", "csv"):
        assert run_map(capfd, source, tmp_path / f"o.{ending}", "--prompt", "{n}.", *ECHO)[0] == 0
    assert rows_in(tmp_path / "o.jsonl")[0] == {
        "q": "a", "n": 1, "t": "2026-01-02T03:04:05", "b": "eA==", "f": None, "answer": "1.",
    }  # fmt: skip
    typed = write_rows(
        tmp_path / "in.jsonl", [{"q": "a", "n": 1, "y": True}, {"q": "b", "n": 1.5, "y": None}, {"q": 7}]
    )
    assert run_map(capfd, typed, out, "--prompt", "{q}", *ECHO)[0] == 0
    assert [str(kind) for kind in parquet.read_schema(out).types] == ["string", "double", "bool", "string", "string"]
    assert parquet.read_table(out).column("q").to_pylist() == ["a", "b", "7"]
    source.write_bytes(source.read_bytes()[:-9])
    status, _, noted = run_map(capfd, source, out, "--prompt", "{q}", *ECHO)
    assert (status, "in.parquet: " in noted, "Traceback" in noted) == (1, True, False)


def test_an_extra_that_lacks_is_named(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"q": "a"}])
    for package, extra, ending in (("pyarrow", "parquet", "parquet"), ("zstandard", "zstd", "csv.zst")):
        monkeypatch.setitem(sys.modules, package, None)
        status, _, noted = run_map(capfd, source, tmp_path / f"o.{ending}", "--prompt", "{q}", *ECHO)
        assert (status, noted) == (1, f"chatfn: this needs the package {package}: pip install 'chatfn[{extra}]'\n")


@pytest.mark.parametrize("harm", ['{"m": 1}', '{"n": 1', "[1]", '{"n": NaN}', "{}, {}", '{"n": "\\ud800"}x'])
@pytest.mark.parametrize("prompt", ["say {n}", "{n}"])
def test_a_bad_line_is_named_wherever_it_is(
    tmp_path: Path, capfd: Any, monkeypatch: Any, harm: str, prompt: str
) -> None:
    """Lines are parsed many at once, and one by one where one may be bad."""
    monkeypatch.setattr("chatfn.cli.table.BLOCK_BYTES", 50)
    source, out = numbered(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    lines = source.read_text().splitlines()
    args = [source, out, "--prompt", prompt, *ECHO]
    for place in (0, 1, 17, 39):
        source.write_text("\n".join([*lines[:place], harm, "", *lines[place + 1 :]]))
        status, _, noted = run_map(capfd, *args)
        assert (status, out.exists()) == (1, False)
        assert f"line {place + 1}: " in noted
        assert "1 bad line" in noted
    source.write_text("\n\n".join(lines))
    assert run_map(capfd, *args)[0] == 0
    assert [row["n"] for row in rows_in(out)] == list(range(40))


def test_bad_lines_stop_the_run_before_anything_is_sent(tmp_path: Path) -> None:
    source, out, bad = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    source.write_text('{"n": 1}\n{"m": 1}\n{\n{"n": 2}\n')
    with paid_server() as server:
        variables = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": server.url}
        args = ["map", source, out, "--prompt", "{n}"]
        status, _, noted = shell(*args, **variables)
        lines = noted.splitlines()
        assert (status, len(lines), server.requests, out.exists()) == (1, 3, [], False)
        assert lines[0].startswith(f"chatfn: {source}, line 2: no column 'n'")
        assert lines[1].startswith(f"chatfn: {source}, line 3: no JSON")
        assert "2 bad lines, nothing was sent" in lines[2]
        status, _, noted = shell(*args, "--bad", bad, **variables)
        assert (status, rows_in(out)) == (3, [{"n": 1, "answer": "re 1"}, {"n": 2, "answer": "re 2"}])
        assert [(row["line"], row["text"]) for row in rows_in(bad)] == [(2, '{"m": 1}'), (3, "{")]
        assert "2 bad lines" in noted
        asked = len(server.requests)
        status, said, noted = shell("map", "-", "-", "--prompt", "{n}", stdin=source.read_bytes(), **variables)
        assert (status, said, len(server.requests)) == (1, "", asked)
        assert "-, line 2: no column 'n'" in noted
        assert "2 bad lines, nothing was sent" in noted
        assert shell(*args, "--limit", "1", **variables)[0] == 0
        stdin = source.read_bytes()
        status, said, _ = shell("map", "-", "-", "--prompt", "{n}", "--limit", "1", stdin=stdin, **variables)
        assert (status, said) == (0, '{"n": 1, "answer": "re 1"}\n')


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["in.csv", "o.csv", "--prompt", "{x}"], "no column 'x'; there are q, n"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--system", "{x}"], "no column 'x'"),
        (["in.csv", "o.csv", "--prompt", "{q"], "a lone {"),
        (["in.csv", "o.xlsx", "--prompt", "{q}"], "a name ends in"),
        (["in.csv", "in.csv", "--prompt", "{q}"], "IN and OUT are the same file"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--bad", "o.csv"], "OUT and --bad are the same file"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--concurrency", "0"], "--concurrency"),
        ([".", "o.csv", "--prompt", "{q}"], "IN is a folder"),
        (["in.csv", ".", "--prompt", "{q}"], "OUT is a folder"),
        (["in.csv", "-", "--prompt", "{q}", "--bad", "-"], "are both standard output"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--impl", "groq"], "give --model"),
        (["in.csv"], "Missing argument"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("q,n\na,1\n")
    status, said, noted = run_map(capfd, *args, *ECHO)
    assert (status, said) == (2, "")
    assert words in noted
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.csv", "o.csv", "--prompt", "{q}"], "chatfn: none.csv: No such file or directory\n"),
        (["in.csv", "none/o.csv", "--prompt", "{q}"], "No such file"),
        (["in.csv", "o.csv"], "line 2: no params and no messages in it; give --prompt"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--schema", "in.csv"], "in.csv: no JSON: Expecting value"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--transport", "requests"], "no API key: set OPENAI_API_KEY"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--transport", "requests", "--impl", "azure"], "--api-endpoint"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--journal", "none/j.db"], "none"),
        (["in.csv", "o.csv", "--prompt", "{q}", "--journal", "in.csv", "--limit", "0"], "IN and --journal"),
    ],
)
def test_a_failure_is_said_in_lines_and_there_is_no_output(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("q,n\na,1\n")
    status, said, noted = run_map(capfd, *args[:2], *ECHO, *args[2:])
    assert (status in (1, 2), said) == (True, "")
    assert words in noted
    assert "Traceback" not in noted
    assert {path.name for path in tmp_path.iterdir()} <= {"in.csv"}


def test_answers_that_a_schema_makes_are_json(tmp_path: Path, capfd: Any) -> None:
    schema = tmp_path / "word.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
    )
    source, out = write_rows(tmp_path / "in.jsonl", [{"q": "a"}]), tmp_path / "out.jsonl"
    assert run_map(capfd, source, out, "--prompt", "{q}", "--schema", schema, *ECHO)[0] == 0
    assert isinstance(rows_in(out)[0]["answer"]["n"], int)
    assert answer_in({"choices": [{"message": {"refusal": "no"}}]}, True) == "no"
    assert answer_in({"choices": []}, False) == ""
    two = {"choices": [{"message": {"content": "1"}}, {"message": {"content": "b"}}]}
    assert (answer_in(two, False), answer_in(two, True)) == (["1", "b"], [1, "b"])


def test_params_columns_samples_and_parameters(tmp_path: Path, capfd: Any) -> None:
    params = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    source = write_rows(tmp_path / "in.jsonl", [{"params": params, "sample": n} for n in (0, 1, "2", "free", None)])
    out = tmp_path / "out.jsonl"
    status, _, noted = run_map(capfd, source, out, "--system", "s", "--param", "n=2", "--full", *ECHO)
    assert status == 0
    assert [row["sample"] for row in rows_in(out)] == [0, 1, "2", "free", None]
    assert {len(row["response"]["choices"]) for row in rows_in(out)} == {2}
    assert {row["response"]["model"] for row in rows_in(out)} == {"m"}
    assert "1 from the journal" in noted  # free and none are the same call


def test_standard_input_and_output_and_no_journal_but_one_that_is_given(tmp_path: Path) -> None:
    stdin = b'{"n": 1}\n{"n": 2}'
    args = ["map", "-", "-", "--prompt", "{n}", *ECHO]
    wanted = '{"n": 1, "answer": "1"}\n{"n": 2, "answer": "2"}\n'
    status, said, noted = shell(*args, stdin=stdin)
    assert (status, said) == (0, wanted)
    assert noted.startswith("chatfn: 2 rows: 2 answered; ")
    for _ in range(2):
        status, said, noted = shell(*args, "--journal", tmp_path / "j.db", stdin=stdin)
        assert (status, said) == (0, wanted)
    assert "2 from the journal" in noted
    status, said, noted = shell(*args, stdin=b"")
    assert (status, said, noted[:40]) == (0, "", "chatfn: 0 rows: 0 answered; 0 tokens; 0.")


def test_what_is_no_file_has_no_journal_beside_it_and_is_not_replaced(tmp_path: Path) -> None:
    """A file behind /dev/stdout, a pipe by its number, standard streams that are closed."""
    said, command = tmp_path / "said", [*COMMAND, "map", "/dev/stdin", "/dev/stdout", "--prompt", "{n}", *ECHO]
    with said.open("wb") as file:
        file.write(b"first\n")
        file.flush()
        subprocess.run(command, input=b'{"n": 1}\n', stdout=file, check=True, env=environment(), timeout=WAIT)
    assert said.read_text() == 'first\n{"n": 1, "answer": "1"}\n'
    command = [*COMMAND, "map", "-", "/dev/fd/9", "--prompt", "{n}", *ECHO]
    for script, status, words in (
        ('"$@" 9>&1 | cat', 0, '{"n": 1, "answer": "1"}\n'),
        ('"$@" 9>/dev/full', 1, ""),
        ('"$@" 9>&1 <&-', 1, ""),
        ('"$@" 9>&1 2>&-', 0, '{"n": 1, "answer": "1"}\n'),
    ):
        shells = ["sh", "-c", script, "sh", *command]
        done = subprocess.run(shells, input=b'{"n": 1}\n', capture_output=True, env=environment(), timeout=WAIT)
        assert (done.returncode, done.stdout.decode(), b"Traceback" in done.stderr) == (status, words, False), script
    command[5] = "-"
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, env=environment(), timeout=WAIT
    )
    assert (done.returncode, done.stderr) == (1, b"chatfn: there is no standard output\n")
    assert list(tmp_path.iterdir()) == [said]


def test_a_terminal_that_shows_the_answers_shows_no_progress(tmp_path: Path) -> None:
    """Both would stand in one line."""
    pty = pytest.importorskip("pty")
    source = numbered(tmp_path / "in.jsonl", 3)
    master, slave = pty.openpty()
    command = [*COMMAND, "map", str(source), "-", "--prompt", "{n}", *ECHO]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment()) as found:
        os.close(slave)
        assert found.wait(WAIT) == 0
        lines = os.read(master, 65_536).decode().splitlines()
    os.close(master)
    assert [json.loads(line)["n"] for line in lines[:3]] == [0, 1, 2]
    assert lines[3].startswith("chatfn: 3 rows: 3 answered")


def test_a_closed_pipe_ends_the_map_in_silence(tmp_path: Path) -> None:
    source = numbered(tmp_path / "in.jsonl", 100_000)
    command = [*COMMAND, "map", str(source), "-", "--prompt", "{n}", *ECHO]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as found:
        assert found.stdout is not None
        assert found.stderr is not None
        assert found.stdout.readline() == b'{"n": 0, "answer": "0"}\n'
        found.stdout.close()
        assert found.stderr.read() == b""
        assert found.wait(WAIT) == 141


# Files.


def test_a_file_appears_whole_with_its_mode_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), whole_file(str(place)) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    before = os.umask(0o027)
    try:
        with whole_file(str(place)) as file:
            file.write(b"1")
            assert not place.exists()
    finally:
        os.umask(before)
    assert (place.read_bytes(), stat.S_IMODE(place.stat().st_mode)) == (b"1", 0o640)
    place.chmod(0o604)
    link = tmp_path / "link"
    link.symlink_to(place)
    with whole_file(str(link)) as file:
        file.write(b"2")
    assert (place.read_bytes(), stat.S_IMODE(place.stat().st_mode), link.is_symlink()) == (b"2", 0o604, True)
    with whole_file(os.devnull) as file:
        file.write(b"3")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_run_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path: Path) -> None:
    place = tmp_path / "out"
    (tmp_path / "out.12345678.part").write_bytes(b"left")
    with whole_file(str(place)) as one:
        with whole_file(str(place)) as other:
            assert len(parts(tmp_path)) == 2
            other.write(b"other")
        one.write(b"one")
    assert place.read_bytes() == b"one"
    assert parts(tmp_path) == []


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_is_in_flight_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    args = [source, out, "--prompt", "{n}", "--concurrency", "4"]
    with paid_server(0.05) as server:
        with started(server, *args) as found:
            until_asked(server, 12)
            found.send_signal(number)
            _, noted = found.communicate(timeout=WAIT)
        sent = len(server.requests)
        assert (found.returncode, out.exists(), parts(tmp_path), sent < 40) == (128 + number, False, [], True)
        assert "the same command again goes on from there" in noted
        with started(server, *args) as found:
            _, noted = found.communicate(timeout=WAIT)
        assert found.returncode == 0
        assert f"{sent} from the journal" in noted
        assert sorted(asked_of(server)) == sorted(map(str, range(60)))
    assert rows_in(out) == [{"n": n, "answer": f"re {n}"} for n in range(60)]


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    with paid_server(WAIT) as server, started(server, source, out, "--prompt", "{n}", "--concurrency", "4") as found:
        until_asked(server, 4)
        began = time.monotonic()
        found.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert found.poll() is None
        found.send_signal(signal.SIGINT)
        _, noted = found.communicate(timeout=WAIT)
        assert (found.returncode, out.exists(), parts(tmp_path), len(server.requests)) == (130, False, [], 4)
        assert time.monotonic() - began < 8
    assert "Traceback" not in noted


def test_the_rows_of_a_pipe_are_answered_as_they_come_if_bad_lines_have_a_place(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    with paid_server() as server, started(server, "-", "-", "--prompt", "{n}", "--bad", bad) as found:
        for number in range(3):
            found.stdin.write(f'{{"n": {number}}}\n{{"no\n')
            found.stdin.flush()
            assert json.loads(found.stdout.readline()) == {"n": number, "answer": f"re {number}"}
        found.stdin.close()
        found.stdin = None
        found.communicate(timeout=WAIT)
        assert (found.returncode, len(rows_in(bad))) == (3, 3)


@pytest.mark.parametrize("sent", [0, 1])
def test_a_signal_ends_the_wait_for_a_row(tmp_path: Path, sent: int) -> None:
    more = ["--bad", os.devnull] if sent else []
    with paid_server() as server, started(server, "-", "-", "--prompt", "{n}", *more) as found:
        found.stdin.write('{"n": 1}\n')
        found.stdin.flush()
        if sent:
            assert json.loads(found.stdout.readline())["n"] == 1
        else:
            until_it_handles(found, signal.SIGTERM)
        found.send_signal(signal.SIGTERM)
        assert (found.wait(WAIT), len(server.requests)) == (143, sent)
        assert "Traceback" not in found.stderr.read()


def until_it_handles(found: Any, number: int) -> None:
    """Wait until a process has a handler of a signal."""
    status, end = Path(f"/proc/{found.pid}/status"), time.monotonic() + WAIT
    while not status.exists() or not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) >> number - 1 & 1:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("rows", [8, 60])
def test_a_signal_waits_for_no_row_that_sleeps_and_none_keeps_its_error(tmp_path: Path, rows: int) -> None:
    """Rows that wait for their retry, all rows of the map being on their way, or not."""
    source, out = numbered(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    args = [source, out, "--prompt", "{n}", "--concurrency", "4"]
    patient = threading.Event()

    def answers(request: dict[str, Any]) -> list[Any]:
        asked = json.loads(request["body"])["messages"][-1]["content"]
        if int(asked) % 4 == 1 and not patient.is_set():
            return [answer({"error": {"message": "later"}}, 429, retry_after=100)]
        return [0.01, answer({"id": "c", "choices": [{"index": 0, "message": {"content": f"re {asked}"}}]})]

    with raw_server(answers) as server:
        with started(server, *args) as found:
            until_asked(server, 7)
            found.send_signal(signal.SIGINT)
            _, noted = found.communicate(timeout=WAIT)
        assert (found.returncode, out.exists()) == (130, False), noted
        patient.set()
        with started(server, *args) as found:
            _, noted = found.communicate(timeout=WAIT)
        assert (found.returncode, "Traceback" in noted) == (0, False), noted
        asked = Counter(asked_of(server))
        assert {n: times for n, times in asked.items() if int(n) % 4 != 1} == {
            str(n): 1 for n in range(rows) if n % 4 != 1
        }
    assert rows_in(out) == [{"n": n, "answer": f"re {n}"} for n in range(rows)]


def test_rows_that_a_spent_budget_stopped_are_sent_once_it_is_raised(tmp_path: Path, capfd: Any) -> None:
    source, out, prices = numbered(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl", tmp_path / "prices.json"
    prices.write_text('{"m": {"input": 1000, "output": 1000}}')
    args = [source, out, "--prompt", "{n}", "--model", "m", "--param", "max_completion_tokens=5", *ECHO]
    priced = [*args, "--prices", prices, "--budget"]
    status, _, noted = run_map(capfd, *priced, "0.1")
    assert (status, out.exists(), "raise --budget to go on" in noted) == (1, False, True)
    assert run_map(capfd, *priced, "100")[0] == 0
    assert rows_in(out) == [{"n": n, "answer": str(n)} for n in range(20)]


def test_a_kill_costs_no_more_than_what_was_in_flight(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 80), tmp_path / "out.jsonl"
    args = [source, out, "--prompt", "{n}", "--concurrency", "4"]
    with paid_server(0.02) as server:
        for kill in (10, 35, 60):
            with started(server, *args) as found:
                until_asked(server, kill)
                found.kill()
                found.wait(WAIT)
        assert not out.exists()
        with started(server, *args) as found:
            found.communicate(timeout=WAIT)
        assert (found.returncode, parts(tmp_path)) == (0, [])
        assert len(server.requests) <= 80 + 3 * 4
    assert rows_in(out) == [{"n": n, "answer": f"re {n}"} for n in range(80)]


def test_what_a_stop_leaves_is_said(tmp_path: Path) -> None:
    job, path = Job("-", "-", dict, {}), tmp_path / "j.db"
    assert advice(job) == "without --journal the same command again begins anew"
    assert advice(job._replace(journal=str(path))) == "nothing was sent"
    path.touch()
    assert "goes on from there" in advice(job._replace(journal=str(path)))


def test_two_at_once_share_the_work(tmp_path: Path) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"
    args = [source, out, "--prompt", "{n}", "--concurrency", "4"]
    with paid_server(0.02) as server:
        with started(server, *args) as one, started(server, *args) as other:
            said = [found.communicate(timeout=WAIT) for found in (one, other)]
        assert (one.returncode, other.returncode) == (0, 0), said
        assert sorted(asked_of(server)) == sorted(map(str, range(60)))
    assert rows_in(out) == [{"n": n, "answer": f"re {n}"} for n in range(60)]
    assert parts(tmp_path) == []


@pytest.mark.parametrize(("text", "limit", "unkept"), [(100_000, 1_000_000, 0), (1, 200_000, 4)])
def test_a_full_disk_stops_the_map_and_keeps_what_was_paid(tmp_path: Path, text: int, limit: int, unkept: int) -> None:
    """Here a limit on the size of files, which is met as a full disk is: by a write that fails; first of the output's,
    then of the journal's, which can't keep what is in flight."""
    source = write_rows(tmp_path / "in.jsonl", ({"n": n, "text": "x" * text} for n in range(120)))
    args = [source, tmp_path / "o.jsonl", "--prompt", "{n}", "--concurrency", "4"]
    with paid_server() as server:
        done = subprocess.run(
            [*COMMAND, "map", *map(str, args)],
            capture_output=True,
            text=True,
            env=environment(OPENAI_API_KEY="k", OPENAI_BASE_URL=server.url),
            timeout=WAIT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            check=False,
        )
        assert (done.returncode, args[1].exists(), parts(tmp_path)) == (1, False, [])
        lines = done.stderr.splitlines()
        assert "the same command again goes on from there" in lines[-1]
        assert [line for line in lines if not line.startswith("chatfn: ")] == []
        assert len(server.requests) < 120
        with started(server, *args) as found:
            found.communicate(timeout=WAIT)
        assert found.returncode == 0
        assert 120 <= len(server.requests) <= 120 + unkept
    assert len(rows_in(args[1])) == 120


# Progress.


class Terminal:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.shown = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.texts.append(text)
        self.shown.set()

    def flush(self) -> None:
        if len(self.texts) > 1:
            raise OSError("gone")


def test_progress_is_a_line_on_a_terminal_and_its_loss_does_no_harm() -> None:
    terminal: Any = Terminal()
    with progress(lambda: Tally(rows=3), 10, terminal):
        assert terminal.shown.wait(WAIT)
        time.sleep(0.5)
    assert terminal.texts[0].startswith("\r3 of 10 rows, 0 errors, ")
    assert len(terminal.texts) == 3


def test_progress_without_a_total_or_a_rate() -> None:
    look = Look(0.0, 0, 0)
    assert progress_text(Tally(), None, look, look) == "0 rows, 0 errors, 0 rows/s, 0 tokens/s"
    assert progress_text(Tally(5), 10**9, look, Look(10.0, 5, 0)) == (
        "5 of 1,000,000,000 rows, 0 errors, 0.5 rows/s, 0 tokens/s"
    )


# ``chatfn journal``.


def journal_run(capfd: Any, *args: Any) -> tuple[int, str, str]:
    status = cli.run(["journal", *map(str, args)])
    return status, *capfd.readouterr()


def test_a_journal_is_shown_exported_and_described(tmp_path: Path, capfd: Any) -> None:
    source, out = (
        write_rows(tmp_path / "in.jsonl", [{"q": "a"}, {"q": "!error 400 no"}, {"q": "a"}]),
        tmp_path / "o.jsonl",
    )
    assert shell("map", source, out, "--prompt", "{q}", *ECHO)[0] == 3
    path = tmp_path / "o.jsonl.journal.db"
    status, said, _ = journal_run(capfd, path)
    assert status == 0
    assert said.splitlines()[0].startswith(f"{path}: 2 calls, 20")
    for line in (
        "answered   1",
        "failed     1 (1 incorrect)",
        "unknown    0",
        "cached     1 answered from here",
        "slowest",
    ):
        assert line in said.splitlines()
    found = json.loads(journal_run(capfd, path, "--json")[1])
    assert (found["calls"], found["answered"], found["failed"], found["unknown"]) == (2, 1, {"incorrect": 1}, [])
    status, said, _ = journal_run(capfd, path, "--export", "-")
    (row,) = map(json.loads, said.splitlines())
    assert row["params"]["messages"] == [{"role": "user", "content": "a"}]
    assert row["completion"]["object"] == "chat.completion"
    assert journal_run(capfd, path, "--export", tmp_path / "e.jsonl.gz")[0] == 0
    assert gzip.decompress((tmp_path / "e.jsonl.gz").read_bytes()).decode() == said
    status, said, _ = journal_run(capfd, "--sql")
    assert (status, "CREATE TABLE calls" in said) == (0, True)


def test_calls_whose_outcome_never_came_are_listed(tmp_path: Path, capfd: Any) -> None:
    source, out = numbered(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    with paid_server(WAIT) as server, started(server, source, out, "--prompt", "{n}", "--concurrency", "3") as found:
        until_asked(server, 3)
        found.kill()
        found.wait(WAIT)
    _, said, _ = journal_run(capfd, f"{out}.journal.db")
    assert "unknown    3 sent, and perhaps paid, but their outcome never came:" in said
    assert len(json.loads(journal_run(capfd, f"{out}.journal.db", "--json")[1])["unknown"]) == 3


@pytest.mark.parametrize(
    ("args", "wanted", "words"),
    [
        ([], 2, "no FILE"),
        (["--json", "--sql"], 2, "give one of them"),
        (["j.db", "--export", "a.csv"], 2, "ends in .jsonl"),
        (["a", "--export", "./a"], 2, "are the same file"),
        (["none.db"], 1, "there is no journal"),
        (["none.db", "--export", "a.jsonl"], 1, "there is no journal"),
        (["text.db"], 1, "text.db"),
    ],
)
def test_what_is_no_journal_is_said(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, args: list[str], wanted: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.db").write_text("no journal " * 99)
    status, said, noted = journal_run(capfd, *args)
    assert (status, said, words in noted, "Traceback" in noted) == (wanted, "", True, False)
    assert [path.name for path in tmp_path.iterdir()] == ["text.db"]
