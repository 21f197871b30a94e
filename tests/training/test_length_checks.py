"""Rows that the recipe or the base has no room for: nothing left, beyond the positions, or only possibly so."""

from __future__ import annotations

import pytest

from rlhf_cli.errors import DataError, RecipeError
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.training import length_checks

COUNTS = {"truncated to 100 tokens": 0, "dropped: prompt of 100 tokens or more": 1200}


def check(stage: str, lengths: list[int], positions: int | None) -> list[str]:
    """What is told of rows under limits of 100 tokens, and of 40 an answer."""
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "base": {"model": "b"},
            "sft": {"max_length": 100},
            "reward": {"max_length": 100},
            "ppo": {"max_prompt_length": 100, "max_new_tokens": 40},
        }
    )
    told: list[str] = []
    length_checks.check(stage, recipe, lengths, COUNTS, positions=positions)
    return told


@pytest.mark.parametrize(
    ("stage", "key"), [("sft", "sft.max_length"), ("reward", "reward.max_length"), ("ppo", "ppo.max_prompt_length")]
)
def test_no_row_left_is_a_fault_of_the_data_with_the_reasons(stage: str, key: str) -> None:
    with pytest.raises(DataError) as raised:
        check(stage, [], None)
    (issue,) = raised.value.issues
    assert issue.location == key
    assert issue.message == "no row is left to train on (dropped: prompt of 100 tokens or more: 1,200)."


@pytest.mark.parametrize(
    ("stage", "longest", "positions", "location", "says"),
    [
        ("sft", 61, 60, "sft.max_length", "a row has 61 tokens, and the base has 60 positions. Lower it by 1,"),
        ("reward", 100, 60, "reward.max_length", "Lower it by 40,"),
        ("ppo", 21, 60, "ppo.max_new_tokens", "a prompt with its answer has 61 tokens, and the base has 60 positions."),
    ],
)
def test_a_row_beyond_the_bases_positions_is_refused(
    stage: str, longest: int, positions: int, location: str, says: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        check(stage, [3, longest], positions)
    assert raised.value.issues[0].location == location
    assert says in str(raised.value.issues[0])


def test_a_limit_beyond_the_positions_is_told_where_no_row_is() -> None:
    has = "and the base has 60 positions; the longest here has 60 tokens"
    assert check("sft", [3, 60], 60) == [f"sft.max_length: a row may have 100 tokens, {has}"]
    assert check("ppo", [20], 60) == [f"ppo.max_new_tokens: a prompt with its answer may have 140 tokens, {has}"]


@pytest.mark.parametrize(("stage", "positions"), [("sft", 100), ("reward", 100), ("ppo", 140), ("sft", None)])
def test_what_fits_is_not_spoken_of(stage: str, positions: int | None) -> None:
    assert check(stage, [100], positions) == []
