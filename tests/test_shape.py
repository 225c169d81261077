"""The shape of the package: one direction of imports, one room that sends, one module that reads the environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import chatfn

SOURCE = Path(chatfn.__file__).parent
PURE = [
    "spec",
    "errors",
    "secret",
    "plain",
    "fastjson",
    "sse",
    "chunks",
    "unfold",
    "impls",
    "operations",
    "sealing",
    "options",
    "core",
    "atom",
    "usage",
    "lint_rules",
    "lint_schema",
    "lint_words",
    "lints",
]
ROOMS = [
    *PURE,
    "transports",
    "prices",
    "cost",
    "middleware",
    "journal",
    "stack",
    "client",
    "pipeline",
    "__init__",
    "serve",
    "cli",
    "__main__",
]
FILES = sorted(SOURCE.rglob("*.py"))
IDS = [str(path.relative_to(SOURCE)) for path in FILES]
PURE_IDS = [name for name in IDS if name.removesuffix(".py") in PURE]

# What a module without input, output, clock, randomness and environment may need of the standard library and others.
HARMLESS = {
    *("__future__", "collections", "datetime", "difflib", "email", "functools", "hashlib", "html", "io", "ipaddress"),
    *(
        "itertools",
        "json",
        "math",
        "orjson",
        "re",
        "threading",
        "types",
        "typing",
        "typing_extensions",
        "urllib",
        "pyrsistent",
        "toolz",
    ),
    "chatfn",
}
EFFECTS = {
    *("open", "print", "input", "exec", "eval", "__import__", "breakpoint"),
    *("urlopen", "getenv", "environ"),
}
CLOCKS = {"now", "today", "utcnow"}


def room_of(path: Path) -> str:
    """The room of a file: its module's name, or its folder's."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, functions' bodies included, but for what only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from nodes(child)


def imports(path: Path) -> Iterator[str]:
    """The full names of all that a file imports, wherever in it."""
    for node in nodes(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_of(path: Path) -> Iterator[str]:
    """The rooms that a file imports from."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "chatfn":
            yield parts[1] if len(parts) > 1 and parts[1] in ROOMS else "__init__"


def packages_of(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    before = ROOMS[: ROOMS.index(room)]
    folder = (SOURCE / room).is_dir()
    wrong = [other for other in rooms_of(path) if other not in before and not (folder and other == room)]
    assert wrong == [], f"{room} may import from {before}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_transports_send(path: Path) -> None:
    senders = {"requests", "urllib3", "aiohttp", "pycurl", "socket", "ssl", "httpx", "yarl"}
    network = {name for name in imports(path) if name.startswith(("http.client", "urllib.request"))}
    if room_of(path) != "transports":
        assert not packages_of(path) & senders
        assert not network


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_the_client_reads_the_environment(path: Path) -> None:
    reads = [
        ast.unparse(node)
        for node in nodes(tree_of(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr in ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
    ]
    by_name = {name for name in imports(path) if name.startswith(("os.environ", "os.getenv"))}
    assert not by_name
    if room_of(path) not in ("client", "cli"):
        assert not reads


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in PURE], ids=PURE_IDS)
def test_the_core_is_deaf_and_blind(path: Path) -> None:
    assert packages_of(path) <= HARMLESS
    assert not {node.id for node in nodes(tree_of(path)) if isinstance(node, ast.Name)} & EFFECTS
    assert not {node.attr for node in nodes(tree_of(path)) if isinstance(node, ast.Attribute)} & CLOCKS
    assert not any(name.startswith(("urllib.request", "urllib.robotparser")) for name in imports(path))


def test_the_exported_names_are_those() -> None:
    assert chatfn.__all__ == [
        "IMPLS",
        "MIDDLEWARE",
        "TRANSPORTS",
        "Call",
        "ChatError",
        "Sleep",
        "__version__",
        "acreate_chat_completion",
        "amap_chat",
        "aresponder",
        "build_request",
        "collect",
        "completion_of",
        "create_chat_completion",
        "diff_plans",
        "echo",
        "events_of",
        "lint",
        "map_chat",
        "middleware",
        "plan",
        "record",
        "replay",
        "responder",
        "scripted",
        "simulate",
        "simulated",
        "text_deltas",
        "text_of",
        "wire_headers",
    ]
    for name in chatfn.__all__:
        assert hasattr(chatfn, name)
    modules = {path.stem for path in SOURCE.glob("*.py")} | {path.name for path in SOURCE.iterdir() if path.is_dir()}
    public = {name for name in vars(chatfn) if not name.startswith("_")} - modules
    assert public <= set(chatfn.__all__)


STAR = """
before = set(globals())
from chatfn import *
brought = set(globals()) - before - {"before"}
import chatfn
assert all(globals()[name] is getattr(chatfn, name) for name in brought)
print(*sorted(brought))
"""


def test_a_star_brings_every_name_that_is_documented() -> None:
    top = SOURCE.parent
    pages = [page.read_text(encoding="utf-8") for page in (top / "README.rst", *top.glob("docs/*.rst"))]
    said = [
        name for page in pages for names in re.findall(r"from chatfn import (.+)", page) for name in names.split(", ")
    ]
    called = [name for page in pages for name in re.findall(r"\bchatfn\.(\w+)", page) if name not in ROOMS]
    assert {"map_chat", "simulated", "lint", "create_chat_completion"} <= {*said, *called}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STAR],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(top)},
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    brought = done.stdout.split()
    assert {*said, *called} <= set(brought)
    assert brought == sorted(chatfn.__all__)
    assert set(brought) <= set(dir(chatfn))


def test_what_is_rarely_needed_is_imported_at_its_first_use() -> None:
    late = {name for name in chatfn.__all__ if name not in vars(chatfn)}
    assert late == set(chatfn._LATE)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = chatfn.nonsense


def test_who_installs_the_tests_has_all_that_they_would_skip_without() -> None:
    found = ConfigParser()
    found.read(SOURCE.parent / "setup.cfg", encoding="utf-8")
    extras = dict(found["options.extras_require"])
    taken = set(re.findall(r"chatfn\[(.+)\]", extras["test"])[0].split(","))
    assert extras["serve"].strip() in extras["cli"]
    assert taken == extras.keys() - {"test", "lint", "bench", "serve"}


IMPORT = """
import os, sys
read, opened = [], []
environment = type(os.environ)
original = environment.__getitem__
def noting(self, name):
    read.append(str(name))
    return original(self, name)
environment.__getitem__ = noting
environment.get = lambda self, name, default=None: noting(self, name) if name in self else (read.append(name), default)[1]
environment.__contains__ = lambda self, name: (read.append(name), name in environment.keys(self))[1]
environment.__iter__ = lambda self: (read.append("OPENAI: all of them"), iter(()))[1]
environment.keys = lambda self: [os.fsdecode(name) for name in self._data]
os.environ["OPENAI_API_KEY"]
assert read == ["OPENAI_API_KEY"], read
read.clear()
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith(("socket.", "urllib.")) else None)
import chatfn
for name in "IMPLS TRANSPORTS MIDDLEWARE build_request responder".split():
    getattr(chatfn, name)
heavy = "requests urllib3 orjson aiohttp asyncio click socket ssl http.client email.utils cheroot openai sqlite3".split()
print([name for name in heavy if name in sys.modules])
print([name for name in read if str(name).upper().startswith(("OPENAI", "AZURE"))])
print(opened)
"""


def test_an_import_is_light_and_silent_and_reads_no_variable_of_ours() -> None:
    environment = {"OPENAI_API_KEY": "k", "AZURE_OPENAI_API_KEY": "k", "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT],
        capture_output=True,
        text=True,
        env=environment,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "[]", "[]"]
