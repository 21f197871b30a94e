"""What a PPO benchmark asks of a worker, and what the worker answers; known to both environments: stdlib alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
Tuning = Literal["full", "lora", "nf4"]  # all weights; LoRA; LoRA on a 4-bit base. Of policy and critic alike
LORA_RANK, LORA_ALPHA = 16, 32


@dataclass(frozen=True)
class Job:
    """One PPO run: the same for both tools."""

    world: str  # folder with `base`, `reward` and `prompts.jsonl`, see ppo_world.py
    tuning: Tuning
    prompts: int  # an iteration
    prompt_tokens: int  # of the longest prompt
    response_tokens: int  # the limit
    iterations: int
    epochs: int = 4
    minibatches: int = 4  # optimizer steps an epoch
    micro_batches: int = 1  # forward passes a minibatch. TRL takes more than one only where minibatches is 1
    learning_rate: float = 1e-6  # of policy and critic
    kl_coef: float = 0.05
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    activation_checkpointing: bool = False
    trl_rollout_rows: int = 64  # TRL's local_rollout_forward_batch_size, at its default
    policy: str | None = None  # folder to leave the trained policy in


@dataclass(frozen=True)
class Iteration:
    """One rollout with its updates."""

    seconds: float  # wall clock since the end of the one before
    rollout: float  # seconds
    scoring: float
    update: float
    tokens: float  # of responses, end tokens included, padding not
    reward: float  # mean a response, without KL
    kl: float  # k1, nats a response


@dataclass(frozen=True)
class Result:
    """What a worker measured. The first iteration, which warms up, is left out."""

    iterations: list[Iteration]
    peak_bytes: int  # above what the interpreter and its imports took; on a GPU, of its allocator

    @staticmethod
    def read(path: Path) -> Result:
        """What `write` wrote."""
        found = json.loads(path.read_text())
        return Result([Iteration(**row) for row in found["iterations"]], found["peak_bytes"])

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @property
    def tokens_per_second(self) -> float:
        return sum(i.tokens for i in self.iterations) / sum(i.seconds for i in self.iterations)

    def mean(self, name: str) -> float:
        """Of a field of Iteration."""
        return sum(getattr(i, name) for i in self.iterations) / len(self.iterations)


class WorkerError(Exception):
    """A worker ended otherwise than by a result; the text is its last line."""


@dataclass
class Memory:
    """The process's peak above what it was when this was made: make it behind the imports."""

    floor: int = field(default_factory=lambda: _peak())

    def above(self) -> int:
        """Bytes."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return _peak() - self.floor


def _peak() -> int:
    """Bytes of resident memory at the highest. Not ru_maxrss, which begins at the parent's peak. Linux alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def work(python: Path, module: str, arguments: Sequence[str], folder: Path, **environment: str) -> None:
    """Run `python -m tests.benchmarks.<module>` as a process of its own; what it says goes to a log in `folder`.

    Raises:
        WorkerError: it failed.
    """
    import os

    log = folder / f"{module}.log"
    with log.open("w") as said:
        command = [str(python), "-m", f"tests.benchmarks.{module}", *arguments]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", **environment}
        ended = subprocess.run(command, cwd=ROOT, env=settings, stdout=said, stderr=said, check=False)
    if ended.returncode != 0:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        raise WorkerError(lines[-1] if lines else f"exit code {ended.returncode}")


def measured(python: Path, module: str, job: Job, folder: Path, **environment: str) -> Result:
    """Run `job` with the worker `module`."""
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"{module}.json"
    work(python, module, [json.dumps(asdict(job)), str(result)], folder, **environment)
    return Result.read(result)


def asked() -> tuple[Job, Path]:
    """What `measured` asked this process for: the job, and where its result goes."""
    return Job(**json.loads(sys.argv[1])), Path(sys.argv[2])
