"""`rlhf annotate judge`: let a language model rank the items by a constitution, and compare it with people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_cli.cli import options
from rlhf_cli.cli.annotate.project import open_project
from rlhf_cli.cli.output import Output
from rlhf_cli.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.evaluation.statistics import Interval


class _Row(NamedTuple):
    """The agreement with people by one principle, or by all of them together."""

    principle: str
    agreement: Interval | None


def judge(
    recipe: options.Recipe = None,
    overrides: options.Set = None,
    runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Let the judge in feedback.judge rank all items, and show how often it agrees with people."""
    from rlhf_cli.ai_feedback import agreement
    from rlhf_cli.ai_feedback.annotate import judge_items
    from rlhf_cli.ai_feedback.judge import consistency
    from rlhf_cli.pipeline.judge import judge_of_recipe

    output = Output(json=json, quiet=quiet)
    with open_project(recipe, overrides) as project:
        if project.recipe.feedback.judge is None:
            hint = "Add feedback.judge with a constitution and a model."
            raise RecipeError("recipe.missing-key", "judge: missing key.", location="feedback", hint=hint)
        asked = judge_of_recipe(project.recipe, runs_dir.absolute())
        with output.reporter() as reporter:
            started = False

            def progress(done: int, total: int) -> None:
                nonlocal started
                if not started:
                    reporter.begin(total, "ranking")
                    started = True
                reporter.step(done, {})

            asked.answerer.load(smoke=False)
            found = judge_items(project.store, asked, progress)
        snapshot = project.store.snapshot()
    rows = [
        _Row(principle.id, agreement.measure(snapshot, {asked.annotator_name(principle): 1.0}))
        for principle in asked.constitution.principles
    ]
    rows.append(_Row("all", agreement.measure(snapshot, asked.weights)))
    share = consistency(found.verdicts) if found.verdicts else None
    data = {
        "stage": "annotate judge",
        "judge": asked.label,
        "constitution": asked.constitution.sha256,
        "judged": found.judged,
        "existing": found.existing,
        "too_long": found.too_long,
        "position_consistency": share,
        "agreement": {row.principle: None if row.agreement is None else row.agreement._asdict() for row in rows},
    }
    output.result(data, lambda console: _print(console, data, rows))


def _print(console: Console, data: dict[str, Any], rows: list[_Row]) -> None:
    from rich.table import Table

    counts = f"{data['judged']:,} rankings, {data['existing']:,} stored before"
    counts += f", {data['too_long']:,} too long for its context" if data["too_long"] else ""
    console.print(f"{data['judge']}: {counts}", markup=False, soft_wrap=True)
    if data["position_consistency"] is not None:
        console.print(f"the same in both orders: {data['position_consistency']:.1%} of the new comparisons")
    table = Table("principle", "agrees with people", "95% interval", "pairs", box=None, padding=(0, 2, 0, 0))
    for principle, found in rows:
        if found is None:
            table.add_row(principle, "not measured", "", "0")
        else:
            table.add_row(principle, f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}", f"{found.n:,}")
    console.print(table)
