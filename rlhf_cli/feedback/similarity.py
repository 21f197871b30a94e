"""Find completions that say nearly the same, so that nobody is asked to compare them."""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 5  # characters


def distinct(texts: Sequence[str], max_similarity: float) -> list[int]:
    """Return the indices of the texts to keep, in their order. Of equal or similar texts, the first one is kept.

    The similarity of two texts is the Jaccard index of their sets of character 5-grams: the number of 5-grams that they
    share, divided by the number that at least one of them has.

    Args:
        texts: The completions of one prompt.
        max_similarity: A text is dropped if its similarity to a text that is kept is larger. At 1, only equal texts are
            dropped: two texts may have the same 5-grams.
    """
    kept: dict[int, set[str]] = {}  # index: 5-grams
    for index, text in enumerate(texts):
        ngrams = {text[start : start + NGRAM] for start in range(max(1, len(text) - NGRAM + 1))}
        if all(
            text != texts[other] and len(ngrams & others) <= max_similarity * len(ngrams | others)
            for other, others in kept.items()
        ):
            kept[index] = ngrams
    return list(kept)
