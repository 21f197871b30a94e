"""Check everything that can be known before the first stage trains: references, rows, functions, gates.

`rlhf check` does only this; `rlhf run`, `--dry-run` and smoke runs do it first. A single stage resolves its references
once and checks its rows itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rlhf_cli.data import held_out, sources
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.errors import DataError, ErrorCollector, Issue, RecipeError
from rlhf_cli.evaluation import gates, metrics
from rlhf_cli.feedback.store_input import check_judgments, read_store
from rlhf_cli.models import hub
from rlhf_cli.models.architectures import read_context_limit
from rlhf_cli.pipeline.feedback_files import check_feedback_files
from rlhf_cli.pipeline.inputs import check_base, hash_model
from rlhf_cli.pipeline.references import (
    Reference,
    ResolvedReference,
    check_adapters,
    check_stage,
    find_references,
    producing_stage,
    resolve_reference,
    user_functions,
)
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe.schema import Recipe, Source
from rlhf_cli.recipe.trackers import missing_packages
from rlhf_cli.recipe.trainer_options import supported_trackers
from rlhf_cli.recipe.user_functions import (
    TOKEN_ARGUMENTS,
    check_loads_in_subprocess,
    required_parameters,
    split_spec,
)
from rlhf_cli.stages import STAGES, command_of

if TYPE_CHECKING:
    from rlhf_cli.training.prepared_data import PreparedData

ROWS_WITH_COLUMNS = 1000  # of each source, read to find the columns of its rows
RowCounts = dict[str, dict[str, int]]  # dataset: count by what happened to the rows


def check(
    recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool = False, thorough: bool = False
) -> RowCounts:
    """Check references, rows and gates of `stages`, and return the row counts of each dataset.

    Args:
        recipe: The validated recipe.
        stages: Stages in the order of the chain.
        runs_dir: The runs directory.
        smoke: Whether the stages run as smoke runs.
        thorough: Also check that a store has judgments, ask the Hub for models, compare the base with those of existing
            runs (which reads it whole), and load user functions in subprocesses.

    Raises:
        RlhfError: With all issues of the first part that has any.
    """
    check_feedback_files(recipe)
    check_references(recipe, stages, runs_dir, smoke=smoke, thorough=thorough)
    check_trackers(recipe, stages)
    if thorough and not smoke:
        check_store(recipe, stages)
    counts = check_rows(recipe, stages, smoke=smoke)
    check_arguments(recipe, stages)
    if not smoke:  # a smoke run has another base model and limits of its own
        check_context(recipe, stages, runs_dir)
    if thorough:
        check_functions(recipe, stages)
    return counts


def check_references(recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool, thorough: bool) -> None:
    """Check every reference of `stages` against the existing runs and those that earlier stages will write.

    Raises:
        RlhfError: With one issue for each reference that cannot be resolved, is of the wrong stage, or is an adapter
            with other settings than the recipe's.
    """
    if smoke:  # a smoke run first runs the stages that it needs
        recipe = smoke_recipe.shrink(recipe)
    to_come = set(STAGES) if smoke else set[str]()
    bases: set[str] = set()
    errors = ErrorCollector()
    for stage in stages:
        found = []
        for reference in find_references(stage, recipe):
            with errors.collect():
                producer = producing_stage(reference, recipe.name)
                if producer is not None and producer in to_come:
                    check_stage(reference, producer)
                    continue
                found.append(_resolve(reference, recipe, stages, runs_dir, smoke=smoke))
        if not smoke:  # a smoke run takes other models in place of directories
            with errors.collect():
                check_adapters(stage, recipe, found)
        if thorough:
            bases |= _check_models(stage, found, errors)
        to_come.add(stage)
    for source in bases:
        with errors.collect():
            _check_quantization(recipe, source)
    errors.raise_all()


def _resolve(
    reference: Reference, recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool
) -> ResolvedReference:
    """Resolve a reference. If a chain lacks the stage that would produce it, the error's hint says so."""
    try:
        return resolve_reference(reference, recipe.name, runs_dir, smoke=smoke)
    except RecipeError as error:
        producer = producing_stage(reference, recipe.name)
        if producer is None or producer in stages or len(stages) < 2:
            raise
        issue = error.issues[0]
        fix = (
            f"add {producer} to the command"
            if producer in recipe.model_fields_set
            else f"add the section `{producer}:` to the recipe"
        )
        fix += f", or set {reference.location} to null" if _accepts_null(recipe, reference) else ""
        hint = f"Run `{command_of(producer)}` first, or {fix}."
        raise RecipeError(issue.code, issue.message, location=issue.location, hint=hint) from error


def _accepts_null(recipe: Recipe, reference: Reference) -> bool:
    """Return whether the field of a reference may be null instead."""
    section, field, *rest = reference.key
    annotation = type(getattr(recipe, str(section))).model_fields[str(field)].annotation
    return not rest and type(None) in get_args(annotation)


def _check_models(stage: str, found: Sequence[ResolvedReference], errors: ErrorCollector) -> set[str]:
    """Collect errors about the models of a stage. Return the folder or Hub id of its base model, if it has one."""
    inputs = []
    for one in found:
        if not one.reference.is_dataset:
            with errors.collect():
                inputs.append(hash_model(one))
    bases = {item.model_path for item in inputs if item.role == "base"}
    if bases:
        with errors.collect():
            check_base(stage, inputs)
    return bases


def _check_quantization(recipe: Recipe, source: str) -> None:
    if recipe.base.quantize != "none":
        from rlhf_cli.models.loading import check_quantization  # imports torch

        check_quantization(recipe.base, source)


def check_store(recipe: Recipe, stages: Sequence[str]) -> None:
    """Check that the store has judgments if a stage reads them: no stage of a chain makes any.

    Raises:
        DataError: It has none.
    """
    if not any(STAGES[stage].reads_store for stage in stages):
        return
    content = read_store(recipe)
    try:
        check_judgments(None if content is None else content.snapshot)
    except DataError as error:
        issue = error.issues[0]
        hint = f"{issue.hint} To run only other stages, name them." if len(stages) > 1 else issue.hint
        raise DataError(issue.code, issue.message, location=issue.location, hint=hint) from error


def check_trackers(recipe: Recipe, stages: Sequence[str]) -> None:
    """Check that the experiment trackers of `stages` are installed.

    Raises:
        RecipeError: With one issue for each stage that lacks packages.
    """
    issues = []
    for stage in stages:
        section = STAGES[stage].section
        trainer = getattr(getattr(recipe, section), "trainer", {})
        missing = missing_packages(trainer.get("report_to"), supported_trackers(stage))
        if missing:
            message = f"not installed: {', '.join(missing)}."
            hint = f"Run `pip install {' '.join(missing)}`, or change report_to."
            location = f"{section}.trainer.report_to"
            issues.append(Issue("recipe.missing-package", message, location=location, hint=hint))
    if issues:
        raise RecipeError(issues)


def check_arguments(recipe: Recipe, stages: Sequence[str]) -> None:
    """Check that the columns of data.prompts have every argument that the user functions of `stages` require.

    Raises:
        RecipeError: With one issue for each function that requires another argument.
    """
    given = recipe.data.prompts
    if not given or any(source.path is None for source in given):
        return
    issues = []
    for stage in stages:
        section = STAGES[stage].section
        for key, spec in user_functions(getattr(recipe, section), (section,)):
            required = set(required_parameters(spec)) - {"prompts", "completions", *TOKEN_ARGUMENTS}
            # A column may first occur in a late row.
            if required - _prompt_columns(recipe, given, ROWS_WITH_COLUMNS):
                required -= _prompt_columns(recipe, given, None)
                if required:
                    message = f"unknown argument {', '.join(sorted(required))} of {spec.rpartition('/')[2]}."
                    hint = "Use prompts, completions or a column of data.prompts, or give the parameter a default."
                    issues.append(Issue("recipe.function-signature", message, ".".join(map(str, key)), hint))
    if issues:
        raise RecipeError(issues)


def _prompt_columns(recipe: Recipe, given: Sequence[Source], limit: int | None) -> set[str]:
    """Return the columns that the rows of data.prompts pass to rewards; `limit`: rows of each source that are read."""
    split = sources.load(given, "prompts", seed=recipe.seed, find=Path, limit=limit, policy=RowPolicy.of(recipe))
    return {column for row in (*split.train, *split.held_out) for column in row.extra}


def check_context(recipe: Recipe, stages: Sequence[str], runs_dir: Path) -> None:
    """Check that the rows of `stages` fit into the base model's context, before the first stage trains.

    Rows are tokenized only for a stage whose limits allow more tokens than the base model has positions, and only if
    the base model and its dataset are local.

    Raises:
        RlhfError: With the issues of every stage whose rows do not fit.
    """
    cached = hub.cached_file(recipe.base.model, "config.json", recipe.base.revision)
    folder = Path(recipe.base.model) if Path(recipe.base.model).is_dir() else cached and cached.parent
    limit = read_context_limit(folder) if folder else None
    if limit is None:
        return
    errors = ErrorCollector()
    for stage in stages:
        spec = STAGES[stage]
        given: list[Source] = (getattr(recipe.data, spec.dataset) or []) if spec.dataset else []
        if not (spec.prepare and spec.adapts_base and given and all(source.path is not None for source in given)):
            continue
        resolved = ResolvedStage(
            stage, spec, recipe, (), {}, fingerprint="", base_path=recipe.base.model, runs_dir=runs_dir, smoke=False
        )
        if resolved.max_length + (resolved.section.max_new_tokens if spec.generates else 0) > limit:
            with errors.collect():
                prepare(resolved)
    errors.raise_all()


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load, tokenize and check the data of a stage, as the stage itself does."""
    module, _, function = stage.spec.prepare.partition(":")
    data: PreparedData = getattr(importlib.import_module(module), function)(stage)
    return data


def check_functions(recipe: Recipe, stages: Sequence[str]) -> None:
    """Load the user functions of `stages` in subprocesses.

    Raises:
        RecipeError: With one issue for each file that cannot be loaded.
    """
    specs = [spec for stage in stages for _, spec in user_functions(getattr(recipe, STAGES[stage].section))]
    errors = ErrorCollector()
    for spec in {split_spec(spec)[0]: spec for spec in specs}.values():  # a file is executed once
        with errors.collect():
            check_loads_in_subprocess(spec)
    errors.raise_all()


def check_rows(recipe: Recipe, stages: Sequence[str], *, smoke: bool = False) -> RowCounts:
    """Read every local dataset that `stages` train on and count its rows. Check that the gates' metrics will exist.

    Raises:
        RecipeError: A gate names a metric that the evaluation does not compute.
        DataError: With every invalid row, and each dataset that leaves no rows to evaluate on.
    """
    evaluates = any(STAGES[stage].evaluates for stage in stages)
    if evaluates:
        # Whether the rows have a slice is known when they are loaded.
        certain = [gate for gate in recipe.eval.gates if not metrics.is_optional(gate.metric, recipe)]
        gates.check_gate_metrics(certain, metrics.metric_names(recipe))
    evaluated = metrics.evaluated_datasets(recipe) if evaluates and not smoke else frozenset[str]()
    counts: RowCounts = {}
    issues: list[Issue] = []
    for stage in stages:
        kind = STAGES[stage].dataset
        given: list[Source] = (getattr(recipe.data, kind) or []) if kind else []
        local = [source for source in given if source.path is not None]  # others are checked when they are loaded
        if kind is None or not local:
            continue
        try:
            counts[kind] = sources.count(local, kind, find=Path, policy=RowPolicy.of(recipe))
        except DataError as error:
            issues += error.issues
            continue
        if len(local) == len(given) and kind in evaluated and not counts[kind]["held out"]:
            issues.append(held_out.no_rows_issue(kind))
    if issues:
        raise DataError(issues)
    return counts
