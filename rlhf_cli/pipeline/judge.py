"""Build the judge of a resolved stage or of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_cli.pipeline.inputs import Input, hash_model
from rlhf_cli.pipeline.references import JUDGE_ROLE, base_reference, judge_references, resolve_reference
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from rlhf_cli.ai_feedback.judge import Judge
    from rlhf_cli.evaluation.statistics import Interval


class MeasuredJudge(NamedTuple):
    """A judge with its agreement with people, or None if that is not known."""

    judge: Judge
    agreement: Interval | None


def judge_of_stage(stage: ResolvedStage) -> MeasuredJudge:
    """Return the judge that a stage asks, without weights. The stage's references include the judge's model.

    Raises:
        DataError: Its agreement with people is below `min_agreement`.
    """
    from rlhf_cli.ai_feedback.agreement import check_judge

    judge = _build(stage.recipe, stage.inputs)
    return MeasuredJudge(judge, None if stage.smoke else check_judge(judge, stage.recipe))


def judge_of_recipe(recipe: Recipe, runs_dir: Path) -> Judge:
    """Return the judge in feedback.judge, without weights.

    Raises:
        RlhfError: The judge's model cannot be found.
    """
    references = [base_reference(recipe), *judge_references(recipe)]
    if recipe.feedback.judge is not None and recipe.feedback.judge.http is not None:
        references = []
    found = [resolve_reference(reference, recipe.name, runs_dir, smoke=False) for reference in references]
    return _build(recipe, [hash_model(one) for one in found])


def _build(recipe: Recipe, inputs: Sequence[Input]) -> Judge:
    from rlhf_cli.ai_feedback.build import JudgeModel, build_judge

    by_role = {item.role: item for item in inputs}
    judge, base = by_role.get(JUDGE_ROLE), by_role.get("base")
    model: JudgeModel | None = None
    if base is not None:
        content = judge or base
        model = JudgeModel(
            base_path=base.model_path,
            path=None if judge is None else judge.model_path,
            label=content.versioned_ref if content.kind == "run" else content.ref,
            content=content.sha256 or content.ref,
        )
    return build_judge(recipe, model)
