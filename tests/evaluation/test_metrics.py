"""The registry of metrics: which metrics a recipe has, and that names, values and tables follow from the entries."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.evaluation import metrics
from rlhf_cli.evaluation.measurements import (
    CompletionLoss,
    JudgedPairs,
    PairedCompletions,
    PreferenceMargins,
    ScoredCompletions,
)
from rlhf_cli.evaluation.metric_types import FUNCTION, GROUPS, Metric
from rlhf_cli.evaluation.metrics import (
    EVALUATION_METRICS,
    all_metrics,
    compute,
    evaluated_datasets,
    find_metric,
    find_regressions,
    metric_names,
    metric_rows,
    metrics_of,
    overview_rows,
)
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.stages import STAGES
from tests.support.issues import raises_issue

ROWS = {"path": "rows.jsonl"}
SIDE = ScoredCompletions([[5, 6, 2], [5, 2]], ["a", "b"], [1.0, 3.0], {"score": [0.5, 1.0]}, [False, True])
MEASUREMENTS = {
    "demonstrations": CompletionLoss(6.0, 3),
    "preferences": PreferenceMargins([1.0, -1.0], [2.0, 1.0]),
    "completions": SIDE,
    "comparison": PairedCompletions(SIDE, SIDE, [0.0, 0.0], 0, JudgedPairs([1.0, 0.0], 0.5), [1.0]),
}


def make_recipe(data: list[str], **settings: Any) -> Recipe:
    """Return a recipe with these datasets and settings of `eval`."""
    return Recipe.model_validate(
        {"name": "x", "base": {"model": "m"}, "data": dict.fromkeys(data, ROWS), "eval": settings}
    )


def names(data: list[str], **settings: Any) -> list[str]:
    """Return the metric names of such a recipe."""
    return metric_names(make_recipe(data, **settings))


def test_metric_names_include_those_of_the_contract() -> None:
    contract = {"sft.nll", "reward.accuracy", "policy.reward", "policy.reward_gain", "win_rate", "win_rate.low", "kl"}
    contract |= {"response_length", "truncation_rate", "reward.accuracy.high", "reward.accuracy.n"}
    assert contract <= set(names(["sft", "preferences", "prompts"]))


def test_metric_names_of_preferences_without_reward_model_are_empty() -> None:
    assert names(["preferences"], reward=None) == []
    assert evaluated_datasets(make_recipe(["preferences", "sft"], reward=None)) == {"sft"}


def test_metric_names_without_baseline_have_no_comparison() -> None:
    found = names(["sft", "prompts"], baseline=None, python=["gold.py:score"])
    assert "policy.reward" in found
    assert "score" in found
    assert not any(name in ("kl", "win_rate", "score.gain") or name.endswith(".baseline") for name in found)


def test_metric_names_of_function_are_both_sides_and_gain() -> None:
    found = names(["prompts"], python=["gold.py:score"])
    assert {"score", "score.baseline", "score.gain", "score.gain.low", "score.gain.high"} <= set(found)


@pytest.mark.parametrize("function", ["kl", "win_rate"])
def test_metric_names_function_named_like_a_metric_raises(function: str) -> None:
    with raises_issue("eval.duplicate-metric", error=RecipeError, location="eval.python") as issues:
        names(["prompts"], python=[f"gold.py:{function}"])
    assert issues[0].message == f"two metrics have the name {function}; expected different names."


def test_metric_names_two_functions_of_one_name_raises() -> None:
    with raises_issue("eval.duplicate-metric", error=RecipeError):
        names(["prompts"], python=["gold.py:score", "other.py:score"])


@pytest.mark.parametrize("baseline", ["sft", None])
def test_computed_values_have_exactly_the_declared_names(baseline: str | None) -> None:
    recipe = make_recipe(["sft", "preferences", "prompts"], baseline=baseline, python=["gold.py:score"], judge=True)
    chosen = metrics_of(recipe)
    values: dict[str, float] = {}
    for group, measurement in MEASUREMENTS.items():
        values |= compute(chosen, group, measurement)  # type: ignore[arg-type]
        if baseline is not None:
            values |= compute(chosen, group, measurement, of_baseline=True)  # type: ignore[arg-type]
    assert sorted(values) == sorted(metric_names(recipe))


def test_new_metric_of_completions_needs_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    shortest = Metric(
        name="shortest",
        unit="tokens",
        direction="none",
        description="Length of the shortest completion.",
        group="completions",
        needs=("prompts",),
        compute=lambda side: float(min(map(len, side.responses))),
        has_baseline=True,
    )
    monkeypatch.setattr(metrics, "EVALUATION_METRICS", (*EVALUATION_METRICS, shortest))
    recipe = make_recipe(["prompts"])
    assert {"shortest", "shortest.baseline"} <= set(metric_names(recipe))
    assert compute(metrics_of(recipe), "completions", SIDE)["shortest"] == 2.0
    assert find_metric("shortest.baseline") is shortest


def test_compute_refuses_result_that_differs_from_declaration() -> None:
    wrong = replace(metrics.DEMONSTRATION_METRICS[0], has_interval=True)
    with pytest.raises(AssertionError, match=r"sft\.nll"):
        wrong.values(CompletionLoss(6.0, 3))


def test_all_metrics_have_unique_names_per_group_and_a_sentence() -> None:
    found = all_metrics()
    assert len({(metric.group, metric.name) for metric in found}) == len(found)
    assert {metric.group for metric in found} == set(GROUPS)
    for metric in found:
        assert metric.description[0] != " "
        assert metric.description.endswith(".")
        assert not metric.has_count or metric.has_interval
        assert (metric.compute is not None) == (metric in EVALUATION_METRICS)
        assert bool(metric.needs) == (metric in EVALUATION_METRICS)


def test_gains_are_registered_metrics() -> None:
    gains = {metric.gain for metric in EVALUATION_METRICS if metric.gain}
    assert gains == {"policy.reward_gain", f"{FUNCTION}.gain"}
    assert gains <= {metric.name for metric in metrics.COMPARISON_METRICS}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("kl", "kl"),
        ("win_rate.low", "win_rate"),
        ("reward.accuracy.n", "reward.accuracy"),
        ("sft.nll.baseline", "sft.nll"),
        ("sft.train_loss", "<stage>.train_loss"),
        ("ppo.score.brevity", "ppo.score.<source>"),
        ("ppo.score.scorer.too_long", "ppo.score.<source>.too_long"),
        ("ppo.kl.token", "ppo.kl.token"),
        ("seconds.rollout", "seconds.rollout"),
        ("words", None),
        ("words.gain.low", None),
    ],
)
def test_find_metric_matches_suffixes_and_families(name: str, found: str | None) -> None:
    metric = find_metric(name)
    assert (None if metric is None else metric.name) == found


def test_metric_rows_put_interval_count_and_baseline_beside_value() -> None:
    values = {
        "win_rate": 0.6,
        "win_rate.low": 0.5,
        "win_rate.high": 0.7,
        "win_rate.n": 9.0,
        "policy.reward": 1.0,
        "policy.reward.baseline": 0.5,
        "policy.reward_gain": 0.5,
        "lone.low": 3.0,
    }
    rows = {row.name: row for row in metric_rows(values)}
    assert list(rows) == ["win_rate", "policy.reward", "policy.reward_gain", "lone.low"]
    assert rows["win_rate"] == ("win_rate", 0.6, 0.5, 0.7, 9.0, None, "")
    assert rows["policy.reward"] == ("policy.reward", 1.0, None, None, None, 0.5, "policy.reward_gain")


def test_overview_rows_follow_the_registry_and_include_functions() -> None:
    values = dict.fromkeys(names(["sft", "preferences", "prompts"], python=["g.py:entropy", "g.py:words"]), 1.0)
    assert [(row.name, row.gain) for row in overview_rows(values)] == [
        ("win_rate", ""),
        ("kl", ""),
        ("policy.reward", "policy.reward_gain"),
        ("entropy", "entropy.gain"),
        ("words", "words.gain"),
        ("response_length", ""),
        ("truncation_rate", ""),
        ("sft.nll", ""),
    ]


def test_overview_rows_include_every_regression() -> None:
    values = {"distinct_2": 0.2, "distinct_2.baseline": 0.31, "repeated_4gram_rate": 0.2, "kl": 1.0}
    values |= {"repeated_4gram_rate.baseline": 0.11}
    assert [row.name for row in overview_rows(values)] == ["kl", "distinct_2"]
    assert find_regressions(values) == ["distinct_2"]


def test_registry_imports_no_heavy_library() -> None:
    code = "import sys, rlhf_cli.evaluation.metrics; print({'numpy', 'scipy', 'torch'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


def test_headline_metrics_of_stages_are_described() -> None:
    headlines = [(stage, name) for stage, spec in STAGES.items() for name in spec.headline_metrics]
    assert [(stage, name) for stage, name in headlines if metrics.find_metric(name) is None] == []
