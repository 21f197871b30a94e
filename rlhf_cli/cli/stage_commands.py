"""`rlhf sft`, `rlhf ppo` and so on, `rlhf run` and `rlhf check`: the commands that read a recipe."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.cli import json_output, options, tables, workers
from rlhf_cli.cli.output import Output
from rlhf_cli.errors import GateError, Issue, RecipeError, RlhfError
from rlhf_cli.stages import STAGES

if TYPE_CHECKING:
    from rlhf_cli.pipeline.runner import StageResult
    from rlhf_cli.recipe.schema import Recipe


def stage_command(stage: str) -> Callable[..., None]:
    """Return the command that runs `stage`."""

    def command(
        recipe_argument: options.RecipeArgument = None,
        recipe: options.Recipe = None,
        overrides: options.Set = None,
        runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
        skip_if_done: options.SkipIfDone = False,
        resume: options.Resume = False,
        dry_run: options.DryRun = False,
        smoke: options.Smoke = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
        blind: options.Blind = False,
    ) -> None:
        output = Output(json=json, quiet=quiet)
        settings = [*(overrides or ()), *([f"{STAGES[stage].section}.blind=true"] if blind else [])]
        with load_recipe(options.recipe_path(recipe, recipe_argument), settings, [stage]) as loaded:
            if dry_run:
                _print_dry_run(output, loaded, [stage], runs_dir.absolute(), smoke=smoke)
                return
            if workers.are_needed(loaded.launch.processes, smoke=smoke):
                _check(loaded, [stage], runs_dir.absolute())  # one message, not one per process
                workers.launch(loaded.launch.processes)
            from rlhf_cli.pipeline.runner import run_stage

            with output.reporter() as reporter:
                result = run_stage(
                    stage,
                    loaded,
                    runs_dir.absolute(),
                    smoke=smoke,
                    reporter=reporter,
                    skip_if_done=skip_if_done,
                    resume=resume,
                )
            _finish(output, json_output.stage_object(result), result.failed_gates)

    if not STAGES[stage].evaluates:  # Typer reads the options of a command from its signature
        signature = inspect.signature(command, eval_str=True)  # Typer does not evaluate a replaced one
        parameters = [parameter for name, parameter in signature.parameters.items() if name != "blind"]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def run(
    stages: options.Stages = None,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    smoke: options.Smoke = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run all stages of the recipe, or the given ones, and skip those that are up to date."""
    output = Output(json=json, quiet=quiet)
    with load_recipe(options.recipe_path(recipe), overrides, stages or None) as loaded:
        chain = _select_stages(loaded, stages)
        if dry_run:
            _print_dry_run(output, loaded, chain, runs_dir.absolute(), smoke=smoke)
            return
        _check(loaded, chain, runs_dir.absolute(), smoke=smoke, thorough=True)
        if workers.are_needed(loaded.launch.processes, smoke=smoke):
            workers.launch(loaded.launch.processes)
        from rlhf_cli.pipeline.runner import run_chain

        results: list[StageResult] = []
        try:
            with output.reporter() as reporter:
                # If a stage fails, `extend` keeps the results of the stages before it.
                results.extend(
                    run_chain(loaded, chain, runs_dir.absolute(), smoke=smoke, reporter=reporter, resume=resume)
                )
        finally:
            if len(results) > 1:
                output.text(lambda console: tables.print_chain(console, results, chain))
        _finish(output, json_output.chain_object(results), results[-1].failed_gates)


def check(
    stages: options.Stages = None,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Validate the recipe, its data files and its references without loading a model."""
    path = options.recipe_path(recipe)
    with load_recipe(path, overrides, stages or None) as loaded:
        chain = _select_stages(loaded, stages)
        counts = _check(loaded, chain, runs_dir.absolute())
    Output(json=json).result(
        {"stage": "check", "recipe": str(path), "stages": chain, "data": counts},
        lambda console: tables.print_check(console, path, chain, counts),
    )


@contextlib.contextmanager
def load_recipe(path: Path, overrides: list[str] | None, stages: Sequence[str] | None) -> Iterator[Recipe]:
    """Yield the recipe. An issue raised inside that names one of its keys gets that key's file and line."""
    from rlhf_cli.recipe.loader import read_recipe

    loaded = read_recipe(path, overrides or (), stages)
    try:
        yield loaded.recipe
    except RlhfError as error:
        error.issues = tuple(loaded.with_location(issue) for issue in error.issues)
        raise


def _check(
    recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool = False, thorough: bool = False
) -> dict[str, dict[str, int]]:
    from rlhf_cli.pipeline import preflight

    return preflight.check(recipe, stages, runs_dir, smoke=smoke, thorough=thorough)


def _select_stages(recipe: Recipe, stages: Sequence[str] | None) -> list[str]:
    """Return the given stages in the order of the chain, or all stages that the recipe has a section for."""
    from rlhf_cli.recipe.validation import named_stages

    selected = [stage for stage in STAGES if stage in stages] if stages else named_stages(recipe)
    if not selected:
        hint = f"Add one of the sections {', '.join(STAGES)}, or name stages on the command line."
        raise RecipeError("recipe.no-stages", "the recipe has no stages to run.", hint=hint)
    return selected


def _finish(output: Output, data: dict[str, Any], failed_gates: Sequence[Issue]) -> None:
    """Print the JSON object. Raise GateError with it if a gate failed."""
    if failed_gates:
        raise GateError(failed_gates, data)
    output.result(data)


def _print_dry_run(output: Output, recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool) -> None:
    from rlhf_cli.pipeline.dry_run import preview

    _check(recipe, stages, runs_dir, smoke=smoke, thorough=True)
    previews = [
        preview(stage, recipe, runs_dir, smoke=smoke, earlier=stages[:index]) for index, stage in enumerate(stages)
    ]
    command = stages[0] if len(stages) == 1 else "run"
    output.result(
        {"stage": command, "dry_run": previews},
        lambda console: tables.print_previews(console, previews),
    )
