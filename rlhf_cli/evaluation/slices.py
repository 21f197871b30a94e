"""Slices of preference pairs: by language, field, source and group of annotators, from the columns of the rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

MIN_SLICE_ROWS = 30  # a smaller slice is not reported: its interval would be too wide, and it may show one person
HELD_OUT_SPLIT = "annotators"  # value of the column `split` in rows with single votes of held-out annotators
COLUMNS = (  # column: prefix of its slices
    ("languages", "language"),
    ("language", "language"),
    ("fields", "field"),
    ("field", "field"),
    ("source", "source"),
    ("groups", "annotators"),
)
_NOT_IN_NAMES = re.compile(r"[^\w-]+")


def slices_of(columns: Mapping[str, Any]) -> frozenset[str]:
    """Return the slices of a row, such as `language.en` and `source.human`.

    Args:
        columns: The columns of the row beside prompt, chosen and rejected. A column with another kind of value, as
            other datasets may have, makes no slice.
    """
    found = set()
    for column, prefix in COLUMNS:
        value = columns.get(column)
        for item in value if isinstance(value, list) else [value]:
            name = _NOT_IN_NAMES.sub("_", item).strip("_") if isinstance(item, str) else ""
            if name:
                found.add(f"{prefix}.{name}")
    return frozenset(found)


def is_of_held_out_annotators(columns: Mapping[str, Any]) -> bool:
    """Return whether a row is a vote of an annotator whose votes became no labels."""
    return columns.get("split") == HELD_OUT_SPLIT


def reported_slices(slices: Sequence[Collection[str]]) -> list[str]:
    """Return the slices of enough rows, by name. `slices` holds those of each row."""
    counts = Counter(name for of_row in slices for name in of_row)
    return sorted(name for name, count in counts.items() if count >= MIN_SLICE_ROWS)
