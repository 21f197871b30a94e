"""The registry of metrics. Recipes' gates, evaluations, reports, tables and the reference read it.

To add a metric of completions:

1. write a pure function from `ScoredCompletions` to a number, in `evaluation/text.py` or a new file;
2. add one entry with it to `COMPLETION_METRICS`;
3. test the function.

`eval` then reports it for the candidate and, with `has_baseline=True`, for the baseline; it can be used in gates, and
the reference describes it. The other evaluation metrics work the same way with their own measurements.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from rlhf_cli.errors import RecipeError
from rlhf_cli.evaluation import comparison, text
from rlhf_cli.evaluation.feedback_metrics import QUALITY_METRICS
from rlhf_cli.evaluation.metric_types import (
    BASELINE_SUFFIX,
    COUNT_SUFFIX,
    FUNCTION,
    INTERVAL_SUFFIXES,
    SLICE,
    Group,
    Metric,
    Need,
)
from rlhf_cli.evaluation.preference_metrics import PREFERENCE_METRICS
from rlhf_cli.evaluation.slices import reported_slices
from rlhf_cli.evaluation.training_metrics import TRAINING_METRICS
from rlhf_cli.recipe.schema import Recipe

SLICE_PATTERN = r"[a-z]+\.[^.]+"  # such as language.en

DEMONSTRATION_METRICS = (
    Metric(
        name="sft.nll",
        unit="nats per token",
        direction="lower",
        description="Negative log-likelihood of the completion tokens of held-out demonstrations.",
        group="demonstrations",
        needs=("sft",),
        compute=comparison.nll,
        has_baseline=True,
        in_overview=True,
        tolerance=0.1,  # perplexity rises by 10%
    ),
    Metric(
        name="sft.perplexity",
        unit="",
        direction="lower",
        description="exp(sft.nll).",
        group="demonstrations",
        needs=("sft",),
        compute=comparison.perplexity,
    ),
)

COMPLETION_METRICS = (
    Metric(
        name="policy.reward",
        unit="score",
        direction="higher",
        description="Mean score that the reward model gives the completions.",
        group="completions",
        needs=("prompts", "reward_model"),
        compute=comparison.reward,
        has_baseline=True,
        gain="policy.reward_gain",
        in_overview=True,
    ),
    Metric(
        name=FUNCTION,
        unit="as returned",
        direction="higher",
        description="Mean score that a Python function from `eval.python` gives the completions.",
        group="completions",
        needs=("prompts", "functions"),
        compute=comparison.function_score,
        has_baseline=True,
        gain=f"{FUNCTION}.gain",
        in_overview=True,
    ),
    Metric(
        name="response_length",
        unit="tokens",
        direction="none",
        description="Mean length of a completion, including its end token.",
        group="completions",
        needs=("prompts",),
        compute=comparison.response_length,
        has_baseline=True,
        in_overview=True,  # reward hacking shows first in lengths and truncation
    ),
    Metric(
        name="truncation_rate",
        unit="fraction of completions",
        direction="lower",
        description="How often a completion reached the token limit before it ended.",
        group="completions",
        needs=("prompts",),
        compute=comparison.truncation_rate,
        has_baseline=True,
        in_overview=True,
        tolerance=0.1,
    ),
    Metric(
        name="repeated_4gram_rate",
        unit="fraction of 4-grams",
        direction="lower",
        description="Fraction of token 4-grams that already occurred in the same completion.",
        group="completions",
        needs=("prompts",),
        compute=lambda side: text.repeated_ngram_rate(side.responses, 4),
        has_baseline=True,
        tolerance=0.1,
    ),
    Metric(
        name="distinct_2",
        unit="fraction of 2-grams",
        direction="higher",
        description="Number of distinct token 2-grams divided by the number of all 2-grams, over all completions.",
        group="completions",
        needs=("prompts",),
        compute=lambda side: text.distinct_ngram_rate(side.responses, 2),
        has_baseline=True,
        tolerance=0.1,
    ),
)

COMPARISON_METRICS = (
    Metric(
        name="win_rate",
        unit="fraction of prompts",
        direction="higher",
        description="How often the reward model prefers the candidate's completion to the baseline's; a tie counts "
        "as half a win. Wilson interval.",
        group="comparison",
        needs=("prompts", "reward_model", "baseline"),
        compute=comparison.win_rate,
        has_interval=True,
        has_count=True,
        in_overview=True,
    ),
    Metric(
        name="policy.reward_gain",
        unit="score",
        direction="higher",
        description="Mean difference of the reward model's scores, candidate minus baseline, paired by prompt. "
        "Bootstrap interval.",
        group="comparison",
        needs=("prompts", "reward_model", "baseline"),
        compute=comparison.reward_gain,
        has_interval=True,
    ),
    Metric(
        name=f"{FUNCTION}.gain",
        unit="as returned",
        direction="higher",
        description="Mean difference of a Python function's scores, candidate minus baseline, paired by prompt. "
        "Bootstrap interval.",
        group="comparison",
        needs=("prompts", "functions", "baseline"),
        compute=comparison.function_gain,
        has_interval=True,
    ),
    Metric(
        name="judge.win_rate",
        unit="fraction of prompts",
        direction="higher",
        description="How often the judge of eval.judge prefers the candidate's completion to the baseline's, by the "
        "weighted votes of its principles; a verdict that changes with the order is a tie, and a tie counts as half a "
        "win. Wilson interval.",
        group="comparison",
        needs=("prompts", "judge", "baseline"),
        compute=comparison.judge_win_rate,
        has_interval=True,
        has_count=True,
        in_overview=True,
    ),
    Metric(
        name="judge.position_consistency",
        unit="fraction of verdicts",
        direction="higher",
        description="How often the judge gives the same verdict in both orders of the completions.",
        group="comparison",
        needs=("prompts", "judge", "baseline"),
        compute=comparison.judge_consistency,
    ),
    Metric(
        name="people.win_rate",
        unit="fraction of prompts",
        direction="higher",
        description="How often people prefer the candidate's completion to the baseline's, without knowing which model "
        "wrote which, of the prompts that they have judged (eval.blind); a tie counts as half a win. Wilson interval.",
        group="comparison",
        needs=("prompts", "people", "baseline"),
        compute=comparison.people_win_rate,
        is_optional=True,
        has_interval=True,
        has_count=True,
        in_overview=True,
    ),
    Metric(
        name="kl",
        unit="nats per completion",
        direction="none",
        description="KL(candidate ‖ baseline), estimated from the candidate's samples (k1); noise can make a small "
        "value negative.",
        group="comparison",
        needs=("prompts", "baseline"),
        compute=comparison.sequence_kl,
        in_overview=True,
    ),
    Metric(
        name="kl.token",
        unit="nats per token",
        direction="none",
        description="The same estimate divided by the number of tokens.",
        group="comparison",
        needs=("prompts", "baseline"),
        compute=comparison.token_kl,
    ),
)

EVALUATION_METRICS = (*DEMONSTRATION_METRICS, *PREFERENCE_METRICS, *COMPLETION_METRICS, *COMPARISON_METRICS)


class MetricRow(NamedTuple):
    """A metric's value with what belongs beside it in a table. None if it is not reported or not finite.

    Attributes:
        name: The metric.
        value: Its value; of the candidate in an evaluation.
        low: Lower end of the 95% interval.
        high: Upper end of the 95% interval.
        n: Number of items.
        baseline: The baseline's value.
        gain: Name of the metric of the difference between candidate and baseline; empty if it is not reported.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: float | None
    baseline: float | None
    gain: str


def all_metrics() -> tuple[Metric, ...]:
    """Return every metric that a manifest or a metrics.jsonl can hold. Their order is that of the reference."""
    return (*EVALUATION_METRICS, *QUALITY_METRICS, *TRAINING_METRICS)


def find_metric(name: str) -> Metric | None:
    """Return the metric, or the family, that `name` with or without a suffix belongs to, or None if it is unknown.

    Any name can be one of a Python function, so that family is never returned.
    """
    bare = name.removesuffix(BASELINE_SUFFIX)
    for suffix in (*INTERVAL_SUFFIXES, COUNT_SUFFIX):
        bare = bare.removesuffix(suffix)
    for metric in all_metrics():
        pattern = re.sub("<[a-z]+>", "[^.]+", re.escape(metric.name).replace(SLICE, SLICE_PATTERN))
        if FUNCTION not in metric.name and any(re.fullmatch(pattern, candidate) for candidate in (name, bare)):
            return metric
    return None


def function_name(spec: str) -> str:
    """Return the metric's name of `file.py:function`."""
    return spec.rpartition(":")[2]


def metrics_of(recipe: Recipe) -> list[Metric]:
    """Return the metrics that `eval` computes with this recipe. Each Python function has metrics of its own."""
    given = _provided(recipe)
    found: list[Metric] = []
    for metric in EVALUATION_METRICS:
        if not given.issuperset(metric.needs):
            continue
        if FUNCTION in metric.name:
            found += [_of_function(metric, function_name(spec)) for spec in recipe.eval.python]
        else:
            found.append(metric)
    return found


def _provided(recipe: Recipe) -> set[Need]:
    """Return what this recipe has of the needs of metrics."""
    has: dict[Need, bool] = {
        "sft": recipe.data.sft is not None,
        "preferences": recipe.data.preferences is not None,
        "prompts": recipe.data.prompts is not None,
        "baseline": recipe.eval.baseline is not None,
        "reward_model": recipe.eval.reward is not None,
        "functions": bool(recipe.eval.python),
        "judge": recipe.eval.judge,
        "people": recipe.eval.blind,
    }
    return {need for need, is_given in has.items() if is_given}


def _of_function(metric: Metric, function: str) -> Metric:
    assert metric.compute is not None
    name = metric.name.replace(FUNCTION, function)
    gain = metric.gain.replace(FUNCTION, function)
    return dataclasses.replace(metric, name=name, gain=gain, compute=partial(metric.compute, function=function))


def _of_slice(metric: Metric, slice_name: str) -> Metric:
    assert metric.compute is not None
    computed = partial(metric.compute, slice_name=slice_name)
    return dataclasses.replace(metric, name=metric.name.replace(SLICE, slice_name), compute=computed)


def evaluated_datasets(recipe: Recipe) -> frozenset[Need]:
    """Return the datasets that `eval` reads: `sft`, `preferences` and `prompts`, if any metric needs them."""
    needs = {need for metric in metrics_of(recipe) for need in metric.needs}
    return frozenset(needs & {"sft", "preferences", "prompts"})


def metric_names(recipe: Recipe) -> list[str]:
    """Return the name of every number that `eval` reports with this recipe, whatever the rows. Loads no data.

    Raises:
        RecipeError: Two metrics have the same name.
    """
    with_baseline = recipe.eval.baseline is not None
    always = [metric for metric in metrics_of(recipe) if not metric.is_optional]
    names = [name for metric in always for name in metric.names(with_baseline=with_baseline)]
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        message = f"two metrics have the name {duplicates[0]}; expected different names."
        hint = "Rename one of the functions."
        raise RecipeError("eval.duplicate-metric", message, location="eval.python", hint=hint)
    return names


def optional_names(recipe: Recipe, slices: Iterable[str] = ()) -> list[str]:
    """Return the names of the numbers that `eval` reports only if the rows have what they need.

    Args:
        recipe: The recipe.
        slices: The slices of the rows.
    """
    optional = [metric for metric in metrics_of(recipe) if metric.is_optional]
    return [
        name
        for metric in optional
        for one in ([_of_slice(metric, of_rows) for of_rows in slices] if SLICE in metric.name else [metric])
        for name in one.names()
    ]


def is_optional(name: str, recipe: Recipe) -> bool:
    """Return whether `eval` reports a number called `name` with this recipe only if the rows have what it needs."""
    metric = find_metric(name)
    return metric is not None and metric.is_optional and metric in metrics_of(recipe)


def people_names(recipe: Recipe) -> list[str]:
    """Return the names of the numbers that `eval` reports once people have judged; empty if they are not asked."""
    return [name for metric in metrics_of(recipe) if "people" in metric.needs for name in metric.names()]


def compute(
    metrics: Iterable[Metric], group: Group, measurement: Any, *, of_baseline: bool = False
) -> dict[str, float]:
    """Compute the metrics of one group from its measurement; of the baseline, those that are reported for it."""
    values: dict[str, float] = {}
    for metric in metrics:
        if metric.group == group and not of_baseline and SLICE in metric.name:
            for slice_name in reported_slices(measurement.slices):
                values |= _of_slice(metric, slice_name).values(measurement)
        elif metric.group == group and not of_baseline:
            values |= metric.values(measurement)
        elif metric.group == group and metric.has_baseline:
            values[metric.name + BASELINE_SUFFIX] = metric.values(measurement)[metric.name]
    return values


def metric_rows(values: Mapping[str, float | None]) -> list[MetricRow]:
    """Return the metrics of a manifest as rows of a table, in their order: intervals and counts beside the value."""
    suffixes = (*INTERVAL_SUFFIXES, COUNT_SUFFIX, BASELINE_SUFFIX)
    return [
        MetricRow(
            name=name,
            value=value,
            low=values.get(name + INTERVAL_SUFFIXES[0]),
            high=values.get(name + INTERVAL_SUFFIXES[1]),
            n=values.get(name + COUNT_SUFFIX),
            baseline=values.get(name + BASELINE_SUFFIX),
            gain=_gain_name(name, values),
        )
        for name, value in values.items()
        if not any(name.endswith(suffix) and name.removesuffix(suffix) in values for suffix in suffixes)
    ]


def overview_rows(values: Mapping[str, float | None]) -> list[MetricRow]:
    """Return the rows of the short comparison of two models: those of the overview, and every regression."""
    rows = {row.name: row for row in metric_rows(values)}
    regressions = find_regressions(values)
    found: list[MetricRow] = []
    for metric in (*COMPARISON_METRICS, *COMPLETION_METRICS, *DEMONSTRATION_METRICS):
        if not metric.in_overview and metric.name not in regressions:
            continue
        if metric.name == FUNCTION:
            found += [row for row in rows.values() if row.gain == f"{row.name}.gain"]
        elif metric.name in rows:
            found.append(rows[metric.name])
    return found


def find_regressions(values: Mapping[str, float | None]) -> list[str]:
    """Return the metrics in which the candidate is worse than the baseline by more than their tolerance."""
    found = []
    for metric in EVALUATION_METRICS:
        value, baseline = values.get(metric.name), values.get(metric.name + BASELINE_SUFFIX)
        if metric.tolerance is not None and value is not None and baseline is not None:
            loss = value - baseline if metric.direction == "lower" else baseline - value
            if loss > metric.tolerance:
                found.append(metric.name)
    return found


def _gain_name(name: str, values: Mapping[str, float | None]) -> str:
    gain = next((metric.gain for metric in COMPLETION_METRICS if metric.name == name), f"{name}.gain")
    return gain if gain in values else ""
