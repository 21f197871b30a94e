"""The model of Dawid and Skene gives what crowd-kit gives, and finds who is careless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene as CrowdKit
from numpy.testing import assert_allclose

from rlhf_cli.feedback.quality.dawid_skene import DawidSkene, dawid_skene
from tests.support.judgments import GENERATED, Vote, generated_votes, pandalm_votes

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # raised by crowd-kit

ITERATIONS = 40
SETS = [pytest.param(None, id="pandalm"), *GENERATED]


def votes_of(number: int | None) -> list[Vote]:
    return pandalm_votes() if number is None else generated_votes(number)


def fit(votes: Sequence[Vote], **options: Any) -> DawidSkene:
    item, annotator, outcome = np.array(votes).T
    _, task = np.unique(item, return_inverse=True)
    _, worker = np.unique(annotator, return_inverse=True)
    return dawid_skene(task, worker, outcome + 1, 3, iterations=ITERATIONS, **options)


def crowd_kit(votes: Sequence[Vote], iterations: int, true_labels: Any = None) -> CrowdKit:
    frame = pd.DataFrame([(v.item, v.annotator, v.outcome) for v in votes], columns=["task", "worker", "label"])
    return CrowdKit(n_iter=iterations, tol=-np.inf).fit(frame, true_labels)  # never stops early


def posterior_of(model: CrowdKit) -> np.ndarray[Any, Any]:
    assert model.probas_ is not None
    return model.probas_.sort_index().reindex(columns=[-1, 0, 1], fill_value=0.0).to_numpy(dtype=float)


@pytest.mark.parametrize("number", SETS)
def test_dawid_skene_posterior_and_skill_equal_crowd_kit(number: int | None) -> None:
    votes = votes_of(number)
    ours = fit(votes)
    theirs = crowd_kit(votes, ours.iterations)
    assert_allclose(ours.posterior, posterior_of(theirs), rtol=0, atol=1e-9)
    assert theirs.priors_ is not None
    assert theirs.errors_ is not None
    priors = theirs.priors_.reindex([-1, 0, 1], fill_value=0.0)
    assert_allclose(ours.prior, priors.to_numpy(dtype=float), rtol=0, atol=1e-9)
    for index, worker in enumerate(sorted({vote.annotator for vote in votes})):
        errors = theirs.errors_.loc[worker].reindex(index=[-1, 0, 1], columns=[-1, 0, 1], fill_value=0.0)
        right = sum(errors.loc[label, label] * priors[label] for label in (-1, 0, 1))
        assert ours.skill[index] == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize("number", [1, 3])
def test_dawid_skene_known_labels_equal_crowd_kit(number: int) -> None:
    votes = generated_votes(number)
    known = np.full(80, -1)
    known[:20] = np.arange(20) % 3
    ours = fit(votes, known=known)
    theirs = crowd_kit(
        votes, ours.iterations, pd.Series((np.arange(20) % 3) - 1, index=pd.Index(range(20), name="task"))
    )
    assert_allclose(ours.posterior, posterior_of(theirs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", SETS)
def test_dawid_skene_symmetric_equals_crowd_kit_on_pairs_given_both_ways(number: int | None) -> None:
    votes = votes_of(number)
    ours = fit(votes, symmetric=True)
    swapped = [Vote(-1 - vote.item, vote.annotator, -vote.outcome) for vote in votes]
    theirs = posterior_of(crowd_kit(votes + swapped, ours.iterations))
    assert_allclose(ours.posterior, theirs[len(theirs) // 2 :], rtol=0, atol=1e-9)


def test_dawid_skene_one_round_by_hand() -> None:
    """One task, both annotators say 1 of 0, 1: every estimate is certain, and the other label is never seen."""
    model = dawid_skene(np.array([0, 0]), np.array([0, 1]), np.array([1, 1]), 2)
    assert model.posterior.tolist() == [[pytest.approx(0, abs=1e-9), pytest.approx(1)]]
    assert model.skill.tolist() == [pytest.approx(1), pytest.approx(1)]


def test_dawid_skene_pseudo_counts_equal_naive_loops() -> None:
    votes = generated_votes(2)
    pseudo_counts = np.array([[4.0, 1.0, 2.0], [1.0, 4.0, 1.0], [2.0, 1.0, 4.0]])
    ours = fit(votes, pseudo_counts=pseudo_counts)
    people = sorted({vote.annotator for vote in votes})
    by_item: dict[int, list[Vote]] = {}
    for vote in votes:
        by_item.setdefault(vote.item, []).append(vote)
    posterior = {
        item: [sum(v.outcome + 1 == c for v in cast) / len(cast) for c in range(3)] for item, cast in by_item.items()
    }
    for _ in range(ours.iterations):
        prior = [sum(row[c] for row in posterior.values()) / len(posterior) for c in range(3)]
        confusion = {}
        for person in people:
            counts = pseudo_counts.tolist()
            for vote in votes:
                if vote.annotator == person:
                    for c in range(3):
                        counts[vote.outcome + 1][c] += posterior[vote.item][c]
            confusion[person] = [[counts[k][c] / sum(row[c] for row in counts) for c in range(3)] for k in range(3)]
        for item, cast in by_item.items():
            joint = [prior[c] * math.prod(confusion[v.annotator][v.outcome + 1][c] for v in cast) for c in range(3)]
            posterior[item] = [value / sum(joint) for value in joint]
    assert_allclose(ours.posterior, [posterior[item] for item in sorted(posterior)], rtol=0, atol=1e-9)
