"""Compare the memory estimate with the memory that a run takes: every stage, and the settings that change its peak."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.ppo_job import run_worker
from tests.benchmarks.ppo_world import World

WORLD = World(32_000, 384, 1024, 6, 6, 3, 96, 32)  # 22 million parameters
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


class MemoryResult(NamedTuple):
    """Bytes above those of the interpreter and its imports."""

    estimated: float
    measured: float

    @property
    def ratio(self) -> float:
        """Estimated over measured."""
        return self.estimated / self.measured


def run(*words: str) -> None:
    """Print the estimate and the measured peak of each case, which runs in a process of its own.

    22M parameters, vocabulary 32,000, 8 rows of 128 tokens in memory at once (reward: 4 pairs). On a CPU, glibc
    returns freed memory at once, as in the stages if memory is short; the last column is without that. On a GPU, it is
    the allocator's peak.
    """
    print("| case | estimated, MB | measured, MB | ratio | by default, MB |\n|---|---|---|---|---|", flush=True)
    for case in CASES:
        if set(words) <= {*case}:
            found = measure(case)
            default = measure(case, default_malloc=True)
            cells = f"{found.estimated / 1e6:,.0f} | {found.measured / 1e6:,.0f} | {found.ratio:.2f}"
            print(f"| {' '.join(case)} | {cells} | {default.measured / 1e6:,.0f} |", flush=True)


def measure(case: tuple[str, ...], world: World = WORLD, *, default_malloc: bool = False) -> MemoryResult:
    """Run `case` in a process of its own, after another one has made its model and data."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = Path(sys.executable)
        run_worker(python, "memory_worker", ["make", json.dumps([case, asdict(world), name])], folder)
        run_worker(python, "memory_worker", [json.dumps([case, asdict(world), name, default_malloc])], folder)
        return MemoryResult(*json.loads((folder / "result.json").read_text()))
