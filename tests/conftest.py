"""Ctrl-C is what it is at a terminal: a shell starts what runs in its background (``pytest &``) with SIGINT ignored."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes of tests inherit none that is ignored
