"""How long a person waits before anything happens: help, a faulty recipe, a listing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.timing import compare

FAULTY = "name: x\nbase: {modell: y}\nsft: {learnig_rate: 1e-4, epochs: 1, max_steps: 2, batch_size: 0}\n"


def run() -> None:
    """`rlhf` beside `trl`, whole processes, in turn; the same mistake (a misspelt learning rate) for both."""
    binaries = Path(sys.executable).parent
    trl, rlhf = str(binaries / "trl"), str(binaries / "rlhf")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "x.yaml"
        recipe.write_text(FAULTY)
        print("| | rlhf | trl | ratio, median (range) |\n|---|---|---|---|")
        for name, ours, theirs, rounds in (
            ("--help", [rlhf, "--help"], [trl, "--help"], 10),
            ("sft, faulty", [rlhf, "sft", "-r", str(recipe)], [trl, "sft", "--learnig_rate", "1e-4"], 3),
            ("list of runs / --help", [rlhf, "runs", "list", "--runs-dir", folder], [trl, "--help"], 10),
        ):
            print(f"| {name} | {compare(_timed(ours), _timed(theirs), rounds)} |", flush=True)


def _timed(command: list[str]) -> Callable[[], float]:
    def once() -> float:
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        return time.perf_counter() - begin

    return once
