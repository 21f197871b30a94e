"""Compare PPO with TRL 1.12.0's PPOTrainer: speed and memory on random models, learning on a real one.

`python -m tests.benchmarks ppo [WORD…]` runs the cases that have every WORD among `fixed real` (lengths), `260k
vocab32k` (models) and `lora full nf4` (tuning); `gpu` selects those that need a GPU, and `learn` the learning case.
Without a word, it runs everything that this machine can run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import ppo_learning, trl_environment
from tests.benchmarks.ppo_job import Job, Result, Tuning, WorkerError, measure_job, run_worker
from tests.benchmarks.ppo_world import World
from tests.benchmarks.timing import format_spread

ROUNDS = 3
ITERATIONS = 4  # the first one is not counted
REAL_LENGTHS = 0.3  # mean length of a completion, as a fraction of the limit
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # asking torch for a GPU would load it in this process

SMALL = World(512, 64, 172, 5, 8, 4, prompt_tokens=64, response_tokens=64)  # stories260k's shape
WIDE = World(32_000, 256, 704, 6, 4, 4, prompt_tokens=96, response_tokens=96)  # 13 million parameters
GPU_WORLDS = {
    "0.5b": World(151_936, 896, 4864, 24, 14, 2, 256, 256, REAL_LENGTHS, dtype="bfloat16"),  # Qwen2.5-0.5B's shape
    "8b": World(128_256, 4096, 14_336, 32, 32, 8, 256, 256, REAL_LENGTHS, dtype="bfloat16"),  # Llama-3.1-8B's
}


class Case(NamedTuple):
    """One job for both tools.

    Attributes:
        words: The words that select it.
        world: Its models and prompts.
        job: The job, with our tuning.
        trl_tuning: TRL's tuning.
    """

    words: tuple[str, ...]
    world: World
    job: Job
    trl_tuning: Tuning


class Column(NamedTuple):
    """A metric of a result, its format, and whether the table has the ratio of the tools."""

    name: str
    value: Callable[[Result], float]
    format: str
    has_ratio: bool


COLUMNS = (
    Column("tokens/s", lambda result: result.tokens_per_second, ",.0f", True),
    Column("rollout, s", lambda result: result.mean("rollout"), ".2f", True),
    Column("scoring, s", lambda result: result.mean("scoring"), ".2f", True),
    Column("update, s", lambda result: result.mean("update"), ".2f", True),
    Column("peak, MB", lambda result: result.peak_bytes / 1e6, ",.0f", True),
    Column("completion tokens", lambda result: result.mean("tokens"), ",.0f", False),
    Column("reward", lambda result: result.mean("reward"), ".3f", False),
    Column("KL", lambda result: result.mean("kl"), ".3f", False),
)


def run(*words: str) -> None:
    """Run the same model, prompts, lengths, epochs, optimizer steps and micro-batches with both tools, in turn.

    Each value is of a process of its own, whose first iteration is not counted. tokens/s are those of the completions,
    with end tokens and without padding. Memory is the process's peak above its interpreter and imports (on a GPU, the
    allocator's). Ratios are rlhf / TRL: median over the rounds, and range.
    """
    has_gpu = NVIDIA_DRIVER.exists()
    chosen = [case for case in _cases() if set(words) <= {*case.words} and (has_gpu or "gpu" not in case.words)]
    if chosen:
        trl_python = trl_environment.python()
        print(
            f"| case | | {' | '.join(column.name for column in COLUMNS)} |\n|---|---{'|---' * len(COLUMNS)}|",
            flush=True,
        )
        for case in chosen:
            _compare(case, trl_python)
    if not words or "learn" in words:
        ppo_learning.run()
    elif not chosen:
        print(f"No case that this machine can run has all of: {' '.join(words)}")


def _cases() -> Iterator[Case]:
    for lengths, share in (("fixed", None), ("real", REAL_LENGTHS)):
        tuning: Tuning
        for tuning in ("lora", "full"):
            world = replace(SMALL, length_share=share, whole=tuning == "full")
            yield Case((lengths, "260k", tuning), world, _make_job(world, tuning, prompts=64), tuning)
        for tuning in ("lora", "full", "nf4"):
            world = replace(WIDE, length_share=share, whole=tuning == "full")
            yield Case((lengths, "vocab32k", tuning), world, _make_job(world, tuning, prompts=32), tuning)
    for name, world in GPU_WORLDS.items():
        for tuning in ("lora", "nf4"):
            job = replace(
                _make_job(world, tuning, prompts=64),
                minibatches=1,
                micro_batches=32,
                activation_checkpointing=True,
                trl_rollout_rows=16,  # with 64, its logits take more than 30 GB
            )
            yield Case(("gpu", name, tuning), world, job, "lora")


def _make_job(world: World, tuning: Tuning, prompts: int) -> Job:
    return Job(
        world="",
        tuning=tuning,
        prompts=prompts,
        prompt_tokens=world.prompt_tokens,
        response_tokens=world.response_tokens,
        iterations=ITERATIONS,
        dtype=world.dtype,
    )


def _compare(case: Case, trl_python: Path) -> None:
    """Run the case with both tools, in turn, and print its rows: ours, TRL's, and the ratios; or why one failed."""
    found: dict[str, list[Result]] = {"rlhf": [], "TRL 1.12": []}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_worker(Path(sys.executable), "ppo_world", case.world.arguments(folder), folder)
        job = replace(case.job, world=name)
        workers = {
            "rlhf": (Path(sys.executable), "ppo_rlhf", job),
            "TRL 1.12": (trl_python, "ppo_trl", replace(job, tuning=case.trl_tuning)),
        }
        for index in range(ROUNDS):
            for tool in sorted(workers, reverse=index % 2 == 1):
                try:
                    found[tool].append(measure_job(*workers[tool], folder / f"{tool}-{index}"))
                except WorkerError as error:
                    failures[tool] = str(error)
    for tool, results in found.items():
        cells = [format(statistics.median(map(c.value, results)), c.format) for c in COLUMNS] if results else []
        print(f"| {' '.join(case.words)} | {tool} | {' | '.join(cells) or failures[tool]} |", flush=True)
    if not failures:
        pairs = [*zip(*found.values(), strict=True)]
        cells = [format_spread([c.value(a) / c.value(b) for a, b in pairs]) if c.has_ratio else "" for c in COLUMNS]
        print(f"| | ratio | {' | '.join(cells)} |", flush=True)
