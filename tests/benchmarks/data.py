"""How fast a million rows are checked, and in how much memory."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.timing import spread

ROWS = 1_000_000
ROUNDS = 3
RECIPE = "name: x\nbase: {model: org/model}\ndata: {preferences: {path: rows.jsonl}}\nreward: {start: base}\n"
LOADS = "import json\nfor line in open('rows.jsonl', 'rb'): json.loads(line)"
DATASETS = (
    "import datasets; datasets.disable_progress_bars()\n"
    "datasets.load_dataset('json', data_files='rows.jsonl', split='train', cache_dir='cache-{pid}')"
)
SAID = (
    "the of and to in a is it you that he was for on are with as his they be at one have this from or had by some what "
    "there we can out other were all your when up use word how said an each she which do their time "
    "café naïve “quoted” — 2,000 x = y: [1, 2]; don't print('hi') \"so\""
)


class Ended(NamedTuple):
    """A process that came to its end."""

    seconds: float  # of a processor: what else the machine does is not counted
    peak: int  # bytes


def run(rows: str = str(ROWS)) -> None:
    """`rlhf check` on preference rows, as text and as conversations, beside json.loads alone and `datasets`; whole
    processes, in turn, in seconds of a processor. A word is the number of rows."""
    check = [str(Path(sys.executable).parent / "rlhf"), "check", "-r", "r.yaml", "--json"]
    commands: dict[str, Callable[[], list[str]]] = {
        "rlhf check": lambda: check,
        "json.loads, a line at a time": lambda: [sys.executable, "-c", LOADS],
        "datasets.load_dataset": lambda: [sys.executable, "-c", DATASETS.format(pid=time.monotonic_ns())],
    }
    print("| rows | MB | | seconds | MB/s, median (range) | rows/s | peak memory, MB |\n|---|---|---|---|---|---|---|")
    for name, row in (("text", _text), ("conversations", _conversation)):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "r.yaml").write_text(RECIPE)
            size = _write(Path(folder) / "rows.jsonl", row, int(rows))
            ended: dict[str, list[Ended]] = {command: [] for command in commands}
            for index in range(1 + ROUNDS):  # the first warms up
                for command, words in commands.items():
                    one = _timed(words(), folder)
                    if index:
                        ended[command].append(one)
            for command, found in ended.items():
                seconds = statistics.median(one.seconds for one in found)
                speeds = spread([size / 1e6 / one.seconds for one in found])
                peak = max(one.peak for one in found) / 1e6
                row_speed = int(rows) / seconds
                print(
                    f"| {name} | {size / 1e6:.0f} | {command} | {seconds:.2f} | {speeds} | {row_speed:,.0f} | "
                    f"{peak:.0f} |",
                    flush=True,
                )


def _timed(command: list[str], folder: str) -> Ended:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    subprocess.run(["rm", "-rf", *map(str, Path(folder).glob("cache-*"))], check=True)
    return Ended(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _write(path: Path, row: Callable[[random.Random], dict[str, Any]], count: int) -> int:
    """`count` rows, no two of them with one prompt, made of 10,000; the file's size in bytes."""
    rng = random.Random(0)
    lines = [json.dumps(row(rng), ensure_ascii=index % 2 == 0) for index in range(10_000)]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines[number % len(lines)].replace("NUMBER", str(number), 1) + "\n" for number in range(count))
    return path.stat().st_size


def _said(rng: random.Random, least: int, most: int) -> str:
    """Some words; every third such text has paragraphs."""
    words = rng.choices(SAID.split(), k=rng.randint(least, most))
    if rng.random() < 1 / 3:
        words[len(words) // 2] = "\n\n"
    return " ".join(words)


def _text(rng: random.Random) -> dict[str, Any]:
    prompt = f"Question NUMBER: {_said(rng, 10, 50)}"
    return {"prompt": prompt, "chosen": _said(rng, 10, 70), "rejected": _said(rng, 10, 70)}


def _conversation(rng: random.Random) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"Question NUMBER: {_said(rng, 10, 50)}"}]
    chosen, rejected = ([{"role": "assistant", "content": _said(rng, 10, 70)}] for _ in range(2))
    return {"prompt": turns, "chosen": chosen, "rejected": rejected}
