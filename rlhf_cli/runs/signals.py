"""Stop a run on Ctrl-C, SIGTERM or SIGHUP: after the current step if its stage saves checkpoints, else at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_cli.runs.run import Run

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed
# Seconds in which a second signal counts as the first one: `timeout` sends it to the process and to its group.
DUPLICATE_SIGNAL_WINDOW_S = 0.3
STOPPING_MESSAGE = b"\nstopping after this step; press Ctrl-C again to stop immediately\n"


@contextmanager
def graceful_shutdown(run: Run) -> Iterator[None]:
    """Set `run.stop_requested` on the first signal if the stage handles signals, and raise KeyboardInterrupt otherwise.

    A second signal always raises KeyboardInterrupt. A signal that the process ignores, as under nohup, stays ignored.
    """
    main_process = os.getpid()
    first_signal = 0.0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal first_signal
        if os.getpid() != main_process:  # a data loader's worker: Ctrl-C reaches it too, but its parent ends it
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        if run.stop_requested and time.monotonic() - first_signal < DUPLICATE_SIGNAL_WINDOW_S:
            return
        if run.stop_requested or not run.handles_signals:
            raise KeyboardInterrupt
        run.stop_requested = True
        first_signal = time.monotonic()
        with contextlib.suppress(OSError):  # the terminal may be closed
            os.write(2, STOPPING_MESSAGE)  # not print: the handler may have interrupted one, which holds a lock

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, before[number])
