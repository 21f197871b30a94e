"""The options and arguments that several commands share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.formatting import did_you_mean
from rlhf_cli.stages import STAGES

DEFAULT_RECIPE = Path("recipe.yaml")
DEFAULT_RUNS_DIR = Path("runs")

Flag = functools.partial(typer.Option, metavar="")  # otherwise the help shows the type as <bool>

Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", metavar="FILE", help="Recipe file. Defaults to ./recipe.yaml.", show_default=False),
]
RecipeArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Recipe file; same as --recipe FILE.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key, for example ppo.kl.coef=0.1. Can be repeated."
    ),
]
RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="DIR", envvar="RLHF_RUNS", help="Directory that holds the runs.")
]
DryRun = Annotated[
    bool, Flag("--dry-run", help="Load the data and tokenizer, show an example and the memory estimate, and exit.")
]
Smoke = Annotated[bool, Flag("--smoke", help="Run a tiny version with random weights (for CI).")]
Blind = Annotated[
    bool, Flag("--blind", help="Let people compare the completions on the annotation page; same as eval.blind: true.")
]
Json = Annotated[bool, Flag("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Quiet = Annotated[bool, Flag("--quiet", "-q", help="Print one line per stage.")]
SkipIfDone = Annotated[bool, Flag("--skip-if-done", help="Skip the stage if its latest run is up to date.")]
Resume = Annotated[
    bool, Flag("--resume", help="Resume an interrupted run from its last checkpoint; start if there is none.")
]


def recipe_path(option: Path | None, argument: Path | None = None) -> Path:
    """Return the recipe given as an option or an argument, or ./recipe.yaml if neither is given.

    Raises:
        RecipeError: Both are given, or neither is given and ./recipe.yaml does not exist.
    """
    if option is not None and argument is not None:
        message = f"the recipe is given twice: {argument} and --recipe {option}."
        raise RecipeError("recipe.usage", message, hint="Pass it once.")
    given = option or argument
    if given is None and not DEFAULT_RECIPE.exists():
        hint = "Pass a recipe with --recipe FILE, or create a project with `rlhf init DIR`."
        raise RecipeError("recipe.not-found", "recipe not found.", location=str(DEFAULT_RECIPE), hint=hint)
    return given or DEFAULT_RECIPE


def _validate_stages(names: list[str] | None) -> list[str] | None:
    """Return the names. Raise RecipeError with one issue for each that is not a stage."""
    unknown = [name for name in names or [] if name not in STAGES]
    if unknown:
        issues = [Issue("recipe.unknown-stage", f"unknown stage: {name}.", hint=_stage_hint(name)) for name in unknown]
        raise RecipeError(issues)
    return names


def _stage_hint(name: str) -> str:
    if Path(name).suffix in (".yaml", ".yml"):
        return f"Pass the recipe as -r {name}."
    return did_you_mean(name, STAGES, otherwise=f"The stages are {', '.join(STAGES)}.")


def _complete_stage(incomplete: str) -> list[str]:
    return [name for name in STAGES if name.startswith(incomplete)]


Stages = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STAGE",
        callback=_validate_stages,
        autocompletion=_complete_stage,
        help="One or more stages. Defaults to all stages in the recipe.",
        show_default=False,
    ),
]
