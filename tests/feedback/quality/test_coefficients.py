"""Coefficients of agreement equal published worked examples, evalica, and computations by naive loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import evalica
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]  # comes with crowd-kit

from rlhf_cli.feedback.quality.coefficients import (
    Sums,
    bootstrap,
    cohen_kappa,
    fleiss_kappa,
    gwet_ac,
    identity_weights,
    krippendorff_alpha,
    linear_weights,
    raw_agreement,
    unit_terms,
    unpack,
)
from tests.support.judgments import GENERATED, Vote, generated_votes, pandalm_votes

SETS = [pytest.param(None, id="pandalm"), *GENERATED]
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section D: 12 units, 4 observers, 0 is missing.
# Gwet's package irrCAC has the same data as raw_4raters.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]
# Fleiss, Measuring nominal scale agreement among many raters (1971) with the numbers of Fleiss and Cohen's ten
# subjects, as on Wikipedia: 10 subjects, 14 raters, 5 categories.
FLEISS = [
    *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
    *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
]
ABSTRACTORS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]  # irrCAC's cont3x3abstractors: Gwet 2014, table 2.3


def sums_of(units: Sequence[Sequence[float]]) -> Sums:
    """Return sums over units, each with its labels; categories are the labels that occur."""
    values = np.unique([label for unit in units for label in unit])
    counts = np.array([[sum(label == value for label in unit) for value in values] for unit in units], dtype=float)
    return unpack(unit_terms(counts).sum(0), values.astype(float))


def units_of(votes: Sequence[Vote]) -> list[list[float]]:
    units: dict[int, list[float]] = {}
    for vote in votes:
        units.setdefault(vote.item, []).append(vote.outcome)
    return list(units.values())


def votes_of(number: int | None) -> list[Vote]:
    return pandalm_votes() if number is None else generated_votes(number)


OBSERVED = sums_of([[label for label in unit if label] for unit in zip(*OBSERVERS, strict=True)])


@pytest.mark.parametrize(
    ("value", "published"),
    [
        (krippendorff_alpha(OBSERVED), 0.743),
        (krippendorff_alpha(OBSERVED, ordinal=True), 0.815),
        (raw_agreement(OBSERVED, identity_weights(OBSERVED.values)), 0.818),
        (gwet_ac(OBSERVED, identity_weights(OBSERVED.values)), 0.775),
        (gwet_ac(OBSERVED, linear_weights(OBSERVED.values)), 0.859),
        (fleiss_kappa(OBSERVED), 0.761),
    ],
    ids=["alpha", "ordinal alpha", "raw", "AC1", "AC2", "kappa"],
)
def test_coefficients_equal_published_values(value: Any, published: float) -> None:
    assert value == pytest.approx(published, abs=0.0005)  # published with three decimals


def test_fleiss_kappa_equals_published_value() -> None:
    sums = unpack(unit_terms(np.array(FLEISS, dtype=float)).sum(0), np.arange(5.0))
    assert fleiss_kappa(sums) == pytest.approx(0.210, abs=0.0005)


def test_two_annotators_equal_published_values() -> None:
    sums = sums_of([[a, b] for a in range(3) for b in range(3) for _ in range(ABSTRACTORS[a][b])])
    assert cohen_kappa(np.array(ABSTRACTORS, dtype=float)) == pytest.approx(0.7964094, abs=5e-8)
    assert gwet_ac(sums, identity_weights(sums.values)) == pytest.approx(0.8493305, abs=5e-8)
    assert krippendorff_alpha(sums) == pytest.approx(0.7972585, abs=5e-8)
    assert raw_agreement(sums, identity_weights(sums.values)) == pytest.approx(0.89)


@pytest.mark.parametrize("ordinal", [False, True])
@pytest.mark.parametrize("number", SETS)
def test_alpha_equals_evalica(number: int | None, ordinal: bool) -> None:
    votes = votes_of(number)
    ours = krippendorff_alpha(sums_of(units_of(votes)), ordinal=ordinal)
    frame = pd.DataFrame(votes).pivot_table(index="annotator", columns="item", values="outcome")
    if number in (7, 8, 9):  # one annotator, or all labels equal: not defined
        assert np.isnan(ours)
    else:
        theirs = evalica.alpha(frame, "ordinal" if ordinal else "nominal").alpha
        assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("number", SETS)
def test_raw_agreement_and_ac_equal_naive_loops(number: int | None, linear: bool) -> None:
    units = units_of(votes_of(number))
    sums = sums_of(units)
    weights = linear_weights(sums.values) if linear else identity_weights(sums.values)
    scale = max(sums.values) - min(sums.values) if len(sums.values) > 1 else 1

    def weight(a: float, b: float) -> float:
        return 1 - abs(a - b) / scale if linear else float(a == b)

    agreements = []
    for unit in units:
        if len(unit) > 1:
            drawn = [weight(a, b) for a, b in permutations(unit, 2)]
            agreements.append(sum(drawn) / len(drawn))
    if not agreements:
        assert np.isnan(raw_agreement(sums, weights))
        return
    observed = sum(agreements) / len(agreements)
    assert raw_agreement(sums, weights) == pytest.approx(observed, abs=1e-9)
    q = len(sums.values)
    if q == 1:
        assert np.isnan(gwet_ac(sums, weights))
        return
    shares = [sum(unit.count(v) / len(unit) for unit in units) / len(units) for v in sums.values]
    total = sum(weight(a, b) for a in sums.values for b in sums.values)
    chance = total / (q * (q - 1)) * sum(share * (1 - share) for share in shares)
    assert gwet_ac(sums, weights) == pytest.approx((observed - chance) / (1 - chance), abs=1e-9)
    if not linear:
        chance = sum(share**2 for share in shares)
        assert fleiss_kappa(sums) == pytest.approx((observed - chance) / (1 - chance), abs=1e-9)


@pytest.mark.parametrize("number", [0, 3])
def test_cohen_kappa_equals_scikit_learn(number: int) -> None:
    labels: dict[int, dict[int, int]] = {}
    for vote in generated_votes(number):
        labels.setdefault(vote.item, {})[vote.annotator] = vote.outcome
    both = [(unit[0], unit[1]) for unit in labels.values() if {0, 1} <= unit.keys()]
    table = np.zeros((3, 3))
    for a, b in both:
        table[a + 1, b + 1] += 1
    assert cohen_kappa(table) == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)), abs=1e-9)


def test_coefficients_of_constant_or_single_labels_are_not_defined() -> None:
    constant, single = sums_of([[1, 1], [1, 1]]), sums_of([[1], [0]])
    for sums in (constant, single):
        weights = identity_weights(sums.values)
        assert np.isnan([krippendorff_alpha(sums), gwet_ac(sums, weights), fleiss_kappa(sums)]).all()
    assert raw_agreement(constant, identity_weights(constant.values)) == 1
    assert np.isnan(raw_agreement(single, identity_weights(single.values)))


def test_bootstrap_of_raw_agreement_equals_the_normal_interval() -> None:
    """Of 400 items with two labels, 300 agree: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400) = 0.75 +- 0.042."""
    counts = np.array([[2.0, 0.0]] * 300 + [[1.0, 1.0]] * 100)
    values = np.array([0.0, 1.0])

    def statistic(terms: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return [raw_agreement(unpack(terms, values), np.eye(2))]

    (interval,) = bootstrap(unit_terms(counts), np.arange(400), statistic, seed=0)
    assert interval is not None
    assert (interval.value, interval.n) == (0.75, 400)
    # The ends of a percentile interval of 1,000 resamples have a standard error of about 0.0022 * 1.7.
    assert (interval.low, interval.high) == pytest.approx((0.75 - 0.042, 0.75 + 0.042), abs=0.01)


def test_bootstrap_draws_items_with_all_their_units() -> None:
    """Four units of each of 100 items are the same unit four times: the interval is that of 100 units."""
    counts = np.array([[2.0, 0.0]] * 75 + [[1.0, 1.0]] * 25)
    values = np.array([0.0, 1.0])

    def statistic(terms: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return [raw_agreement(unpack(terms, values), np.eye(2))]

    once = bootstrap(unit_terms(counts), np.arange(100), statistic, seed=0)
    repeated = bootstrap(unit_terms(np.repeat(counts, 4, 0)), np.arange(100).repeat(4), statistic, seed=0)
    assert repeated == once
