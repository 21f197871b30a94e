"""Check final metrics for values that make a result worthless: one check per reason, applied to every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlhf_cli.evaluation.metric_types import BASELINE_SUFFIX, COUNT_SUFFIX, INTERVAL_SUFFIXES
from rlhf_cli.formatting import format_count

CHANCE = 0.5
MAX_TRUNCATION_RATE = 0.9  # above it, nearly every completion was cut
LOW, HIGH = INTERVAL_SUFFIXES

Values = Mapping[str, float]


def warnings_of(metrics: Values) -> list[str]:
    """Return one warning for each check that finds something, in the order of the table."""
    return [text for check in CHECKS for text in check(metrics)]


def chance_accuracy(metrics: Values) -> Iterator[str]:
    """Yield a warning if the reward model may be guessing, or prefers the rejected completions."""
    name = "reward.accuracy"
    if name + LOW not in metrics or metrics[name + LOW] > CHANCE:
        return
    interval = f"{name} {metrics[name]:.3g} [{metrics[name + LOW]:.3g}, {metrics[name + HIGH]:.3g}]"
    if metrics[name + HIGH] < CHANCE:
        yield f"{interval} is below chance: check whether chosen and rejected are swapped"
    else:
        pairs = format_count(int(metrics[name + COUNT_SUFFIX]), "pair")
        yield f"{interval} on {pairs} is not clearly better than chance: do not trust scores of this reward model"


def accuracy_below_length(metrics: Values) -> Iterator[str]:
    """Yield a warning if preferring the longer, or the shorter, completion is at least as accurate as the reward model.

    Nothing is yielded if length is no better than chance.
    """
    accuracy, longer = metrics.get("reward.accuracy"), metrics.get("reward.accuracy_longer")
    if accuracy is None or longer is None:
        return
    by_length, which = max((longer, "longer"), (1 - longer, "shorter"))
    if accuracy <= by_length and by_length > CHANCE:
        yield (
            f"reward.accuracy {accuracy:.3g} is not above {by_length:.3g}, the accuracy of always preferring the "
            f"{which} completion"
        )


def constant_reward(metrics: Values) -> Iterator[str]:
    """Yield a warning if the reward model gives both completions of every pair the same score."""
    ties = metrics.get("reward.ties")
    if ties and ties == metrics.get("reward.accuracy" + COUNT_SUFFIX):
        yield "the reward model gives both completions of every pair the same score"


def unchanged_scores(metrics: Values) -> Iterator[str]:
    """Yield a warning if a score is equal for both models on every prompt although the models differ."""
    if not metrics.get("kl"):  # equal models sample equal completions
        return
    gains = [name.removesuffix(LOW) for name in metrics if name.endswith(f"gain{LOW}")]
    equal = [name[: -len(".gain")] for name in gains if metrics[name + LOW] == metrics[name + HIGH] == 0]
    if equal:
        yield f"the same for both models on every prompt, so it cannot compare them: {', '.join(equal)}"


def truncation(metrics: Values) -> Iterator[str]:
    """Yield a warning for each model whose completions nearly all reach the limit on their tokens."""
    for name, key in TRUNCATION_RATES.items():
        if metrics.get(name, 0.0) >= MAX_TRUNCATION_RATE:
            yield (
                f"{name} {metrics[name]:.3g}: nearly every completion was cut at the limit; raise {key}, or check that "
                "the training completions end with an end token"
            )


TRUNCATION_RATES: Mapping[str, str] = {  # metric: the key that sets the limit
    "truncation_rate": "eval.max_new_tokens",
    f"truncation_rate{BASELINE_SUFFIX}": "eval.max_new_tokens",
    "ppo.truncation_rate": "ppo.max_new_tokens",
}
CHECKS = (chance_accuracy, accuracy_below_length, constant_reward, unchanged_scores, truncation)
