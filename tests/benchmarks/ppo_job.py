"""The job of a PPO worker and its result. Both environments import this: standard library only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
Tuning = Literal["full", "lora", "nf4"]  # all weights; LoRA; LoRA on a 4-bit base. Of the policy and the critic
LORA_RANK = 16
LORA_ALPHA = 32


@dataclass(frozen=True)
class Job:
    """One PPO run, the same for both tools.

    Attributes:
        world: Folder with `base`, `reward` and `prompts.jsonl`; see ppo_world.py.
        tuning: What is trained.
        prompts: Prompts per iteration.
        prompt_tokens: Tokens of the longest prompt.
        response_tokens: The limit on a completion's tokens.
        iterations: Rollouts with their updates.
        epochs: Passes over each rollout.
        minibatches: Optimizer steps per epoch.
        micro_batches: Forward passes per minibatch. TRL supports more than one only with one minibatch.
        learning_rate: Peak rate of the policy, decayed linearly. TRL has one rate for policy and critic.
        critic_factor: The critic's rate in our tool, as a multiple; None: our default.
        kl_coef: Reward that is subtracted per nat of KL divergence.
        dtype: Of weights and computation.
        seed: Seed of the run.
        activation_checkpointing: Whether activations are recomputed in the backward pass.
        trl_rollout_rows: TRL's local_rollout_forward_batch_size; the default is TRL's.
        trl_whole_critic: Whether TRL trains all weights of its critic, as its examples do, and not a LoRA adapter.
        policy: Folder for the trained policy, or None to discard it.
    """

    world: str
    tuning: Tuning
    prompts: int
    prompt_tokens: int
    response_tokens: int
    iterations: int
    epochs: int = 4
    minibatches: int = 4
    micro_batches: int = 1
    learning_rate: float = 1e-6
    critic_factor: float | None = None
    kl_coef: float = 0.05
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    activation_checkpointing: bool = False
    trl_rollout_rows: int = 64
    trl_whole_critic: bool = False
    policy: str | None = None


@dataclass(frozen=True)
class Iteration:
    """One rollout with its updates.

    Attributes:
        seconds: Wall-clock seconds since the end of the iteration before.
        rollout: Seconds of generation.
        scoring: Seconds of scoring.
        update: Seconds of the updates.
        tokens: Tokens of all completions, with end tokens and without padding.
        reward: Mean reward per completion, without KL.
        kl: KL divergence (k1) in nats per completion.
    """

    seconds: float
    rollout: float
    scoring: float
    update: float
    tokens: float
    reward: float
    kl: float


@dataclass(frozen=True)
class Result:
    """What a worker measured.

    Attributes:
        iterations: All iterations but the first, which warms up.
        peak_bytes: Peak memory above the interpreter and its imports; on a GPU, of its allocator.
    """

    iterations: list[Iteration]
    peak_bytes: int

    @staticmethod
    def read(path: Path) -> Result:
        """Read a result that `write` wrote."""
        content = json.loads(path.read_text())
        return Result([Iteration(**row) for row in content["iterations"]], content["peak_bytes"])

    def write(self, path: Path) -> None:
        """Write the result as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second of all iterations."""
        return sum(i.tokens for i in self.iterations) / sum(i.seconds for i in self.iterations)

    def mean(self, name: str) -> float:
        """Return the mean of a field of `Iteration`."""
        return sum(getattr(i, name) for i in self.iterations) / len(self.iterations)


class WorkerError(Exception):
    """Raised if a worker ended without a result. The message is the last line of its log."""


def _peak() -> int:
    """Return the peak resident memory in bytes. (ru_maxrss would start at the parent's peak.) Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@dataclass
class MemoryMeter:
    """Measures this process's peak memory above the peak at its creation. Create it after the imports."""

    floor: int = field(default_factory=_peak)

    def read(self) -> int:
        """Return the peak in bytes: above the floor, or on a GPU that of the allocator."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return _peak() - self.floor


def run_worker(python: Path, module: str, arguments: Sequence[str], folder: Path, **environment: str) -> None:
    """Run `python -m tests.benchmarks.<module>` in a process of its own, with a log in `folder`.

    Args:
        python: The interpreter.
        module: The worker's module.
        arguments: Its command-line arguments.
        folder: Folder of its log.
        environment: Further environment variables.

    Raises:
        WorkerError: The worker failed.
    """
    log = folder / f"{module}.log"
    with log.open("w") as output:
        command = [str(python), "-m", f"tests.benchmarks.{module}", *arguments]
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", **environment}
        ended = subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=output, check=False)
    if ended.returncode != 0:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        raise WorkerError(lines[-1] if lines else f"exit code {ended.returncode}")


def measure_job(python: Path, module: str, job: Job, folder: Path, **environment: str) -> Result:
    """Run `job` with the worker `module`, and return its result. Arguments and errors as in `run_worker`."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{module}.json"
    run_worker(python, module, [json.dumps(asdict(job)), str(result)], folder, **environment)
    return Result.read(result)


def read_arguments() -> tuple[Job, Path]:
    """Return the job that `measure_job` gave to this process, and the path of its result."""
    return Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
