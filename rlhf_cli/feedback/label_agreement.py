"""How often a person agrees with the label that the others give: what a reward model can be expected to reach."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from rlhf_cli.evaluation.statistics import Interval
from rlhf_cli.feedback.quality import coefficients
from rlhf_cli.feedback.quality.votes import (
    FIRST,
    PEOPLE,
    SECOND,
    TIE,
    FloatArray,
    count_labels,
    count_votes,
    first_judgments,
)
from rlhf_cli.feedback.types import Snapshot, Source


def label_agreement(snapshot: Snapshot, *, sources: Collection[Source] = PEOPLE) -> Interval | None:
    """Return how often a vote agrees with the majority of the other votes on its pair; `n` counts votes.

    A tied vote is half right. A vote whose others are tied, or that is the only one, is not compared: a person is
    measured as a reward model is, on pairs that have a label, without a say in it. The interval is a bootstrap over
    items. None if no vote can be compared.
    """
    votes = count_votes(first_judgments(snapshot, sources=sources))
    counts = count_labels(votes)  # (P, LABELS)
    terms = np.zeros((len(counts), 2))  # of each pair: how much its votes agree, and how many are compared
    for label in (SECOND, TIE, FIRST):
        others = counts.copy()
        others[:, label] -= 1
        for majority in (SECOND, FIRST):
            rest = np.delete(others, majority, axis=1)
            is_label = (counts[:, label] > 0) & (others[:, majority] > rest.max(1))
            share = 0.5 if label == TIE else float(label == majority)
            terms[is_label] += counts[is_label, label, None] * [share, 1.0]
    if not terms[:, 1].any():
        return None

    def compute(sums: FloatArray) -> list[FloatArray]:
        with np.errstate(invalid="ignore"):
            return [sums[..., 0] / sums[..., 1]]

    (found,) = coefficients.bootstrap(terms, votes.pairs[:, 0], compute, seed=0)
    return None if found is None else found._replace(n=int(terms[:, 1].sum()))
