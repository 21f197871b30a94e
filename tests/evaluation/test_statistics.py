"""Intervals and calibration agree with published tables, with SciPy and with sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_cli.evaluation.statistics import bootstrap_mean, calibration, wilson, win_rate


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (Wilson without continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert interval.value == pytest.approx(successes / n)
    assert interval.low == pytest.approx(low, abs=5e-5)  # published to four digits
    assert interval.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (7, 9), (256, 256), (130, 256)])
def test_wilson_equals_scipy_at_whole_counts(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n)[1:3] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bootstrap_agrees_with_normal_interval_on_large_sample() -> None:
    values = np.random.default_rng(3).normal(0.3, 2.0, size=4_000)
    interval = bootstrap_mean(values.tolist(), seed=0)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(values.size)
    assert interval.value == pytest.approx(values.mean())
    # the ends are 2.5 % order statistics of 9,999 draws: their own error is about 4 % of the half width
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_covers_the_mean_in_about_95_percent() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        interval = bootstrap_mean(rng.exponential(1.0, size=100).tolist(), seed=trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 175 <= hits <= 200  # 190 expected; 175 is five standard deviations below


def test_bootstrap_depends_on_seed_only() -> None:
    values = [0.1, 0.5, -0.2, 0.9, 0.4]
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@pytest.mark.parametrize("values", [[0.7], [0.7, 0.7, 0.7]])
def test_bootstrap_of_equal_values_has_width_zero(values: list[float]) -> None:
    assert bootstrap_mean(values, seed=0) == (0.7, 0.7, 0.7, len(values))


def test_win_rate_counts_equal_scores_as_half() -> None:
    # two wins, one tie, one loss: 2.5 of 4
    rate = win_rate([2.0, 3.0, 1.0, 0.0], [1.0, 2.0, 1.0, 5.0])
    assert rate.value == 0.625
    assert rate.low < 0.625 < rate.high


def test_win_rates_of_both_sides_sum_to_one() -> None:
    left, right = [2.0, 3.0, 1.0, 0.0, 7.0], [1.0, 2.0, 1.0, 5.0, 7.0]
    one, other = win_rate(left, right), win_rate(right, left)
    assert one.value + other.value == pytest.approx(1.0)
    assert one.low + other.high == pytest.approx(1.0)


def test_brier_is_mean_squared_distance_from_label() -> None:
    # sigma(ln 3) = 3/4: right -> (1/4)^2, wrong -> (3/4)^2; sigma(0) = 1/2 -> 1/4
    assert calibration([math.log(3)]).brier == pytest.approx(1 / 16)
    assert calibration([-math.log(3)]).brier == pytest.approx(9 / 16)
    assert calibration([0.0]).brier == pytest.approx(1 / 4)


def test_ece_of_calibrated_model_is_zero() -> None:
    # confidence 3/4, right in 3 of 4; and undecided pairs at confidence 1/2
    assert calibration([math.log(3)] * 3 + [-math.log(3)] + [0.0] * 5).ece == pytest.approx(0.0, abs=1e-12)


def test_ece_weights_bins_by_their_pairs() -> None:
    # 3 pairs at confidence 3/4, all right: gap 1/4. 1 pair at 9/10, wrong: gap 9/10. (3/4 + 9/10) / 4
    assert calibration([math.log(3)] * 3 + [-math.log(9)]).ece == pytest.approx((0.75 + 0.9) / 4)


def test_calibration_of_large_margins_is_finite() -> None:
    found = calibration([1e4, -1e4])
    assert found.brier == pytest.approx(0.5)
    assert found.ece == pytest.approx(0.5)
