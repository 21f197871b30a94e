"""Ctrl-C and SIGTERM while a run is under way: a stage that saves stops at its next step, any other one at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlhf_cli.runs.run import Run

SAME = 0.3  # seconds in which a second signal is the first one again: `timeout` sends to a process and to its group
TOLD = b"\nstopping at the next step; Ctrl-C again stops at once\n"


@contextmanager
def graceful_shutdown(run: Run) -> Iterator[None]:
    """Inside, the first signal sets `run.stopping` where the stage has said that it looks at it; else, and the second
    time, KeyboardInterrupt is raised. A signal that is ignored (nohup) stays so."""
    owner, first = os.getpid(), 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:  # a data loader's worker, which a Ctrl-C reaches too: it ends with its owner
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if run.stopping and time.monotonic() - first < SAME:
            return
        if run.stopping or not run.handles_signals:
            raise KeyboardInterrupt
        run.stopping, first = True, time.monotonic()
        os.write(2, TOLD)  # a handler may stand inside a print: no buffer, no lock

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
