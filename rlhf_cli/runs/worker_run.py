"""The run of a worker process: it reads the main process's run, and writes only to a temporary folder."""

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
    """What the main process sends to the worker processes about its run. The fields are those of `Run`."""

    stage: str
    name: str
    path: Path
    runs_dir: Path
    smoke: bool
    resumed_from: Path | None
    elapsed_before_resume: float

    @classmethod
    def from_run(cls, run: Run) -> RunHandle:
        """Return the handle of `run`."""
        return cls(
            run.stage,
            run.name,
            run.path,
            run.runs_dir,
            run.smoke,
            run.resumed_from,
            run.elapsed_before_resume,
        )


class WorkerRun(Run):
    """A run whose metrics and checkpoints are discarded, and that logs nothing: the main process writes them."""

    @classmethod
    def open(cls, main: RunHandle, reporter: Reporter) -> WorkerRun:
        """Open a worker's run of `main`. If `main` was resumed, it starts with the metrics logged so far."""
        folder = Path(tempfile.mkdtemp(prefix="rlhf-process-"))
        run = cls(
            main.stage,
            main.name,
            folder,
            main.runs_dir,
            main.smoke,
            reporter,
            acquire_lock(folder, new=True),
            resumed_from=main.resumed_from,
            elapsed_before_resume=main.elapsed_before_resume,
        )
        metrics_log = main.path / "metrics.jsonl"
        if main.resumed_from is not None and metrics_log.exists():
            shutil.copy(metrics_log, folder)
        return run

    @contextmanager
    def checkpoint(self, step: int, *, size: int = 0) -> Iterator[Path]:  # noqa: ARG002 - the signature of Run's
        """Yield a temporary folder, which is removed on exit: sharded models are saved by all processes together."""
        with tempfile.TemporaryDirectory(dir=self.path) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Close the run and remove its folder."""
        super().close()
        shutil.rmtree(self.path, ignore_errors=True)
