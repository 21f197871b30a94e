"""Time two functions in turn, so that other load on the machine affects both, and compare them by their ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> str:
    """Return the medians in seconds, and the median and range of the rounds' ratios, as the cells of a table row.

    Args:
        ours: Runs once and returns seconds.
        theirs: Runs once and returns seconds.
        rounds: How often both run, after a first round that warms up and is not counted.
    """
    ours()
    theirs()
    pairs = []
    for index in range(rounds):
        if index % 2:
            pairs.append((ours(), theirs()))
        else:
            their_seconds = theirs()
            pairs.append((ours(), their_seconds))
    our_median, their_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = format_spread([our_seconds / their_seconds for our_seconds, their_seconds in pairs])
    return f"{our_median:.2f} s | {their_median:.2f} s | {ratios}"


def format_spread(values: Sequence[float]) -> str:
    """Return the median and the range of `values`."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"
