"""The options that every stage shares."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Annotated

import typer

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.stages import STAGES

Flag = functools.partial(typer.Option, metavar="")  # else its help would say <bool>

Recipe = Annotated[Path, typer.Option("--recipe", "-r", metavar="FILE", help="The recipe, a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in ppo.kl.coef=0.1; may be repeated."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", envvar="RLHF_RUNS", help="Where runs are written.")]
DryRun = Annotated[bool, Flag("--dry-run", help="Load data and tokenizer, show one example; train nothing.")]
Smoke = Annotated[bool, Flag("--smoke", help="The recipe made tiny, with random weights: a test for CI.")]
Json = Annotated[bool, Flag("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Quiet = Annotated[bool, Flag("--quiet", "-q", help="Print the outcome alone, a line a stage.")]
SkipIfDone = Annotated[bool, Flag("--skip-if-done", help="Do nothing where the newest version is up to date.")]
Resume = Annotated[bool, Flag("--resume", help="Go on with the newest run that was stopped, from its last checkpoint.")]


def _known(names: list[str] | None) -> list[str] | None:
    """The names, all of stages. Raises RecipeError, with a issue for each that is none."""
    wrong = [name for name in names or [] if name not in STAGES]
    if wrong:
        raise RecipeError([Issue(f"{name} is no stage.", hint=_instead(name)) for name in wrong])
    return names


def _instead(name: str) -> str:
    if Path(name).suffix in (".yaml", ".yml"):
        return f"A recipe is given as -r {name}."
    near = difflib.get_close_matches(name, STAGES, n=1)
    return f"Did you mean {near[0]}?" if near else f"Stages are {', '.join(STAGES)}."


def _completed(incomplete: str) -> list[str]:
    return [name for name in STAGES if name.startswith(incomplete)]


Stages = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STAGE",
        callback=_known,
        autocompletion=_completed,
        help="Some of them; else all that the recipe has.",
    ),
]

RUNS = Path("runs")
