"""A run under way: its folder, what it tells as it goes, and the manifest that completes it."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from rlhf_cli.errors import StoppedError
from rlhf_cli.runs import disk, layout
from rlhf_cli.runs.checkpoint import RESUME_HINT, checkpoints, committed, path_of, remove, step_of
from rlhf_cli.runs.lock import STARTED, Lock, acquire_lock, remove_lock, write_started
from rlhf_cli.runs.manifest import SCHEMA, files_of, sync, write_manifest
from rlhf_cli.runs.resume import JOURNALS, ResumableRun, newest_checkpoint, rewind
from rlhf_cli.runs.run_log import RunLogHandler

logger = logging.getLogger(__name__)


class StageMetrics(NamedTuple):
    """What a stage gives back: one flat map, name to number."""

    metrics: dict[str, float]


class Reporter(Protocol):
    """Whoever shows a run to a person."""

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def info(self, text: str) -> None: ...
    def warning(self, text: str) -> None: ...


@dataclass
class Run:
    """Handed to every stage. Owns the folder; the stage builds no path of its own outside it."""

    stage: str
    name: str
    path: Path
    runs_dir: Path
    smoke: bool
    base: str  # hub id, or folder, of the recipe's base, already resolved
    reporter: Reporter
    lock: Lock
    started: float = field(default_factory=time.time)  # of the run, which may have been another process
    resumed: Path | None = None  # the checkpoint, verified, that this run goes on from; None: it is new
    begun: bool = False
    handles_signals: bool = False  # see `begin`
    stopping: bool = False  # a signal came: save after this step, and raise `stopped(step)`
    spent: float = 0.0  # seconds that led to the checkpoint `resumed`
    _since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._log = RunLogHandler(self.path / "log.txt", self.reporter)
        self._log.attach()

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        name: str,
        stage: str,
        *,
        smoke: bool,
        base: str,
        reporter: Reporter,
        origin: Mapping[str, Any] = MappingProxyType({}),
    ) -> Run:
        """Claim the next version and own it. `origin`: what it is made of, for a resume to compare.

        Raises:
            DiskError: where its folder cannot be made.
        """
        path = layout.claim(runs_dir, name, stage)
        try:
            with disk.told(path):
                run = cls(stage, name, path, runs_dir, smoke, base, reporter, acquire_lock(path, new=True))
                write_started(path, {"started": run.started, "smoke": smoke, **origin})
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    @classmethod
    def resume(cls, taken: ResumableRun, *, base: str, reporter: Reporter) -> tuple[Run, list[str]]:
        """Go on with a run after its newest checkpoint; what it made later is taken away. Also what was passed over.

        Raises:
            ModelError: no checkpoint is undamaged.
        """
        kept = newest_checkpoint(taken.path)
        name, stage = taken.path.parts[-3:-1]
        run = cls(stage, name, taken.path, taken.path.parents[2], taken.origin["smoke"], base, reporter, taken.lock)
        run.started, run.spent, run.resumed = taken.origin["started"], kept.manifest["seconds"], kept.path
        rewind(run.path, kept.path)
        return run, [*taken.passed, *kept.passed]

    @property
    def version(self) -> str:
        return self.path.name

    @property
    def model_dir(self) -> Path:
        """The folder of what later stages load."""
        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        return folder

    def find(self, ref: str) -> Path:
        """The folder of the complete run that `ref` names, or `ref` itself where it is a folder."""
        if os.path.isabs(ref):
            return Path(ref)
        return layout.find(self.runs_dir, ref, self.name, smoke=self.smoke).path

    def model_of(self, ref: str) -> Path:
        """The model folder behind `ref`: a run's `model/`, or a plain folder."""
        folder = self.find(ref)
        return folder / "model" if (folder / "manifest.json").exists() and (folder / "model").is_dir() else folder

    def base_source(self) -> str:
        """Hub id or folder of the base model."""
        return self.base

    @property
    def resumed_step(self) -> int:
        """The last step that is done already; 0 in a new run."""
        return 0 if self.resumed is None else step_of(self.resumed)

    def begin(self, total: int, unit: str, *, handles_signals: bool = False) -> None:
        """Training is about to start: `total` steps or iterations, named by `unit`.

        With `heeds_signals` the stage looks at `stopping` after each step, and a first signal waits for that. Without,
        and before this, it ends the run at once.
        """
        self.begun = True
        self.handles_signals = handles_signals
        self.reporter.begin(total, unit)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line in `metrics.jsonl`, and on the console. A number that is not finite is written as null."""
        self._append("metrics.jsonl", {"step": step, "time": round(time.time(), 3), **metrics})
        self.reporter.step(step, metrics)

    def logged(self) -> list[dict[str, float]]:
        """What `log` was given so far, in its order: a resumed stage knows of the steps before it by this."""
        file = self.path / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        return [
            {name: math.nan if value is None else value for name, value in row.items() if name not in ("step", "time")}
            for row in rows
        ]

    def sample(self, row: Mapping[str, object]) -> None:
        """A line in `samples.jsonl`. A number that is not finite is written as null."""
        self._append("samples.jsonl", row)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies once it is committed."""
        return path_of(self.path / "checkpoints", step)

    @contextmanager
    def checkpoint(self, step: int, *, size: int = 0) -> Iterator[Path]:
        """A folder to save into; on a clean exit it becomes `checkpoint_path(step)`, whole or not at all.

        What was logged of the steps until then, by `log` and `sample`, is kept with it. `size`: bytes that it will
        take at most, where known. Of all checkpoints the newest two are kept.

        Raises:
            DiskError: where the disk has not as much space left.
        """
        with committed(self.checkpoint_path(step), {"step": step, "seconds": self._seconds()}, size=size) as folder:
            yield folder
            for journal in JOURNALS:
                if (self.path / journal).exists():
                    sync(self.path / journal)

    def stopped(self, step: int) -> StoppedError:
        """What to raise when `stopping` was seen and the checkpoint of `step` is committed."""
        message = f"stopped by a signal after step {step}; saved in {layout.place(self.checkpoint_path(step))}."
        return StoppedError(message, location=self.stage, hint=RESUME_HINT)

    def checkpoints(self) -> list[Path]:
        """Those that are committed, oldest first."""
        return checkpoints(self.path / "checkpoints")

    def complete(
        self, metrics: Mapping[str, float], facts: Mapping[str, Any], *, keep_checkpoints: bool = True
    ) -> dict[str, Any]:
        """Write the manifest, which completes the run, and move `latest`; a smoke run leaves `latest` alone."""
        model = self.path / "model"
        self._open_to_readers()
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
            "files": files_of(model) if model.is_dir() else {},
        }
        write_manifest(self.path, content)
        remove_lock(self.path)
        if not keep_checkpoints and self.checkpoints():
            remove(self.path / "checkpoints")
        if not self.smoke:
            try:
                layout.point_latest(self.path.parent)
            except OSError as error:  # the run is complete all the same; references need no link
                logger.warning(f"the link `latest` cannot be moved: {error.strerror}")
        return content

    def _open_to_readers(self) -> None:
        """Give every file the mode of one of ours: safetensors are for their owner alone, whatever the umask."""
        mode = (self.path / STARTED).stat().st_mode
        for path in self.path.rglob("*"):
            if path.is_file():
                path.chmod(mode)

    def discard_if_empty(self) -> bool:
        """Remove the folder of a run that failed before it made anything. True where it is gone."""
        if self.begun or self.resumed is not None or (self.path / "metrics.jsonl").exists():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def close(self) -> None:
        """Own it no longer: it is complete, or ended before. Without this the end of the process does it."""
        self._log.detach()
        self.lock.release()

    def _seconds(self) -> float:
        """Seconds of work in this run as it stands, those before a resume included."""
        return self.spent + time.monotonic() - self._since

    def _append(self, file: str, row: Mapping[str, object]) -> None:
        with (self.path / file).open("a", encoding="utf-8") as out:
            out.write(json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n")


def _jsonable(value: Any) -> Any:
    """`value` with null for each number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
