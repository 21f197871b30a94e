"""The model of Bradley and Terry (1952): strengths of completions or models, from who beats whom.

R. A. Bradley and M. E. Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39 (1952), 324-345,
https://doi.org/10.2307/2334029. The probability that a beats b is strength(a) / (strength(a) + strength(b)).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from rlhf_cli.feedback.quality.votes import FloatArray

T = TypeVar("T", bound=Hashable)

STEPS = 1000
LONGEST_STEP = 1.0  # of a log strength; Newton's full step can overshoot far from the maximum
TOLERANCE = 1e-12  # largest change of a log strength in the last step


def fit_strengths(results: Iterable[tuple[T, T, int]], *, pseudo_ties: float = 0.0) -> dict[T, float] | None:
    """Return the most likely strengths, with geometric mean 1, or None if they are not defined.

    They are not defined if the players can be divided into two groups of which one has never won against the other.

    Args:
        results: Two players and the outcome: 1 if the first one won, -1 if the second one did, 0 for a tie, which is
            half a win for each.
        pseudo_ties: Number of ties added for each two players that met. Above 0, strengths are defined if all players
            are connected.
    """
    index: dict[T, int] = {}
    cells = [
        (index.setdefault(a, len(index)), index.setdefault(b, len(index)), (1 + outcome) / 2)
        for a, b, outcome in results
    ]
    wins = np.zeros((len(index), len(index)))
    for a, b, share in cells:
        wins[a, b] += share
        wins[b, a] += 1 - share
    strengths = strengths_of(wins + pseudo_ties / 2 * (wins + wins.T > 0))
    return None if strengths is None else dict(zip(index, strengths.tolist(), strict=True))


def strengths_of(wins: FloatArray) -> FloatArray | None:
    """Return the most likely strengths, with geometric mean 1, or None if they are not defined.

    Args:
        wins: How often each player won against each other one. Shape: (N, N)
    """
    if connected_components(wins > 0, connection="strong")[0] != 1:
        return None
    games = wins + wins.T
    strength = np.zeros(len(wins))  # logarithms until the end
    for _ in range(STEPS):
        expected = expit(strength[:, None] - strength)  # (N, N)
        gradient = (wins - games * expected).sum(1)
        information = games * expected * (1 - expected)
        # The likelihood does not change along the vector of ones, so that direction is fixed by adding a constant.
        curvature = np.diag(information.sum(1)) - information + 1 / len(wins)
        step = np.linalg.solve(curvature, gradient)
        strength += step * min(1.0, LONGEST_STEP / max(float(np.abs(step).max()), TOLERANCE))
        if np.abs(step).max() < TOLERANCE:
            break
    strengths: FloatArray = np.exp(strength - strength.mean())
    return strengths
