"""References to runs are parsed as written."""

from __future__ import annotations

import pytest

from rlhf_cli.run_reference import RunReference, parse_run_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sft", RunReference(None, "sft", None)),
        ("sft@latest", RunReference(None, "sft", "latest")),
        ("feedback@v0003", RunReference(None, "feedback", "v0003")),
        ("bot/sft", RunReference("bot", "sft", None)),
        ("my.bot-2/sft@v12345", RunReference("my.bot-2", "sft", "v12345")),
    ],
)
def test_parse_run_reference_of_reference_returns_its_parts(text: str, expected: RunReference) -> None:
    assert parse_run_reference(text) == expected


@pytest.mark.parametrize(
    "text", ["", "sft@2", "sft@v003", "sft@", "@latest", "../sft", "a/b/sft", "/sft", "bot/../sft", "sft\n", "a b"]
)
def test_parse_run_reference_of_other_text_returns_none(text: str) -> None:
    assert parse_run_reference(text) is None
