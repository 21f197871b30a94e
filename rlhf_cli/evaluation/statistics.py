"""Intervals and calibration of what `eval` measures: numpy and scipy, no model.

Every interval is at 95 %. Hypothesis tests and corrections over many gates are left out: a gate compares a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9_999
RESAMPLE_BATCH = 1_000  # resamples in memory at once; 1,000 x 5,000 items are 40 MB
BINS = 10


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """As metrics: `name`, `name.low`, `name.high`."""
        return {name: self.value, f"{name}.low": self.low, f"{name}.high": self.high}


class Calibration(NamedTuple):
    """How far stated probabilities are from what happens; both are 0 at best.

    `brier`: mean squared error of the probability. `ece`: mean |confidence - share correct| over the bins.
    """

    brier: float
    ece: float


def wilson(successes: float, n: int) -> Interval:
    """The score interval of a share (Wilson 1927, eq. 4 in Newcombe 1998).

    `successes` may hold halves, where a tie counts as half a success: that overstates the variance, so the interval
    is a little wide. With n = 0 nothing is known: 0.5, from 0 to 1.
    """
    assert 0 <= successes <= n, f"{successes} of {n}"
    if n == 0:
        return Interval(0.5, 0.0, 1.0)
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # the formula's end at a share of 0 or 1 is the share itself; rounding must not put it outside [0, 1]
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """The mean of `values` (one a prompt), with a percentile bootstrap interval over prompts.

    Given paired differences this is the paired bootstrap. Percentile rather than BCa: the latter is undefined where
    the values hardly differ. A single value, or equal ones, give an interval of no width.
    """
    items = np.asarray(values, dtype=np.float64)
    assert items.size > 0
    if items.min() == items.max():
        return Interval(float(items[0]), float(items[0]), float(items[0]))
    found = stats.bootstrap(
        (items,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=RESAMPLE_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(items.mean()), float(found.low), float(found.high))


def win_rate(scores: Sequence[float], other: Sequence[float]) -> Interval:
    """The share of prompts where `scores` is above `other`; an equal score is half a win."""
    assert len(scores) == len(other), (len(scores), len(other))
    pairs = list(zip(scores, other, strict=True))
    wins = sum(a > b for a, b in pairs) + 0.5 * sum(a == b for a, b in pairs)
    return wilson(wins, len(pairs))


def calibration(margins: Sequence[float]) -> Calibration:
    """Calibration of sigma(r_chosen - r_rejected), the probability that Bradley-Terry gives to the label.

    Each pair counts as if shown in either order, so neither figure depends on which answer stood first. In that case
    the error binned over the probability equals the one binned over the confidence in the preferred answer, which
    lies in [0.5, 1] and is right, wrong, or (at 0) half right.
    """
    margin = np.asarray(margins, dtype=np.float64)
    assert margin.size > 0
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    correct = np.where(margin == 0, 0.5, margin > 0)
    brier = float(np.mean(np.where(margin >= 0, 1 - confidence, confidence) ** 2))
    which = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gap = np.bincount(which, weights=confidence - correct, minlength=BINS)  # (bins,) sum, not mean
    return Calibration(brier, float(np.abs(gap).sum() / margin.size))
