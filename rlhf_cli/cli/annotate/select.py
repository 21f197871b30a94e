"""`rlhf annotate select`: choose the prompts that people are asked about next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.output import Output, make_console
from rlhf_cli.errors import RecipeError
from rlhf_cli.formatting import format_count, format_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlhf_cli.data.batches import Fields
    from rlhf_cli.recipe.schema import Recipe
    from rlhf_cli.rewards.comparison import ComparisonScorer

SAMPLE_RUN = "sample"
DEFAULT_OUTPUT = Path("selection.jsonl")

SourceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A run of `rlhf sample`, or a .jsonl file with such rows. Defaults to the newest run.",
        show_default=False,
    ),
]
CountOption = Annotated[int, typer.Option("--count", metavar="N", min=1, help="Number of prompts to select.")]
ShareOption = Annotated[
    float,
    typer.Option(
        "--random-share",
        metavar="FRACTION",
        min=0.3,
        max=1,
        help="Fraction of them that is drawn at random, at least 0.3. Only these are used for evaluation.",
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", metavar="FILE", help="File to write. An existing file is replaced.")
]


def select(
    count: CountOption,
    source: SourceArgument = None,
    random_share: ShareOption = 0.3,
    out: OutputOption = DEFAULT_OUTPUT,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Select the prompts that the reward model `eval.reward` is least certain about, and some random ones."""
    from rlhf_cli.cli.stage_commands import load_recipe
    from rlhf_cli.feedback import selection

    output = Output(json=json)
    with load_recipe(options.recipe_path(recipe), overrides, []) as loaded:
        path = _rows_file(source or SAMPLE_RUN, loaded, runs_dir.absolute())
        rows = selection.read_rows(path)
        scorer = _load_scorer(loaded, runs_dir.absolute())
        found = [None if scores is None else selection.uncertainty(scores) for scores in _score(scorer, rows, json)]
        selected = selection.select(found, count, random_share, loaded.seed)
        selection.write_rows(out, rows, selected)
    data: dict[str, Any] = {
        "stage": "annotate select",
        "source": str(path),
        "path": str(out),
        "prompts": len(rows),
        "too_long": found.count(None),
        "members": scorer.ensemble.size,
        "selected": len(selected),
        "random": sum(one.is_random for one in selected),
    }
    output.result(data, lambda console: console.print(_format(data), markup=False, soft_wrap=True))


def _rows_file(source: str, recipe: Recipe, runs_dir: Path) -> Path:
    """Return the file that `source` names, or the rows of the run that it names.

    Raises:
        RecipeError: It is neither a file nor a complete run with rows.
    """
    from rlhf_cli.data.readers import file_type
    from rlhf_cli.recipe.schema import is_run_reference
    from rlhf_cli.runs import layout

    if is_run_reference(source):
        path = layout.find(runs_dir, source, recipe.name, smoke=False, location="SOURCE").path / "data" / "train.jsonl"
    else:
        path = Path(source)
    if not path.is_file() or not file_type(path):
        message = f"not a file of rows: {format_path(path)}."
        raise RecipeError(
            "recipe.path-not-found", message, location="SOURCE", hint="Use a sample run or a .jsonl file."
        )
    return path


def _load_scorer(recipe: Recipe, runs_dir: Path) -> ComparisonScorer:
    """Load the reward model `eval.reward`, resolved and verified as in `rlhf eval`.

    Raises:
        RecipeError: `eval.reward` is null, or its run does not exist.
        ModelError: The reward model is damaged, or was trained on another base model.
    """
    from rlhf_cli.pipeline.inputs import verify_inputs
    from rlhf_cli.pipeline.resolve import resolve
    from rlhf_cli.recipe.schema import Data
    from rlhf_cli.training.prepared_data import load_tokenizer

    if recipe.eval.reward is None:
        message = "null; expected a reward run, whose members' disagreement decides."
        raise RecipeError(
            "recipe.missing-key", message, location="eval.reward", hint="Set it to a run, such as reward."
        )
    only_reward = recipe.eval.replace(candidate="base", baseline=None, python=[])
    stage = resolve("eval", recipe.replace(data=Data(), eval=only_reward), runs_dir, smoke=False)
    verify_inputs(stage.inputs)
    folder = stage.model_path("reward")
    assert folder is not None
    from rlhf_cli.models.loading import silence_library_logging
    from rlhf_cli.rewards.comparison import ComparisonScorer

    silence_library_logging()
    return ComparisonScorer(stage.recipe, stage.base_path, folder, load_tokenizer(stage), location="eval.reward")


def _score(scorer: ComparisonScorer, rows: list[Fields], json: bool) -> Iterable[list[list[float]] | None]:
    """Return the scores of each row's completions, with a progress bar on a terminal."""
    from rich.progress import track

    from rlhf_cli.feedback.selection import completions_of

    console = make_console(stderr=json)
    questions = [(row["prompt"], completions_of(row)) for row in rows]
    return track(
        scorer.score(questions),
        "scoring",
        total=len(rows),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _format(data: dict[str, Any]) -> str:
    """Return the result as text."""
    by = "disagreement of" if data["members"] > 1 else "gap predicted by"
    lines = [
        f"{data['path']}: {format_count(data['selected'], 'prompt')} of {data['prompts']:,}",
        f"  {data['random']:,} at random, for evaluation",
        f"  {data['selected'] - data['random']:,} by the {by} {format_count(data['members'], 'reward model')}",
    ]
    if data["too_long"]:
        lines.append(f"  not scored: {format_count(data['too_long'], 'prompt')} over reward.max_length")
    return "\n".join(lines)
