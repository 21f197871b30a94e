"""Measure how long a user waits before anything happens: help, an invalid recipe, a listing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rlhf_cli.runs.manifest import MANIFEST_FILE, SCHEMA
from tests.benchmarks.timing import compare

INVALID_RECIPE = "name: x\nbase: {modell: y}\nsft: {learnig_rate: 1e-4, epochs: 1, max_steps: 2, batch_size: 0}\n"
LIMIT = 0.6  # seconds
RUNS = 1000


def run() -> None:
    """Run `rlhf` beside `trl`: whole processes, in turn.

    Both are given a misspelled learning rate. `check` and `runs list`, which TRL does not have, are compared with the
    closest command.
    """
    binaries = Path(sys.executable).parent
    trl, rlhf = str(binaries / "trl"), str(binaries / "rlhf")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "x.yaml"
        recipe.write_text(INVALID_RECIPE)
        write_runs(folder / "runs")
        misspelled = [trl, "sft", "--learnig_rate", "1e-4"]
        print("| rlhf | trl | rlhf, median | trl, median | ratio, median (range) |\n|---|---|---|---|---|")
        for ours, theirs, rounds in (
            ([rlhf, "--help"], [trl, "--help"], 10),
            ([rlhf, "sft", "--help"], [trl, "sft", "--help"], 3),
            ([rlhf, "check", "-r", str(recipe)], misspelled, 3),
            ([rlhf, "sft", "-r", str(recipe)], misspelled, 3),
            ([rlhf, "runs", "list", "--runs-dir", str(folder / "runs")], [trl, "--help"], 10),
            ([rlhf, "init", "", "--json"], [trl, "--help"], 10),
        ):
            shown = " | ".join(_format_command(command, folder) for command in (ours, theirs))
            cells = compare(_timed(ours, folder), _timed(theirs, folder), rounds)
            late = "" if float(cells.split()[0]) < LIMIT else f" over {LIMIT} s"
            print(f"| {shown} | {cells}{late} |", flush=True)
        print(f"\n`runs list` reads {RUNS:,} runs. Times over {LIMIT} s are marked.")


def write_runs(runs_dir: Path) -> None:
    """Write runs of five stages with manifests of realistic size; one run in twenty is incomplete."""
    stages = ("sft", "reward", "ppo", "eval", "export")
    for number in range(RUNS):
        stage = stages[number % 5]
        version = f"v{number // 25 % 1000 + 1:04d}"
        folder = runs_dir / f"bot-{number // 5 % 5}" / stage / version
        folder.mkdir(parents=True)
        if number % 20 == 7:
            continue
        inputs = [
            {
                "role": f"data.{i}",
                "ref": "x" * 40,
                "kind": "file",
                "path": "y" * 80,
                "version": None,
                "sha256": "0" * 64,
            }
            for i in range(6)
        ]
        manifest = {
            "schema": SCHEMA,
            "stage": stage,
            "name": folder.parts[-3],
            "version": version,
            "smoke": False,
            "started": "2026-11-23T12:00:00Z",
            "seconds": 60.0 + number,
            "metrics": {f"{stage}.metric_{i}": i / 7 for i in range(30)} | {"reward.accuracy": 0.75, "ppo.reward": 1.5},
            "warnings": [],
            "gates": [],
            "inputs": inputs,
            "files": {f"file-{i}": {"size": 1000, "sha256": "0" * 64} for i in range(8)},
        }
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2))


def _format_command(command: list[str], folder: Path) -> str:
    words = [Path(command[0]).name, *(word.replace(f"{folder}/", "") or "DIR" for word in command[1:])]
    return f"`{' '.join(words)}`"


def _timed(command: list[str], folder: Path) -> Callable[[], float]:
    """Return a function that runs the command and returns its seconds. An empty word becomes a new folder's path."""
    count = 0

    def run_once() -> float:
        nonlocal count
        count += 1
        words = [word or str(folder / f"new-{count}") for word in command]
        begin = time.perf_counter()
        subprocess.run(words, capture_output=True, check=False)
        return time.perf_counter() - begin

    return run_once
