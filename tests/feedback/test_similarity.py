"""Which completions are near-duplicates: worked by hand from their character 5-grams."""

from __future__ import annotations

import pytest

from rlhf_cli.feedback.similarity import distinct

# "abcdefgh" has the 5-grams abcde bcdef cdefg defgh; "abcdefgX" shares 3 of its 4: Jaccard 3/5.
SIMILAR = ["abcdefgh", "abcdefgX"]


@pytest.mark.parametrize(
    ("texts", "max_similarity", "kept"),
    [
        (["a", "b", "a"], 1.0, [0, 1]),
        (["same text", "same text"], 0.0, [0]),
        (SIMILAR, 0.6, [0, 1]),
        (SIMILAR, 0.59, [0]),
        (["aaaaaa", "aaaaaaa"], 1.0, [0, 1]),  # the same set of 5-grams, but not equal
        (["aaaaaa", "aaaaaaa"], 0.99, [0]),
        (["ab", "abc"], 0.0, [0, 1]),  # shorter than a 5-gram: similar only if equal
        (["12345", "123456", "23456"], 0.5, [0, 1, 2]),  # 1/2, 0, 1/2
        (["12345", "123456", "23456"], 0.4, [0, 2]),  # the third one is compared with the first one only
        ([], 0.5, []),
    ],
)
def test_distinct_keeps_first_of_similar_texts(texts: list[str], max_similarity: float, kept: list[int]) -> None:
    assert distinct(texts, max_similarity) == kept
