"""A run as its other processes see it: what they write goes into a folder of their own, which is gone at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.runs.lock import acquire_lock
from rlhf_cli.runs.run import Reporter, Run


class RunHandle(NamedTuple):
    """What the main process tells the others of its run."""

    stage: str
    name: str
    path: Path
    runs_dir: Path
    smoke: bool
    base: str
    resumed: Path | None
    spent: float

    @classmethod
    def of(cls, run: Run) -> RunHandle:
        """What `Follower.of` takes."""
        return cls(run.stage, run.name, run.path, run.runs_dir, run.smoke, run.base, run.resumed, run.spent)


class WorkerRun(Run):
    """Reads and computes as the main process's run does, and leaves no trace."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._log.detach()  # the main process logs

    @classmethod
    def of(cls, main: RunHandle, reporter: Reporter) -> WorkerRun:
        """Follow `main` in a temporary folder, with the figures that a resumed run has logged so far."""
        folder = Path(tempfile.mkdtemp(prefix="rlhf-process-"))
        run = cls(
            main.stage,
            main.name,
            folder,
            main.runs_dir,
            main.smoke,
            main.base,
            reporter,
            acquire_lock(folder, new=True),
            resumed=main.resumed,
            spent=main.spent,
        )
        journal = main.path / "metrics.jsonl"
        if main.resumed is not None and journal.exists():
            shutil.copy(journal, folder)
        return run

    @contextmanager
    def checkpoint(self, step: int, *, size: int = 0) -> Iterator[Path]:
        """A folder to save into, as every process does; it is not kept."""
        with tempfile.TemporaryDirectory(dir=self.path) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Let go, and leave nothing behind."""
        super().close()
        shutil.rmtree(self.path, ignore_errors=True)
