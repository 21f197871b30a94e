"""Rows to the token columns that trainers take: what is under the loss, what is cut, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf_cli.data import chat_template, tokenization
from rlhf_cli.data.rows import PreferenceRow, SftRow
from rlhf_cli.data.tokenization import IGNORED, preference_columns, sft_columns


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pair(chosen: str, rejected: str, margin: float | None = None, prompt: str = "The cat: ") -> PreferenceRow:
    return PreferenceRow(prompt, chosen, rejected, margin, {})


def test_the_loss_is_on_the_completion_and_its_end_token_alone(tokenizer: Any) -> None:
    (part,), counts = sft_columns(tokenizer, [SftRow("User: hi\n", "good night.")], 100)
    prompt, completion = ids(tokenizer, "User: hi\n"), [*ids(tokenizer, "good night."), tokenizer.eos_token_id]
    assert part == {"input_ids": [prompt + completion], "labels": [[IGNORED] * len(prompt) + completion]}
    assert set(counts.values()) == {0}


def test_text_without_a_prompt_is_all_under_the_loss(tokenizer: Any) -> None:
    (part,), _ = sft_columns(tokenizer, [SftRow("", "good night.")], 100)
    assert part["labels"] == part["input_ids"]


def test_a_long_completion_loses_its_end_and_a_long_prompt_its_row(tokenizer: Any) -> None:
    prompt, completion = "User: hi\n", "good night."
    length = len(ids(tokenizer, prompt)) + 2
    rows = [SftRow(prompt, completion), SftRow(prompt * 3, completion), SftRow(prompt, "g")]
    (part,), counts = sft_columns(tokenizer, rows, length)
    assert [len(row) for row in part["input_ids"]] == [length, length]
    assert part["input_ids"][0] == [*ids(tokenizer, prompt), *ids(tokenizer, completion)[:2]]
    assert part["input_ids"][1][-1] == tokenizer.eos_token_id  # fits to the token, and is whole
    assert counts == {f"truncated to {length} tokens": 1, f"dropped: prompt of {length} tokens or more": 1}


def test_a_prompt_that_fills_the_row_exactly_leaves_nothing_to_learn(tokenizer: Any) -> None:
    length = len(ids(tokenizer, "User: hi\n"))
    (part,), counts = sft_columns(tokenizer, [SftRow("User: hi\n", "x")], length)
    assert part["input_ids"] == []
    assert counts[f"dropped: prompt of {length} tokens or more"] == 1


def test_both_answers_of_a_pair_stand_behind_the_whole_prompt(tokenizer: Any) -> None:
    (part,), counts = preference_columns(tokenizer, [pair("yes.", "no.")], 100)
    prompt, end = ids(tokenizer, "The cat: "), tokenizer.eos_token_id
    assert part == {
        "chosen_ids": [[*prompt, *ids(tokenizer, "yes."), end]],
        "rejected_ids": [[*prompt, *ids(tokenizer, "no."), end]],
    }
    assert set(counts.values()) == {0}


@pytest.mark.parametrize("long_one", ["chosen", "rejected"])
def test_a_pair_with_one_answer_too_long_is_dropped_and_counted(tokenizer: Any, long_one: str) -> None:
    long = pair("yes.", "no." * 30) if long_one == "rejected" else pair("yes." * 30, "no.")
    (part,), counts = preference_columns(tokenizer, [long, pair("a", "b")], 30)
    assert len(part["chosen_ids"]) == len(part["rejected_ids"]) == 1
    assert counts == {"dropped: over 30 tokens": 1}


def test_a_pair_of_exactly_the_length_stays(tokenizer: Any) -> None:
    length = max(len(ids(tokenizer, f"The cat: {answer}")) + 1 for answer in ("yes.", "no."))
    (part,), _ = preference_columns(tokenizer, [pair("yes.", "no.")], length)
    assert len(part["chosen_ids"]) == 1
    (part,), _ = preference_columns(tokenizer, [pair("yes.", "no.")], length - 1)
    assert part["chosen_ids"] == []


def test_margins_stay_with_their_pairs(tokenizer: Any) -> None:
    rows = [pair("a", "b", 0.5), pair("a" * 100, "b", 0.7), pair("c", "d", 0.9)]
    (part,), _ = preference_columns(tokenizer, rows, 50)
    assert part["margin"] == [0.5, 0.9]


def test_parts_make_the_same_columns_as_one_piece(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SftRow("User: hi\n", "good " * n) for n in range(1, 6)]
    pairs = [pair("good " * n, "no", 0.5) for n in range(1, 6)]
    whole = sft_columns(tokenizer, rows, 15), preference_columns(tokenizer, pairs, 15)
    monkeypatch.setattr(tokenization._chunks, "__defaults__", (2,))
    split = sft_columns(tokenizer, rows, 15), preference_columns(tokenizer, pairs, 15)
    for one, many in zip(whole, split, strict=True):
        assert len(many.parts) == 3
        for name, column in one.parts[0].items():
            assert [row for part in many.parts for row in part[name]] == column
        assert many.counts == one.counts
        assert sum(one.counts.values()) > 0
