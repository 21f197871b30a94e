"""Repetition and variety of completions, counted by hand."""

from __future__ import annotations

import pytest

from rlhf_cli.evaluation.text import distinct_ngram_rate, repeated_ngram_rate


def test_repeated_ngram_rate_of_a_loop() -> None:
    # 1 2 1 2 1 2 1: four 4-grams, of which 1212 and 2121 come twice
    assert repeated_ngram_rate([[1, 2, 1, 2, 1, 2, 1]]) == pytest.approx(2 / 4)


def test_repeated_ngram_rate_ignores_repetition_between_responses() -> None:
    assert repeated_ngram_rate([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 0.0


def test_repeated_ngram_rate_weights_responses_by_length() -> None:
    # seven equal tokens: 3 of 4 repeated; four tokens: 0 of 1
    assert repeated_ngram_rate([[7] * 7, [1, 2, 3, 4]]) == pytest.approx(3 / 5)


def test_distinct_ngram_rate_is_over_all_responses() -> None:
    # bigrams 12 23 | 12: two distinct of three
    assert distinct_ngram_rate([[1, 2, 3], [1, 2]]) == pytest.approx(2 / 3)


def test_ngram_rates_of_too_short_responses_are_zero() -> None:
    assert repeated_ngram_rate([[1, 2, 3], []]) == 0.0
    assert distinct_ngram_rate([[1]]) == 0.0
