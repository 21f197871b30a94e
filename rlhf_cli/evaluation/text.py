"""Measure repetition and variety of completions, over token ids of any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

TokenIds = Sequence[int]


def _ngrams(ids: TokenIds, n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(n)), strict=False)


def repeated_ngram_rate(responses: Sequence[TokenIds], n: int = 4) -> float:
    """Return the share of n-grams that occurred before in the same response, or 0 if no response has n tokens."""
    total = repeated = 0
    for ids in responses:
        ngrams = list(_ngrams(ids, n))
        total += len(ngrams)
        repeated += len(ngrams) - len(set(ngrams))
    return repeated / total if total else 0.0


def distinct_ngram_rate(responses: Sequence[TokenIds], n: int = 2) -> float:
    """Return distinct n-grams over all n-grams of all responses (distinct-n, Li et al. 2016), or 0 if there are none.

    It falls with the amount of text, so compare only values from equally many prompts and similar lengths.
    """
    ngrams = [ngram for ids in responses for ngram in _ngrams(ids, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
