"""A run that is killed at any moment and started again: every row once and right, and next to nothing paid for twice.

``CHATFN_KILLS`` (kills of a run) and ``CHATFN_ROWS`` make the runs of the first law longer than the few seconds that they
take here; ``CHATFN_SEED`` makes other dice.  The law in full:

    CHATFN_KILLS=20 CHATFN_ROWS=5000 python -m pytest -q -s tests/test_crash.py -k killed_again
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rawserver import Server, answer, raw_server
from test_cli import COMMAND, environment

from chatfn import build_request, cli, map_chat
from chatfn.journal import JournalError, request_key, stores
from chatfn.journal.report import export, summary

KILLS = int(os.environ.get("CHATFN_KILLS", "3"))
ROWS = int(os.environ.get("CHATFN_ROWS", "400"))
SEED = int(os.environ.get("CHATFN_SEED", "1"))
IN_FLIGHT = 20
LATENCY = 0.005  # seconds
LONGEST = 60  # seconds that one run may last
ROOT = Path(__file__).parents[1]


def params_of(number: int) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}


def answer_to(number: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": text_to(number)}
    return {"id": f"c{number}", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def text_to(number: int) -> str:
    return f"answer {number} " + "x" * (number % 7 * 40)


def number_of(body: bytes) -> int:
    return int(json.loads(body)["messages"][0]["content"].split()[1])


FAULTS = {
    7: answer({"error": {"message": "not now"}}, 429, retry_after_ms=10),
    57: answer({"error": {"message": "oh"}}, 500, retry_after_ms=5),
}


class Remote:
    """A chat endpoint that counts what it was paid for: an answer counts when its request has arrived.

    Of a hundred questions two fail at their first try.
    """

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.failed: set[int] = set()
        self.lock = threading.Lock()

    def __call__(self, request: Any) -> list[Any]:
        number = number_of(request["body"])
        with self.lock:
            if number % 100 in FAULTS and number not in self.failed:
                self.failed.add(number)
                return [FAULTS[number % 100]]
            self.paid.append(number)
        return [LATENCY, answer(answer_to(number))]


class Unknown(NamedTuple):
    """How many calls of a journal are of unknown outcome."""

    calls: int
    failed: int  # at most so many of them not in flight when it ended: their first try failed, and they slept


class Work:
    """A job of ``chatfn map`` in a folder: questions in, answers out, and the server that it pays."""

    def __init__(self, folder: Path, server: Server, remote: Remote, rows: int = ROWS, *more: str) -> None:
        self.source, self.out = folder / "in.jsonl", folder / "out.jsonl"
        self.journal = folder / "out.jsonl.journal.db"
        self.server, self.remote, self.rows, self.more = server, remote, rows, more
        self.source.write_text("".join(f'{{"n": {number}}}\n' for number in range(rows)))

    def command(self) -> list[str]:
        words = ["map", str(self.source), str(self.out), "--prompt", "question {n}", "--param", "model=m"]
        return [*COMMAND, *words, "--concurrency", str(IN_FLIGHT), *self.more]

    def start(self, **settings: Any) -> subprocess.Popen[bytes]:
        variables = environment(OPENAI_API_KEY="k", OPENAI_BASE_URL=self.server.url)
        return subprocess.Popen(self.command(), cwd=ROOT, env=variables, stderr=subprocess.PIPE, **settings)

    def finish(self) -> str:
        """Run it to its end, and look at what came out; to what it said."""
        process = self.start()
        _, said = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, said.decode()
        self.check_output()
        return said.decode()

    def check_output(self) -> None:
        wanted = [{"n": number, "answer": text_to(number)} for number in range(self.rows)]
        assert [json.loads(line) for line in self.out.read_text().splitlines()] == wanted
        assert set(self.remote.paid) == set(range(self.rows))
        assert list(self.out.parent.glob("*.part")) == []

    def check_journal(self) -> Unknown:
        """What was paid for is answered in the journal, or unknown there, as often as it was paid for; to the unknown
        calls."""
        quiet(self.server)
        if not self.journal.exists() or not self.journal.stat().st_size:
            assert not self.remote.paid
            return Unknown(0, 0)
        at = {"api_endpoint": self.server.url, "api_key": "k"}
        numbers = {request_key(build_request(params_of(number), at)): number for number in range(self.rows)}
        told = summary(self.journal)
        assert told["in_flight"] == 0
        unknown = Counter(numbers[call["key"]] for call in told["unknown"])
        answered = Counter(number_of(json.dumps(line["params"]).encode()) for line in export(self.journal))
        assert set(answered.values()) <= {1}
        for number, times in Counter(self.remote.paid).items():
            assert times <= answered[number] + unknown[number], number
        assert set(answered) <= set(self.remote.paid)
        return Unknown(unknown.total(), sum(times for n, times in unknown.items() if n % 100 in FAULTS))


def quiet(server: Server) -> None:
    """Wait until what killed processes sent has arrived."""
    until = time.monotonic() + LONGEST
    while server.open and time.monotonic() < until:
        time.sleep(0.002)
    assert not server.open


def moments(dice: random.Random, rows: int) -> Iterator[Callable[[Remote, float], bool]]:
    """When to kill: some so long after the start of the run, most when so much is paid for, or a little later."""
    for paid in sorted(dice.choice((dice.randrange(rows), dice.randrange(rows), rows - 1)) for _ in range(KILLS)):
        if dice.random() < 0.3:
            seconds = dice.uniform(0.1, 0.6)
            yield lambda remote, began, seconds=seconds: time.monotonic() > began + seconds  # type: ignore[misc]
        else:
            later = dice.choice((0, dice.uniform(0, 4 * LATENCY)))

            def enough(remote: Remote, began: float, paid: int = paid, later: float = later) -> bool:
                if len(remote.paid) <= paid:
                    return False
                time.sleep(later)
                return True

            yield enough


def killed(process: subprocess.Popen[bytes], due: Callable[[], bool]) -> bool:
    """Kill a run when it is due; whether it was still going on."""
    until = time.monotonic() + LONGEST
    while process.poll() is None and not due() and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=LONGEST)
    assert process.returncode in (0, -signal.SIGKILL), said.decode()
    return process.returncode != 0


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    def complain(*_: Any) -> None:
        pytest.fail("not done in time")

    handler = signal.signal(signal.SIGALRM, complain)
    signal.alarm(LONGEST + 10 * KILLS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.parametrize("transport", ["requests", "aiohttp"])
def test_a_run_that_is_killed_again_and_again_has_every_row_once_and_pays_hardly_twice(
    transport: str, tmp_path: Path, capfd: Any
) -> None:
    dice, remote, kills, unknown = random.Random(f"{SEED} {transport}"), Remote(), 0, Unknown(0, 0)
    with raw_server(remote) as server:
        work = Work(tmp_path, server, remote, ROWS, "--transport", transport)
        for moment in moments(dice, ROWS):
            process, began = work.start(), time.monotonic()
            gone = killed(process, lambda: moment(remote, began))  # noqa: B023  # used at once
            kills += gone
            before, unknown = unknown, work.check_journal()
            assert unknown.calls - before.calls <= IN_FLIGHT * gone + unknown.failed - before.failed
            if not gone:
                work.check_output()
            for part in tmp_path.glob("*.part"):  # which a run that starts may find in any state
                part.write_bytes(dice.choice(HARMS)(part.read_bytes(), dice))
        work.finish()
        first, paid = work.out.read_bytes(), len(remote.paid)
        assert work.check_journal() == unknown, "calls whose outcome is unknown stay known as that"
        assert paid <= ROWS + min(unknown.calls, kills * IN_FLIGHT)
        assert cli.run(["journal", str(work.journal), "--json"]) == 0
        told = json.loads(capfd.readouterr().out)
        assert (told["answered"], len(told["unknown"]), told["calls"]) == (ROWS, unknown.calls, ROWS + unknown.calls)
        work.finish()
        assert len(remote.paid) == paid, "a finished job sends nothing when it runs again"
        assert work.out.read_bytes() == first
    print(f"{transport}: {ROWS} rows, {kills} kills, {unknown.calls} unknown, {paid - ROWS} paid for again")


def test_of_two_at_once_one_may_be_killed_and_the_other_does_its_work(tmp_path: Path) -> None:
    remote = Remote()
    with raw_server(remote) as server:
        work = Work(tmp_path, server, remote, ROWS)
        one, other = work.start(), work.start()
        gone = killed(one, lambda: len(remote.paid) > ROWS // 3)
        _, said = other.communicate(timeout=LONGEST)
        assert (gone, other.returncode) == (True, 0), said.decode()
        unknown = work.check_journal()
        assert len(remote.paid) <= ROWS + min(unknown.calls, IN_FLIGHT)
        paid = len(remote.paid)
        work.finish()
        assert len(remote.paid) == paid


SMALL_DISK = """
mount -t tmpfs -o size=$1 none "$2" && cp "$3" "$2" && cd "$2" || exit 99
shift 3
"$@"; echo first $?; ls
mount -o remount,size=64m . "$PWD" && "$@"; echo then $?
cat out.jsonl > "$SAVED"
"""


@pytest.mark.parametrize("size", ["200k", "500k"])
def test_on_a_full_disk_the_paying_stops_and_with_room_the_same_command_goes_on(tmp_path: Path, size: str) -> None:
    """On a disk of memory that only this command sees, where the system allows one."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no name spaces here")
    disk, saved, remote = tmp_path / "disk", tmp_path / "saved", Remote()
    disk.mkdir()
    with raw_server(remote) as server:
        work = Work(tmp_path, server, remote, ROWS)
        words = [word.replace(f"{tmp_path}/", "") for word in work.command()]
        variables = environment(OPENAI_API_KEY="k", OPENAI_BASE_URL=server.url, PYTHONPATH=str(ROOT), SAVED=str(saved))
        script = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", size, str(disk), str(work.source), *words]
        done = subprocess.run(script, capture_output=True, text=True, env=variables, timeout=LONGEST, check=False)
        if done.returncode == 99:
            pytest.skip("no disk of memory here")
        assert "first 1\nin.jsonl\nout.jsonl.journal.db" in done.stdout, done.stderr
        assert "then 0" in done.stdout, done.stderr
        notes = [line for line in done.stderr.splitlines() if "the same command again goes on from there" in line]
        assert len(notes) == 1
        assert "Traceback" not in done.stderr
        slept = len(remote.failed)  # whose turn to be sent again came just then
        assert len(remote.paid) <= ROWS + IN_FLIGHT + slept
        saved.replace(work.out)
        work.check_output()


# Files that are not what was written

FEW = 60  # rows
TRIALS = max(5, KILLS)  # of each harm to each file
ENDPOINT = {"api_endpoint": "http://127.0.0.1:9/v1", "api_key": "k"}

HALF_DONE = """
import os, sys
sys.path.insert(0, "tests")
import test_crash
test_crash.leave_half_done(sys.argv[1])
"""


def at_once(sent: list[int], most: int = 10**9) -> Callable[[Any], Any]:
    def send(request: Any) -> Any:
        number = number_of(request["body"])
        sent.append(number)
        if len(sent) > most:
            os._exit(9)  # as a kill does: nothing is closed, nothing tidied up
        return {"status": 200, "headers": {}, "body": json.dumps(answer_to(number)).encode()}

    return send


def run_in_process(journal: Path, sent: list[int], most: int = 10**9) -> list[Any]:
    options = {**ENDPOINT, "transport": at_once(sent, most), "middleware": [["journal", {"path": str(journal)}]]}
    return list(map_chat(range(FEW), options, params_of=params_of, concurrency=4))


def leave_half_done(path: str) -> None:
    """Fill a journal, tidily at first, and end in the middle of a second half that is still in its log."""
    options = {**ENDPOINT, "transport": at_once([]), "middleware": [["journal", {"path": path}]]}
    list(map_chat(range(FEW // 3), options, params_of=params_of))
    stores.close_all()
    run_in_process(Path(path), [], FEW // 3)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a journal whose run was killed: a third of it in the file, a third in the log, a third missing."""
    folder = tmp_path_factory.mktemp("half")
    done = subprocess.run([sys.executable, "-c", HALF_DONE, str(folder / "run.db")], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert {path.name for path in folder.iterdir()} == {"run.db", "run.db-wal", "run.db-shm", "run.db-lock"}
    return folder


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))] if data else data


def cut_tail(data: bytes, dice: random.Random) -> bytes:
    return data[: -dice.randrange(1, min(5_000, len(data)))] if len(data) > 1 else b""


def flipped(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data)) if data else 0
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :] if data else b"\1"


def garbled(data: bytes, dice: random.Random) -> bytes:
    size = dice.randrange(1, 200)
    place = dice.randrange(max(1, len(data) - size))
    return data[:place] + dice.randbytes(size) + data[place + size :]


def zeroed_tail(data: bytes, dice: random.Random) -> bytes:
    """As some file systems leave the end of a file after a loss of power."""
    size = dice.randrange(1, max(2, min(len(data), 9_000)))
    return data[:-size] + bytes(size)


def longer(data: bytes, dice: random.Random) -> bytes:
    return data + dice.randbytes(dice.randrange(1, 5_000))


HARMS = [cut, cut_tail, flipped, garbled, zeroed_tail, longer]


def check_harmed(folder: Path) -> str:
    """A run on a harmed journal is refused in clear words, or every row comes out right; to which of them."""
    path, sent = folder / "run.db", list[int]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of an answer that could not be kept: its row is right
            rows = run_in_process(path, sent)
    except (ValueError, JournalError) as exc:
        return "refused" if str(path) in str(exc) else f"refused without a word on the file: {exc}"
    finally:
        for store in list(stores.stores.values()):
            store.close()
    assert [row["row"] for row in rows] == list(range(FEW))
    assert [row["response"] for row in rows] == [answer_to(number) for number in range(FEW)]
    return "whole"


def harmed(half_done: Path, folder: Path, name: str, harm: Callable[[bytes, random.Random], bytes], seed: int) -> None:
    shutil.copytree(half_done, folder)
    path = folder / name
    path.write_bytes(harm(path.read_bytes(), random.Random(seed)))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["run.db", "run.db-wal", "run.db-shm", "run.db-lock"])
def test_a_harmed_file_is_refused_or_mended_and_never_gives_a_wrong_answer(
    half_done: Path, tmp_path: Path, name: str, harm: Callable[[bytes, random.Random], bytes]
) -> None:
    ends: Counter[str] = Counter()
    for seed in range(TRIALS):
        folder = tmp_path / str(seed)
        harmed(half_done, folder, name, harm, SEED * 1_000 + seed)
        ends[check_harmed(folder)] += 1
    assert set(ends) <= {"refused", "whole"}, ends
    if name in ("run.db-shm", "run.db-lock") or (name == "run.db-wal" and harm in (cut, cut_tail, zeroed_tail)):
        assert ends["whole"] == TRIALS, "of these files nothing is needed that the others have not"


def test_an_index_that_points_elsewhere_gives_no_answer_of_another_row(half_done: Path, tmp_path: Path) -> None:
    """The number of a row that stands behind a key in the index, by which answers are found, is that of another."""
    folder = tmp_path / "whole"
    shutil.copytree(half_done, folder)
    with closing(sqlite3.connect(folder / "run.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'claimed'").fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    data = (folder / "run.db").read_bytes()
    first, last = (page - 1) * size, page * size
    dice = random.Random(SEED)
    keys = [request_key(build_request(params_of(n), ENDPOINT)).encode() for n in range(FEW)]
    places = [place + 64 for key in keys if (place := data.find(key, first, last)) >= 0]
    for number, place in enumerate(dice.sample(places, 10)):
        case = tmp_path / str(number)
        case.mkdir()
        wrong = data[:place] + bytes([data[place] ^ dice.choice((1, 2, 3))]) + data[place + 1 :]
        (case / "run.db").write_bytes(wrong)
        check_harmed(case)
