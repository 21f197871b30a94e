"""Measure how long annotators wait for the next item, and for the acknowledgment of a judgment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from rlhf_cli.feedback.store import Store
from rlhf_cli.feedback.types import NewCompletion, NewItem
from rlhf_cli.recipe.schema import Feedback
from tests.support.annotation_server import AnnotationServer, HttpAnnotator
from tests.support.postgresql import running_server

ITEMS = 100_000
ANNOTATORS = 50
SECONDS = 20.0
LANGUAGES = ("en", "de", "ar")
CHARACTERS = 1000  # of a completion
LIMITS = (0.1, 0.5)  # seconds for the next item: median and 99th percentile
SERVER_CORE, CLIENT_CORE = 0, 1
WITHOUT_PAUSE, PEOPLE = 0.0, 2.0  # mean seconds between an item and its judgment


def run(*databases: str) -> None:
    """Let 50 annotators judge over HTTP, with 100,000 items of four completions in the store.

    The server, and PostgreSQL, have one core, and the annotators another. An annotator takes 2 seconds per item on
    average (exponentially distributed), which is several times faster than people, or answers at once. Each database
    is measured for 20 seconds with each; PostgreSQL and SQLite wait for the disk (fsync).
    """
    print("| database | pause | items | next item: median, p99, max | judgment: median, p99, max | CPU per item |")
    print("|---|---|---|---|---|---|")
    for name in databases or ("sqlite", "postgresql"):
        with tempfile.TemporaryDirectory() as folder, _database(name, Path(folder)) as url:
            tokens = _fill(url)
            for pause in (PEOPLE, WITHOUT_PAUSE):
                _measure(name, url, Path(folder), tokens[pause], pause)


@contextlib.contextmanager
def _database(name: str, folder: Path) -> Iterator[str]:
    if name == "sqlite":
        yield str(folder / "feedback.db")
        return
    with running_server(fsync="on") as server:
        postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.sched_setaffinity(postmaster, {SERVER_CORE})
        yield server.create_schema()


def _fill(url: str) -> dict[float, list[str]]:
    """Add the items, and annotators for each pause. Return their invites."""
    words = [f"word{number}" for number in range(500)]
    generator = random.Random(0)
    with Store(url, "project", Feedback(overlap=2, max_overlap=2)) as store:
        store.add_items(
            NewItem(
                f"prompt {number}",
                tuple(
                    NewCompletion(f"{number} {index} {' '.join(generator.choices(words, k=CHARACTERS // 8))}")
                    for index in range(4)
                ),
                language=LANGUAGES[number % len(LANGUAGES)],
            )
            for number in range(ITEMS)
        )
        return {
            pause: [
                store.add_annotator(f"{pause} {number}", languages=LANGUAGES[: 1 + number % 3]).token
                for number in range(ANNOTATORS)
            ]
            for pause in (PEOPLE, WITHOUT_PAUSE)
        }


def _measure(name: str, url: str, folder: Path, tokens: Sequence[str], pause: float) -> None:
    server = AnnotationServer(folder, url, prefix=("taskset", "-c", str(SERVER_CORE)))
    server.start()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CORE})
    try:
        clients = [HttpAnnotator(server.port) for _ in tokens]
        for client, token in zip(clients, tokens, strict=True):
            client.log_in(token)
        before = psutil.Process(server.pid).cpu_times()
        waits: list[list[float]] = [[], []]
        end = time.monotonic() + SECONDS
        with ThreadPoolExecutor(len(clients)) as pool:
            for found in pool.map(lambda number: _work(clients[number], number, pause, end), range(len(clients))):
                for all_waits, own in zip(waits, found, strict=True):
                    all_waits += own
        after = psutil.Process(server.pid).cpu_times()
    finally:
        os.sched_setaffinity(0, cores)
        server.kill(signal.SIGTERM)
    cpu = (after.user + after.system - before.user - before.system) / len(waits[1])
    late = "" if _within_limits(waits[0]) else " over the limit"
    cells = " | ".join(f"{_quantiles(times)}" for times in waits)
    print(f"| {name} | {pause:g} s | {len(waits[1]):,} | {cells}{late} | {cpu * 1000:.0f} ms |", flush=True)


def _work(client: HttpAnnotator, number: int, pause: float, end: float) -> tuple[list[float], list[float]]:
    """Judge until the end. Return the seconds of each request for an item, and of each judgment."""
    generator = random.Random(number)
    served, judged = [], []
    if pause:
        time.sleep(generator.random() * pause)
    while time.monotonic() < end:
        start = time.perf_counter()
        task = client.next_task()
        served.append(time.perf_counter() - start)
        assert task is not None
        if pause:
            time.sleep(generator.expovariate(1 / pause))
        start = time.perf_counter()
        client.answer(task, f"key {task.id}", [[position] for position in range(1, task.completions + 1)])
        judged.append(time.perf_counter() - start)
    return served, judged


def _quantile(times: Sequence[float], fraction: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * fraction))]


def _within_limits(times: Sequence[float]) -> bool:
    return statistics.median(times) < LIMITS[0] and _quantile(times, 0.99) < LIMITS[1]


def _quantiles(times: Sequence[float]) -> str:
    found = (statistics.median(times), _quantile(times, 0.99), max(times))
    return ", ".join(f"{seconds * 1000:.0f}" for seconds in found) + " ms"
