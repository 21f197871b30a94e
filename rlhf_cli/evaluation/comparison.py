"""Compute the metrics of an evaluation from its measurements. Pure functions, named in the registry of metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_cli.evaluation import statistics
from rlhf_cli.evaluation.measurements import CompletionLoss, PairedCompletions, PreferenceMargins, ScoredCompletions
from rlhf_cli.evaluation.statistics import Interval

MAX_EXPONENT = 700.0  # math.exp(710) overflows


def mean(values: Sequence[float]) -> float:
    """Return the mean of a non-empty sequence."""
    return sum(values) / len(values)


def nll(loss: CompletionLoss) -> float:
    """Return the negative log-likelihood per completion token, over all tokens: a mean of batch means would differ."""
    return loss.nll / loss.tokens


def perplexity(loss: CompletionLoss) -> float:
    """Return exp(nll)."""
    return math.exp(min(nll(loss), MAX_EXPONENT))


def preference_accuracy(pairs: PreferenceMargins) -> Interval:
    """Return the share of pairs in which the chosen completion has the higher score.

    A tie counts as wrong, as in TRL: a scorer that gives every completion the same score has not ranked any pair.
    """
    return statistics.wilson(sum(margin > 0 for margin in pairs.margins), len(pairs.margins))


def slice_accuracy(pairs: PreferenceMargins, slice_name: str) -> Interval:
    """Return `preference_accuracy` of the pairs of one slice."""
    margins = [margin for margin, of_pair in zip(pairs.margins, pairs.slices, strict=True) if slice_name in of_pair]
    return statistics.wilson(sum(margin > 0 for margin in margins), len(margins))


def held_out_annotator_accuracy(pairs: PreferenceMargins) -> Interval | None:
    """Return `preference_accuracy` of the votes of held-out annotators, or None if there are none."""
    votes = pairs.held_out_annotators
    return statistics.wilson(sum(margin > 0 for margin in votes), len(votes)) if votes else None


def ceiling(pairs: PreferenceMargins) -> Interval | None:
    """Return how often people agree with the labels of others, or None if it is not known.

    The interval is that of independent votes.
    """
    if pairs.ceiling is None:
        return None
    return statistics.wilson(pairs.ceiling.agreement * pairs.ceiling.votes, pairs.ceiling.votes)


def ties(pairs: PreferenceMargins) -> float:
    """Return the number of pairs with equal scores."""
    return float(sum(margin == 0 for margin in pairs.margins))


def length_accuracy(pairs: PreferenceMargins) -> float:
    """Return the accuracy of always preferring the longer completion. Equal lengths are half right."""
    return statistics.win_rate(pairs.length_differences, [0.0] * len(pairs.length_differences)).value


def margin(pairs: PreferenceMargins) -> float:
    """Return the mean score difference, chosen minus rejected."""
    return mean(pairs.margins)


def brier_score(pairs: PreferenceMargins) -> float:
    """Return the mean squared error of the probability that the margin implies."""
    return statistics.calibration(pairs.margins).brier


def calibration_error(pairs: PreferenceMargins) -> float:
    """Return the expected calibration error of the probability that the margin implies."""
    return statistics.calibration(pairs.margins).ece


def reward(side: ScoredCompletions) -> float:
    """Return the reward model's mean score."""
    return mean(side.reward_scores)


def truncation_rate(side: ScoredCompletions) -> float:
    """Return the share of completions that reached the limit on their tokens."""
    return side.truncated.count(True) / len(side.truncated)


def response_length(side: ScoredCompletions) -> float:
    """Return the mean number of tokens per completion."""
    return mean([len(response) for response in side.responses])


def function_score(side: ScoredCompletions, function: str) -> float:
    """Return the mean score of a Python function."""
    return mean(side.function_scores[function])


def function_gain(pair: PairedCompletions, function: str) -> Interval:
    """Return the mean difference of a Python function's scores, candidate minus baseline, paired by prompt."""
    return _gain(pair.candidate.function_scores[function], pair.baseline.function_scores[function], pair.seed)


def reward_gain(pair: PairedCompletions) -> Interval:
    """Return the mean difference of the reward model's scores, candidate minus baseline, paired by prompt."""
    return _gain(pair.candidate.reward_scores, pair.baseline.reward_scores, pair.seed)


def win_rate(pair: PairedCompletions) -> Interval:
    """Return the share of prompts on which the reward model prefers the candidate. A tie is half a win."""
    return statistics.win_rate(pair.candidate.reward_scores, pair.baseline.reward_scores)


def judge_win_rate(pair: PairedCompletions) -> Interval:
    """Return the share of prompts on which the judge prefers the candidate. A tie is half a win."""
    assert pair.judged is not None
    return statistics.win_rate(pair.judged.outcomes, [0.0] * len(pair.judged.outcomes))


def judge_consistency(pair: PairedCompletions) -> float:
    """Return the share of the judge's verdicts that are the same in both orders."""
    assert pair.judged is not None
    return pair.judged.consistency


def people_win_rate(pair: PairedCompletions) -> Interval | None:
    """Return the share of prompts on which people prefer the candidate, or None if they have not judged any."""
    return statistics.win_rate(pair.people, [0.0] * len(pair.people)) if pair.people else None


def sequence_kl(pair: PairedCompletions) -> float:
    """Return KL(candidate ‖ baseline) per completion: k1, the mean of log(p/q) over the candidate's own samples."""
    return mean(pair.log_ratios)


def token_kl(pair: PairedCompletions) -> float:
    """Return KL(candidate ‖ baseline) per token: k1, as `sequence_kl`."""
    return sum(pair.log_ratios) / sum(map(len, pair.candidate.responses))


def _gain(candidate: Sequence[float], baseline: Sequence[float], seed: int) -> Interval:
    return statistics.bootstrap_mean([a - b for a, b in zip(candidate, baseline, strict=True)], seed)
