"""Rows that exceed the recipe's limit or the base model's context."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.stages import STAGES
from rlhf_cli.training.length_checks import LengthLimit, check_overlong, check_positions, check_rope_switch
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue
from tests.support.training_project import TrainingProject

COUNTS = {"truncated to 100 tokens": 0, "dropped: prompt of 100 tokens or more": 1200}


def resolved(stage: str) -> ResolvedStage:
    """Return a stage with limits of 100 tokens per row and 40 new tokens, without inputs."""
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "base": {"model": "b"},
            "sft": {"max_length": 100},
            "reward": {"max_length": 100},
            "ppo": {"max_prompt_length": 100, "max_new_tokens": 40},
        }
    )
    return ResolvedStage(stage, STAGES[stage], recipe, (), {}, "", "b", Path("runs"), smoke=False)


def check_longest(stage: str, longest: int, positions: int | None) -> list[str]:
    """Check rows of a stage against the base model's positions. Return warnings."""
    limit = LengthLimit.of_stage(resolved(stage))
    key = limit.new_tokens_key or limit.key
    noun = "a prompt with its completion" if limit.new_tokens_key else "a row"
    return check_positions(positions, longest + limit.new_tokens, limit.tokens + limit.new_tokens, key, noun=noun)


@pytest.mark.parametrize(
    ("stage", "key"), [("sft", "sft.max_length"), ("reward", "reward.max_length"), ("ppo", "ppo.max_prompt_length")]
)
def test_no_rows_left_is_reported_with_the_reasons(stage: str, key: str) -> None:
    with raises_issue("data.no-usable-rows", error=DataError, location=key) as issues:
        check_overlong(LengthLimit.of_stage(resolved(stage)), [], COUNTS, 1.0)
    assert issues[0].message == "no rows left to train on (dropped: prompt of 100 tokens or more: 1,200)."


@pytest.mark.parametrize(("stage", "sequences"), [("sft", 1), ("reward", 2), ("ppo", 1)])
def test_too_many_long_rows_are_refused(stage: str, sequences: int) -> None:
    """1,200 of 1,300 rows are dropped; a kept pair has two sequences."""
    limit = LengthLimit.of_stage(resolved(stage))
    lengths = [10] * 100 * sequences
    check_overlong(limit, lengths, COUNTS, 1200 / 1300)
    with raises_issue("data.too-many-long-rows", error=DataError, location=limit.key) as issues:
        check_overlong(limit, lengths, COUNTS, 0.92)
    expected = "too many long rows; found 1,200 of 1,300 rows over 100 tokens, expected at most 92.0%."
    assert issues[0].message == expected


@pytest.mark.parametrize(
    ("stage", "longest", "location", "message", "hint"),
    [
        (
            "sft",
            61,
            "sft.max_length",
            "a row exceeds the base model's context; found 61 tokens, expected at most 60.",
            "Lower it by 1, or use another base model.",
        ),
        (
            "reward",
            100,
            "reward.max_length",
            "exceeds the base model's context; found 100 tokens, expected at most 60.",
            "Lower it by 40, or use another base model.",
        ),
        (
            "ppo",
            21,
            "ppo.max_new_tokens",
            "a prompt with its completion exceeds the base model's context; found 61 tokens, expected at most 60.",
            "Lower it by 1, or use another base model.",
        ),
    ],
)
def test_row_beyond_positions_is_refused(stage: str, longest: int, location: str, message: str, hint: str) -> None:
    with raises_issue("recipe.context-exceeded", error=RecipeError, location=location) as issues:
        check_longest(stage, longest, 60)
    assert (issues[0].message, issues[0].hint) == (message, hint)


def test_limit_beyond_positions_warns_if_no_row_is() -> None:
    rest = "but the base model has 60 positions (longest in the data: 60 tokens)"
    assert check_longest("sft", 60, 60) == [f"sft.max_length: a row may have 100 tokens, {rest}"]
    assert check_longest("ppo", 20, 60) == [
        f"ppo.max_new_tokens: a prompt with its completion may have 140 tokens, {rest}"
    ]


@pytest.mark.parametrize(("stage", "positions"), [("sft", 100), ("reward", 100), ("ppo", 140), ("sft", None)])
def test_limit_within_positions_does_not_warn(stage: str, positions: int | None) -> None:
    assert check_longest(stage, 100, positions) == []


def test_check_rope_switch_longer_row_raises_issue() -> None:
    """One longer row changes the rope factors of its whole batch."""
    check_rope_switch(None, 5000, "ppo.max_new_tokens", noun="a row")
    check_rope_switch(4096, 4096, "ppo.max_new_tokens", noun="a row")
    with raises_issue("recipe.context-exceeded", error=RecipeError, location="ppo.max_new_tokens") as issues:
        check_rope_switch(4096, 5000, "ppo.max_new_tokens", noun="a row")
    assert issues[0].hint.startswith("Lower it by 904,")


def test_ppo_across_the_rope_switch_is_refused_before_training(
    training_project: TrainingProject, make_family: MakeFamily
) -> None:
    base = make_family("phi3-longrope")  # changes its factors after 64 tokens
    words = [f"base.model={base}", "ppo.max_new_tokens=62"]
    with raises_issue("recipe.context-exceeded", error=RecipeError, location="ppo.max_new_tokens"):
        training_project.train("ppo", *words)
