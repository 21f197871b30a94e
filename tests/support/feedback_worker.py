"""A process of annotators who work on one store at the same time: `python -m tests.support.feedback_worker`.

It prints a line when its store is open, waits for a line on stdin, lets each annotator judge until nothing is left, and
prints the acknowledged judgments as JSON: pairs of a judgment and an annotator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from rlhf_cli.feedback.store import Store
from rlhf_cli.recipe.schema import Feedback
from tests.support.feedback_store import agreeing


def start(url: str, settings: Feedback, annotators: Sequence[int]) -> subprocess.Popen[str]:
    """Start a process of annotators, which waits for a line on stdin."""
    command = [sys.executable, "-m", "tests.support.feedback_worker", url, settings.model_dump_json()]
    return subprocess.Popen(
        [*command, *map(str, annotators)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def work(store: Store, annotators: Sequence[int]) -> list[tuple[int, int]]:
    """Let the annotators judge at the same time until nothing is left, and return judgments with their annotators."""
    barrier = Barrier(len(annotators))

    def judge_all(annotator: int) -> list[tuple[int, int]]:
        made = []
        barrier.wait()
        while assigned := store.assign(annotator):
            key = f"key {assigned[0].id}"
            receipt = store.submit(annotator, assigned[0].id, agreeing(assigned[0]), key)
            assert not receipt.is_duplicate
            made.append((receipt.judgment_id, annotator))
        return made

    with ThreadPoolExecutor(len(annotators)) as pool:
        return [entry for made in pool.map(judge_all, annotators) for entry in made]


def main() -> None:
    url, settings, *annotators = sys.argv[1:]
    with Store(url, "project", Feedback.model_validate_json(settings)) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(work(store, [int(annotator) for annotator in annotators])), flush=True)


if __name__ == "__main__":
    main()
