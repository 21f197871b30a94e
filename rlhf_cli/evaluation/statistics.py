"""Compute confidence intervals and calibration, with numpy and scipy.

Both are imported on use, because `rlhf check` imports the registry of metrics, and scipy costs 1.1 s.

Every interval is a 95% interval. There are no hypothesis tests and no corrections for several gates: a gate compares
one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE_LEVEL = 0.95
RESAMPLES = 9_999
RESAMPLE_BATCH = 1_000  # resamples in memory at once; 1,000 x 5,000 items are 40 MB
CALIBRATION_BINS = 10


class Interval(NamedTuple):
    """An estimate from `n` items, and the ends of its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class Calibration(NamedTuple):
    """How far predicted probabilities are from outcomes; both are 0 at best.

    Attributes:
        brier: Mean squared error of the probability.
        ece: Expected calibration error: mean of |confidence - accuracy| over the bins, weighted by their pairs.
    """

    brier: float
    ece: float


def wilson(successes: float, n: int) -> Interval:
    """Return the score interval of a proportion (Wilson 1927; eq. 4 in Newcombe 1998).

    Args:
        successes: Number of successes. A tie may count as half a success; that overstates the variance, so the
            interval is slightly too wide.
        n: Number of items, at least 1.
    """
    assert 0 <= successes <= n > 0, f"{successes} of {n}"
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE_LEVEL / 2)
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At a proportion of 0 or 1 the formula gives that end exactly; rounding must not put it outside [0, 1].
    return Interval(share, max(0.0, center - half), min(1.0, center + half), n)


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """Return the mean of `values` with a percentile bootstrap interval; for paired differences, the paired bootstrap.

    The percentile method, not BCa, which is undefined if the values hardly differ. Equal values give an interval of
    width 0.

    Args:
        values: One value per prompt.
        seed: Seed of the resampling.
    """
    import numpy as np
    from scipy import stats

    items = np.asarray(values, dtype=np.float64)
    assert items.size > 0
    if items.min() == items.max():
        return Interval(float(items[0]), float(items[0]), float(items[0]), items.size)
    found = stats.bootstrap(
        (items,),
        np.mean,
        confidence_level=CONFIDENCE_LEVEL,
        n_resamples=RESAMPLES,
        batch=RESAMPLE_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(items.mean()), float(found.low), float(found.high), items.size)


def win_rate(scores: Sequence[float], other_scores: Sequence[float]) -> Interval:
    """Return the share of prompts on which `scores` is above `other_scores`. An equal score is half a win."""
    pairs = list(zip(scores, other_scores, strict=True))
    wins = sum(a > b for a, b in pairs) + 0.5 * sum(a == b for a, b in pairs)
    return wilson(wins, len(pairs))


def calibration(margins: Sequence[float]) -> Calibration:
    """Return the calibration of sigma(r_chosen - r_rejected), the Bradley-Terry probability of the label.

    Each pair counts as if presented in random order, so neither value depends on which completion came first. Then the
    error binned over the probability equals the one binned over the confidence in the preferred completion, which lies
    in [0.5, 1] and is right, wrong, or (at a margin of 0) half right.
    """
    import numpy as np

    margin = np.asarray(margins, dtype=np.float64)
    assert margin.size > 0
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    correct = np.where(margin == 0, 0.5, margin > 0)
    brier = float(np.mean(np.where(margin >= 0, 1 - confidence, confidence) ** 2))
    index = np.minimum(((confidence - 0.5) * 2 * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(index, weights=confidence - correct, minlength=CALIBRATION_BINS)  # (bins,) sums, not means
    return Calibration(brier, float(np.abs(gap).sum() / margin.size))
