"""A virtual environment for each contestant, with what it requires and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench.contestants import module_of


def folder_of(name: str) -> str:
    """The name of a contestant's environment: those that require the same share one."""
    return "+".join(spec.partition(">")[0] for spec in module_of(name).REQUIRES) or "nothing"


def made(folder: Path, names: Iterable[str], say: Callable[[str], None]) -> tuple[dict[str, str], dict[str, str]]:
    """The Pythons of contestants, their environments made where they are missing; and why others are left out."""
    pythons: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in names:
        home = folder / folder_of(name)
        ready = home / "ready"
        if not ready.exists():
            say(f"making {home}")
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *module_of(name).REQUIRES]
            done = subprocess.run(install, check=False, capture_output=True, text=True) if install[5:] else None
            if done and done.returncode:
                left_out[name] = f"pip: {done.stderr.strip().rpartition(chr(10))[2]}"
                continue
            ready.touch()
        pythons[name] = str(home / "bin" / "python")
    return pythons, left_out
