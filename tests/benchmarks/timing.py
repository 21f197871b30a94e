"""Two things timed in turn, so that what else the machine does hits both; a ratio with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence


def compare(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> str:
    """Medians in seconds, and the median and range of the rounds' ratios, as a table row's cells.

    Each function runs once and gives back seconds; the first round warms up and is not counted.
    """
    ours(), theirs()
    pairs = []
    for index in range(rounds):
        if index % 2:
            pairs.append((ours(), theirs()))
        else:
            second = theirs()
            pairs.append((ours(), second))
    ratios = [a / b for a, b in pairs]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{mine:.2f} s | {other:.2f} s | {spread(ratios)}"


def spread(ratios: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
