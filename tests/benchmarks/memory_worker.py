"""Worker of the memory benchmark: one run of a stage in this process, what was estimated of it and what it took."""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - loaded with a 4-bit base; here, so that it counts as an import
import torch
import trl  # noqa: F401 - likewise
import yaml

from rlhf_cli.models import device_memory
from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.recipe.loader import read_recipe
from rlhf_cli.training import memory_check
from tests.benchmarks import ppo_world
from tests.benchmarks.ppo_world import World

ROWS = 8  # in memory at once
TINY = World(32_000, 64, 128, 2, 4, 2, 8, 8)


@dataclass(frozen=True)
class Case:
    """What is run: a stage in words of `tests/benchmarks/memory.py`, on a world of `ppo_world`."""

    words: tuple[str, ...]
    world: World

    @property
    def stage(self) -> str:
        return self.words[0]


class Silent:
    """A reporter that says warnings alone."""

    def warning(self, text: str) -> None:
        print(text, flush=True)

    def stage(self, *_: object) -> None: ...
    def begin(self, *_: object) -> None: ...
    def step(self, *_: object) -> None: ...
    def say(self, *_: object) -> None: ...
    def done(self, *_: object) -> None: ...


def recipe(case: Case, folder: Path) -> dict[str, Any]:
    """`case` in the words of a recipe: two optimizer steps, the second of which finds everything in place."""
    words, world = case.words, case.world
    width = world.prompt_tokens + world.response_tokens
    made: dict[str, Any] = {
        "name": "memory",
        "base": {
            "model": str(folder / "base"),
            "quantize": "nf4" if "nf4" in words else "none",
            "dtype": "bfloat16" if "bfloat16" in words else "float32",
        },
        "adapter": None if "full" in words else {"rank": ppo_world.LORA_RANK, "alpha": ppo_world.LORA_ALPHA},
        "data": {
            kind: {"path": str(folder / f"{kind}.jsonl"), "eval_fraction": 0.0}
            for kind in ("prompts", "sft", "preferences")
        },
    }
    if case.stage == "ppo":
        made["ppo"] = {
            "start": "base",
            "reward": [{"run": str(folder / "reward")}],
            "iterations": 1,
            "save_every": 1,
            "rollout_batch_size": 2 * ROWS,
            "max_prompt_length": world.prompt_tokens,
            "max_new_tokens": world.response_tokens,
            "epochs": 1,
            "minibatches": 2,
            "micro_batch_tokens": ROWS * width,
            "critic": {"kind": "shared" if "shared" in words else "adapter"},
            "trainer": {"activation_checkpointing": "checkpointing" in words},
        }
    else:
        rows = ROWS if case.stage == "sft" else ROWS // 2
        made[case.stage] = {
            "start": "base",
            "max_steps": 2,
            "batch_size": rows,
            "micro_batch_size": rows,
            "max_length": width,
            "trainer": {"gradient_checkpointing": "checkpointing" in words},
        }
    return made


def make(case: Case, folder: Path) -> None:
    """The base, a reward model and rows, all of which fill the case's lengths."""
    world = case.world
    ppo_world.make(replace(world, whole="full" in case.words), folder)
    draw = random.Random(1)
    words = [f"w{index}" for index in range(2, world.vocab_size)]

    def text(tokens: int) -> str:
        return " ".join(draw.choices(words, k=tokens))

    def row(*answers: str) -> str:
        shared = {"prompt": text(world.prompt_tokens) + " "}
        return json.dumps(shared | {name: text(world.response_tokens - 1) for name in answers}) + "\n"

    (folder / "sft.jsonl").write_text("".join(row("completion") for _ in range(4 * ROWS)))
    (folder / "preferences.jsonl").write_text("".join(row("chosen", "rejected") for _ in range(4 * ROWS)))


def run(case: Case, folder: Path) -> float:
    """Run the case; the estimate, in bytes, from before."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(case, folder)))
    loaded = read_recipe(file).recipe
    width = case.world.prompt_tokens + (case.world.response_tokens if case.stage != "ppo" else 0)
    estimate = memory_check.estimate(case.stage, loaded, str(folder / "base"), width)
    assert estimate is not None
    print(case.words, estimate, flush=True)
    run_stage(case.stage, loaded, folder / "runs", smoke=False, reporter=Silent())
    return estimate.parts.total


def _now(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at the highest. Linux alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    words, world, folder, default_malloc = json.loads(sys.argv[1])
    case = Case(tuple(words), World(**world))
    if not default_malloc:  # as the stages themselves do where memory is short
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
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: see proc(5)
        floor = _now("VmRSS")
        estimated = run(case, Path(folder) / "world")
        measured = _now("VmHWM") - floor
    Path(folder, "result.json").write_text(json.dumps([estimated, measured]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        words, world, folder = json.loads(sys.argv[2])
        for shape, name in ((TINY, "tiny"), (World(**world), "world")):
            make(Case(tuple(words), shape), Path(folder) / name)
    else:
        main()
