"""The model of Bradley and Terry gives what evalica gives, and no number that is not defined."""

from __future__ import annotations

from collections.abc import Sequence

import evalica
import pytest

from rlhf_cli.feedback.quality.bradley_terry import fit_strengths
from tests.support.judgments import GENERATED, generated_votes, pandalm_results

Results = Sequence[tuple[str, str, int]]
WINNERS = {1: evalica.Winner.X, 0: evalica.Winner.Draw, -1: evalica.Winner.Y}


def results_of(number: int) -> list[tuple[str, str, int]]:
    """Return the votes of a generated set as matches of five players."""
    return [
        (f"player {vote.item % 5}", f"player {(vote.item + 1 + vote.item // 5 % 4) % 5}", vote.outcome)
        for vote in generated_votes(number)
    ]


def evalica_strengths(results: Results) -> dict[str, float]:
    first, second, outcomes = zip(*results, strict=True)
    winners = [WINNERS[outcome] for outcome in outcomes]
    fitted = evalica.bradley_terry(list(first), list(second), winners, tolerance=1e-13, limit=100_000)
    return {str(name): float(strength) for name, strength in fitted.scores.items()}


def test_fit_strengths_equals_evalica_on_pandalm() -> None:
    results = pandalm_results()
    assert fit_strengths(results) == pytest.approx(evalica_strengths(results), abs=1e-9)


@pytest.mark.parametrize("number", GENERATED)
def test_fit_strengths_equals_evalica_on_generated_sets(number: int) -> None:
    results = results_of(number)
    assert fit_strengths(results) == pytest.approx(evalica_strengths(results), abs=1e-9)


def test_fit_strengths_of_two_players_is_their_ratio_of_wins() -> None:
    """Three wins to one: 3 / (3 + 1), so the strengths have the ratio 3 and the geometric mean 1."""
    strengths = fit_strengths([("a", "b", 1)] * 3 + [("a", "b", -1)])
    assert strengths == pytest.approx({"a": 3**0.5, "b": 3**-0.5}, rel=1e-9)


def test_fit_strengths_counts_a_tie_as_half_a_win_for_each() -> None:
    strengths = fit_strengths([("a", "b", 1), ("a", "b", 0)])
    assert strengths == pytest.approx({"a": 3**0.5, "b": 3**-0.5}, rel=1e-9)  # 1.5 wins to 0.5


def test_fit_strengths_of_a_player_who_always_wins_are_not_defined_without_pseudo_ties() -> None:
    results = [("a", "b", 1), ("b", "c", 1), ("c", "b", 1)]
    assert fit_strengths(results) is None
    strengths = fit_strengths(results, pseudo_ties=1)
    assert strengths is not None
    assert strengths["a"] > strengths["b"]


def test_fit_strengths_of_players_who_never_met_are_not_defined() -> None:
    assert fit_strengths([("a", "b", 0), ("c", "d", 0)], pseudo_ties=1) is None


def test_fit_strengths_without_results_is_not_defined() -> None:
    assert fit_strengths([]) is None
