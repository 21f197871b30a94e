"""Run one stage, or a chain: resolve, open the run, call the stage, complete the run, evaluate its gates.

The order is a contract: the resolved recipe is written before the stage is called, the manifest after it, and a failed
gate is reported for a run that is complete.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from rlhf_cli import distributed
from rlhf_cli.errors import Issue, RecipeError, RlhfError, StoppedError
from rlhf_cli.evaluation.gates import format_verdict
from rlhf_cli.evaluation.sanity_checks import warnings_of
from rlhf_cli.pipeline import preflight
from rlhf_cli.pipeline.failures import convert_errors
from rlhf_cli.pipeline.inputs import check_unchanged, verify_inputs
from rlhf_cli.pipeline.provenance import collect_provenance, diff_settings, environment_changes, git_commit
from rlhf_cli.pipeline.references import check_adapters, find_references
from rlhf_cli.pipeline.resolve import ResolvedStage, find_all, resolve
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.loader import dump
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.user_functions import forget_user_modules
from rlhf_cli.runs import disk, layout, signals
from rlhf_cli.runs import resume as resume_module
from rlhf_cli.runs.manifest import Manifest, digest
from rlhf_cli.runs.run import Reporter, Run, StageMetrics
from rlhf_cli.runs.worker_run import RunHandle, WorkerRun
from rlhf_cli.stages import STAGES

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StageResult(NamedTuple):
    """A complete run: new, or found up to date."""

    stage: str
    path: Path
    manifest: Manifest
    skipped: bool
    failed_gates: tuple[Issue, ...]
    stop_requested: bool = False  # a signal came too late for a checkpoint: no stage may follow


class StageReporter(Reporter, Protocol):
    """A reporter that also shows the start and end of stages."""

    def stage(self, stage: str, run: Run) -> None:
        """Show that a stage starts."""

    def done(self, result: StageResult) -> None:
        """Show the result of a stage."""


@dataclass(frozen=True)
class _Opened:
    """A stage that is about to run, as the main process shares it with the others."""

    stage: ResolvedStage
    handle: RunHandle


def run_chain(
    recipe: Recipe,
    stages: Sequence[str],
    runs_dir: Path,
    *,
    smoke: bool,
    reporter: StageReporter,
    resume: bool = False,
) -> Iterator[StageResult]:
    """Run `stages` in order, skipping those that are up to date. A failed gate ends the chain.

    The caller has checked the chain with `preflight.check`.

    Raises:
        RlhfError: As `run_stage`.
    """
    for stage in stages:
        result = run_stage(
            stage,
            recipe,
            runs_dir,
            smoke=smoke,
            reporter=reporter,
            skip_if_done=True,
            resume=resume,
            check_rows=False,
        )
        yield result
        if result.failed_gates:
            return
        if result.stop_requested and stage != stages[-1]:
            hint = "Run the same command again to continue."
            raise StoppedError("run.stopped", f"stopped by a signal; {stage} is complete.", location=stage, hint=hint)


def run_stage(
    stage: str,
    recipe: Recipe,
    runs_dir: Path,
    *,
    smoke: bool,
    reporter: StageReporter,
    skip_if_done: bool = False,
    resume: bool = False,
    check_rows: bool = True,
) -> StageResult:
    """Run `stage` into its next version, or with `resume` continue its newest version if that is incomplete.

    Args:
        stage: Name of the stage.
        recipe: The validated recipe.
        runs_dir: The runs directory.
        smoke: Run a tiny version on random weights, and first the stages that it needs.
        reporter: Shows progress and messages.
        skip_if_done: Return the newest run if its fingerprint matches.
        resume: Resume the newest version if it is incomplete and has a checkpoint. Otherwise start, unless a complete
            run is up to date: a batch system that requeues a job runs one command at the start, after every
            interruption, and perhaps after the end.
        check_rows: Check the rows of the local datasets before anything is hashed or loaded; for a smoke run also the
            references, before the stages that it needs run.

    Raises:
        RlhfError: Of every kind, see `rlhf_cli.errors`. A run that wrote nothing leaves no folder.
    """
    distributed.init_process_group()
    if smoke:
        if check_rows:  # before the stages that it needs run
            _on_main(lambda: preflight.check(recipe, [stage], runs_dir, smoke=True))
        recipe = smoke_recipe.shrink(recipe)
        _run_smoke_inputs(stage, recipe, runs_dir, reporter)
    run: Run | None = None
    facts: dict[str, Any] = {}

    def open_or_skip() -> StageResult | _Opened:
        nonlocal run, facts
        forget_user_modules()
        found = find_all(stage, recipe, runs_dir, smoke=smoke)
        if check_rows and not smoke:
            check_adapters(stage, recipe, found)
            preflight.check_trackers(recipe, [stage])
            preflight.check_rows(recipe, [stage])
        resolved = resolve(stage, recipe, runs_dir, smoke=smoke, found=found)
        resumes = resume and resume_module.is_latest_resumable(runs_dir, recipe.name, stage, smoke=smoke)
        done = _up_to_date(resolved) if skip_if_done or (resume and not resumes) else None
        if done is not None:
            return done
        verify_inputs(resolved.inputs)
        run, facts = _open_run(resolved, resume=resumes, reporter=reporter)
        return _Opened(resolved, RunHandle.from_run(run))

    opened = _on_main(open_or_skip)
    if isinstance(opened, StageResult):
        reporter.done(opened)
        return opened
    result = _execute(opened, run or WorkerRun.open(opened.handle, reporter), facts)
    reporter.done(result)
    return result


def _on_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process, and return its result or raise its error in every process."""
    outcome: T | RlhfError | None = None
    if distributed.is_main():
        try:
            outcome = function()
        except RlhfError as error:
            if distributed.world_size() == 1:
                raise
            outcome = error
    outcome = distributed.broadcast_object(outcome)
    if isinstance(outcome, RlhfError):
        raise outcome
    return cast("T", outcome)


def _up_to_date(stage: ResolvedStage) -> StageResult | None:
    """Return the latest complete run if its fingerprint matches, or None."""
    entry = layout.newest(stage.runs_dir, stage.recipe.name, stage.name, smoke=stage.smoke)
    if entry is None or entry.manifest is None or entry.manifest["fingerprint"] != stage.fingerprint:
        return None
    if not stage.smoke:
        with contextlib.suppress(OSError):  # a kill may have come between the manifest and the link
            layout.point_latest(entry.path.parent)
    return StageResult(stage.name, entry.path, entry.manifest, skipped=True, failed_gates=_failed_gates(entry.manifest))


def _open_run(stage: ResolvedStage, *, resume: bool, reporter: StageReporter) -> tuple[Run, dict[str, Any]]:
    """Create or resume the run, write its recipe, and return it with fields for its manifest."""
    provenance = collect_provenance(stage)
    notes: list[str] = []
    if resume:
        with disk.convert_disk_errors(stage.runs_dir):
            incomplete = resume_module.acquire_resumable(
                stage.runs_dir, stage.recipe.name, stage.name, smoke=stage.smoke
            )
            run, notes = _resume_run(stage, incomplete, provenance, reporter=reporter)
    else:
        run = Run.create(
            stage.runs_dir,
            stage.recipe.name,
            stage.name,
            smoke=stage.smoke,
            reporter=reporter,
            provenance=provenance,
        )
    with contextlib.ExitStack() as on_failure, convert_errors(run, stage):
        on_failure.callback(run.close)
        run.check_inputs = lambda: check_unchanged(stage.inputs)
        text = dump(stage.recipe, stage.name)
        (run.path / "recipe.yaml").write_text(text, encoding="utf-8")
        reporter.stage(stage.name, run)
        if run.resumed_from is not None:
            logger.info(f"resuming from step {run.resumed_step}")
        for note in notes:
            logger.warning(note)
        on_failure.pop_all()
    return run, {
        "recipe_sha256": digest(text),
        "fingerprint": stage.fingerprint,
        **{name: provenance[name] for name in ("seed", "inputs", "device", "packages")},
        "git_commit": git_commit(),
    }


def _resume_run(
    stage: ResolvedStage, incomplete: resume_module.ResumableRun, provenance: dict[str, Any], *, reporter: StageReporter
) -> tuple[Run, list[str]]:
    """Resume a run if its settings and inputs are unchanged. Return it with warnings.

    Raises:
        RecipeError: With one issue for each change since the run started.
        ModelError: All of its checkpoints are damaged.
    """
    try:
        then = incomplete.record.provenance
        issues = diff_settings(stage, then, provenance)
        if issues:
            message = "cannot resume: the recipe or its inputs changed since the run started."
            raise RecipeError([Issue("recipe.resume-changed", message, str(incomplete.path)), *issues])
        run, skipped = Run.resume(incomplete, reporter=reporter)
    except BaseException:
        incomplete.lock.release()
        raise
    different = [f"{change}: the result may not be bit-identical" for change in environment_changes(then, provenance)]
    return run, [f"skipped: {text}" for text in skipped] + different


def _execute(opened: _Opened, run: Run, facts: dict[str, Any]) -> StageResult:
    """Call the stage, and in the main process complete its run."""
    stage = opened.stage
    with contextlib.closing(run), signals.graceful_shutdown(run), convert_errors(run, stage):
        result = _call(stage, run)
        manifest: Manifest | None = None
        if distributed.is_main():
            if stage.spec.model_class is not None:
                from rlhf_cli.pipeline import cards  # huggingface_hub takes 0.5 s to import

                cards.write_run_card(run, stage, result.metrics)
            _log_warnings(result, smoke=run.smoke)
            facts = {
                **facts,
                "gates": list(result.gates),
                "verdict": result.verdict,
                "conversational": result.conversational,
                **result.facts,
            }
            manifest = run.complete(result.metrics, facts, keep_checkpoints=stage.spec.keep_checkpoints)
        manifest = distributed.broadcast_object(manifest)
    assert manifest is not None
    return StageResult(
        stage.name,
        opened.handle.path,
        manifest,
        skipped=False,
        failed_gates=_failed_gates(manifest),
        stop_requested=run.stop_requested,
    )


def _log_warnings(result: StageMetrics, *, smoke: bool) -> None:
    """Warn of metrics that make the result worthless, but for a smoke run, whose weights are random."""
    if not smoke:
        for text in warnings_of(result.metrics) if result.verdict is None else result.verdict["warnings"]:
            logger.warning(text)


def _call(stage: ResolvedStage, run: Run) -> StageMetrics:
    if stage.spec.base_key:
        _prepare_libraries(stage.recipe.seed)
    module, _, function = stage.spec.entry_point.partition(":")
    stage_function = getattr(importlib.import_module(module), function)
    if stage.spec.single_process and not distributed.is_main():
        return StageMetrics({})
    result: StageMetrics = stage_function(stage, run)
    return result


def _prepare_libraries(seed: int) -> None:
    """Silence and seed the libraries that load models. A stage without a base model needs none, and saves seconds."""
    from rlhf_cli.models.loading import silence_library_logging

    silence_library_logging()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    import transformers

    transformers.set_seed(seed)


def _failed_gates(manifest: Manifest) -> tuple[Issue, ...]:
    return tuple(
        Issue("eval.gate-failed", f"gate failed: {format_verdict(verdict)}.", f"eval.gates.{index}")
        for index, verdict in enumerate(manifest["gates"])
        if not verdict["passed"]
    )


def _run_smoke_inputs(stage: str, recipe: Recipe, runs_dir: Path, reporter: StageReporter) -> None:
    """Run the stages that a smoke run needs, unless their smoke runs are up to date."""
    for reference in find_references(stage, recipe):
        needed = reference.ref
        if needed not in STAGES:
            continue
        kind = STAGES[needed].dataset
        if kind is not None and getattr(recipe.data, kind) is None:
            message = f"--smoke runs {needed} first; data.{kind} is missing."
            raise RecipeError("recipe.missing-data", message, location=stage, hint=f"Add data.{kind}: {{path: …}}.")
        run_stage(needed, recipe, runs_dir, smoke=True, reporter=reporter, skip_if_done=True, check_rows=False)
