"""Worker of the PPO benchmark: our own `rlhf ppo`, through the recipe and the stage's dispatcher."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - loaded with a 4-bit base; here, so that it counts as an import
import yaml

import rlhf_cli.stages.ppo  # noqa: F401 - with torch, transformers and peft
from rlhf_cli.pipeline.runner import run_stage
from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK, Iteration, Job, Memory, Result, asked
from tests.support.recipe_files import load_recipe


class Stopwatch:
    """A reporter that notes when each iteration ended, and its figures."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.figures: list[Mapping[str, float]] = []

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.ends.append(time.perf_counter())
        self.figures.append(metrics)

    def warning(self, text: str) -> None:
        print(text, flush=True)

    def stage(self, *_: object) -> None: ...
    def begin(self, *_: object) -> None: ...
    def say(self, *_: object) -> None: ...
    def done(self, *_: object) -> None: ...


def recipe(job: Job) -> dict[str, Any]:
    """`job` in the words of a recipe."""
    rows = job.prompts // job.minibatches // job.micro_batches  # a micro-batch
    return {
        "name": "benchmark",
        "seed": job.seed,
        "base": {
            "model": f"{job.world}/base",
            "quantize": "nf4" if job.tuning == "nf4" else "none",
            "dtype": job.dtype,
        },
        "adapter": None if job.tuning == "full" else {"rank": LORA_RANK, "alpha": LORA_ALPHA},
        "data": {"prompts": {"path": f"{job.world}/prompts.jsonl", "eval_fraction": 0.0}},
        "ppo": {
            "start": "base",
            "reward": [{"run": f"{job.world}/reward"}],
            "iterations": job.iterations,
            "rollout_batch_size": job.prompts,
            "max_prompt_length": job.prompt_tokens,
            "max_new_tokens": job.response_tokens,
            "epochs": job.epochs,
            "minibatches": job.minibatches,
            "micro_batch_tokens": rows * (job.prompt_tokens + job.response_tokens),
            "learning_rate": job.learning_rate,
            "critic": {"learning_rate": job.learning_rate},
            "kl": {"coef": job.kl_coef},
            "save_every": job.iterations,
            "trainer": {"activation_checkpointing": True} if job.activation_checkpointing else {},
        },
    }


def main() -> None:
    job, path = asked()
    memory = Memory()
    file = path.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe(job)))
    watch = Stopwatch()
    outcome = run_stage("ppo", load_recipe(file), path.parent / "runs", smoke=False, reporter=watch)
    peak = memory.above()
    if job.policy is not None:
        shutil.copytree(outcome.path / "model", Path(job.policy))
    iterations = [
        Iteration(
            seconds=end - before,
            rollout=metrics["seconds.rollout"],
            scoring=metrics["seconds.scoring"],
            update=metrics["seconds.update"],
            tokens=metrics["response_length"] * job.prompts,
            reward=metrics["reward"],
            kl=metrics["kl"],
        )
        for before, end, metrics in zip(watch.ends, watch.ends[1:], watch.figures[1:], strict=False)
    ]
    Result(iterations, peak).write(path)


if __name__ == "__main__":
    main()
