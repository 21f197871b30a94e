"""Every known form of data, and the explicit rows that it becomes."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_cli.data.formats import Converter
from rlhf_cli.data.readers import Batch, IssueCollector
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow, TextRow
from rlhf_cli.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hi?"}
USER_2 = {"role": "user", "content": "And now?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}


def rows(kind: Any, *fields: dict[str, Any], columns: dict[str, str] | None = None, editable: bool = True) -> list[Any]:
    return counted(kind, *fields, columns=columns, editable=editable)[0]


def counted(
    kind: Any, *fields: dict[str, Any], columns: dict[str, str] | None = None, editable: bool = True
) -> tuple[list[Any], dict[str, int]]:
    issues = IssueCollector()
    found = list(dict.fromkeys(column for row in fields for column in row))
    converter = Converter(kind, columns or {}, found, name="x.jsonl", issues=issues, editable=editable)
    converted = converter.rows(Batch("x.jsonl:", range(1, len(fields) + 1), list(fields)))
    converter.close()
    issues.raise_if_any()
    assert converter.counts.pop("read") == len(fields)
    return converted, dict(converter.counts)


def faults_of(kind: Any, *fields: dict[str, Any], columns: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(DataError) as raised:
        rows(kind, *fields, columns=columns)
    return [str(issue) for issue in raised.value.issues]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "2+2=", "completion": "4"}, SftRow("2+2=", "4")),
        ({"prompt": [SYSTEM, USER], "completion": [YES]}, SftRow([SYSTEM, USER], [YES])),
        ({"messages": [USER, NO, USER_2, YES]}, SftRow([USER, NO, USER_2], [YES])),
        # no user turn, and no answer but the last, is under the loss
        ({"prompt": [SYSTEM, USER], "completion": [NO, USER_2, YES]}, SftRow([SYSTEM, USER, NO, USER_2], [YES])),
        ({"text": " Once upon a time. "}, SftRow("", " Once upon a time. ")),
    ],
)
def test_demonstrations(fields: dict[str, Any], expected: SftRow) -> None:
    assert rows("sft", fields) == [expected]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),  # not "The sky is bl"
        ("Q?\n\nYes", "Q?\n\nNo", "Q?\n\n"),
        ("Q? Yes", "Q? Yes, of course", "Q?"),  # something is left to both
        ("Q? Yes", "Q? Yes and no", "Q?"),
        ("one two", "one\ttwo", "one"),
        ("Hi", "Ho", ""),
    ],
)
def test_implicit_text_prompt_cuts_no_word(chosen: str, rejected: str, prompt: str) -> None:
    row = rows("preferences", {"chosen": chosen, "rejected": rejected})[0]
    assert row == PreferenceRow(prompt, chosen[len(prompt) :], rejected[len(prompt) :], None, {})


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]},
        {"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
        {"prompt": "Hi?", "chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},  # UltraFeedback's shape
    ],
)
def test_conversational_preferences(fields: dict[str, Any]) -> None:
    assert rows("preferences", fields) == [PreferenceRow([SYSTEM, USER], [YES], [NO], None, {})]


def test_turns_that_both_answers_begin_with_belong_to_the_prompt() -> None:
    fields = {"prompt": [USER], "chosen": [YES, USER_2, YES], "rejected": [YES, USER_2, NO]}
    assert rows("preferences", fields) == [PreferenceRow([USER, YES, USER_2], [YES], [NO], None, {})]


@pytest.mark.parametrize(
    "fields",
    [
        {"chosen": [USER, YES, USER_2, YES], "rejected": [USER, NO, USER_2, YES]},
        {"prompt": [USER], "chosen": [YES, USER_2, YES], "rejected": [NO, USER_2, YES]},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO, USER_2, YES]},
        {"prompt": [USER], "chosen": [YES, USER_2, YES], "rejected": [YES, USER, NO]},
        {"prompt": [USER], "chosen": [YES], "rejected": [YES, USER, NO]},
    ],
)
def test_user_turns_inside_the_answers_are_refused(fields: dict[str, Any]) -> None:
    name = "rejected" if len(fields["chosen"]) == 1 else "chosen"
    assert faults_of("preferences", fields)[0].startswith(f"x.jsonl:1  `{name}` holds user turns")
    assert counted("preferences", fields, editable=False) == ([], {"dropped: user turns in an answer": 1})
    assert rows("prompts", fields) == [PromptRow([USER], {})], "of a prompt, the answers do not matter"


def test_text_preferences_are_used_as_they_stand() -> None:
    fields = {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."}
    assert rows("preferences", fields) == [PreferenceRow(fields["prompt"], " Yes.", " No.", None, {})]


def test_hh_transcript_becomes_a_conversation() -> None:
    start = "\n\nHuman: Hi?\n\nAssistant: No.\n\nHuman: And\n\nnow? \n\nAssistant:"
    row = rows("preferences", {"chosen": start + " Yes.", "rejected": start + " No."})[0]
    now = {"role": "user", "content": "And\n\nnow?"}
    assert row == PreferenceRow([USER, NO, now], [YES], [NO], None, {})


def test_flawed_hh_transcripts_are_dropped_and_counted() -> None:
    good = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}
    _, counts = counted(
        "preferences",
        good,
        {**good, "rejected": "\n\nHuman: Hi?\n\nAssistant: "},
        {**good, "rejected": "\n\nHuman: Ho?\n\nAssistant: No."},
        {**good, "rejected": "\n\nHuman: Hi?\n\nAssistant: No.\n\nHuman: Why?"},
    )
    assert counts == {
        "dropped: transcript with an empty turn": 1,
        "dropped: transcripts that answer different prompts": 1,
        "dropped: transcript without a closing answer": 1,
    }


def test_equal_answers_are_dropped_and_counted() -> None:
    kept, counts = counted(
        "preferences",
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    )
    assert len(kept) == 1
    assert counts == {"dropped: chosen equals rejected": 1}


def test_margin_and_further_columns() -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    first, second = rows("preferences", {**pair, "margin": 2, "topic": "sky"}, {**pair, "margin": "0.5", "by": 7})
    assert (first.margin, first.extra) == (2.0, {"topic": "sky", "by": None})
    assert (second.margin, second.extra) == (0.5, {"topic": None, "by": 7})


@pytest.mark.parametrize("margin", [float("nan"), "much", True, [1]])
def test_margin_that_is_no_number(margin: Any) -> None:
    assert (
        "`margin` must be a finite number"
        in faults_of("preferences", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin})[0]
    )


@pytest.mark.parametrize("first", [{"margin": 1.0}, {"margin": None}])
def test_margin_on_some_rows_alone_is_refused(first: dict[str, Any]) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    without = 2 if first["margin"] else 1
    second = pair if first["margin"] else {**pair, "margin": 1.0}
    told = faults_of("preferences", {**pair, **first}, second)
    assert len(told) == 1
    assert told[0].startswith(f"x.jsonl:{without}  `margin` is missing here")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "Hi?", "answer": 4}, PromptRow("Hi?", {"answer": 4})),
        ({"prompt": [SYSTEM, USER]}, PromptRow([SYSTEM, USER], {})),
        ({"messages": [USER, NO, USER_2]}, PromptRow([USER, NO, USER_2], {})),
        ({"messages": [USER, NO]}, PromptRow([USER], {})),
        ({"prompt": "Hi?", "completion": "Yes."}, PromptRow("Hi?", {"completion": "Yes."})),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": ""}, PromptRow("Hi?", {})),
        ({"chosen": "Is it? Yes", "rejected": "Is it? No"}, PromptRow("Is it?", {})),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, PromptRow([USER], {})),
        ({"prompt": "Hi?", "chosen": [USER, YES], "rejected": [USER, NO], "n": 1}, PromptRow([USER], {"n": 1})),
        (
            {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
            PromptRow([USER], {}),
        ),
    ],
)
def test_prompts_of_every_kind_of_file(fields: dict[str, Any], expected: PromptRow) -> None:
    assert rows("prompts", fields) == [expected]


def test_pretraining_text() -> None:
    assert rows("pretrain", {"text": "Once.", "id": 3}) == [TextRow("Once.")]


def test_columns_are_mapped_to_ours() -> None:
    fields = {"instruction": "Hi?", "prompt": "not this", "output": "Yes."}
    assert rows("sft", fields, columns={"prompt": "instruction", "completion": "output"}) == [SftRow("Hi?", "Yes.")]


@pytest.mark.parametrize(
    ("kind", "columns", "fields", "told"),
    [
        (
            "sft",
            {"prmpt": "q", "completion": "a"},
            "qa",
            "maps 'q' to 'prmpt', which sft rows do not have. Did you mean",
        ),
        (
            "sft",
            {"prompt": "q", "completion": "a", "tag": "t"},
            "qat",
            "maps 't' to 'tag', which sft rows do not have. N",
        ),
        (
            "prompts",
            {"prmpt": "prompt"},
            ("prompt",),
            "to 'prmpt', which prompts rows do not have. Did you mean prompt?",
        ),
        (
            "preferences",
            {"prompts": "q", "chosen": "c", "rejected": "r"},
            "qcr",
            "to 'prompts', which preferences rows",
        ),
    ],
)
def test_a_misspelt_name_of_ours_is_named(
    kind: str, columns: dict[str, str], fields: str | tuple[str, ...], told: str
) -> None:
    (issue,) = faults_of(kind, {name: f"{name}!" for name in fields}, columns=columns)
    assert told in issue


def test_further_columns_may_have_any_name_that_is_not_nearly_ours() -> None:
    (row,) = rows("prompts", {"q": "Hi?", "key": 3, "p": 4}, columns={"prompt": "q", "answer": "key", "prompt_id": "p"})
    assert row == PromptRow("Hi?", {"answer": 3, "prompt_id": 4})


def test_mapping_of_a_column_that_is_not_there() -> None:
    told = faults_of("sft", {"instruction": "a", "completion": "b"}, columns={"prompt": "instructions"})
    assert told == [
        "x.jsonl  `columns` names the column 'instructions'; found: instruction, completion. Did you mean instruction?"
    ]


@pytest.mark.parametrize(
    ("kind", "found", "hint"),
    [
        ("sft", ("instruction", "output"), "`columns: {prompt: instruction, completion: output}`"),
        ("preferences", ("question", "chosen", "loser"), "`columns: {prompt: question, rejected: loser}`"),
        ("prompts", ("query",), "`columns: {prompt: query}`"),
        ("pretrain", ("id", "story"), "`columns: {text: story}`"),
        ("sft", ("prompt", "chosen", "rejected"), "they belong under data.preferences"),
        ("preferences", ("messages",), "they belong under data.sft"),
        ("sft", ("a", "b"), "found a, b; needed `prompt` and `completion`"),
    ],
)
def test_wrong_columns_are_told_once_with_what_would_do(kind: str, found: tuple[str, ...], hint: str) -> None:
    told = faults_of(kind, *[dict.fromkeys(found, "x")] * 3)
    assert len(told) == 1
    assert hint in told[0]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("sft", {"completion": "a"}, "the field `prompt` is missing"),
        ("sft", {"prompt": "a", "completion": None}, "`completion` is null"),
        ("sft", {"prompt": "a", "completion": 4}, "`completion` must be text, found a number"),
        ("sft", {"prompt": "a", "completion": " \n"}, "`completion` is empty"),
        ("sft", {"prompt": "", "completion": "a"}, "`prompt` is empty"),
        ("sft", {"prompt": "a", "completion": [YES]}, "`completion` is a conversation beside text"),
        ("sft", {"prompt": [USER], "completion": [USER]}, "`completion` must begin and end with an assistant turn"),
        ("sft", {"prompt": [USER, YES], "completion": [YES]}, "`prompt` must end with a user turn"),
        ("preferences", {"prompt": "a", "chosen": "b"}, "the field `rejected` is missing"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": [NO]}, "`rejected` is a conversation beside text"),
        ("preferences", {"prompt": "a", "chosen": [YES], "rejected": [NO]}, "do not begin with it"),
        (
            "preferences",
            {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]},
            "`chosen` must begin and end with an assistant turn",
        ),
        ("preferences", {"chosen": [USER, YES], "rejected": [USER_2, NO]}, "part at turn 1"),
        ("prompts", {"prompt": [USER, YES]}, "`prompt` must end with a user turn"),
        ("prompts", {"chosen": "Yes", "rejected": "No"}, "no common beginning"),
    ],
)
def test_faulty_row(kind: str, fields: dict[str, Any], message: str) -> None:
    whole = {"sft": {"prompt": "a", "completion": "b"}, "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"}}
    good = whole.get(kind, dict.fromkeys(fields, "x"))
    if kind == "prompts" or (kind == "preferences" and "prompt" not in fields):
        good = fields
    told = faults_of(kind, fields, good)
    assert told[0].startswith("x.jsonl:1  ")
    assert message in told[0]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi?", "`messages` must be a list of messages, found text"),
        ([], "`messages` is an empty list"),
        (["Hi?"], "`messages[0]` must be a message {role, content}, found text"),
        ([{"from": "human", "value": "Hi?"}], "`messages[0].role` must be text, found none"),
        ([USER, {"role": "assistant", "content": None}], "`messages[1].content` must be text, found null"),
        ([USER, {"role": "gpt", "content": "Yes."}], "`messages[1].role` is 'gpt'; roles are system, user, assistant"),
        ([USER, {"role": "assistant", "content": ""}], "`messages[1].content` is empty"),
        ([USER, USER, YES], "turn 2 is user, expected assistant"),
        ([USER, SYSTEM, YES], "turn 2 is system, expected assistant"),
        ([YES], "turn 1 is assistant, expected user"),
        ([USER], "`messages` must end with an assistant turn"),
    ],
)
def test_faulty_conversation(messages: Any, message: str) -> None:
    assert message in faults_of("sft", {"messages": messages})[0]


def test_text_and_conversations_are_not_mixed() -> None:
    told = faults_of("sft", {"prompt": "a", "completion": "b"}, {"prompt": [USER], "completion": [YES]})
    assert len(told) == 1
    assert told[0].startswith("x.jsonl:2  the row is a conversation, and x.jsonl:1 is text.")


def test_rows_that_nobody_here_can_mend_are_dropped_and_counted() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    kept, counts = counted("preferences", good, {**good, "rejected": ""}, {**good, "chosen": None}, editable=False)
    assert len(kept) == 1
    assert counts == {"dropped: empty rejected": 1, "dropped: empty chosen": 1}


def test_column_with_the_name_of_an_argument_of_reward_functions() -> None:
    assert "must not be called completions" in faults_of("prompts", {"prompt": "a", "completions": "b"})[0]


def test_equal_conversations_with_an_implicit_prompt_are_dropped_and_counted() -> None:
    kept, counts = counted("preferences", {"chosen": [USER, YES], "rejected": [USER, YES]})
    assert (kept, counts) == ([], {"dropped: chosen equals rejected": 1})
