"""docs/data.md: every example of rows and of a recipe is valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from rlhf_cli.recipe.schema import Data
from rlhf_cli.stages import DatasetKind
from tests.support.datasets import convert_rows

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
KINDS: dict[str, DatasetKind] = {  # heading: the kind of the rows below it
    "Text or conversations": "sft",
    "Demonstrations (`sft`)": "sft",
    "Preferences": "preferences",
    "Prompts": "prompts",
}


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the heading and the text of each code block."""
    sections = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    return [
        (heading, text)
        for heading, section in zip(sections[1::2], sections[2::2], strict=True)
        for text in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    ]


@pytest.mark.parametrize(("heading", "text"), blocks("json"))
def test_rows_of_data_page_are_valid(heading: str, text: str) -> None:
    for line in text.splitlines():
        rows, counts = convert_rows(KINDS[heading], [json.loads(line)])
        assert (len(rows), counts) == (1, {})


@pytest.mark.parametrize(("heading", "text"), blocks("yaml"))
def test_recipes_of_data_page_are_valid(heading: str, text: str) -> None:
    assert Data.model_validate(yaml.safe_load(text)["data"]), heading


def test_data_page_has_examples() -> None:
    assert {heading for heading, _ in blocks("json")} == set(KINDS)
