"""Measure how fast a million rows are validated, and in how much memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.timing import format_spread

ROWS = 1_000_000
DISTINCT_ROWS = 10_000  # apart from a number in each prompt
ROUNDS = 3
RECIPES = {
    "preferences": "data: {preferences: {path: rows.jsonl}}\nreward: {start: base}\n",
    "sft": "data: {sft: {path: rows.jsonl}}\nsft: {}\n",
}
JSON_LOADS = "import json\nfor line in open('rows.jsonl', 'rb'): json.loads(line)"
LOAD_DATASET = (
    "import datasets; datasets.disable_progress_bars()\n"
    "datasets.load_dataset('json', data_files='rows.jsonl', split='train', cache_dir='cache-{number}')"
)
VOCABULARY = (
    "the of and to in a is it you that he was for on are with as his they be at one have this from or had by some what "
    "there we can out other were all your when up use word how said an each she which do their time "
    "café naïve “quoted” — 2,000 x = y: [1, 2]; don't print('hi') \"so\""
)


class ProcessUsage(NamedTuple):
    """What a process used.

    Attributes:
        cpu_seconds: CPU time, which excludes other load on the machine.
        peak_bytes: Peak resident memory.
    """

    cpu_seconds: float
    peak_bytes: int


def run(rows: str = str(ROWS)) -> None:
    """Run `rlhf check` on preference rows, as text and as conversations, and on demonstrations of several turns.

    Plain json.loads and `datasets` read the same files.

    Whole processes are run in turn and measured in CPU seconds. A word is the number of rows.
    """
    check = [str(Path(sys.executable).parent / "rlhf"), "check", "-r", "r.yaml", "--json"]
    commands: dict[str, Callable[[], list[str]]] = {
        "rlhf check": lambda: check,
        "json.loads on each line": lambda: [sys.executable, "-c", JSON_LOADS],
        "datasets.load_dataset": lambda: [sys.executable, "-c", LOAD_DATASET.format(number=time.monotonic_ns())],
    }
    print(
        "| rows | MB | | CPU seconds | MB/s, median (range) | rows/s | peak memory, MB |\n|---|---|---|---|---|---|---|"
    )
    for name, kind, make_row in (
        ("text", "preferences", make_text_row),
        ("conversations", "preferences", make_conversation_row),
        ("several turns", "sft", make_multi_turn_row),
    ):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "r.yaml").write_text("name: x\nbase: {model: org/model}\n" + RECIPES[kind])
            size = write_rows(Path(folder) / "rows.jsonl", make_row, int(rows))
            usages: dict[str, list[ProcessUsage]] = {command: [] for command in commands}
            for index in range(1 + ROUNDS):  # the first round warms up
                for command, words in commands.items():
                    usage = _run_measured(words(), folder)
                    if index:
                        usages[command].append(usage)
            for command, found in usages.items():
                _print_row(name, size, command, found, int(rows))


def _print_row(name: str, size: int, command: str, usages: list[ProcessUsage], rows: int) -> None:
    seconds = statistics.median(usage.cpu_seconds for usage in usages)
    speeds = format_spread([size / 1e6 / usage.cpu_seconds for usage in usages])
    peak = max(usage.peak_bytes for usage in usages) / 1e6
    print(
        f"| {name} | {size / 1e6:.0f} | {command} | {seconds:.2f} | {speeds} | {rows / seconds:,.0f} | {peak:.0f} |",
        flush=True,
    )


def _run_measured(command: list[str], folder: str) -> ProcessUsage:
    """Run a command in `folder`, and remove the caches that it leaves there."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    for cache in Path(folder).glob("cache-*"):
        shutil.rmtree(cache)
    return ProcessUsage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def write_rows(path: Path, make_row: Callable[[random.Random], dict[str, Any]], count: int) -> int:
    """Write `count` rows with different prompts. Return the file's size in bytes."""
    rng = random.Random(0)
    lines = [json.dumps(make_row(rng), ensure_ascii=index % 2 == 0) for index in range(DISTINCT_ROWS)]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines[number % len(lines)].replace("NUMBER", str(number), 1) + "\n" for number in range(count))
    return path.stat().st_size


def make_text_row(rng: random.Random) -> dict[str, Any]:
    """Return a preference row of text."""
    prompt = f"Question NUMBER: {_make_text(rng, 10, 50)}"
    return {"prompt": prompt, "chosen": _make_text(rng, 10, 70), "rejected": _make_text(rng, 10, 70)}


def make_conversation_row(rng: random.Random) -> dict[str, Any]:
    """Return a preference row of conversations."""
    turns = [{"role": "user", "content": f"Question NUMBER: {_make_text(rng, 10, 50)}"}]
    chosen, rejected = ([{"role": "assistant", "content": _make_text(rng, 10, 70)}] for _ in range(2))
    return {"prompt": turns, "chosen": chosen, "rejected": rejected}


def make_multi_turn_row(rng: random.Random) -> dict[str, Any]:
    """Return a demonstration of two to ten turns."""
    turns = []
    for number in range(rng.randint(1, 5)):
        question = f"{'' if number else 'Question NUMBER: '}{_make_text(rng, 5, 30)}"
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": _make_text(rng, 10, 50)}]
    return {"messages": turns}


def _make_text(rng: random.Random, min_words: int, max_words: int) -> str:
    """Return some words; every third text has paragraphs."""
    words = rng.choices(VOCABULARY.split(), k=rng.randint(min_words, max_words))
    if rng.random() < 1 / 3:
        words[len(words) // 2] = "\n\n"
    return " ".join(words)
