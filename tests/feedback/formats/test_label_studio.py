"""Tests of tasks of Label Studio, in the form that its documentation shows for Ranker, Pairwise and exported tasks."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.issues import RowError
from rlhf_cli.feedback.formats import label_studio
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.formats.reading import read_row
from rlhf_cli.feedback.types import Answer, Tiers

ITEMS = [
    {"id": "blog", "title": "10 tips", "body": "A function hurts."},
    {"id": "mdn", "title": "Arrow functions", "body": "An arrow function is compact."},
    {"id": "wiki", "title": "Arrow", "body": "Arrows are bolts."},
]
PAIR = {"prompt": "Say hi.", "text1": "Hi", "text2": "Hey"}


def annotation(*results: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return an annotation as the JSON export has it."""
    return {
        "id": 1001,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2021-03-09T22:16:08.728353Z",
        "updated_at": "2021-03-09T22:16:08.728378Z",
        "lead_time": 4.288,
        "task": 1,
        "completed_by": 10,
        **fields,
    }


def ranker(value: Any) -> dict[str, Any]:
    return {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": value}}


def pairwise(selected: str, to_name: str = "text1,text2") -> dict[str, Any]:
    return {"from_name": "pw", "to_name": to_name, "type": "pairwise", "value": {"selected": selected}}


def read(data: dict[str, Any], *annotations: dict[str, Any], **fields: Any) -> ParsedRow:
    (row,) = read_row(label_studio.FORMAT, {"id": 1, "data": data, "annotations": list(annotations), **fields})
    return row


def read_ranker(value: Any) -> ParsedRow:
    return read({"question": "What is an arrow?", "items": ITEMS}, annotation(ranker(value)))


def test_ranker_task_becomes_item_and_judgment() -> None:
    row = read_ranker({"rank": ["mdn", "wiki", "blog"]})
    assert row.item.prompt == "What is an arrow?"
    assert [c.text for c in row.item.completions] == [entry["body"] for entry in ITEMS]
    (judgment,) = row.judgments
    assert judgment.answer == Answer(((1,), (2,), (0,)), seconds=4.288)
    assert (judgment.annotator, judgment.created) == ("label-studio-10", "2021-03-09T22:16:08.728353Z")


@pytest.mark.parametrize(
    ("value", "tiers"),
    [
        (["mdn", "wiki", "blog"], ((1,), (2,), (0,))),
        ({"rank": ["mdn", "wiki", "blog"], "_": []}, ((1,), (2,), (0,))),
        ({"rank_1": ["mdn"], "rank_2": ["wiki", "blog"]}, ((1,), (0, 2))),
        ({"tier 10": ["blog"], "tier 9": ["mdn", "wiki"], "_": []}, ((1, 2), (0,))),
        ({"worst": ["blog"], "best": ["wiki"], "middle": ["mdn"]}, ((2,), (1,), (0,))),
        ({"rank_1": ["mdn", "wiki", "blog"]}, ((0, 1, 2),)),
    ],
)
def test_ranker_value_becomes_tiers(value: Any, tiers: Tiers) -> None:
    assert read_ranker(value).judgments[0].answer.tiers == tiers


@pytest.mark.parametrize("value", [{"_": ["mdn"], "rank": ["wiki", "blog"]}, {"_": ["mdn", "wiki", "blog"]}, []])
def test_ranker_that_leaves_items_out_is_unusable(value: Any) -> None:
    row = read_ranker(value)
    assert row.judgments == ()
    assert row.unusable == ("an annotation that does not rank all completions",)


@pytest.mark.parametrize("value", [{"relevant": ["mdn"], "ads": ["wiki", "blog"]}, {"rank": ["mdn", "wiki", "lost"]}])
def test_ranker_that_cannot_be_read_raises_invalid_answer(value: Any) -> None:
    with pytest.raises(RowError) as raised:
        read_ranker(value)
    assert raised.value.code == "feedback.invalid-answer"


@pytest.mark.parametrize(("selected", "tiers"), [("left", ((0,), (1,))), ("right", ((1,), (0,)))])
def test_pairwise_value_becomes_tiers(selected: str, tiers: Tiers) -> None:
    row = read(PAIR, annotation(pairwise(selected)))
    assert [c.text for c in row.item.completions] == ["Hi", "Hey"]
    assert (row.judgments[0].task, row.judgments[0].answer.tiers) == ("pair", tiers)


def test_pairwise_with_named_fields_uses_them() -> None:
    data = {"prompt": "Say hi.", "a": "Hi", "b": "Hey", "topic": "greetings"}
    row = read(data, annotation(pairwise("left", "b,a")))
    assert [c.text for c in row.item.completions] == ["Hey", "Hi"]
    assert row.item.extra == {"topic": "greetings"}


def test_annotations_of_several_people_keep_their_numbers_and_no_addresses() -> None:
    user = {"id": 7, "email": "ada@example.org", "first_name": "Ada"}
    row = read(PAIR, annotation(pairwise("left")), annotation(pairwise("right"), completed_by=user))
    assert [judgment.annotator for judgment in row.judgments] == ["label-studio-10", "label-studio-7"]


def test_columns_beside_the_data_are_not_kept() -> None:
    """Drafts hold the addresses of those who wrote them."""
    row = read(PAIR, annotation(pairwise("left")), drafts=[{"user": "ada@example.org"}], updated_by=[{"user_id": 7}])
    assert row.item.extra == {}


def test_cancelled_annotation_is_a_skipped_item() -> None:
    row = read(PAIR, annotation(was_cancelled=True))
    assert row.judgments[0].answer.tiers == ()
    assert row.judgments[0].answer.skip_reason != ""


def test_prediction_is_a_judgment_of_a_model() -> None:
    prediction = {"model_version": "judge-1", "result": [pairwise("right")], "score": 0.9}
    row = read(PAIR, annotation(pairwise("left")), predictions=[prediction])
    assert [(judgment.annotator, judgment.source) for judgment in row.judgments] == [
        ("label-studio-10", "human"),
        ("judge-1", "ai"),
    ]


def test_task_without_annotations_is_an_item_only() -> None:
    assert read(PAIR).judgments == ()


@pytest.mark.parametrize("data", [{"image": "x.png"}, {"prompt": "Say hi.", "reply": "Hi"}])
def test_task_without_prompt_or_completions_raises_missing_field(data: dict[str, Any]) -> None:
    with pytest.raises(RowError) as raised:
        read(data)
    assert raised.value.code == "data.missing-field"
