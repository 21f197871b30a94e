"""State the result of an evaluation in one sentence: whether the candidate is better, by which score, at what cost.

A difference counts only if its 95% interval excludes no difference. If the candidate was trained to maximize one of the
scores, that score alone decides only if there is no other one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from rlhf_cli.evaluation.metric_types import BASELINE_SUFFIX, COUNT_SUFFIX, INTERVAL_SUFFIXES
from rlhf_cli.evaluation.metrics import find_regressions
from rlhf_cli.evaluation.sanity_checks import warnings_of
from rlhf_cli.formatting import format_count

Outcome = Literal["better", "worse", "unclear", "mixed", "not compared"]

HEADLINES: Mapping[Outcome, str] = {
    "better": "{candidate} beats {baseline}",
    "worse": "{candidate} loses to {baseline}",
    "unclear": "no clear difference between {candidate} and {baseline}",
    "mixed": "mixed result of {candidate} compared with {baseline}",
    "not compared": "{candidate} was not compared with {baseline} by any score",
}
CHANGES: Mapping[Outcome, str] = {"better": "higher in", "worse": "lower in", "unclear": "no clear change in"}
LOW, HIGH = INTERVAL_SUFFIXES


class Models(NamedTuple):
    """The models and functions of an evaluation, by the names that the sentence uses.

    Attributes:
        candidate: The candidate.
        baseline: The baseline, or None if there is none.
        reward: The reward model, or None if there is none.
        functions: The Python functions.
        optimized: The reward model, functions and judges among these that the candidate was trained to maximize.
        judges: The others that prefer one of two completions, by the metric of their win rate.
    """

    candidate: str
    baseline: str | None
    reward: str | None
    functions: Sequence[str]
    optimized: Collection[str]
    judges: Mapping[str, str] = MappingProxyType({})


class Verdict(NamedTuple):
    """The result of an evaluation in words.

    Attributes:
        outcome: The result for the candidate.
        headline: The outcome with the names of both models.
        text: The headline with the evidence for it, and what got worse.
        regressions: The metrics in which the candidate is worse than the baseline by more than the metric tolerates.
        warnings: Reasons to distrust the result.
    """

    outcome: Outcome
    headline: str
    text: str
    regressions: Sequence[str]
    warnings: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as the manifest and report.json hold it."""
        return {**self._asdict(), "regressions": list(self.regressions), "warnings": list(self.warnings)}


def decide(metrics: Mapping[str, float], models: Models) -> Verdict:
    """Return the verdict that these metrics of an evaluation justify."""
    regressions = [] if models.baseline is None else find_regressions(metrics)
    scores = _scores(metrics, models)
    independent = {name: outcome for name, outcome in scores.items() if name not in models.optimized}
    outcome = _combine((independent or scores).values())
    headline = HEADLINES[outcome].format(candidate=models.candidate, baseline=models.baseline or "a baseline")
    evidence = [*_preferences(metrics, models), *_function_changes(metrics, models, scores)]
    evidence += [f"worse in {', '.join(_regression(name, metrics) for name in regressions)}"] if regressions else []
    evidence += _accuracy_beside_people(metrics, models)
    text = headline + (f": {'; '.join(evidence)}" if evidence else "") + "."
    warnings = [*_optimized_warnings(models, scores, independent), *warnings_of(metrics)]
    return Verdict(outcome, headline, text, regressions, warnings)


def _accuracy_beside_people(metrics: Mapping[str, float], models: Models) -> list[str]:
    """Return the reward model's accuracy with that of a person, in a list that is empty if either is not known."""
    if models.reward is None or not {"reward.accuracy", "reward.ceiling"} <= metrics.keys():
        return []
    own, people = (
        "{:.0f}% [{:.0f}, {:.0f}]".format(*(100 * metrics[name + suffix] for suffix in ("", LOW, HIGH)))
        for name in ("reward.accuracy", "reward.ceiling")
    )
    count = format_count(int(metrics["reward.accuracy" + COUNT_SUFFIX]), "held-out pair")
    return [f"the reward model {models.reward} is right on {own} of {count}, and a person on {people}"]


def _scores(metrics: Mapping[str, float], models: Models) -> dict[str, Outcome]:
    """Return what each reward model, judge and function says, by its name; empty without a baseline."""
    scores: dict[str, Outcome] = {}
    if models.reward is not None and "win_rate" in metrics:
        scores[models.reward] = _outcome(metrics, "win_rate", no_difference=0.5)
    for metric, name in models.judges.items():
        if metric in metrics:
            scores[name] = _outcome(metrics, metric, no_difference=0.5)
    for name in models.functions:
        if f"{name}.gain" in metrics:
            scores[name] = _outcome(metrics, f"{name}.gain", no_difference=0.0)
    return scores


def _outcome(metrics: Mapping[str, float], name: str, *, no_difference: float) -> Outcome:
    if metrics[name + LOW] > no_difference:
        return "better"
    return "worse" if metrics[name + HIGH] < no_difference else "unclear"


def _combine(outcomes: Collection[Outcome]) -> Outcome:
    """Return one outcome: better or worse if at least one score says so and none says the opposite."""
    if not outcomes:
        return "not compared"
    clear = {outcome for outcome in outcomes if outcome != "unclear"}
    if len(clear) > 1:
        return "mixed"
    return next(iter(clear), "unclear")


def _preferences(metrics: Mapping[str, float], models: Models) -> list[str]:
    """Return each win rate as text: of the reward model, and of the judges."""
    named = {} if models.reward is None else {"win_rate": f"the reward model {models.reward}"}
    texts = []
    for metric, name in {**named, **models.judges}.items():
        if metric in metrics:
            share, low, high = (f"{100 * metrics[metric + suffix]:.0f}" for suffix in ("", LOW, HIGH))
            is_optimized = name in models.optimized or (metric == "win_rate" and models.reward in models.optimized)
            optimized = " that it was trained against" if is_optimized else ""
            count = format_count(int(metrics[metric + COUNT_SUFFIX]), "prompt")
            texts.append(f"preferred on {share}% [{low}, {high}] of {count} by {name}{optimized}")
    return texts


def _function_changes(metrics: Mapping[str, float], models: Models, scores: Mapping[str, Outcome]) -> list[str]:
    """Return one text for the functions that are higher, one for those that are lower, and one for the others."""
    texts = []
    for outcome, change in CHANGES.items():
        names = [name for name in models.functions if scores.get(name) == outcome]
        if names:
            values = [_function_change(name, metrics, models) for name in names]
            texts.append(f"{change} {', '.join(values)}")
    return texts


def _function_change(name: str, metrics: Mapping[str, float], models: Models) -> str:
    optimized = ", which it was trained to maximize" if name in models.optimized else ""
    return f"{name} {_change(name, metrics)}{_interval(f'{name}.gain', metrics)}{optimized}"


def _regression(name: str, metrics: Mapping[str, float]) -> str:
    return f"{name} {_change(name, metrics)}"


def _change(name: str, metrics: Mapping[str, float]) -> str:
    """Return `<baseline> → <candidate>`."""
    return f"{metrics[name + BASELINE_SUFFIX]:.3g} → {metrics[name]:.3g}"


def _interval(name: str, metrics: Mapping[str, float]) -> str:
    return f" [{metrics[name + LOW]:+.2g}, {metrics[name + HIGH]:+.2g}]"


def _optimized_warnings(models: Models, scores: Mapping[str, Outcome], independent: Mapping[str, Outcome]) -> list[str]:
    """Return what to keep in mind if the candidate was trained to maximize the scores that compare it."""
    optimized = {name: outcome for name, outcome in scores.items() if name in models.optimized}
    if not optimized:
        return []
    names = " and ".join(optimized)
    if not independent:
        return [
            f"{models.candidate} was trained to maximize {names}, which therefore cannot prove that it is better. "
            "Read samples.jsonl, or add an independent function to eval.python."
        ]
    worse = [name for name, outcome in independent.items() if outcome == "worse"]
    if worse and "better" in optimized.values():
        return [f"{names} prefers {models.candidate}, but {' and '.join(worse)} is lower: a sign of reward hacking."]
    return []
