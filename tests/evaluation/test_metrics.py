"""Which metrics a recipe will give, by what data and judges it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.evaluation.metrics import metric_names
from rlhf_cli.recipe.schema import Recipe

ROWS = {"path": "rows.jsonl"}


def names(data: list[str], **settings: Any) -> list[str]:
    return metric_names(
        Recipe.model_validate(
            {"name": "x", "base": {"model": "m"}, "data": dict.fromkeys(data, ROWS), "eval": settings}
        )
    )


def test_contracts_names_are_there() -> None:
    contract = {"sft.nll", "reward.accuracy", "policy.reward", "policy.reward_gain", "win_rate", "win_rate.low", "kl"}
    contract |= {"response_length", "truncation_rate", "reward.accuracy.high", "reward.accuracy.n"}
    assert contract <= set(names(["sft", "preferences", "prompts"]))


def test_preferences_say_nothing_without_a_reward_model() -> None:
    assert names(["preferences"], reward=None) == []


def test_no_opponent_no_comparison() -> None:
    found = names(["sft", "prompts"], baseline=None, python=["gold.py:score"])
    assert "policy.reward" in found
    assert "score" in found
    assert not any(name in ("kl", "win_rate", "score.gain") or name.endswith(".baseline") for name in found)


def test_a_function_has_figures_of_both_sides_and_the_gain() -> None:
    found = names(["prompts"], python=["gold.py:score"])
    assert {"score", "score.baseline", "score.gain", "score.gain.low", "score.gain.high"} <= set(found)


@pytest.mark.parametrize("function", ["kl", "win_rate"])
def test_a_function_must_not_hide_a_metric_of_ours(function: str) -> None:
    with pytest.raises(RecipeError, match=function):
        names(["prompts"], python=[f"gold.py:{function}"])


def test_every_metric_is_explained_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = names(["sft", "preferences", "prompts"])
    plain = [name for name in found if name.rpartition(".")[2] not in ("low", "high", "n", "baseline")]
    assert len(plain) > 15
    assert [name for name in plain if f"`{name}`" not in readme] == []
