"""Runs one stage, or a chain of them: inputs, folder, recipe, seed, the stage itself, manifest, gates.

The order is the contract: the resolved recipe is written before the stage is called, the manifest after, and a gate
is judged on a run that is complete.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import subprocess
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlhf_cli import distributed
from rlhf_cli.errors import DiskError, Issue, RecipeError, RlhfError, StoppedError
from rlhf_cli.evaluation import gates
from rlhf_cli.evaluation.gates import Verdict
from rlhf_cli.pipeline import run_card
from rlhf_cli.pipeline.inputs import Input, collect_inputs, fingerprint, pin_versions, referenced_models, verify_inputs
from rlhf_cli.pipeline.provenance import collect_provenance, diff_settings, environment_changes
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.loader import dump
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.validation import ROWS
from rlhf_cli.runs import disk, layout, signals
from rlhf_cli.runs import resume as resume_module
from rlhf_cli.runs.checkpoint import RESUME_HINT
from rlhf_cli.runs.manifest import Manifest, digest
from rlhf_cli.runs.run import Reporter, Run
from rlhf_cli.runs.worker_run import RunHandle, WorkerRun
from rlhf_cli.stages import STAGES

logger = logging.getLogger(__name__)

ALONE = ("eval", "export")  # stages that one process does, of several; the others wait
KEEPS_CHECKPOINTS = ("ppo",)  # an earlier policy may be the better one; of the others the model is all that is of use


class StageResult(NamedTuple):
    """One stage's end: a run that is complete, made now or found up to date."""

    stage: str
    path: Path
    manifest: Manifest
    skipped: bool
    failed_gates: tuple[Issue, ...]
    stopping: bool = False  # a signal came too late for a checkpoint: nothing may follow


class StageReporter(Reporter, Protocol):
    """A reporter that is also told where stages begin and end."""

    def stage(self, stage: str, run: Run) -> None: ...
    def done(self, outcome: StageResult) -> None: ...


def run_chain(
    recipe: Recipe,
    stages: Sequence[str],
    runs_dir: Path,
    *,
    smoke: bool,
    reporter: StageReporter,
    resume: bool = False,
) -> Iterator[StageResult]:
    """Run `stages` in order, skipping what is up to date. A failed gate ends the chain: what comes after it waits.

    Raises:
        RlhfError: as `run_stage`; with `resume` also where no stage has an incomplete run.
    """
    if resume and not any(
        resume_module.incomplete_versions(runs_dir, recipe.name, stage, smoke=smoke) for stage in stages
    ):
        raise RecipeError(
            "no stage has an incomplete run to resume.", location=str(runs_dir), hint=resume_module.START_OVER_HINT
        )
    for stage in stages:
        go_on = (
            resume
            and distributed.is_main()
            and resume_module.is_latest_resumable(runs_dir, recipe.name, stage, smoke=smoke)
        )
        outcome = run_stage(stage, recipe, runs_dir, smoke=smoke, reporter=reporter, skip_if_done=True, resume=go_on)
        yield outcome
        if outcome.failed_gates:
            return
        if outcome.stopping and stage != stages[-1]:
            hint = "Run the same command to go on."
            raise StoppedError(f"stopped by a signal; {stage} is complete.", location=stage, hint=hint)


def run_stage(
    stage: str,
    recipe: Recipe,
    runs_dir: Path,
    *,
    smoke: bool,
    reporter: StageReporter,
    skip_if_done: bool = False,
    resume: bool = False,
) -> StageResult:
    """Run `stage` into the next version of its folder, or with `resume` go on in the newest one that was stopped.

    Raises:
        RlhfError: of every kind, see `rlhf_cli.errors`. A run that made nothing leaves no folder.
    """
    distributed.init_process_group()
    if smoke:
        recipe = smoke_recipe.shrink(recipe)
        _make_smoke_inputs(stage, recipe, runs_dir, reporter)
    begun: StageResult | tuple[Recipe, RunHandle] | None = None
    run: Run | None = None
    facts: dict[str, Any] = {}
    if distributed.is_main():
        inputs = collect_inputs(stage, recipe, runs_dir, smoke=smoke)
        key = fingerprint(stage, recipe, inputs, smoke=smoke)
        begun = _up_to_date(stage, recipe, runs_dir, key, smoke=smoke) if skip_if_done else None
        if begun is None:
            verify_inputs(inputs)
            recipe = pin_versions(stage, recipe, inputs)
            run, facts = _begun(stage, recipe, inputs, key, runs_dir, smoke=smoke, resume=resume, reporter=reporter)
            begun = recipe, RunHandle.of(run)
    begun = distributed.broadcast_object(begun)
    assert begun is not None
    if isinstance(begun, StageResult):
        reporter.done(begun)
        return begun
    recipe, main = begun
    run = run or WorkerRun.of(main, reporter)
    with contextlib.closing(run), signals.graceful_shutdown(run), _told(run, recipe):
        metrics = _call(stage, recipe, run)
        manifest: Manifest | None = None
        if distributed.is_main():
            if stage in run_card.LOADS:
                run_card.write(run, inputs, metrics, recipe.seed)
            facts |= {"gates": [verdict.as_json() for verdict in _verdicts(stage, recipe, metrics)]}
            manifest = run.complete(metrics, facts, keep_checkpoints=stage in KEEPS_CHECKPOINTS)
        manifest = distributed.broadcast_object(manifest)
    assert manifest is not None
    failed = _failed_gates(stage, recipe, manifest["metrics"])
    outcome = StageResult(stage, main.path, manifest, skipped=False, failed_gates=failed, stopping=run.stopping)
    reporter.done(outcome)
    return outcome


def _up_to_date(stage: str, recipe: Recipe, runs_dir: Path, key: str, *, smoke: bool) -> StageResult | None:
    """The newest run, where it was made of the same."""
    entry = layout.newest(runs_dir, recipe.name, stage, smoke=smoke)
    if entry is None or entry.manifest is None or entry.manifest["fingerprint"] != key:
        return None
    failed = _failed_gates(stage, recipe, entry.manifest["metrics"])
    return StageResult(stage, entry.path, entry.manifest, skipped=True, failed_gates=failed)


def _begun(
    stage: str,
    recipe: Recipe,
    inputs: Sequence[Input],
    key: str,
    runs_dir: Path,
    *,
    smoke: bool,
    resume: bool,
    reporter: StageReporter,
) -> tuple[Run, dict[str, Any]]:
    """The run, new or taken up again, with its recipe in its folder; and facts for its manifest."""
    provenance = collect_provenance(stage, recipe, inputs)
    base = _base(stage, inputs)
    notes: list[str] = []
    if resume:
        with disk.told(runs_dir):
            taken = resume_module.acquire_resumable(runs_dir, recipe.name, stage, smoke=smoke)
            run, notes = _resumed(taken, provenance, base=base, reporter=reporter)
    else:
        run = Run.create(
            runs_dir, recipe.name, stage, smoke=smoke, base=base, reporter=reporter, origin={"made_of": provenance}
        )
    with contextlib.ExitStack() as on_failure, _told(run, recipe):
        on_failure.callback(run.close)
        resolved = dump(recipe, stage)
        (run.path / "recipe.yaml").write_text(resolved, encoding="utf-8")
        reporter.stage(stage, run)
        if run.resumed is not None:
            logger.info(f"goes on after step {run.resumed_step}")
        for note in notes:
            logger.warning(note)
        on_failure.pop_all()
    return run, _facts(provenance, resolved, key)


def _resumed(
    taken: resume_module.ResumableRun, provenance: dict[str, Any], *, base: str, reporter: StageReporter
) -> tuple[Run, list[str]]:
    """The run that was stopped, where it is made of the same; and what there is to say of it.

    Raises:
        RecipeError: with one issue for each thing that changed since it began.
        ModelError: none of its checkpoints is undamaged.
    """
    try:
        then = taken.origin["made_of"]
        issues = diff_settings(then, provenance)
        if issues:
            first = Issue("it cannot go on, for it began with another recipe or other inputs:", str(taken.path))
            raise RecipeError([first, *issues])
        run, passed = Run.resume(taken, base=base, reporter=reporter)
    except BaseException:
        taken.lock.release()
        raise
    different = [f"{difference}: not bit-exact" for difference in environment_changes(then, provenance)]
    return run, [f"passed over: {text}" for text in passed] + different


def _base(stage: str, inputs: Sequence[Input]) -> str:
    """Hub id or folder of the model that the stage adapts; pretrain's is the one that it goes on from, or none."""
    base = next((item for item in inputs if item.role == ("start" if stage == "pretrain" else "base")), None)
    if base is None:
        return "scratch"
    return str(Path(base.path) / "model") if base.kind == "run" else base.path


def _call(stage: str, recipe: Recipe, run: Run) -> dict[str, float]:
    from rlhf_cli.models.loading import silence_library_logging

    silence_library_logging()
    module, _, function = STAGES[stage].function.partition(":")
    stage_function = getattr(importlib.import_module(module), function)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    import transformers

    transformers.set_seed(recipe.seed)
    if stage in ALONE and not distributed.is_main():
        return {}
    result = stage_function(recipe, run)
    return dict(result.metrics)


@contextlib.contextmanager
def _told(run: Run, recipe: Recipe) -> Iterator[None]:
    """A stage that fails says so in its log, and names what it left behind."""
    try:
        yield
    except KeyboardInterrupt:
        if run.discard_if_empty():
            raise StoppedError("stopped by a signal; nothing was made.", location=run.stage) from None
        logger.debug("stopped by a signal")
        saved = run.checkpoints()
        if not saved:
            raise StoppedError(f"stopped by a signal; incomplete: {run.path}", location=run.stage) from None
        raise StoppedError(
            f"stopped by a signal; what was last saved is {layout.place(saved[-1])}.",
            location=run.stage,
            hint=RESUME_HINT,
        ) from None
    except StoppedError as error:
        logger.debug(str(error))
        raise
    except RlhfError as error:
        if not run.discard_if_empty():
            _note_failure(run, str(error), error.__cause__)
        raise
    except Exception as error:
        _note_failure(run, f"{type(error).__name__}: {error}", error)
        ours = _of_the_machine(error, run, recipe)
        if ours is not None:
            raise ours from error
        raise


def _note_failure(run: Run, text: str, cause: BaseException | None) -> None:
    """In the log, with the traceback of what a library or a reward function raised. The person is told at the end."""
    with contextlib.suppress(OSError):  # the disk may be what failed
        if cause is not None:
            logger.debug("".join(traceback.format_exception(cause)).rstrip())
        logger.debug(resume_module.FAILED + text.replace("\n", "; "))


def _of_the_machine(error: Exception, run: Run, recipe: Recipe) -> RlhfError | None:
    """What is no bug of ours: no memory, no disk, no permission."""
    import torch

    # On a CPU torch raises a plain RuntimeError.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        from rlhf_cli.training import memory_check

        return memory_check.exhausted(run, recipe)
    failure = disk.failure(error)
    if failure is not None:
        place = str(getattr(error, "filename", None) or run.path)
        hint = f"Free space. {RESUME_HINT}" if run.checkpoints() else disk.ELSEWHERE
        return DiskError(f"{failure}; incomplete: {run.path}", location=place, hint=hint)
    return None


def _make_smoke_inputs(stage: str, recipe: Recipe, runs_dir: Path, reporter: StageReporter) -> None:
    """Smoke runs take smoke runs alone; those that are not there yet, or not up to date, are made first."""
    for ref in referenced_models(stage, recipe):
        if ref in STAGES:
            if ref in ROWS and getattr(recipe.data, ROWS[ref]) is None:
                message = f"--smoke makes its own {ref} run, and data.{ROWS[ref]} is missing."
                raise RecipeError(message, location=stage, hint=f"Add data.{ROWS[ref]}: {{path: …}}.")
            run_stage(ref, recipe, runs_dir, smoke=True, reporter=reporter, skip_if_done=True)


def _facts(provenance: dict[str, Any], resolved: str, key: str) -> dict[str, Any]:
    return {
        "recipe_sha256": digest(resolved),
        "fingerprint": key,
        **{name: provenance[name] for name in ("seed", "inputs", "device", "packages")},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of the working folder, where it is a git checkout."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        return found.stdout.strip() or None
    return None


def _verdicts(stage: str, recipe: Recipe, metrics: dict[str, float]) -> list[Verdict]:
    return gates.judge(recipe.eval.gates, metrics) if stage == "eval" else []


def _failed_gates(stage: str, recipe: Recipe, metrics: dict[str, float]) -> tuple[Issue, ...]:
    return tuple(
        Issue(f"gate failed: {gates.said(verdict.as_json())}", f"eval.gates.{index}")
        for index, verdict in enumerate(_verdicts(stage, recipe, metrics))
        if not verdict.passed
    )
