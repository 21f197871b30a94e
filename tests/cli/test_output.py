"""Tables and lists for people."""

from __future__ import annotations

import pytest

from rlhf_cli.cli.dry_run import print_preview


def test_a_previews_figures_stand_in_one_column_with_their_thousands_apart(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"rows read": 4600, "dropped: prompt of 1024 tokens or more": 12, "end tokens": "</s> (2)"}
    print_preview({"stage": "ppo", "facts": facts, "example": "Ask: "})
    assert capsys.readouterr().out.splitlines() == [
        "ppo",
        "  rows read                               4,600",
        "  dropped: prompt of 1024 tokens or more  12",
        "  end tokens                              </s> (2)",
        "  one prompt:",
        "Ask: ",
    ]
