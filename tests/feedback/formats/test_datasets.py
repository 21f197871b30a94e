"""Tests of published datasets. The rows are ours; their columns and values are those that each dataset documents."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest

from rlhf_cli.data.issues import DroppedRowError, RowError
from rlhf_cli.feedback.formats.format import ParsedRow
from rlhf_cli.feedback.formats.reading import find_format, read_row
from rlhf_cli.feedback.formats.registry import FORMATS
from rlhf_cli.feedback.types import Answer, NewJudgment, Tiers
from tests.support.feedback_datasets import ARENA, HELPSTEER2, HELPSTEER3, HH, NECTAR, PANDALM, ULTRAFEEDBACK
from tests.support.issues import raises_issue
from tests.support.shared_data import require_shared

FIRST_BETTER, SECOND_BETTER, TIE = ((0,), (1,)), ((1,), (0,)), ((0, 1),)


def parse(fields: dict[str, Any], name: str | None = None) -> ParsedRow:
    """Return the only item of a row, in the format that its columns tell."""
    (row,) = read_row(find_format(fields, "x.jsonl", name), fields)
    return row


def votes(row: ParsedRow) -> list[tuple[str, Tiers]]:
    return [(judgment.annotator, judgment.answer.tiers) for judgment in row.judgments]


def texts(row: ParsedRow) -> list[str]:
    """Return the text of each completion, which is one message."""
    return [completion.text[0]["content"] for completion in row.item.completions]  # type: ignore[index]


def test_hh_rlhf_is_split_at_the_last_assistant_turn() -> None:
    row = parse(HH)
    assert [turn["content"] for turn in row.item.prompt] == ["Say hi.", "Hi.", "Again."]  # type: ignore[index]
    assert texts(row) == ["Hi again.", "No."]
    assert votes(row) == [("hh-rlhf", FIRST_BETTER)]


def test_hh_rlhf_with_different_prompts_is_skipped() -> None:
    with pytest.raises(DroppedRowError):
        parse({**HH, "rejected": "\n\nHuman: Say bye.\n\nAssistant: Bye."})


def test_preferences_with_prompt_prefer_chosen() -> None:
    row = parse({"prompt": "Say hi.", "chosen": "Hi", "rejected": "No", "score": 3})
    assert (row.item.prompt, [completion.text for completion in row.item.completions]) == ("Say hi.", ["Hi", "No"])
    assert votes(row) == [("preferences", FIRST_BETTER)]
    assert row.item.extra == {"score": 3}


def test_ultrafeedback_without_overall_score_ranks_by_mean_rating_with_ties() -> None:
    # Means: 11/4, 15/3 without N/A, 11/4.
    row = parse(ULTRAFEEDBACK)
    (judgment,) = row.judgments
    assert (judgment.annotator, judgment.source, judgment.task) == ("gpt-4", "ai", "rank")
    assert judgment.answer.tiers == ((1,), (0, 2))
    assert judgment.answer.criteria[1] == {"instruction_following": 5, "honesty": 5, "truthfulness": 5}
    assert [completion.source for completion in row.item.completions] == ULTRAFEEDBACK["models"]
    assert row.item.extra == {"source": "sharegpt", "correct_answers": ["None"], "incorrect_answers": ["None"]}


def test_ultrafeedback_with_overall_score_ranks_by_it() -> None:
    scores = [8.0, 2.5, 8.0]
    completions = [{**c, "overall_score": s} for c, s in zip(ULTRAFEEDBACK["completions"], scores, strict=True)]
    assert parse({**ULTRAFEEDBACK, "completions": completions}).judgments[0].answer.tiers == ((0, 2), (1,))


def test_ultrafeedback_with_equal_completions_keeps_the_first() -> None:
    completions: Any = ULTRAFEEDBACK["completions"]
    row = parse({**ULTRAFEEDBACK, "completions": [*completions, {**completions[1], "model": "bard"}]})
    assert texts(row) == ["Pyramids.", "Giza, museums.", "Nile."]


def test_helpsteer2_with_individual_preferences_keeps_each_strength() -> None:
    row = parse(HELPSTEER2)
    assert [judgment.answer for judgment in row.judgments] == [
        Answer(SECOND_BETTER, strength=1, rationale="says more"),
        Answer(FIRST_BETTER, strength=-2, rationale="short"),
        Answer((), all_bad=True, rationale="neither"),
    ]
    assert [judgment.annotator for judgment in row.judgments] == ["helpsteer2-1", "helpsteer2-2", "helpsteer2-3"]


def test_helpsteer2_without_individual_preferences_keeps_the_overall_one() -> None:
    row = parse({name: value for name, value in HELPSTEER2.items() if name != "all_preferences_unprocessed"})
    (judgment,) = row.judgments
    assert judgment.answer == Answer(
        SECOND_BETTER, strength=1, rationale="@Response 2 is slightly better than @Response 1. It says more."
    )


def test_helpsteer2_with_several_turns_splits_them() -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nc#"
    row = parse({**HELPSTEER2, "prompt": prompt})
    assert [turn["content"] for turn in row.item.prompt] == ["Hi", "Hello", "c#"]  # type: ignore[index]


@pytest.mark.parametrize("strength", [4, -4, 0.5, -101, "much"])
def test_helpsteer2_with_unknown_strength_raises_invalid_label(strength: Any) -> None:
    with pytest.raises(RowError) as raised:
        parse({**HELPSTEER2, "all_preferences_unprocessed": [{"strength": strength, "justification": ""}]})
    assert raised.value.code == "data.invalid-label"


def test_helpsteer3_with_tie_keeps_it_and_reads_language_and_field() -> None:
    row = parse(HELPSTEER3)
    assert votes(row) == [("helpsteer3-1", FIRST_BETTER), ("helpsteer3-2", TIE)]
    assert [judgment.answer.strength for judgment in row.judgments] == [-3, 0]
    assert (row.item.language, row.item.field) == ("en", "general")
    assert row.item.extra == {"helpsteer3.language": "english"}


def test_pandalm_with_three_votes_returns_three_judgments() -> None:
    row = parse(PANDALM)
    assert row.item.prompt == [{"role": "user", "content": "Say hi.\n\nIn French."}]
    assert [completion.source for completion in row.item.completions] == ["bloom-7b", "llama-7b"]
    assert votes(row) == [("annotator1", FIRST_BETTER), ("annotator2", SECOND_BETTER), ("annotator3", TIE)]


def test_pandalm_file_has_the_votes_of_its_rows() -> None:
    raw = orjson.loads(require_shared("data", "pandalm", "testset-v1.json").read_bytes())
    rows = [parse(fields) for fields in raw]
    expected = Counter(
        (name, {1: FIRST_BETTER, 2: SECOND_BETTER, 0: TIE}[fields[name]])
        for fields in raw
        for name in ("annotator1", "annotator2", "annotator3")
    )
    assert len(rows) == 999
    assert Counter(vote for row in rows for vote in votes(row)) == expected
    assert expected["annotator1", SECOND_BETTER] == 475  # counted by hand, as the others
    assert expected["annotator2", TIE] == 116
    assert len({key for row in rows for key in keys(row.judgments)}) == 2997


def keys(judgments: tuple[NewJudgment, ...]) -> list[str]:
    return [judgment.key for judgment in judgments]


def test_nectar_with_ranks_returns_one_item_with_all_completions() -> None:
    row = parse(NECTAR)
    assert texts(row) == ["Hi!", "Hey", "No."]
    assert votes(row) == [("nectar", ((0,), (1,), (2,)))]


def test_arena_with_judge_names_the_annotator() -> None:
    row = parse(ARENA)
    assert texts(row) == ["B", "A"]
    assert votes(row) == [("arena_user_973", FIRST_BETTER)]
    assert row.item.language == "en"


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_format_has_documentation_and_columns(name: str) -> None:
    known = FORMATS[name]
    assert known.columns
    assert known.origin
    assert known.reading.endswith(".")


def test_find_format_with_unknown_columns_names_the_known_formats() -> None:
    with raises_issue("data.wrong-columns", location="x.jsonl") as issues:
        find_format(["question", "reply"], "x.jsonl")
    assert all(f"{name}: " in issues[0].hint for name in FORMATS)


def test_find_format_with_two_labels_asks_for_a_format() -> None:
    columns = ["prompt", "response_0", "response_1", "better_response_id", "safer_response_id"]
    with raises_issue("data.ambiguous-format"):
        find_format(columns, "x.jsonl")
    assert find_format(columns, "x.jsonl", "pku-safer").name == "pku-safer"


def test_find_format_with_forced_format_of_other_columns_raises() -> None:
    with raises_issue("data.wrong-columns"):
        find_format(["prompt", "completions"], "x.jsonl", "helpsteer2")
