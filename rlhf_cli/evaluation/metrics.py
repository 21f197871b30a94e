"""Which metrics `eval` will give for a recipe, known before anything is loaded, so that a gate's typo fails at once."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.schema import Recipe

ANSWERS = ("response_length", "truncation_rate", "repeated_4gram_rate", "distinct_2")  # of each side's answers


class Parts(NamedTuple):
    """What is measured: each part where its data, and for `reward` its judge, are given."""

    sft: bool
    reward: bool
    policy: bool


def parts(recipe: Recipe) -> Parts:
    """The parts of the evaluation that this recipe gives data for."""
    return Parts(
        sft=recipe.data.sft is not None,
        reward=recipe.data.preferences is not None and recipe.eval.reward is not None,
        policy=recipe.data.prompts is not None,
    )


def function_name(spec: str) -> str:
    """The metric's name of `file.py:function`."""
    return spec.rpartition(":")[2]


def metric_names(recipe: Recipe) -> list[str]:
    """Every metric of this recipe's evaluation. Raises RecipeError where two would have the same name."""
    given = parts(recipe)
    compared, judged = recipe.eval.baseline is not None, recipe.eval.reward is not None
    names: list[str] = []
    if given.sft:
        names += ["sft.nll", "sft.perplexity"] + ["sft.nll.baseline"] * compared
    if given.reward:
        names += [*_interval("reward.accuracy"), "reward.accuracy.n", "reward.ties", "reward.accuracy_longer"]
        names += ["reward.margin", "reward.brier", "reward.ece"]
    if given.policy:
        names += [*ANSWERS, *(f"{name}.baseline" for name in ANSWERS if compared)] + ["kl", "kl.token"] * compared
        if judged:
            names.append("policy.reward")
        if judged and compared:
            names += ["policy.reward.baseline", *_interval("policy.reward_gain"), *_interval("win_rate"), "win_rate.n"]
        for function in map(function_name, recipe.eval.python):
            names += [function, *([f"{function}.baseline", *_interval(f"{function}.gain")] if compared else [])]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise RecipeError(
            f"two metrics would be called {twice[0]}.", location="eval.python", hint="Rename one of the functions."
        )
    return names


def _interval(name: str) -> list[str]:
    return [name, f"{name}.low", f"{name}.high"]
