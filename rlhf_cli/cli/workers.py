"""Start the processes that `launch.processes` asks for: the same command, once per GPU.

The environment variables that accelerate and torchrun set for their workers are set here, and accelerate reads them.
Under those launchers, nothing is started. Their own agents are not used because they kill workers 30 seconds after a
signal, although saving a step may take longer, and turn every exit code into 1.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import typer

from rlhf_cli.cli.output import real_stdout
from rlhf_cli.errors import RecipeError
from rlhf_cli.runs.signals import STOP_SIGNALS

ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"}  # of a single process: Trainer would otherwise split batches over all GPUs
SEES_ALL_GPUS = ("doctor",)  # commands that are one process and report every GPU
GRACE_PERIOD = 1.0  # seconds from the end of a process that failed to the end of those that wait for it
POLL_INTERVAL = 0.05  # seconds
LAUNCHER = "RLHF_LAUNCHER"  # environment variable of a worker: the process id of its launcher
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def is_worker() -> bool:
    """Return whether this process was started by `launch`, accelerate or torchrun."""
    return "WORLD_SIZE" in os.environ


def follow_launcher() -> None:
    """Let a worker of `launch` get a SIGTERM when the launcher dies. It saves its step and stops.

    Otherwise the workers of a killed launcher would train on, unseen. Only Linux has such a signal.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before
        os.kill(os.getpid(), signal.SIGTERM)


def limit_to_one_gpu(arguments: Sequence[str]) -> None:
    """Let a single process see one GPU only, unless the user has chosen or the command reports all of them."""
    if not is_worker() and not set(arguments[:1]) & set(SEES_ALL_GPUS):
        for name, value in ONE_GPU.items():
            os.environ.setdefault(name, value)


def are_needed(count: int, *, smoke: bool) -> bool:
    """Return whether this process must start workers: the recipe asks for several, and this is not one of them.

    Args:
        count: `launch.processes` of the recipe.
        smoke: Whether this is a smoke run, which is always one process.

    Raises:
        RecipeError: accelerate is configured to shard the model, which rlhf does itself.
    """
    _check_accelerate_config()
    return count > 1 and not is_worker() and not smoke


def launch(count: int) -> NoReturn:
    """Run this command in `count` processes and exit with their code.

    Raises:
        typer.Exit: With the exit code of the processes.
    """
    environment = {name: value for name, value in os.environ.items() if (name, value) not in ONE_GPU.items()}
    raise typer.Exit(run_workers(count, sys.argv[1:], environment, real_stdout()))


def _check_accelerate_config() -> None:
    for name, method in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "").lower() == "true":
            hint = (
                "Use `accelerate launch --multi_gpu`; if the base model does not fit on one GPU, set "
                "launch.strategy: fsdp."
            )
            message = f"accelerate is configured for {method}, which rlhf does not support."
            raise RecipeError("recipe.unsupported-launcher", message, location=name, hint=hint)


def run_workers(count: int, arguments: Sequence[str], environment: Mapping[str, str], stdout: int) -> int:
    """Run `rlhf <arguments>` in `count` processes and return the exit code of the first one that fails, else 0.

    Args:
        count: Number of processes.
        arguments: The command line without `rlhf`.
        environment: Environment variables; those of the process group are added.
        stdout: File descriptor of the processes' stdout.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHER: str(os.getpid())}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    # Each worker has its own process group: a Ctrl-C reaches only this process, and each worker once through it.
    handlers = {
        number: signal.signal(number, forward)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        for rank in range(count):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "rlhf_cli", *arguments]
            processes.append(subprocess.Popen(command, env=own, stdout=stdout, process_group=0))
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or for the first that fails: the others would wait for it forever."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            time.sleep(GRACE_PERIOD)
            return max(failed[0], 1)  # the code is negative if a signal killed the process
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_INTERVAL)
