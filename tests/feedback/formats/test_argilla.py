"""Tests of records of Argilla, in the form that `Record.to_dict` of its SDK 2 writes."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.issues import RowError
from rlhf_cli.feedback.formats import argilla
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.formats.reading import read_row
from rlhf_cli.feedback.types import Answer

USER = "e0f5ac5d-3c52-4f0a-9a4e-0c6b4c2a8f00"
FIELDS = {"prompt": "Say hi.", "response1": "Hi", "response2": "Hey"}


def read(responses: dict[str, Any], **fields: Any) -> ParsedRow:
    record = {
        "id": "1",
        "fields": FIELDS,
        "metadata": {},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "_server_id": "5d3c",
        **fields,
    }
    (row,) = read_row(argilla.FORMAT, record)
    return row


def response(value: Any, user: str = USER) -> dict[str, Any]:
    return {"value": value, "user_id": user}


def test_ranking_becomes_item_and_judgment() -> None:
    row = read({"preference": [response(["response2", "response1"])]}, metadata={"language": "en", "kind": "math"})
    assert (row.item.prompt, [c.text for c in row.item.completions]) == ("Say hi.", ["Hi", "Hey"])
    assert (row.item.language, row.item.extra) == ("en", {"kind": "math"})
    (judgment,) = row.judgments
    assert (judgment.annotator, judgment.answer) == (f"argilla-{USER}", Answer(((1,), (0,))))


def test_label_that_names_a_field_prefers_it() -> None:
    assert read({"better": [response("response2")]}).judgments[0].answer.tiers == ((1,), (0,))


def test_ranking_with_ranks_keeps_ties() -> None:
    value = [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]
    assert read({"preference": [response(value)]}).judgments[0].answer.tiers == ((0, 1),)


def test_responses_of_one_user_to_several_questions_are_one_judgment() -> None:
    row = read({"ranking": [response(["response1", "response2"])], "rationale": [response("kind")]})
    assert [judgment.answer for judgment in row.judgments] == [Answer(((0,), (1,)), rationale="kind")]


def test_suggestion_is_a_judgment_of_a_model() -> None:
    suggestion = {"value": ["response1", "response2"], "score": None, "agent": "gpt-4"}
    (judgment,) = read({}, suggestions={"preference": suggestion}).judgments
    assert (judgment.annotator, judgment.source) == ("gpt-4", "ai")


@pytest.mark.parametrize("value", [["response1"], "neither", 4, [], [{"value": "response1", "rank": 1}]])
def test_response_without_ranking_of_all_completions_is_unusable(value: Any) -> None:
    row = read({"preference": [response(value)]})
    assert row.judgments == ()
    assert row.unusable == ("a response without a ranking of all completions",)


@pytest.mark.parametrize("fields", [{"prompt": "a", "response1": "b"}, {"response1": "b", "response2": "c"}])
def test_record_without_prompt_or_completions_raises_missing_field(fields: dict[str, str]) -> None:
    with pytest.raises(RowError) as raised:
        read({}, fields=fields)
    assert raised.value.code == "data.missing-field"


def test_format_says_what_it_does_not_hold() -> None:
    assert "ties" in argilla.FORMAT.remark
    assert "draft" in argilla.FORMAT.remark
