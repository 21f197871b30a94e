"""An open run: its folder, its logs and checkpoints, and the manifest that completes it."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from rlhf_cli.errors import StoppedError
from rlhf_cli.formatting import format_path
from rlhf_cli.runs import disk, layout
from rlhf_cli.runs.checkpoint import (
    RESUME_HINT,
    checkpoint_path,
    checkpoint_step,
    checkpoints,
    remove,
    write_checkpoint,
)
from rlhf_cli.runs.lock import STARTED_FILE, Lock, StartRecord, acquire_lock, remove_lock, write_started
from rlhf_cli.runs.manifest import SCHEMA, hash_files, sync, write_manifest
from rlhf_cli.runs.resume import STEP_LOGS, ResumableRun, newest_checkpoint, rewind
from rlhf_cli.runs.run_log import RunLogHandler

logger = logging.getLogger(__name__)


class StageMetrics(NamedTuple):
    """The result of a stage.

    Attributes:
        metrics: The final metrics, name to number. `evaluation.metrics.all_metrics` describes them.
        gates: One verdict for each gate, as the manifest has it; only a stage that evaluates has any.
        verdict: The result in words, as the manifest has it; None if the stage does not evaluate.
        conversational: Whether it trained on conversations, and not on text only; None if it did not train.
        facts: Further keys of the manifest.
    """

    metrics: dict[str, float]
    gates: tuple[dict[str, Any], ...] = ()
    verdict: dict[str, Any] | None = None
    conversational: bool | None = None
    facts: Mapping[str, Any] = MappingProxyType({})


class Reporter(Protocol):
    """Shows the progress of a run to the user."""

    def begin(self, total: int, unit: str) -> None:
        """Show that training starts, with its number of steps and what they are called."""

    def phase(self, text: str) -> None:
        """Show which part of a step is running."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a logged step."""

    def info(self, text: str) -> None:
        """Show a message."""

    def warning(self, text: str) -> None:
        """Show a warning."""


@dataclass
class Run:
    """An open run, passed to its stage, which writes nowhere else.

    Attributes:
        stage: The stage.
        name: The name of the recipe.
        path: The run's folder.
        runs_dir: The runs directory.
        smoke: Whether it is a smoke run.
        reporter: Shows progress.
        lock: This process's lock of the run.
        started: When the run was started, in seconds since 1970; possibly by another process.
        resumed_from: The verified checkpoint that this process resumes from, or None for a new run.
        started_training: Whether `begin` was called.
        handles_signals: Whether the stage checks `stop_requested` after each step.
        stop_requested: Whether a signal was received: save after this step, and raise `stopped(step)`.
        elapsed_before_resume: Seconds of work up to the checkpoint `resumed_from`.
        check_inputs: Raises RlhfError if an input changed since it was hashed; called when the data is loaded.
    """

    stage: str
    name: str
    path: Path
    runs_dir: Path
    smoke: bool
    reporter: Reporter
    lock: Lock
    started: float = field(default_factory=time.time)
    resumed_from: Path | None = None
    started_training: bool = False
    handles_signals: bool = False
    stop_requested: bool = False
    elapsed_before_resume: float = 0.0
    check_inputs: Callable[[], None] = lambda: None
    _opened: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._log = RunLogHandler(self.path / "log.txt", self.reporter)

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        name: str,
        stage: str,
        *,
        smoke: bool,
        reporter: Reporter,
        provenance: Mapping[str, Any] = MappingProxyType({}),
    ) -> Run:
        """Claim the next version and lock it.

        Args:
            runs_dir: The runs directory.
            name: The name of the recipe.
            stage: The stage.
            smoke: Whether it is a smoke run.
            reporter: Shows progress.
            provenance: Settings, inputs and versions, which a resume compares with its own.

        Raises:
            DiskError: The folder cannot be created.
        """
        path = layout.claim(runs_dir, name, stage)
        lock: Lock | None = None
        try:
            with disk.convert_disk_errors(path):
                lock = acquire_lock(path, new=True)
                run = cls(stage, name, path, runs_dir, smoke, reporter, lock)
                write_started(path, StartRecord(run.started, smoke, dict(provenance)))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            if lock is not None:
                lock.release()
            raise
        run._log.attach()
        return run

    @classmethod
    def resume(cls, found: ResumableRun, *, reporter: Reporter) -> tuple[Run, list[str]]:
        """Resume a run from its newest undamaged checkpoint, and remove what it wrote later.

        Returns:
            The run, and why newer versions or checkpoints were skipped.

        Raises:
            ModelError: Every checkpoint is damaged.
        """
        point = newest_checkpoint(found.path)
        name, stage = found.path.parts[-3:-1]
        run = cls(
            stage,
            name,
            found.path,
            found.path.parents[2],
            found.record.smoke,
            reporter,
            found.lock,
            started=found.record.started,
            resumed_from=point.path,
            elapsed_before_resume=point.manifest["seconds"],
        )
        rewind(run.path, point.path)
        run._log.attach()
        return run, [*found.skipped, *point.skipped]

    @property
    def version(self) -> str:
        """The version, such as `v0003`."""
        return self.path.name

    @property
    def model_dir(self) -> Path:
        """The folder that later stages load, created if it does not exist."""
        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def data_dir(self) -> Path:
        """The folder of the rows that the run writes, `<split>.jsonl`, created if it does not exist.

        A run holds a model or rows. `split` is `train`; `test` for rows that are held out of training.
        """
        folder = self.path / "data"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def resumed_step(self) -> int:
        """The step of the checkpoint that the run resumed from; 0 for a new run."""
        return 0 if self.resumed_from is None else checkpoint_step(self.resumed_from)

    def begin(self, total: int, unit: str, *, handles_signals: bool = False) -> None:
        """Check that what was loaded is what was hashed, and report that training starts.

        Args:
            total: How many steps it has.
            unit: What a step is called, in the singular.
            handles_signals: Whether the stage checks `stop_requested` after each step, so that a first signal only
                sets it. Otherwise, and before `begin`, a signal stops the run at once.
        """
        self.check_inputs()
        self.started_training = True
        self.handles_signals = handles_signals
        self.reporter.begin(total, unit)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to `metrics.jsonl`, and report the step. A number that is not finite is written as null."""
        self._append("metrics.jsonl", {"step": step, "time": round(time.time(), 3), **metrics})
        self.reporter.step(step, metrics)

    def logged(self) -> list[dict[str, float]]:
        """Return the metrics of every step logged so far, including those before a resume."""
        file = self.path / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        return [
            {name: math.nan if value is None else value for name, value in row.items() if name not in ("step", "time")}
            for row in rows
        ]

    def sample(self, row: Mapping[str, object]) -> None:
        """Append a line to `samples.jsonl`. A number that is not finite is written as null."""
        self._append("samples.jsonl", row)

    def checkpoint_path(self, step: int) -> Path:
        """Return the path that the checkpoint of `step` has once it is committed."""
        return checkpoint_path(self.path / "checkpoints", step)

    @contextmanager
    def checkpoint(self, step: int, *, size: int = 0) -> Iterator[Path]:
        """Yield a folder that becomes `checkpoint_path(step)` on a clean exit, and keep the newest two checkpoints.

        The lines that `log` and `sample` wrote are flushed to the disk with it.

        Args:
            step: The step after which it is saved.
            size: Expected size in bytes; 0 if unknown.

        Raises:
            DiskError: Too little space is left.
        """
        content = {"step": step, "seconds": self._seconds()}
        with write_checkpoint(self.checkpoint_path(step), content, size=size) as folder:
            yield folder
            for name in STEP_LOGS:
                if (self.path / name).exists():
                    sync(self.path / name)

    def stopped(self, step: int) -> StoppedError:
        """Return the error to raise if `stop_requested` is set and the checkpoint of `step` is committed."""
        message = f"stopped by a signal after step {step}; saved in {format_path(self.checkpoint_path(step))}."
        return StoppedError("run.stopped", message, location=self.stage, hint=RESUME_HINT)

    def checkpoints(self) -> list[Path]:
        """Return the committed checkpoints, oldest first."""
        return checkpoints(self.path / "checkpoints")

    def complete(
        self, metrics: Mapping[str, float], facts: Mapping[str, Any], *, keep_checkpoints: bool = True
    ) -> dict[str, Any]:
        """Write the manifest, which completes the run, and point `latest` at it unless it is a smoke run.

        Args:
            metrics: The final metrics.
            facts: Further keys of the manifest.
            keep_checkpoints: Whether the checkpoints stay.

        Returns:
            The manifest.
        """
        if not self.started_training:
            self.check_inputs()
        folder = "data" if (self.path / "data").is_dir() else "model"
        self._apply_umask()
        content = {
            "schema": SCHEMA,
            "stage": self.stage,
            "name": self.name,
            "version": self.version,
            "status": "complete",
            "smoke": self.smoke,
            "started": _iso(self.started),
            "ended": _iso(time.time()),
            "seconds": round(self._seconds(), 3),
            "metrics": _jsonable(metrics),
            "warnings": self._log.warnings,
            **facts,
            "folder": folder,
            "files": hash_files(self.path / folder) if (self.path / folder).is_dir() else {},
        }
        write_manifest(self.path, content)
        if not self.smoke:  # before anything else: scripts read the link
            try:
                layout.point_latest(self.path.parent)
            except OSError as error:  # the run is complete; references do not need the link
                logger.warning(f"The link `latest` cannot be updated: {error.strerror}.")
        remove_lock(self.path)
        if not keep_checkpoints and self.checkpoints():
            remove(self.path / "checkpoints")
        return content

    def _apply_umask(self) -> None:
        """Give every file the mode of `started.json`. safetensors ignores the umask and writes files of mode 600."""
        mode = (self.path / STARTED_FILE).stat().st_mode
        for path in self.path.rglob("*"):
            if path.is_file():
                path.chmod(mode)

    def discard_if_empty(self) -> bool:
        """Remove the folder of a new run that failed before training started. Return whether it was removed."""
        if self.started_training or self.resumed_from is not None or (self.path / "metrics.jsonl").exists():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def close(self) -> None:
        """Detach the log and release the lock. The end of the process does the same."""
        self._log.detach()
        self.lock.release()

    def _seconds(self) -> float:
        """Return the seconds of work so far, including those before a resume that led to its checkpoint."""
        return self.elapsed_before_resume + time.monotonic() - self._opened

    def _append(self, name: str, row: Mapping[str, object]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as out:
            out.write(json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def _jsonable(value: Any) -> Any:
    """Return `value` with None in place of each number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
