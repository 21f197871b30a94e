"""Choose the prompts that people are asked about next: those that reward models disagree about, and random ones."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple

from rlhf_cli.data.issues import IssueCollector
from rlhf_cli.errors import DataError
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.formats.reading import FeedbackSource
from rlhf_cli.feedback.formats.rows import write_row
from rlhf_cli.feedback.types import NewItem
from rlhf_cli.formatting import format_count

Scores = Sequence[Sequence[float]]  # (M, k): each of M reward models scores each of the k completions of a prompt


class Selected(NamedTuple):
    """A prompt to ask about.

    Attributes:
        row: Its index.
        is_random: Whether it was drawn, whatever the reward models say about it.
    """

    row: int
    is_random: bool


def uncertainty(scores: Scores) -> float:
    """Return how uncertain reward models are about the order of a prompt's completions, in units of their scores.

    With several models, it is the standard deviation of s_i - s_j over the models, averaged over the pairs of
    completions. A model that scores all completions of a prompt higher than the others do does not disagree about their
    order. With one model, it is the negative mean of |s_i - s_j|: the smaller the predicted gaps, the more uncertain.
    """
    gaps = [[row[i] - row[j] for row in scores] for i, j in combinations(range(len(scores[0])), 2)]
    if len(scores) == 1:
        return -fmean(abs(gap) for (gap,) in gaps)
    return fmean(map(pstdev, gaps))


def select(uncertainties: Sequence[float | None], count: int, random_share: float, seed: int) -> list[Selected]:
    """Return the prompts to ask about, in their order: first some at random, then the most uncertain ones of the rest.

    Args:
        uncertainties: The uncertainty of each prompt, or None if it could not be scored.
        count: How many to select; all if there are fewer.
        random_share: Fraction of them that is drawn at random, rounded up.
        seed: Seed of the draw, which does not depend on the uncertainties.
    """
    total = min(count, len(uncertainties))
    drawn = {*random.Random(seed).sample(range(len(uncertainties)), math.ceil(Fraction(str(random_share)) * total))}

    def order(index: int) -> tuple[float, int]:
        value = uncertainties[index]
        return (math.inf if value is None else -value, index)

    rest = sorted((index for index in range(len(uncertainties)) if index not in drawn), key=order)
    return [Selected(index, index in drawn) for index in sorted([*drawn, *rest[: total - len(drawn)]])]


def read_items(source: FeedbackSource) -> list[NewItem]:
    """Return the items of a source that may be selected: ordinary ones without judgments.

    Raises:
        DataError: With an issue for each row that cannot be used; or no item may be selected.
    """
    issues = IssueCollector()
    rows = list(source.read(issues, Counter()))
    issues.raise_if_any()
    items = [row.item for row in rows if row.item.kind == "item" and not row.judgments]
    if not items:
        message = f"no item without judgments; found {format_count(len(rows), 'row')}."
        raise DataError("data.no-rows", message, location=source.name, hint="Sample more completions.")
    return items


def write_items(path: Path, items: Sequence[NewItem], selected: Sequence[Selected]) -> None:
    """Write the selected items as `rlhf annotate import` reads them. An existing file is replaced as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="ascii") as out:
        for row, is_random in selected:
            for fields in write_row(ParsedRow(replace(items[row], is_random=is_random)), Counter()):
                out.write(json.dumps(fields) + "\n")  # ASCII: a completion may hold a lone surrogate
    temporary.replace(path)
