"""How long a person waits before anything happens: help, a faulty recipe, a listing."""

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

FAULTY = "name: x\nbase: {modell: y}\nsft: {learnig_rate: 1e-4, epochs: 1, max_steps: 2, batch_size: 0}\n"
LIMIT = 0.6  # seconds
RUNS = 1000


def run() -> None:
    """`rlhf` beside `trl`, whole processes, in turn. The issue is one that both can be given, a misspelt learning rate;
    what TRL has no like of (`check`, `runs list`) stands beside its nearest."""
    binaries = Path(sys.executable).parent
    trl, rlhf = str(binaries / "trl"), str(binaries / "rlhf")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "x.yaml"
        recipe.write_text(FAULTY)
        make_runs(folder / "runs")
        issue = [trl, "sft", "--learnig_rate", "1e-4"]
        print("| rlhf | trl | rlhf, median | trl, median | ratio, median (range) |\n|---|---|---|---|---|")
        for ours, theirs, rounds in (
            ([rlhf, "--help"], [trl, "--help"], 10),
            ([rlhf, "sft", "--help"], [trl, "sft", "--help"], 3),
            ([rlhf, "check", "-r", str(recipe)], issue, 3),
            ([rlhf, "sft", "-r", str(recipe)], issue, 3),
            ([rlhf, "runs", "list", "--runs-dir", str(folder / "runs")], [trl, "--help"], 10),
            ([rlhf, "init", "", "--json"], [trl, "--help"], 10),
        ):
            shown = " | ".join(_shown(command, folder) for command in (ours, theirs))
            cells = compare(_timed(ours, folder), _timed(theirs, folder), rounds)
            late = "" if float(cells.split()[0]) < LIMIT else f" over {LIMIT} s"
            print(f"| {shown} | {cells}{late} |", flush=True)
        print(f"\n`runs list` is of {RUNS:,} runs. Marked is what takes longer than {LIMIT} s.")


def make_runs(runs_dir: Path) -> None:
    """Complete runs of five stages, with manifests of the size that real ones have; one in twenty is incomplete."""
    stages = ("sft", "reward", "ppo", "eval", "export")
    for number in range(RUNS):
        stage, version = stages[number % 5], f"v{number // 25 % 1000 + 1:04d}"
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
        content = {
            "schema": SCHEMA,
            "stage": stage,
            "name": folder.parts[-3],
            "version": version,
            "smoke": False,
            "started": "2026-11-23T12:00:00Z",
            "seconds": 60.0 + number,
            "metrics": {f"{stage}.figure_{i}": i / 7 for i in range(30)} | {"reward.accuracy": 0.75, "ppo.reward": 1.5},
            "warnings": [],
            "gates": [],
            "inputs": inputs,
            "files": {f"file-{i}": {"size": 1000, "sha256": "0" * 64} for i in range(8)},
        }
        (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2))


def _shown(command: list[str], folder: Path) -> str:
    words = [Path(command[0]).name, *(word.replace(f"{folder}/", "") or "DIR" for word in command[1:])]
    return f"`{' '.join(words)}`"


def _timed(command: list[str], folder: Path) -> Callable[[], float]:
    """An empty word is a folder that is not there yet."""
    made = 0

    def once() -> float:
        nonlocal made
        made += 1
        words = [word or str(folder / f"new-{made}") for word in command]
        begin = time.perf_counter()
        subprocess.run(words, capture_output=True, check=False)
        return time.perf_counter() - begin

    return once
