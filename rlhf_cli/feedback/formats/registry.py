"""The formats in which feedback is imported, by name."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_cli.feedback.formats import argilla, csv_table, datasets, label_studio, published, rows
from rlhf_cli.feedback.formats.format import FeedbackFormat

_OWN = (rows.FORMAT, csv_table.FORMAT, *datasets.FORMATS, label_studio.FORMAT, argilla.FORMAT)
FORMATS: Mapping[str, FeedbackFormat] = {
    row_format.name: row_format for row_format in (*_OWN, *published.make_formats(without=[own.name for own in _OWN]))
}
