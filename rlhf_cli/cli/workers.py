"""Starts the processes that `launch.processes` asks for: the same command, once for each GPU.

What accelerate and torchrun set in the environment of their workers is set here, and accelerate finds it there; under
those launchers themselves nothing is started. Their agents are not used, for they end workers 30 seconds after a
signal, where a step may take longer to be saved, and give 1 for every exit code.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

from rlhf_cli.errors import RecipeError

GRACE = 1.0  # seconds from the end of a process that failed to the end of those that wait for it
HEEDED = (signal.SIGINT, signal.SIGTERM)


def is_worker() -> bool:
    """Whether this process was started by us, accelerate or torchrun."""
    return "WORLD_SIZE" in os.environ


def check_environment() -> None:
    """Raise RecipeError where accelerate is set to split what is trained: here it is adapters, and whole everywhere."""
    for name, kind in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "").lower() == "true":
            hint = "Use `accelerate launch --multi_gpu`, and launch.strategy: fsdp for a base that one GPU cannot hold."
            raise RecipeError(f"accelerate is set to {kind}, which this does not use.", location=name, hint=hint)


def run(count: int, arguments: list[str], environment: Mapping[str, str], stdout: int) -> int:
    """`rlhf arguments` in `count` processes, whose stdout is that descriptor; the exit code of the first that
    failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        for process in started:
            process.send_signal(number)

    # Workers are in groups of their own: a Ctrl-C reaches this process alone, and each worker once, through it.
    before = {number: signal.signal(number, forward) for number in HEEDED}
    try:
        for rank in range(count):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "rlhf_cli", *arguments]
            started.append(subprocess.Popen(command, env=own, stdout=stdout, process_group=0))
        return _outcome(started)
    finally:
        for process in started:
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(started: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or for the first that fails: without it the others would wait for ever."""
    while True:
        codes = [process.poll() for process in started]
        failed = [code for code in codes if code]
        if failed:
            time.sleep(GRACE)
            return max(failed[0], 1)  # ended by a signal: a negative one
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)
