"""Formats of published datasets: the columns that identify each one, and its conversion to our columns.

A source names its format, because a guess could train on the worse answer: many formats have a column that says which
of two completions is better.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_cli.data.published import comparisons, dialogues, instructions
from rlhf_cli.data.published.format import PublishedFormat

FORMATS: Mapping[str, PublishedFormat] = {
    row_format.name: row_format for row_format in (*instructions.FORMATS, *dialogues.FORMATS, *comparisons.FORMATS)
}

__all__ = ["FORMATS", "PublishedFormat"]
