"""`rlhf annotate select`: choose the prompts that people are asked about next."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.output import Output, make_console
from rlhf_cli.errors import RecipeError
from rlhf_cli.formatting import format_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rlhf_cli.data.rows import Text
    from rlhf_cli.feedback.types import NewItem
    from rlhf_cli.recipe.schema import Recipe
    from rlhf_cli.rewards.comparison import ComparisonScorer

SAMPLE_RUN = "sample"
DEFAULT_OUTPUT = Path("selection.jsonl")
MIN_RANDOM_SHARE = 0.3  # of the selected prompts: an evaluation on the others would be biased

SourceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="What `rlhf annotate import` reads. Defaults to the newest run of `rlhf sample`.",
        show_default=False,
    ),
]
CountOption = Annotated[int, typer.Option("--count", metavar="N", min=1, help="Number of prompts to select.")]
ShareOption = Annotated[
    float,
    typer.Option(
        "--random-share",
        metavar="FRACTION",
        min=MIN_RANDOM_SHARE,
        max=1,
        help=f"Fraction drawn at random, at least {MIN_RANDOM_SHARE}. Only these are used for evaluation.",
    ),
]
OutputOption = Annotated[
    Path, typer.Option("--output", metavar="FILE", help="File to write. An existing file is replaced.")
]


def select(
    count: CountOption,
    source: SourceArgument = None,
    random_share: ShareOption = MIN_RANDOM_SHARE,
    out: OutputOption = DEFAULT_OUTPUT,
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
) -> None:
    """Select the prompts that the reward model `eval.reward` is least certain about, and some random ones."""
    from rlhf_cli.cli.stage_commands import load_recipe
    from rlhf_cli.feedback import selection
    from rlhf_cli.feedback.formats.reading import open_source
    from rlhf_cli.runs import layout

    output, runs = Output(json=json), runs_dir.absolute()
    with load_recipe(options.recipe_path(recipe), overrides, []) as loaded:
        rows = open_source(source or SAMPLE_RUN, lambda ref: layout.find(runs, ref, loaded.name, smoke=False).path)
        items = selection.read_items(rows)
        scorer = _load_scorer(loaded, runs)
        found = [None if scores is None else selection.uncertainty(scores) for scores in _score(scorer, items, json)]
        selected = selection.select(found, count, random_share, loaded.seed)
        selection.write_items(out, items, selected)
    data: dict[str, Any] = {
        "stage": "annotate select",
        "source": rows.name,
        "path": str(out),
        "prompts": len(items),
        "too_long": found.count(None),
        "members": scorer.ensemble.size,
        "selected": len(selected),
        "random": sum(one.is_random for one in selected),
    }
    output.result(data, lambda console: console.print(_format(data), markup=False, soft_wrap=True))


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


def _score(scorer: ComparisonScorer, items: Sequence[NewItem], json: bool) -> Iterable[list[list[float]] | None]:
    """Return the scores of each item's completions, with a progress bar on a terminal."""
    from rich.progress import track

    console = make_console(stderr=json)
    questions = [
        (_encodable(item.prompt), [_encodable(completion.text) for completion in item.completions]) for item in items
    ]
    return track(
        scorer.score(questions),
        "scoring",
        total=len(items),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _encodable(text: Text) -> Text:
    """Return a text or messages with lone surrogates, which no tokenizer reads, replaced."""
    replaced: Text = json_module.loads(json_module.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))
    return replaced


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
