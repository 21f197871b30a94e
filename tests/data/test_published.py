"""Published formats: hand-written rows in each dataset's schema, and which of two answers is the better one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from rlhf_cli.data import sources
from rlhf_cli.data.published import FORMATS
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.rows import Message, PreferenceRow, PromptRow, SftRow
from rlhf_cli.errors import DataError
from rlhf_cli.recipe.schema import Source
from rlhf_cli.recipe.schema.data import SourceFormat
from rlhf_cli.stages import DatasetKind
from tests.support.datasets import conversion_issues, convert_rows, load_sources
from tests.support.shared_data import require_shared

GOOD, BAD = "Paris.", "Rome."
QUESTION = "Capital of France?"


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def nectar(*answers: tuple[str, float]) -> dict[str, Any]:
    ranked = [{"answer": text, "model": "m", "rank": rank} for text, rank in answers]
    return {"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ", "answers": ranked, "turns": 1, "num_responses": 7}


def reply(text: str, rank: int | None, *replies: dict[str, Any]) -> dict[str, Any]:
    return {"text": text, "role": "assistant", "rank": rank, "replies": list(replies), "deleted": False}


def parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image": None}]


SHP = {"history": QUESTION, "domain": "askculinary_train", "score_A": 3, "score_B": 9, "score_ratio": 3.0}
PKU = {"prompt": QUESTION, "prompt_source": "s", "is_response_0_safe": True, "is_response_1_safe": False}
WEBGPT = {"question": {"dataset": "eli5", "id": "1", "full_text": QUESTION}, "quotes_0": {"title": [], "extract": []}}
HELPSTEER2 = {"split": "train", "prompt": QUESTION, "preference_statement": "…", "preference_elaboration": "…"}
HELPSTEER3 = {"domain": "general", "language": "english", "context": [user(QUESTION)], "individual_preference": []}
ARENA = {"model_a": "m", "model_b": "n", "judge": "arena_user_1", "turn": 1, "anony": True, "language": "English"}
PANDALM = {"idx": 0, "motivation_app": "Quora", "cmp_key": "a_b", "instruction": QUESTION, "input": ""}
POST = {"id": "t3_1", "post": "My cat…", "title": "Cat", "subreddit": "cats", "site": None, "article": None}
SUMMARIES = [{"text": f" {GOOD}", "policy": "sup4", "note": ""}, {"text": f" {BAD}", "policy": "ref", "note": ""}]
FIRST_0, SECOND_0 = {"response_0": GOOD, "response_1": BAD}, {"response_0": BAD, "response_1": GOOD}
FIRST_1, SECOND_1 = {"response_1": GOOD, "response_2": BAD}, {"response_1": BAD, "response_2": GOOD}
FIRST, SECOND = {"response1": GOOD, "response2": BAD}, {"response1": BAD, "response2": GOOD}
FIRST_A, SECOND_A = {"human_ref_A": GOOD, "human_ref_B": BAD}, {"human_ref_A": BAD, "human_ref_B": GOOD}
REPLIES = [reply(BAD, 1), reply(GOOD, 0), reply("?", None)]
ANSWER_0, ANSWER_1 = {"answer_0": GOOD, "answer_1": BAD}, {"answer_0": BAD, "answer_1": GOOD}


def conversations(first: Any, second: Any, question: Any = QUESTION) -> dict[str, Any]:
    return {
        "conversation_a": [{"role": "user", "content": question}, {"role": "assistant", "content": first}],
        "conversation_b": [{"role": "user", "content": question}, {"role": "assistant", "content": second}],
    }


def kaggle(first: str, second: str, winner: str) -> dict[str, Any]:
    winners = {f"winner_{name}": int(name == winner) for name in ("model_a", "model_b", "tie")}
    return {"id": 1, **ARENA, "prompt": QUESTION, "response_a": first, "response_b": second, **winners}


PAIRS: list[tuple[str, list[dict[str, Any]]]] = [  # format: rows whose better answer is GOOD
    (
        "pandalm",
        [
            {**PANDALM, **FIRST, "annotator1": 1, "annotator2": 1, "annotator3": 2},
            {**PANDALM, **SECOND, "annotator1": 2, "annotator2": 0, "annotator3": 2},
            {**PANDALM, **SECOND, "annotator1": "2", "annotator2": None, "annotator3": ""},
        ],
    ),
    (
        "helpsteer2",
        [
            {**HELPSTEER2, **FIRST_1, "preference_strength": -1},
            {**HELPSTEER2, **SECOND_1, "preference_strength": 3},
        ],
    ),
    (
        "helpsteer3",
        [
            {**HELPSTEER3, **FIRST, "overall_preference": -3},
            {**HELPSTEER3, **SECOND, "overall_preference": 1},
        ],
    ),
    (
        "arena",
        [
            {**ARENA, **conversations(GOOD, BAD), "winner": "model_a"},
            {**ARENA, **conversations(BAD, GOOD), "winner": "model_b"},
            {**ARENA, **conversations(parts(BAD), parts(GOOD), parts(QUESTION)), "winner": "model_b"},
        ],
    ),
    (
        "arena-55k",
        [
            kaggle(GOOD, BAD, "model_a"),
            kaggle(BAD, GOOD, "model_b"),
            {**kaggle(f'["{BAD}"]', f'["{GOOD}"]', "model_b"), "prompt": f'["{QUESTION}"]'},
        ],
    ),
    ("shp", [{**SHP, **FIRST_A, "labels": 1}, {**SHP, **SECOND_A, "labels": 0}]),
    (
        "webgpt",
        [
            {**WEBGPT, **ANSWER_0, "score_0": 0.5, "score_1": -0.5},
            {**WEBGPT, **ANSWER_1, "score_0": -1, "score_1": 1},
        ],
    ),
    (
        "pku-better",
        [
            {**PKU, **FIRST_0, "better_response_id": 0, "safer_response_id": 1},
            {**PKU, **SECOND_0, "better_response_id": 1, "safer_response_id": 0},
        ],
    ),
    (
        "pku-safer",
        [
            {**PKU, **FIRST_0, "better_response_id": 1, "safer_response_id": 0},
            {**PKU, **SECOND_0, "better_response_id": 0, "safer_response_id": 1},
        ],
    ),
    ("nectar", [nectar((GOOD, 1.0), (BAD, 2.0)), nectar((BAD, 7.0), (GOOD, 1.0))]),
    (
        "instruction",
        [
            {"instruction": QUESTION, "input": "", "chosen": GOOD, "rejected": BAD},  # LLaMA-Factory
            {"system": "", "question": QUESTION, "chosen": GOOD, "rejected": BAD},  # orca_dpo_pairs
            {"qid": 1, "question": QUESTION, "date": "d", "metadata": [], "response_j": GOOD, "response_k": BAD},
        ],
    ),
    (
        "sharegpt",  # of LLaMA-Factory
        [
            {
                "conversations": [{"from": "human", "value": QUESTION}],
                "chosen": {"from": "gpt", "value": GOOD},
                "rejected": {"from": "gpt", "value": BAD},
            }
        ],
    ),
    (
        "oasst",
        [
            {
                "message_tree_id": "1",
                "tree_state": "ready_for_export",
                "prompt": {"text": QUESTION, "role": "prompter", "replies": REPLIES},
            }
        ],
    ),
]


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in PAIRS for row in rows])
def test_convert_labeled_pair_chooses_better_answer(name: str, row: dict[str, Any]) -> None:
    (converted,), counts = convert_rows("preferences", [row], format=name)
    assert isinstance(converted, PreferenceRow)
    assert (converted.prompt, converted.chosen, converted.rejected) == (
        [user(QUESTION)],
        [assistant(GOOD)],
        [assistant(BAD)],
    )
    assert counts == {}
    (prompt,), _ = convert_rows("prompts", [row], format=name)
    assert isinstance(prompt, PromptRow)
    assert prompt.prompt == [user(QUESTION)]


@pytest.mark.parametrize(
    ("name", "row"),
    [(name, row) for name, rows in PAIRS for row in rows if name not in ("instruction", "sharegpt", "oasst")],
)
def test_convert_comparison_as_demonstration_reads_better_answer(name: str, row: dict[str, Any]) -> None:
    (converted,), _ = convert_rows("sft", [row], format=name)
    assert isinstance(converted, SftRow)
    assert (converted.prompt, converted.completion) == ([user(QUESTION)], [assistant(GOOD)])


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [(0, GOOD, BAD), (1, BAD, GOOD)])
def test_convert_summaries_returns_text_with_tldr(choice: int, chosen: str, rejected: str) -> None:
    row = {"info": POST, "summaries": SUMMARIES, "choice": choice, "worker": "w", "batch": "b", "split": "train"}
    (converted,), _ = convert_rows("preferences", [row], format="summarize-from-feedback")
    prompt = "SUBREDDIT: r/cats\n\nTITLE: Cat\n\nPOST: My cat…\n\nTL;DR:"
    assert (converted.prompt, converted.chosen, converted.rejected) == (prompt, f" {chosen}", f" {rejected}")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("pandalm", {**PANDALM, **FIRST, "annotator1": 0, "annotator2": 0, "annotator3": 1}, "tie"),
        ("pandalm", {**PANDALM, **FIRST, "annotator1": 0, "annotator2": 1, "annotator3": 2}, "no majority"),
        ("pandalm", {**PANDALM, **FIRST, "annotator1": None}, "no majority"),
        ("helpsteer2", {**HELPSTEER2, **FIRST_1, "preference_strength": 0}, "tie"),
        ("helpsteer3", {**HELPSTEER3, **FIRST, "overall_preference": 0}, "tie"),
        ("helpsteer3", {**HELPSTEER3, **FIRST, "overall_preference": None}, "no overall_preference"),
        ("arena", {**ARENA, **conversations(GOOD, BAD), "winner": "tie (bothbad)"}, "tie"),
        ("arena-55k", kaggle(GOOD, BAD, "tie"), "tie"),
        ("webgpt", {**WEBGPT, **ANSWER_0, "score_0": 0, "score_1": 0}, "tie"),
        ("nectar", nectar((GOOD, 1.0), (BAD, 1.0)), "no completion is ranked above another"),
    ],
)
def test_convert_pair_without_preference_drops_and_counts_it(name: str, row: dict[str, Any], reason: str) -> None:
    assert convert_rows("preferences", [row], format=name) == ([], {f"dropped: {reason}": 1})
    if reason in ("tie", "no majority"):
        (prompt,), _ = convert_rows("prompts", [row], format=name)
        assert prompt.prompt == [user(QUESTION)]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("pandalm", {**PANDALM, **FIRST, "annotator1": 3}),
        ("shp", {**SHP, **FIRST_A, "labels": 2}),
        ("arena", {**ARENA, **conversations(GOOD, BAD), "winner": "left"}),
        ("pandalm", {**PANDALM, **FIRST, "annotator1": 1.5}),
        ("helpsteer3", {**HELPSTEER3, **FIRST, "overall_preference": "much better"}),
        ("helpsteer2", {**HELPSTEER2, **FIRST_1, "preference_strength": "nan"}),
        ("webgpt", {**WEBGPT, **ANSWER_0, "score_0": float("nan"), "score_1": -0.5}),  # as in Parquet
        ("nectar", nectar((BAD, float("inf")), (GOOD, 1.0))),
        ("pku-better", {**PKU, **FIRST_0, "better_response_id": None}),
    ],
)
def test_convert_unknown_label_adds_issue(name: str, row: dict[str, Any]) -> None:
    (issue,) = conversion_issues("preferences", [row], format=name)
    assert (issue.code, issue.location) == ("data.invalid-label", "x.jsonl:1")


def test_convert_context_without_question_adds_issue() -> None:
    row = {**PANDALM, **FIRST, "instruction": None, "input": "Rome", "annotator1": 1}
    (issue,) = conversion_issues("preferences", [row], format="pandalm")
    assert (issue.code, issue.location) == ("data.wrong-type", "x.jsonl:1")


@pytest.mark.parametrize("value", [True, None, 3])
def test_convert_answer_that_is_not_text_adds_issue_or_drops_row(value: Any) -> None:
    rows = [{**PANDALM, **FIRST, "annotator1": 1}, {**PANDALM, **FIRST, "response2": value, "annotator1": 1}]
    (issue,) = conversion_issues("preferences", rows, format="pandalm")
    assert (issue.code, issue.location) == ("data.wrong-type", "x.jsonl:2")
    converted, counts = convert_rows("preferences", rows, format="pandalm", editable=False)
    assert (len(converted), counts) == (1, {"dropped: completion that is not text": 1})


def test_convert_ranking_pairs_each_answer_with_the_next() -> None:
    rows, _ = convert_rows("preferences", [nectar(("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 3.0))], format="nectar")
    assert [(row.chosen, row.rejected) for row in rows] == [
        ([assistant("a")], [assistant("b")]),
        ([assistant("b")], [assistant("c")]),
    ]


def test_convert_tree_pairs_answers_of_every_question() -> None:
    follow_up = {"text": "And Italy?", "role": "prompter", "replies": [reply("Rome!", 0), reply("Oslo!", 1)]}
    tree = {"text": QUESTION, "role": "prompter", "replies": [reply(GOOD, 0, follow_up), reply(BAD, 1)]}
    rows, _ = convert_rows("preferences", [{"message_tree_id": "1", "prompt": tree}], format="oasst")
    assert [(row.prompt, row.chosen, row.rejected) for row in rows] == [
        ([user(QUESTION)], [assistant(GOOD)], [assistant(BAD)]),
        ([user(QUESTION), assistant(GOOD), user("And Italy?")], [assistant("Rome!")], [assistant("Oslo!")]),
    ]


def test_convert_helpsteer_prompt_of_several_turns_splits_them() -> None:
    prompt = f"Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\n{QUESTION}"
    row = {**HELPSTEER2, **FIRST_1, "prompt": prompt, "preference_strength": -2}
    (converted,), _ = convert_rows("preferences", [row], format="helpsteer2")
    assert converted.prompt == [user("Hi"), assistant("Hello!"), user(QUESTION)]


SYSTEM: Message = {"role": "system", "content": "Be brief."}
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": GOOD}]


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("instruction", {"instruction": QUESTION, "input": "", "output": GOOD, "text": "…"}, [user(QUESTION)]),
        ("instruction", {"instruction": "Where?", "input": "It rains.", "output": GOOD}, [user("Where?\n\nIt rains.")]),
        (
            "instruction",
            {"instruction": "Where?", "context": "It rains.", "response": GOOD, "category": "open_qa"},
            [user("Where?\n\nIt rains.")],
        ),
        (
            "instruction",
            {"id": "1", "system_prompt": "Be brief.", "question": QUESTION, "response": GOOD},
            [SYSTEM, user(QUESTION)],
        ),
        (
            "instruction",
            {"instruction": QUESTION, "input": "", "output": GOOD, "history": [["Hi", "Hello!"]]},
            [user("Hi"), assistant("Hello!"), user(QUESTION)],
        ),
        ("sharegpt", {"id": "1", "conversations": SHAREGPT}, [user(QUESTION)]),
        ("sharegpt", {"conversations": SHAREGPT, "system": "Be brief."}, [SYSTEM, user(QUESTION)]),
        (
            "sharegpt",
            {"conversations": [{"from": "system", "value": "Be brief.", "weight": None}, *SHAREGPT]},
            [SYSTEM, user(QUESTION)],
        ),
        ("sharegpt", {"conversations": json.dumps(SHAREGPT)}, [user(QUESTION)]),  # a cell of a CSV file
        ("transcript", {"text": f"### Human: {QUESTION}### Assistant: {GOOD}"}, [user(QUESTION)]),
        (
            "transcript",
            {"text": f"<|prompter|>{QUESTION}<|endoftext|><|assistant|>{GOOD}<|endoftext|>"},
            [user(QUESTION)],
        ),
        ("transcript", {"text": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}"}, [user(QUESTION)]),
        ("kto", {"prompt": [user(QUESTION)], "completion": [assistant(GOOD)], "label": True}, [user(QUESTION)]),
    ],
)
def test_convert_demonstration_returns_conversation(name: str, row: dict[str, Any], prompt: list[Message]) -> None:
    assert convert_rows("sft", [row], format=name) == ([SftRow(prompt, [assistant(GOOD)])], {})
    assert convert_rows("prompts", [row], format=name)[0][0].prompt == prompt


def test_convert_kto_row_with_false_label_is_no_demonstration() -> None:
    rows = [{"prompt": "a", "completion": f"b{n}", "label": n % 2 == 0} for n in range(4)]
    assert convert_rows("sft", rows, format="kto") == (
        [SftRow("a", "b0"), SftRow("a", "b2")],
        {"dropped: label is false": 2},
    )


def test_convert_format_without_rows_of_the_kind_adds_issue() -> None:
    (issue,) = conversion_issues("preferences", [{"prompt": "a", "completion": "b", "label": True}], format="kto")
    assert (issue.code, issue.location) == ("data.wrong-format", "x.jsonl")


def test_convert_format_with_other_columns_adds_issue() -> None:
    (issue,) = conversion_issues("preferences", [{"prompt": "a", **FIRST}], format="pandalm")
    assert (issue.code, issue.location) == ("data.wrong-columns", "x.jsonl")


def test_convert_prompts_keep_the_answers_for_rewards() -> None:
    row = {"instruction": QUESTION, "input": "", "output": GOOD}
    (converted,), _ = convert_rows("prompts", [row], format="instruction")
    assert isinstance(converted, PromptRow)
    assert (converted.prompt, converted.extra) == ([user(QUESTION)], row)


def test_convert_format_with_mapped_columns_reads_them() -> None:
    row = {"Frage": QUESTION, "Antwort": GOOD}
    rows, _ = convert_rows("sft", [row], {"instruction": "Frage", "output": "Antwort"}, format="instruction")
    assert rows == [SftRow([user(QUESTION)], [assistant(GOOD)])]


def test_convert_two_columns_for_one_purpose_adds_issue() -> None:
    row = {"instruction": "a", "question": "b", "output": "c"}
    (issue,) = conversion_issues("sft", [row], format="instruction")
    assert (issue.code, issue.location) == ("data.ambiguous-columns", "x.jsonl:1")
    rows, _ = convert_rows("sft", [row], format="instruction", ignore_columns=["question"])
    assert rows == [SftRow([user("a")], [assistant("c")])]


@pytest.mark.parametrize(("name", "row"), [(name, rows[0]) for name, rows in PAIRS])
def test_convert_published_pair_without_format_names_it(name: str, row: dict[str, Any]) -> None:
    issues = conversion_issues("preferences", [row, row])
    assert any(f"`format: {name}`" in issue.hint for issue in issues)
    assert not any("chosen: response" in issue.hint for issue in issues)


@pytest.mark.parametrize(
    ("kind", "row", "part"),
    [
        ("sft", {"conversations": SHAREGPT}, "`format: sharegpt`"),
        ("preferences", {"prompt": "a", "completion": "b", "label": True}, "`format: kto`"),
        ("preferences", {"prompt": "a", "response": "b", "helpfulness": 3}, "`format: helpsteer2`"),
        ("preferences", {"message_id": "1", "parent_id": "2", "text": "a", "role": "prompter"}, "`format: oasst`"),
        ("sft", {"text": "<|prompter|>a<|endoftext|><|assistant|>b<|endoftext|>"}, "`format: transcript`"),
        ("sft", {"text": f"{[user('a'), assistant('b')]}"}, "`columns: {messages: text}`"),
    ],
)
def test_convert_published_row_without_format_says_what_reads_it(
    kind: DatasetKind, row: dict[str, Any], part: str
) -> None:
    assert part in conversion_issues(kind, [row])[0].hint


def test_formats_are_those_of_the_recipe() -> None:
    assert {"auto", *FORMATS} == set(get_args(SourceFormat))


def test_load_real_instructions_returns_each_instance() -> None:
    file = require_shared("data", "self-instruct", "seed_tasks.jsonl")
    tasks = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    expected = Counter(
        (
            f"{task['instruction']}\n\n{instance['input']}" if instance["input"] else task["instruction"],
            instance["output"],
        )
        for task in tasks
        for instance in task["instances"]
    )
    source = Source(path=str(file), format="self-instruct", eval_fraction=0)
    rows = load_sources([source], "sft").train
    assert Counter((row.prompt[0]["content"], row.completion[0]["content"]) for row in rows) == expected


def test_load_real_pairs_follows_the_majority_of_annotators() -> None:
    file = require_shared("data", "pandalm", "testset-v1.json")
    given = json.loads(file.read_text(encoding="utf-8"))
    better: Counter[tuple[str, str, str]] = Counter()
    reasons: Counter[str] = Counter()
    for row in given:
        votes = sorted(row[f"annotator{number}"] for number in (1, 2, 3))
        better_first = votes[1] == 1  # the median of three votes is their majority
        answers = [row["response1"], row["response2"]] if better_first else [row["response2"], row["response1"]]
        if len(set(votes)) == 3:
            reasons["dropped: no majority"] += 1
        elif votes[1] == 0:
            reasons["dropped: tie"] += 1
        elif not all(isinstance(answer, str) for answer in answers):
            reasons["dropped: invalid (data.wrong-type)"] += 1  # true instead of text
        elif not answers[0].strip():
            reasons["dropped: invalid (data.empty-completion)"] += 1
        elif answers[0] == answers[1]:
            reasons["dropped: chosen equals rejected"] += 1
        else:
            question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
            better[question, answers[0], answers[1]] += 1
    source = Source(path=str(file), format="pandalm", eval_fraction=0.1)
    with pytest.raises(DataError):
        load_sources([source], "preferences")
    split = load_sources([source], "preferences", policy=RowPolicy(skip_invalid=True))
    assert split.counts == {
        **split.counts,
        **sources.count([source], "preferences", find=Path, policy=RowPolicy(skip_invalid=True)),
    }
    read = Counter(
        (row.prompt[0]["content"], row.chosen[0]["content"], row.rejected[0]["content"])
        for row in split.train + split.held_out
    )
    assert read == better
    assert {name: count for name, count in split.counts.items() if name.startswith("dropped")} == reasons
