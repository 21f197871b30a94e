"""What a response is worth: reward runs and other judges, each scored by itself, summed with weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.recipe.user_functions import load_function
from rlhf_cli.rewards.base import Completions, RewardScorer, as_completion, content, short
from rlhf_cli.rewards.http import HttpScorer
from rlhf_cli.rewards.model import ModelScorer
from rlhf_cli.rewards.python import PythonScorer, call
from rlhf_cli.rewards.rules import RuleScorer
from rlhf_cli.rewards.tokenizer_check import check_tokenizer

__all__ = [
    "Completions",
    "RewardFunction",
    "RewardScorer",
    "as_completion",
    "call",
    "check_tokenizer",
    "load_function",
    "prepare",
    "score",
    "terms",
    "weighted",
]

TRAINERS_OWN = "std"  # `reward.std` is the spread of the weighted sum


class RewardFunction(NamedTuple):
    """One reward source: a role of the bank that has a score head, or a judge beside it."""

    name: str  # as logged, behind `reward.`
    weight: float
    role: str | None
    judge: RewardScorer | None


def terms(sources: Sequence[RewardSource], tell: Callable[[str], None] = lambda text: None) -> list[RewardFunction]:
    """The recipe's reward sources. Loads functions, configs and tokenizers, and no weights.

    Runs get a role's name (`reward`, `reward_2`, …). `tell` is told what a person may want to know as training goes.
    """
    found: list[RewardFunction] = []
    for source in sources:
        role, judge = None, None
        if source.run is not None:
            number = 1 + sum(term.role is not None for term in found)
            role = "reward" if number == 1 else f"reward_{number}"
            name = Path(source.run).name.partition("@")[0]
        else:
            name, judge = _judge(source, tell)
        found.append(RewardFunction(_free(name, found), source.weight, role, judge))
    return found


def prepare(terms: Sequence[RewardFunction], rows: Sequence[PromptRow], base: Base, *, smoke: bool) -> None:
    """Have every judge look at the prompts, then load the weights of those that have any.

    Raises:
        ModelError, RecipeError, DivergedError: one cannot judge answers to these prompts, or does not answer.
    """
    judges = [term.judge for term in terms if term.judge is not None]
    for judge in judges:
        judge.check(rows)
    for judge in judges:
        if isinstance(judge, ModelScorer):
            judge.load(base, smoke=smoke)


def score(
    terms: Sequence[RewardFunction], bank: MultiAdapterModel, answered: Completions, *, pad_id: int, max_tokens: int
) -> dict[str, Tensor]:
    """Each term's unweighted scores by its name, (B,) float32 on the bank's device.

    A reward run sees the very tokens: prompt ids, then the response with its end token if it has one. NaN: the judge
    gave None, for it does not judge this response. `<name>.too_long` is 1 where a model saw an answer's end alone.
    """
    scores = {}
    sequences = [p + r for p, r in zip(answered.prompt_ids, answered.responses, strict=True)]
    for term in terms:
        unjudged: list[int] = []
        if term.role is not None:
            found = scoring.final_scores(bank, term.role, sequences, pad_id=pad_id, max_tokens=max_tokens)
        else:
            assert term.judge is not None
            values = term.judge.score(answered, max_tokens=max_tokens)
            numbers = [0.0 if value is None else value for value in values]
            found = torch.tensor(numbers, dtype=torch.float32, device=bank.device)
            unjudged = [index for index, value in enumerate(values) if value is None]
        bad = (~found.isfinite()).nonzero().flatten().tolist()
        if bad:
            said = short(content(answered.completions[bad[0]]))
            raise DivergedError(
                f"the reward of response {bad[0]} is {found[bad[0]].item()}: {said}",
                location=f"ppo.reward {term.name}",
                hint="A reward must be a finite number for every response, an empty one too.",
            )
        found[unjudged] = math.nan
        scores[term.name] = found
        if isinstance(term.judge, ModelScorer):
            scores[f"{term.name}.too_long"] = torch.tensor(term.judge.too_long, device=bank.device).float()
    return scores


def weighted(terms: Sequence[RewardFunction], scores: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms' scores with their weights, (B,). A term adds nothing where it did not judge."""
    return torch.stack([term.weight * scores[term.name] for term in terms]).nansum(dim=0)


def _judge(source: RewardSource, tell: Callable[[str], None]) -> tuple[str, RewardScorer]:
    """The source's name, as logged, and its judge."""
    if source.python is not None:
        return source.python.rpartition(":")[2], PythonScorer(source.python)
    if source.model is not None:
        model = ModelScorer(source.model, source.revision or "main", tell)
        return model.name, model
    if source.http is not None:
        return "http", HttpScorer.of(source, tell)
    assert source.rule is not None
    rule = RuleScorer(source.rule)
    return rule.name, rule


def _free(name: str, taken: Sequence[RewardFunction]) -> str:
    """`name`, or `name_2`, … where a term has it already, or the trainer itself logs `reward.name`."""
    names = {TRAINERS_OWN, *(term.name for term in taken)}
    number = 2
    free = name
    while free in names:
        free, number = f"{name}_{number}", number + 1
    return free
