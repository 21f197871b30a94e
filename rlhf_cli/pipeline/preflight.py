"""What can be known before the first stage trains: do the references lead anywhere, are the rows sound, do gates fit.

`rlhf check` does no more than this; the stages, the chain and `--dry-run` do it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.data import held_out, sources
from rlhf_cli.errors import DataError, Issue, RecipeError, RlhfError
from rlhf_cli.evaluation import gates, metrics
from rlhf_cli.pipeline.inputs import Input, check_base, model_input
from rlhf_cli.pipeline.references import Reference, check_stage, find, producing_stage, references
from rlhf_cli.recipe import smoke as smoke_recipe
from rlhf_cli.recipe import user_functions
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.recipe.validation import ROWS
from rlhf_cli.stages import STAGES


def check_references(recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool, thorough: bool) -> None:
    """Hold every reference of `stages`, in their order, against the runs that there are and those made before it.

    `thorough`: the hub is asked for its models, and the base is compared with those of the runs; that reads it whole.

    Raises:
        RlhfError: with one issue for each reference that leads nowhere, or to what it must not.
    """
    if smoke:  # makes the runs that it needs
        recipe = smoke_recipe.shrink(recipe)
    made = set(STAGES) if smoke else set[str]()
    errors: list[RlhfError] = []
    for stage in stages:
        inputs: list[Input] = []
        for reference in references(stage, recipe):
            try:
                coming = producing_stage(reference, recipe.name)
                if coming is not None and coming in made:
                    check_stage(reference, coming)
                    continue
                found = find(reference, recipe.name, runs_dir, smoke=smoke)
                if thorough and not reference.is_dataset:
                    inputs.append(model_input(reference, found))
            except RlhfError as error:
                errors.append(_with_mend(error, reference, recipe, stages))
        if any(item.role == "base" for item in inputs):
            try:
                check_base(stage, inputs)
            except RlhfError as error:
                errors.append(error)
        made.add(stage)
    if errors:
        issues = [issue for error in errors for issue in error.issues]
        raise type(errors[0])(list(dict.fromkeys(issues)))


def _with_mend(error: RlhfError, reference: Reference, recipe: Recipe, stages: Sequence[str]) -> RlhfError:
    """Of a run that is not there: that the chain would make it, if it were told to."""
    stage = producing_stage(reference, recipe.name)
    if stage is None or stage in stages or not isinstance(error, RecipeError) or len(stages) < 2:
        return error
    instead = f"name {stage} too" if stage in recipe.model_fields_set else f"add the section `{stage}:`"
    return RecipeError(
        error.issues[0].message, location=error.issues[0].location, hint=f"Run `rlhf {stage}` first, or {instead}."
    )


def check_functions(recipe: Recipe, stages: Sequence[str]) -> None:
    """Load the functions that `stages` will call, in processes of their own.

    Raises:
        RecipeError: with one issue for each that cannot be loaded.
    """
    specs = [term.python for term in recipe.ppo.reward if term.python is not None] if "ppo" in stages else []
    specs += recipe.eval.python if "eval" in stages else []
    issues: list[Issue] = []
    for spec in {user_functions.split_spec(spec)[0]: spec for spec in specs}.values():  # a file is run whole
        try:
            user_functions.check_loads_in_subprocess(spec)
        except RecipeError as error:
            issues += error.issues
    if issues:
        raise RecipeError(issues)


def check_rows(recipe: Recipe, stages: Sequence[str], *, smoke: bool = False) -> dict[str, dict[str, int]]:
    """Read every data set that `stages` train on, and count its rows; look whether the gates' metrics will exist.

    Raises:
        RecipeError: with every gate on a metric that the evaluation does not give.
        DataError: with every faulty row of every data set, and each that leaves the evaluation nothing.
    """
    measured = (
        dict(zip(("sft", "preferences", "prompts"), metrics.parts(recipe), strict=True)) if "eval" in stages else {}
    )
    if "eval" in stages:
        gates.check_names(recipe.eval.gates, metrics.metric_names(recipe))
    counted: dict[str, dict[str, int]] = {}
    issues: list[Issue] = []
    for stage in stages:
        kind: Any = ROWS.get(stage)
        # Runs were checked when they were written; the hub is asked when the stage loads.
        local = [source for source in getattr(recipe.data, kind) if source.path is not None] if kind else []
        if not local:
            continue
        try:
            counted[kind] = sources.count(local, kind, find=Path)
        except DataError as error:
            issues += error.issues
            continue
        is_all = len(local) == len(getattr(recipe.data, kind))
        if is_all and measured.get(kind) and not counted[kind]["held out"] and not smoke:
            issues.append(held_out.nothing(kind))
    if issues:
        raise DataError(issues)
    return counted
