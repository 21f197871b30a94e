"""Tests of plain rows: prompts with completions and judgments, and rankings as indices."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.issues import RowError
from rlhf_cli.feedback.formats import rows
from rlhf_cli.feedback.formats.format import read_ranking, write_ranking
from rlhf_cli.feedback.formats.reading import read_row
from rlhf_cli.feedback.types import Answer, NewCompletion, NewItem

ROW = {"prompt": "Say hi.", "completions": ["Hi!", {"text": "Hello.", "source": "bot/sft@v0001"}, "Hey"]}


def read(**fields: Any) -> NewItem:
    return read_row(rows.FORMAT, {**ROW, **fields})[0].item


def judge(**fields: Any) -> Answer:
    (row,) = read_row(rows.FORMAT, {**ROW, "judgments": [{"annotator": "ann", **fields}]})
    return row.judgments[0].answer


def row_error(**fields: Any) -> str:
    with pytest.raises(RowError) as raised:
        read_row(rows.FORMAT, {**ROW, **fields})
    return raised.value.code


def test_read_row_with_text_returns_item_with_sources() -> None:
    assert read() == NewItem(
        "Say hi.", (NewCompletion("Hi!"), NewCompletion("Hello.", "bot/sft@v0001"), NewCompletion("Hey"))
    )


def test_read_row_with_conversation_makes_completions_assistant_messages() -> None:
    prompt = [{"role": "user", "content": "Say hi."}]
    item = read(prompt=prompt, completions=["Hi!", [{"role": "assistant", "content": "Hello."}]])
    assert item.prompt == prompt
    assert [completion.text for completion in item.completions] == [
        [{"role": "assistant", "content": "Hi!"}],
        [{"role": "assistant", "content": "Hello."}],
    ]


def test_read_row_with_text_that_looks_like_messages_keeps_it_verbatim() -> None:
    code = '[{"role": "user", "content": "x"}]'
    assert read(completions=[code, ""]).completions[0].text == code


def test_read_row_with_answer_returns_gold_item() -> None:
    item = read(answer=[2, [0, 1]], explanation="short", language="pt-BR", field="greetings", is_random=False)
    assert (item.kind, item.answer, item.explanation) == ("gold", ((2,), (0, 1)), "short")
    assert (item.language, item.field, item.is_random) == ("pt-BR", "greetings", False)
    assert read(answer=[0, 1, 2], kind="qualification").kind == "qualification"


def test_read_row_with_other_columns_keeps_them() -> None:
    (row,) = read_row(rows.FORMAT, {**ROW, "topic": {"a": 1}, "judgments": [{"annotator": "a", "ranking": [0, 1, 2]}]})
    assert row.item.extra == {"topic": {"a": 1}}
    assert row.judgments[0].item == row.item


def test_read_row_with_columns_of_the_prompt_that_share_a_name_keeps_them_apart() -> None:
    """The rows of `rlhf sample` have all columns of the prompts, such as an answer that rewards compare with."""
    (row,) = read_row(rows.FORMAT, {**ROW, "answer": "42", "kind": "math", "explanation": "x", "language": "python"})
    assert (row.item.kind, row.item.answer, row.item.explanation, row.item.language) == ("item", (), "", "")
    assert row.item.extra == {
        **{"prompt.answer": "42", "prompt.kind": "math", "prompt.explanation": "x", "prompt.language": "python"}
    }
    assert row.unusable == ("a language that is not a BCP 47 tag",)


@pytest.mark.parametrize(("language", "tag"), [("English", "en"), ("pt_BR", "pt-BR"), ("zh-Hant", "zh-Hant"), ("", "")])
def test_read_row_with_language_returns_its_tag(language: str, tag: str) -> None:
    assert read(language=language).language == tag


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"completions": ["Hi!"]}, "feedback.invalid-item"),
        ({"completions": ["Hi!", "Hey", "Hi!"]}, "feedback.invalid-item"),
        ({"completions": "Hi!"}, "data.wrong-type"),
        ({"completions": ["Hi!", 3]}, "data.wrong-type"),
        ({"completions": ["Hi!", {"text": "x", "model": "y"}]}, "feedback.invalid-item"),
        ({"completions": ["Hi!", [{"role": "assistant", "content": "Hey"}]]}, "data.mixed-formats"),
        ({"prompt": [{"role": "assistant", "content": "Hey"}]}, "data.roles-out-of-order"),
        ({"prompt": ""}, "data.empty-field"),
        ({"field": "f" * 101}, "feedback.invalid-item"),
        ({"is_random": "perhaps"}, "data.wrong-type"),
        ({"answer": [0, 1]}, "feedback.invalid-answer"),
        ({"kind": "gold"}, "data.missing-field"),
        ({"judgments": [{"ranking": [0, 1, 2]}]}, "data.missing-field"),
        (
            {"judgments": [{"annotator": "a", "ranking": [0, 1, 2], "flags": {"0": ["rude"]}}]},
            "feedback.invalid-answer",
        ),
        (
            {"judgments": [{"annotator": "a", "ranking": [0, 1, 2], "criteria": {"0": {"x": 6}}}]},
            "feedback.invalid-answer",
        ),
    ],
)
def test_read_row_with_invalid_field_raises_its_code(fields: dict[str, Any], code: str) -> None:
    assert row_error(**fields) == code


@pytest.mark.parametrize(
    "fields",
    [
        {"ranking": None},
        {"ranking": [0, 1]},
        {"ranking": [[0, 1], 2], "task": "best-worst"},
        {"skip_reason": "x"},
        {"strength": 4},
        {"flags": {"0": ["rude"]}},
        {"flags": {"3": []}},
        {"criteria": {"0": {"helpful": 6}}},
        {"criteria": {"-1": {"helpful": 5}}},
        {"seconds": -1},
    ],
)
def test_read_judgment_with_invalid_field_raises_invalid_answer(fields: dict[str, Any]) -> None:
    judgment = {"annotator": "ann", "ranking": [0, 1, 2], **fields}
    assert row_error(judgments=[judgment]) == "feedback.invalid-answer"


def test_read_judgment_with_all_fields_returns_them() -> None:
    answer = judge(
        ranking=[1, [0, 2]],
        criteria={"1": {"helpful": 5}},
        flags={"-1": ["private"], "2": ["false", "unsafe"]},
        rationale="1 is kind",
        seconds=2.5,
    )
    assert answer == Answer(
        ((1,), (0, 2)),
        criteria={1: {"helpful": 5}},
        flags={-1: ("private",), 2: ("false", "unsafe")},
        rationale="1 is kind",
        seconds=2.5,
    )


def test_read_judgment_without_ranking_is_skipped_or_all_bad() -> None:
    assert judge(skip_reason="not my language") == Answer((), skip_reason="not my language")
    assert judge(all_bad=True) == Answer((), all_bad=True)


@pytest.mark.parametrize("value", [[2, [0, 1]], [0, 1, 2], [[0, 1, 2]], [[0, 2], 1]])
def test_read_ranking_of_written_ranking_is_the_same(value: Any) -> None:
    assert write_ranking(read_ranking(value, 3, "answer")) == value


@pytest.mark.parametrize(
    "value", [None, 1, [0, 1, 3], [0, 0, 1], [0, True, 2], [[], 0, 1, 2], [-1, 0, 1], [[[0]], 1, 2], []]
)
def test_read_ranking_of_other_value_raises_invalid_answer(value: Any) -> None:
    with pytest.raises(RowError) as raised:
        read_ranking(value, 3, "answer")
    assert raised.value.code == "feedback.invalid-answer"
