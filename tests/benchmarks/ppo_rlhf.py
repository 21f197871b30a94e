"""Worker of the PPO benchmark: our own `rlhf ppo`, through the recipe and the stage runner."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - loaded with a 4-bit base model; imported here to count as an import
import yaml

import rlhf_cli.stages.ppo  # noqa: F401 - imported here to count as an import
from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.recipe.loader import read_recipe
from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK, Iteration, Job, MemoryMeter, Result, read_arguments
from tests.benchmarks.step_timer import StepTimer


def make_recipe(job: Job) -> dict[str, Any]:
    """Return the recipe of a job."""
    rows = job.prompts // job.minibatches // job.micro_batches  # per micro-batch
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
            "critic": {} if job.critic_factor is None else {"learning_rate": job.critic_factor * job.learning_rate},
            "kl": {"coef": job.kl_coef},
            "save_every": job.iterations,
            "trainer": {"activation_checkpointing": True} if job.activation_checkpointing else {},
        },
    }


def main() -> None:
    """Run the job of the command line and write its result."""
    job, path = read_arguments()
    memory = MemoryMeter()
    file = path.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(make_recipe(job)))
    timer = StepTimer()
    result = run_stage("ppo", read_recipe(file).recipe, path.parent / "runs", smoke=False, reporter=timer)
    peak = memory.read()
    if job.policy is not None:
        shutil.copytree(result.path / "model", Path(job.policy))
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
        for before, end, metrics in zip(timer.step_ends, timer.step_ends[1:], timer.metrics[1:], strict=False)
    ]
    Result(iterations, peak).write(path)


if __name__ == "__main__":
    main()
