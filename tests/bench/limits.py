"""What a process may have open, and how much memory it ever had."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def many_files() -> int:
    """Raise the number of files and sockets that this process may open as far as it goes, and tell it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS knows a lower limit than it tells
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft


def peak() -> int:
    """The most bytes that this process ever had in memory; those of the one that it was forked from do not count."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES
