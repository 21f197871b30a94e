"""The examples in docs/annotation.md can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rlhf_cli.feedback.formats import rows
from rlhf_cli.feedback.formats.reading import read_row

PAGE = Path(__file__).parents[3] / "docs" / "annotation.md"


def test_rows_of_the_page_about_annotation_can_be_read() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("### Rows of your own")[2]
    own, gold = [json.loads(block) for block in re.findall(r"```json\n(.+?)\n```", section, re.DOTALL)][:2]
    (row,) = read_row(rows.FORMAT, own)
    assert [judgment.answer.tiers for judgment in row.judgments] == [((1,), (0,))]
    assert row.item.extra == {}
    assert rows.read_item(gold, "gold").answer == ((1, 2), (0,))
