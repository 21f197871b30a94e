"""Build the recipe's reward functions, and score completions with them: one score per source, and the weighted sum.

To add a kind of reward source:

1. write its scorer, a class with the methods of `RewardScorer`, in a file of its own;
2. add one row to `SCORERS`;
3. add the field with the same name to the section `RewardSource` of the recipe.

Further options of the source are fields of `RewardSource` that `REWARD_OWNERS` in `recipe/validation/ppo.py` lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_cli import distributed
from rlhf_cli.ai_feedback.judge import Judge
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.rewards import ensemble
from rlhf_cli.rewards.base import Completions, RewardScorer, completion_text, quote
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.rewards.http import HttpScorer
from rlhf_cli.rewards.judge import JudgeScorer
from rlhf_cli.rewards.model import ModelScorer
from rlhf_cli.rewards.python import PythonScorer
from rlhf_cli.rewards.rules import RuleScorer

SCORERS: Mapping[str, Callable[[RewardSource], RewardScorer]] = {  # field of RewardSource: what builds its scorer
    "python": PythonScorer.from_source,
    "model": ModelScorer.from_source,
    "http": HttpScorer.from_source,
    "rule": RuleScorer.from_source,
}


class RewardFunction(NamedTuple):
    """One reward source: roles of the policy's model that have a score head, or a scorer.

    Attributes:
        name: Its score is logged as `score.<name>`.
        weight: Factor in the sum.
        ensemble: The members of a reward run, or None.
        scorer: The scorer, or None for a reward run.
    """

    name: str
    weight: float
    ensemble: RewardEnsemble | None
    scorer: RewardScorer | None

    @property
    def roles(self) -> list[str]:
        """The roles of a reward run's members; empty for a scorer."""
        return [] if self.ensemble is None else list(self.ensemble.folders)


def build_reward_functions(
    sources: Sequence[RewardSource],
    find: Callable[[int], Path | None] = lambda _: None,
    build_judge: Callable[[], Judge] | None = None,
) -> list[RewardFunction]:
    """Build the recipe's reward functions. Loads functions, configs and tokenizers, but no weights.

    Reward runs get the roles `reward`, `reward_2`, …, and further members of the first one `reward_member_2`, …

    Args:
        sources: The reward sources.
        find: Returns the folder of the reward model of a source that is a run, by the index of the source.
        build_judge: Builds the recipe's judge; needed if it is one of the sources.

    Raises:
        RecipeError: A Python function cannot be loaded.
        ModelError: A model was not found, or is not a reward model.
    """
    found: list[RewardFunction] = []
    for index, source in enumerate(sources):
        members: RewardEnsemble | None = None
        scorer: RewardScorer | None = None
        if source.run is not None:
            folder = find(index)
            assert folder is not None, f"the folder of {source.run} is needed"
            runs = sum(1 for function in found if function.ensemble is not None)
            role = f"reward_{runs + 1}" if runs else "reward"
            members = ensemble.find_ensemble(role, folder, source.combine or "mean")
            name = Path(source.run).name.partition("@")[0]
        elif source.judge is not None:
            assert build_judge is not None, "the judge of the recipe is needed"
            scorer = JudgeScorer(build_judge())
            name = scorer.name
        else:
            kind = next((kind for kind in SCORERS if getattr(source, kind) is not None), None)
            assert kind is not None, f"a field of RewardSource has no row in SCORERS: {source!r}"
            scorer = SCORERS[kind](source)
            name = scorer.name
        found.append(RewardFunction(_unique_name(name, found), source.weight, members, scorer))
    return found


def prepare_reward_functions(
    functions: Sequence[RewardFunction], rows: Sequence[PromptRow], base: Base, *, smoke: bool
) -> None:
    """Check every scorer with the prompts, and then load the weights of those that have any.

    Args:
        functions: The reward functions.
        rows: The prompts.
        base: The recipe's base model.
        smoke: Whether to use tiny models with random weights.

    Raises:
        RecipeError, ModelError, DivergedError: A scorer cannot score completions of these prompts.
    """
    scorers = [function.scorer for function in functions if function.scorer is not None]
    for scorer in scorers:
        scorer.check(rows)
    for scorer in scorers:
        scorer.load(base, smoke=smoke)


def score_completions(
    functions: Sequence[RewardFunction],
    model: MultiAdapterModel,
    completions: Completions,
    *,
    pad_id: int,
    max_tokens: int,
) -> dict[str, Tensor]:
    """Return the unweighted scores of each source, and its details as `<name>.<detail>`: (B,) float32.

    A reward run reads the policy's token ids: the prompt, then the response with its end token if it has one. The
    detail `disagreement` of an ensemble is the standard deviation over its members. A score is NaN if the source does
    not score the completion.

    Args:
        functions: The reward functions.
        model: The model whose roles are the reward runs. The scores are on its device.
        completions: The B completions.
        pad_id: The id to pad with.
        max_tokens: Tokens of a forward pass, padding included.

    Raises:
        DivergedError: A scorer failed, or a score is not finite.
    """
    scores: dict[str, Tensor] = {}
    sequences = [p + r for p, r in zip(completions.prompt_ids, completions.responses, strict=True)]
    for function in functions:
        # A process that fails alone would leave the others waiting for it.
        scores |= distributed.call_together(
            partial(_score, function, model, completions, sequences, pad_id=pad_id, max_tokens=max_tokens)
        )
    return scores


def _score(
    function: RewardFunction,
    model: MultiAdapterModel,
    completions: Completions,
    sequences: list[list[int]],
    *,
    pad_id: int,
    max_tokens: int,
) -> dict[str, Tensor]:
    """Return the scores of one source and its details. `sequences`: token ids of prompts with completions."""
    if function.ensemble is not None:
        members = ensemble.score_sequences(model, function.ensemble, sequences, pad_id=pad_id, max_tokens=max_tokens)
        _check_finite(function, members.combined, completions)
        details = {f"{function.name}.disagreement": members.disagreement} if function.ensemble.size > 1 else {}
        return {function.name: members.combined, **details}
    assert function.scorer is not None
    found = function.scorer.score(completions, max_tokens=max_tokens)
    numbers = [0.0 if value is None else value for value in found.values]
    values = torch.tensor(numbers, dtype=torch.float32, device=model.device)
    _check_finite(function, values, completions)
    values[[index for index, value in enumerate(found.values) if value is None]] = math.nan
    details = {
        f"{function.name}.{name}": torch.tensor(detail, dtype=torch.float32, device=model.device)
        for name, detail in found.details.items()
    }
    return {function.name: values, **details}


def weighted_sum(functions: Sequence[RewardFunction], scores: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the sources' scores with their weights, (B,). A NaN score adds nothing; all NaN give NaN."""
    weighted = torch.stack([function.weight * scores[function.name] for function in functions])  # (sources, B)
    return weighted.nansum(dim=0).masked_fill(weighted.isnan().all(dim=0), math.nan)


def _check_finite(function: RewardFunction, values: Tensor, completions: Completions) -> None:
    non_finite = (~values.isfinite()).nonzero().flatten().tolist()
    if non_finite:
        index = non_finite[0]
        text = quote(completion_text(completions.completions[index]))
        message = (
            f"{function.name}: the score of completion {index} is not finite; found {values[index].item()} for {text}."
        )
        hint = "A source must return a finite number for every completion, including an empty one."
        raise DivergedError("training.non-finite", message, location="ppo.reward", hint=hint)


def _unique_name(name: str, functions: Sequence[RewardFunction]) -> str:
    """Return `name`, or `name_2`, … if another source has it."""
    names = {function.name for function in functions}
    number = 2
    unique = name
    while unique in names:
        unique, number = f"{name}_{number}", number + 1
    return unique
