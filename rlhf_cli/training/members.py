"""Keep the finished members of a reward ensemble in the run and in its checkpoints while the others are trained."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from rlhf_cli import distributed
from rlhf_cli.models.ensemble import member_folder
from rlhf_cli.runs.run import Run
from rlhf_cli.runs.training_state import load_state, save_state
from rlhf_cli.training.checkpointing import STATE

MEMBERS = "members"  # folder of a checkpoint
SEED_FACTOR = 1_000_003  # keeps the members' seeds of different recipes apart
MAX_SEED = 2**32  # of numpy


def member_seed(seed: int, index: int) -> int:
    """Return the seed of a member; that of the first one is the recipe's."""
    return (seed + index * SEED_FACTOR) % MAX_SEED


def member_rows(rows: Dataset, seed: int, index: int) -> Dataset:
    """Return the rows that a member is trained on: all for the first one, else a bootstrap sample of equal size."""
    if index == 0:
        return rows
    return rows.select(random.Random(seed).choices(range(len(rows)), k=len(rows)))


class FinishedMembers:
    """The members of a reward ensemble that are already trained.

    Attributes:
        scores: Each member's scores of the same sequences; empty in processes that do not evaluate.
        metrics_state: State of the metrics at a checkpoint between two members that the run resumes from, or None.
    """

    def __init__(self, run: Run, count: int) -> None:
        self.scores: list[list[float]] = []
        self.metrics_state: Mapping[str, float] | None = None
        self._run, self._count = run, count
        if count > 1 and run.resumed_from is not None:
            self._restore(run.resumed_from / MEMBERS)

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint that the next member resumes from, or None if it starts anew."""
        folder = self._run.resumed_from
        return folder if folder is not None and (folder / STATE).is_dir() else None

    def save(self, checkpoint: Path, metrics: Mapping[str, float] | None = None) -> None:
        """Write the finished members into a checkpoint. No-op if the run trains one model only.

        Args:
            checkpoint: The folder of the checkpoint.
            metrics: State of the metrics, for a checkpoint between two members.
        """
        if self._count == 1:
            return
        state: dict[str, Any] = {"scores": self.scores, "metrics": metrics}
        save_state(checkpoint / MEMBERS, state)
        for index in range(len(self.scores)):
            _copy_files(member_folder(self._run.model_dir, index), checkpoint / MEMBERS / str(index))

    def save_between(self, step: int, metrics: Mapping[str, float]) -> None:
        """Commit a checkpoint after a member. Every process must call this.

        Raises:
            StoppedError: A signal came; the checkpoint is committed.
        """
        with self._run.checkpoint(step) as folder:
            self.save(folder, metrics)
        if any(distributed.all_gather_object(self._run.stop_requested)):
            raise self._run.stopped(step)

    def _restore(self, folder: Path) -> None:
        state = load_state(folder)
        self.scores, self.metrics_state = state["scores"], state["metrics"]
        for index in range(len(self.scores)):
            _copy_files(folder / str(index), member_folder(self._run.model_dir, index))


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder, without its subfolders."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target)
