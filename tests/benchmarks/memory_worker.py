"""Worker of the memory benchmark: run a stage in this process, and write its estimated and measured memory."""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - loaded with a 4-bit base model; imported here to count as an import
import torch
import trl  # noqa: F401 - imported here to count as an import
import yaml

from rlhf_cli.models import device_memory
from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.recipe.loader import read_recipe
from rlhf_cli.stages import STAGES
from rlhf_cli.training import memory_estimate
from tests.benchmarks import ppo_world
from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK
from tests.benchmarks.ppo_world import World
from tests.benchmarks.step_timer import StepTimer

ROWS = 8  # in memory at once
TINY = World(32_000, 64, 128, 2, 4, 2, 8, 8)


@dataclass(frozen=True)
class Case:
    """A stage and its settings, in words of `tests/benchmarks/memory.py`, on a world of `ppo_world`."""

    words: tuple[str, ...]
    world: World

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.words[0]

    @property
    def width(self) -> int:
        """Tokens of a prompt with its completion."""
        return self.world.prompt_tokens + self.world.response_tokens


def make_recipe(case: Case, folder: Path) -> dict[str, Any]:
    """Return the recipe of a case: two optimizer steps, so that the second one has all optimizer states in memory."""
    words, world = case.words, case.world
    recipe: dict[str, Any] = {
        "name": "memory",
        "base": {
            "model": str(folder / "base"),
            "quantize": "nf4" if "nf4" in words else "none",
            "dtype": "bfloat16" if "bfloat16" in words else "float32",
        },
        "adapter": None if "full" in words else {"rank": LORA_RANK, "alpha": LORA_ALPHA},
        "data": {
            kind: {"path": str(folder / f"{kind}.jsonl"), "eval_fraction": 0.0}
            for kind in ("prompts", "sft", "preferences")
        },
    }
    if case.stage == "ppo":
        recipe["ppo"] = {
            "start": "base",
            "reward": [{"run": str(folder / "reward")}],
            "iterations": 1,
            "save_every": 1,
            "rollout_batch_size": 2 * ROWS,
            "max_prompt_length": world.prompt_tokens,
            "max_new_tokens": world.response_tokens,
            "epochs": 1,
            "minibatches": 2,
            "micro_batch_tokens": ROWS * case.width,
            "critic": {"kind": "shared" if "shared" in words else "adapter"},
            "trainer": {"activation_checkpointing": "checkpointing" in words},
        }
    else:
        rows = ROWS if case.stage == "sft" else ROWS // 2
        recipe[case.stage] = {
            "start": "base",
            "max_steps": 2,
            "batch_size": rows,
            "micro_batch_size": rows,
            "max_length": case.width,
            "trainer": {"gradient_checkpointing": "checkpointing" in words},
        }
    return recipe


def make(case: Case, folder: Path) -> None:
    """Write the base model, a reward model, and rows that have exactly the case's lengths."""
    world = case.world
    ppo_world.make(replace(world, whole="full" in case.words), folder)
    rng = random.Random(1)
    words = [f"w{index}" for index in range(2, world.vocab_size)]

    def text(tokens: int) -> str:
        return " ".join(rng.choices(words, k=tokens))

    def line(*completions: str) -> str:
        row = {"prompt": text(world.prompt_tokens) + " "}
        return json.dumps(row | {name: text(world.response_tokens - 1) for name in completions}) + "\n"

    (folder / "sft.jsonl").write_text("".join(line("completion") for _ in range(4 * ROWS)))
    (folder / "preferences.jsonl").write_text("".join(line("chosen", "rejected") for _ in range(4 * ROWS)))


def run(case: Case, folder: Path) -> float:
    """Run the case. Return the estimate in bytes, which is made before."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(make_recipe(case, folder)))
    recipe = read_recipe(file).recipe
    longest = case.world.prompt_tokens if case.stage == "ppo" else case.width
    estimate = memory_estimate.estimate(STAGES[case.stage], recipe, str(folder / "base"), longest, 0)
    assert estimate is not None
    print(case.words, estimate, flush=True)
    run_stage(case.stage, recipe, folder / "runs", smoke=False, reporter=StepTimer())
    return estimate.parts.total


def _read_status(name: str) -> int:
    """Return memory of this process in bytes: VmRSS (now) or VmHWM (peak). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Run the case of the command line and write `result.json`."""
    words, world, folder, default_malloc = json.loads(sys.argv[1])
    case = Case(tuple(words), World(**world))
    if not default_malloc:  # as the stages do if memory is short
        device_memory.release_freed_memory()
    run(replace(case, world=TINY), Path(folder) / "tiny")  # so that everything is imported
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        floor = torch.cuda.memory_allocated()
        estimated = run(case, Path(folder) / "world")
        measured = torch.cuda.max_memory_allocated() - floor
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM: see proc(5)
        floor = _read_status("VmRSS")
        estimated = run(case, Path(folder) / "world")
        measured = _read_status("VmHWM") - floor
    Path(folder, "result.json").write_text(json.dumps([estimated, measured]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        words, world, folder = json.loads(sys.argv[2])
        for shape, name in ((TINY, "tiny"), (World(**world), "world")):
            make(Case(tuple(words), shape), Path(folder) / name)
    else:
        main()
