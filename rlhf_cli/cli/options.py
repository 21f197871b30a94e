"""The options that every stage shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Option("--recipe", "-r", metavar="FILE", help="The recipe, a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in ppo.kl.coef=0.1; may be repeated."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", envvar="RLHF_RUNS", help="Where runs are written.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Load data and tokenizer, show one example; train nothing.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="The recipe made tiny, with random weights: a test for CI.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the outcome alone.")]
SkipIfDone = Annotated[bool, typer.Option("--skip-if-done", help="Do nothing where the newest version is up to date.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the newest run that was stopped, from its last checkpoint.")
]

RUNS = Path("runs")
