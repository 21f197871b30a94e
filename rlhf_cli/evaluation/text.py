"""Figures of sampled answers that need no model: repetition and variety, over token ids of any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Ids = Sequence[int]


def _ngrams(ids: Ids, n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(n)), strict=False)


def repeated_ngram_rate(responses: Sequence[Ids], n: int = 4) -> float:
    """The share of n-grams that occurred before in the same response; 0 where no response has n tokens."""
    total = repeated = 0
    for ids in responses:
        grams = list(_ngrams(ids, n))
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def distinct_ngram_rate(responses: Sequence[Ids], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of all responses (Li et al. 2016, distinct-n); 0 where there are none.

    It falls with the amount of text: compare it at the same number of prompts and like lengths.
    """
    grams = [gram for ids in responses for gram in _ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 0.0
