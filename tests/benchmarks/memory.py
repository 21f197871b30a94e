"""The memory estimate beside what a run takes: every stage, and what changes its peak."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.ppo_job import work
from tests.benchmarks.ppo_world import World

WORLD = World(32_000, 384, 1024, 6, 6, 3, 96, 32)  # 22M parameters
CASES = (
    ("ppo", "lora"),
    ("ppo", "lora", "checkpointing"),
    ("ppo", "lora", "shared"),
    ("ppo", "lora", "bfloat16"),
    ("ppo", "nf4"),
    ("ppo", "full"),
    ("sft", "lora"),
    ("sft", "lora", "checkpointing"),
    ("sft", "full"),
    ("reward", "lora"),
    ("reward", "full"),
)


class Measured(NamedTuple):
    """Bytes above the interpreter and its imports."""

    estimated: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.estimated / self.measured


def run(*words: str) -> None:
    """Estimated before loading, and measured: a process of its own for each case, its peak above its imports.

    22M parameters, vocabulary 32,000, 8 rows of 128 tokens in memory at once (reward: 4 pairs). On a CPU glibc is told
    to give freed memory back at once, as the stages do where memory is short; behind it, the same as glibc does it by
    itself. With a GPU it is its allocator's peak.
    """
    print("| case | estimated, MB | measured, MB | ratio | by default, MB |\n|---|---|---|---|---|", flush=True)
    for case in CASES:
        if set(words) <= {*case}:
            found, default = measured(case), measured(case, default_malloc=True)
            cells = f"{found.estimated / 1e6:,.0f} | {found.measured / 1e6:,.0f} | {found.ratio:.2f}"
            print(f"| {' '.join(case)} | {cells} | {default.measured / 1e6:,.0f} |", flush=True)


def measured(case: tuple[str, ...], world: World = WORLD, *, default_malloc: bool = False) -> Measured:
    """Run `case` in a process of its own; another one makes what it runs on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = Path(sys.executable)
        work(python, "memory_worker", ["make", json.dumps([case, asdict(world), name])], folder)
        work(python, "memory_worker", [json.dumps([case, asdict(world), name, default_malloc])], folder)
        return Measured(*json.loads((folder / "result.json").read_text()))
