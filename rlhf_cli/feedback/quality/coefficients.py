"""Coefficients of agreement: raw agreement, Krippendorff's alpha, Gwet's AC1 and AC2, and kappa.

Each is a function of sums over units, so that one set of weights per item gives a bootstrap resample of all of them.
A unit is what several annotators label, such as a pair of completions. The leading dimensions `...` of sums are free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rlhf_cli.evaluation.statistics import CONFIDENCE_LEVEL, Interval
from rlhf_cli.feedback.quality.votes import FloatArray, IntArray

RESAMPLES = 1_000


class Sums(NamedTuple):
    """Sums over units.

    Attributes:
        values: The value of each category, in ascending order. Shape: (Q,)
        units: Number of units with a label. Shape: (...)
        multiple: Number of units with at least two labels. Shape: (...)
        shares: Fractions of a unit's labels by category. Shape: (..., Q)
        agreement: Fractions of a unit's pairs of labels by the two categories, of units with at least two labels.
            Shape: (..., Q, Q)
        coincidences: The same times the number of the unit's labels: Krippendorff's coincidences. Shape: (..., Q, Q)
    """

    values: FloatArray
    units: FloatArray
    multiple: FloatArray
    shares: FloatArray
    agreement: FloatArray
    coincidences: FloatArray


Coefficient = Callable[[Sums], FloatArray]  # NaN if not defined


def unit_terms(counts: FloatArray) -> FloatArray:
    """Return the terms of each unit, as one row for `unpack`.

    Args:
        counts: Number of labels by category. Shape: (U, Q)
    """
    q = counts.shape[1]
    total = counts.sum(1)
    has_pairs = total >= 2
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(q))  # ordered pairs of labels, (U, Q, Q)
    fractions = pairs / np.maximum(total * (total - 1), 1)[:, None, None]
    columns = [
        (total > 0)[:, None],
        has_pairs[:, None],
        counts / np.maximum(total, 1)[:, None],
        fractions.reshape(len(counts), q * q),
        (fractions * total[:, None, None]).reshape(len(counts), q * q),
    ]
    return np.concatenate(columns, 1).astype(np.float64)


def unpack(terms: FloatArray, values: FloatArray) -> Sums:
    """Return sums of rows of `unit_terms` by name.

    Args:
        terms: Sums of rows. Shape: (..., 2 + Q + 2 Q^2)
        values: The value of each category. Shape: (Q,)
    """
    q = len(values)
    units, multiple, shares, agreement, coincidences = np.split(terms, np.cumsum([1, 1, q, q * q]), axis=-1)
    square = (*terms.shape[:-1], q, q)
    return Sums(
        values, units[..., 0], multiple[..., 0], shares, agreement.reshape(square), coincidences.reshape(square)
    )


def identity_weights(values: FloatArray) -> FloatArray:
    """Return weights of 1 for equal labels and 0 for others. Shape: (Q, Q)."""
    return np.eye(len(values))


def linear_weights(values: FloatArray) -> FloatArray:
    """Return weights that fall from 1 for equal labels to 0 for the most distant ones. Shape: (Q, Q)."""
    distance: FloatArray = np.abs(values[:, None] - values)
    return 1 - distance / max(float(distance.max(initial=0.0)), 1e-300)


def raw_agreement(sums: Sums, weights: FloatArray) -> FloatArray:
    """Return the mean over units of the agreement of two annotators drawn at random."""
    return _ratio((sums.agreement * weights).sum((-2, -1)), sums.multiple)


def krippendorff_alpha(sums: Sums, *, ordinal: bool = False) -> FloatArray:
    """Return 1 minus observed over expected disagreement (Krippendorff 2018, chapter 12)."""
    coincidences = sums.coincidences
    totals = coincidences.sum(-1)  # (..., Q)
    n = totals.sum(-1)
    if ordinal:
        rank = totals.cumsum(-1) - totals / 2
        difference = (rank[..., :, None] - rank[..., None, :]) ** 2
    else:
        difference = 1 - np.eye(len(sums.values))
    observed = (coincidences * difference).sum((-2, -1))
    expected = _ratio((totals[..., :, None] * totals[..., None, :] * difference).sum((-2, -1)), n - 1)
    return 1 - _ratio(observed, expected)


def gwet_ac(sums: Sums, weights: FloatArray) -> FloatArray:
    """Return Gwet's AC1 for identity weights and AC2 for others (Gwet 2014, eq. 4.2 and 5.5; missing labels: 2.7)."""
    q = len(sums.values)
    share = _ratio(sums.shares, sums.units[..., None])
    chance = _ratio(weights.sum() * (share * (1 - share)).sum(-1), np.asarray(q * (q - 1.0)))
    return _beyond_chance(raw_agreement(sums, weights), chance)


def fleiss_kappa(sums: Sums) -> FloatArray:
    """Return the kappa of Fleiss (1971), with each unit's shares if the numbers of labels differ (Gwet 2014)."""
    chance = (_ratio(sums.shares, sums.units[..., None]) ** 2).sum(-1)
    return _beyond_chance(raw_agreement(sums, np.eye(len(sums.values))), chance)


def cohen_kappa(table: FloatArray) -> FloatArray:
    """Return the kappa of two annotators (Cohen 1960).

    Args:
        table: Number of units by the label of the one and of the other annotator. Shape: (..., Q, Q)
    """
    shares = _ratio(table, table.sum((-2, -1))[..., None, None])
    observed = np.trace(shares, axis1=-2, axis2=-1)
    return _beyond_chance(observed, (shares.sum(-1) * shares.sum(-2)).sum(-1))


def bootstrap(
    terms: FloatArray, items: IntArray, statistic: Callable[[FloatArray], list[FloatArray]], *, seed: int
) -> list[Interval | None]:
    """Return each statistic with its percentile bootstrap interval over items, or None if it is not defined.

    Items are drawn, not units, because the pairs of one item are not independent. Items with equal terms are drawn
    together, by a multinomial distribution, which is the same and faster. Resamples in which the statistic is not
    defined are left out.

    Args:
        terms: A row of terms for each unit. Shape: (U, S)
        items: The item of each unit. Shape: (U,)
        statistic: Returns the statistics of sums of terms, of shape (..., S); NaN if not defined. Shape of each: (...)
        seed: Seed of the resampling.
    """
    numbers, index = np.unique(items, return_inverse=True)
    by_item = np.stack([np.bincount(index, column, len(numbers)) for column in terms.T], -1)
    patterns, frequency = np.unique(by_item, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(numbers), frequency / len(numbers), size=RESAMPLES)
    tail = (1 - CONFIDENCE_LEVEL) / 2
    found: list[Interval | None] = []
    for value, resampled in zip(statistic(by_item.sum(0)), statistic(draws.astype(float) @ patterns), strict=True):
        defined = resampled[np.isfinite(resampled)]
        if not np.isfinite(value) or not defined.size:
            found.append(None)
            continue
        low, high = np.quantile(defined, (tail, 1 - tail)).tolist()
        found.append(Interval(float(value), low, high, len(numbers)))
    return found


def _beyond_chance(observed: FloatArray, chance: FloatArray) -> FloatArray:
    return _ratio(observed - chance, 1 - chance)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Return the quotient, or NaN if the denominator is 0; below 1e-12 it is 0 but for rounding."""
    divisor = np.where(np.abs(below) < 1e-12, np.nan, below)
    quotient: FloatArray = above / divisor
    return quotient
