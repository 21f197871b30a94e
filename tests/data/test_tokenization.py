"""Token columns: what is under the loss, what is truncated or dropped, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import PreferenceRow, PromptRow, SftRow
from rlhf_cli.data.tokenization import (
    IGNORE_INDEX,
    TokenColumns,
    first_example,
    fitting_prompts,
    preference_columns,
    sft_columns,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the tiny base."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_base)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def make_pair(chosen: str, rejected: str, margin: float | None = None, prompt: str = "The cat: ") -> PreferenceRow:
    return PreferenceRow(prompt, chosen, rejected, margin, {})


def test_sft_columns_loss_is_on_completion_and_end_token_only(tokenizer: PreTrainedTokenizerBase) -> None:
    (part,), counts, _ = sft_columns(tokenizer, [SftRow("User: hi\n", "good night.")], 100)
    prompt = token_ids(tokenizer, "User: hi\n")
    completion = [*token_ids(tokenizer, "good night."), tokenizer.eos_token_id]
    assert part == {"input_ids": [prompt + completion], "labels": [[IGNORE_INDEX] * len(prompt) + completion]}
    assert set(counts.values()) == {0}


def test_sft_columns_text_without_prompt_is_all_under_the_loss(tokenizer: PreTrainedTokenizerBase) -> None:
    (part,), *_ = sft_columns(tokenizer, [SftRow("", "good night.")], 100)
    assert part["labels"] == part["input_ids"]


def test_sft_columns_long_completion_is_truncated_and_long_prompt_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt, completion = "User: hi\n", "good night."
    length = len(token_ids(tokenizer, prompt)) + 2
    rows = [SftRow(prompt, completion), SftRow(prompt * 3, completion), SftRow(prompt, "g")]
    (part,), counts, _ = sft_columns(tokenizer, rows, length)
    assert [len(row) for row in part["input_ids"]] == [length, length]
    assert part["input_ids"][0] == [*token_ids(tokenizer, prompt), *token_ids(tokenizer, completion)[:2]]
    assert part["input_ids"][1][-1] == tokenizer.eos_token_id, "a row of exactly max_length tokens keeps its end"
    assert counts == {f"truncated to {length} tokens": 1, f"dropped: prompt of {length} tokens or more": 1}


def test_sft_columns_prompt_of_max_length_is_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    length = len(token_ids(tokenizer, "User: hi\n"))
    (part,), counts, _ = sft_columns(tokenizer, [SftRow("User: hi\n", "x")], length)
    assert part["input_ids"] == []
    assert counts[f"dropped: prompt of {length} tokens or more"] == 1


def test_preference_columns_both_completions_follow_whole_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    (part,), counts, _ = preference_columns(tokenizer, [make_pair("yes.", "no.")], 100)
    prompt, end = token_ids(tokenizer, "The cat: "), tokenizer.eos_token_id
    assert part == {
        "chosen_ids": [[*prompt, *token_ids(tokenizer, "yes."), end]],
        "rejected_ids": [[*prompt, *token_ids(tokenizer, "no."), end]],
    }
    assert set(counts.values()) == {0}


@pytest.mark.parametrize("long_one", ["chosen", "rejected"])
def test_preference_columns_pair_with_long_completion_is_dropped(
    tokenizer: PreTrainedTokenizerBase, long_one: str
) -> None:
    long = make_pair("yes.", "no." * 30) if long_one == "rejected" else make_pair("yes." * 30, "no.")
    (part,), counts, dropped = preference_columns(tokenizer, [long, make_pair("a", "b")], 30)
    assert dropped == {0}
    assert len(part["chosen_ids"]) == len(part["rejected_ids"]) == 1
    assert counts == {"dropped: over 30 tokens": 1}


def test_preference_columns_pair_of_max_length_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    length = max(len(token_ids(tokenizer, f"The cat: {completion}")) + 1 for completion in ("yes.", "no."))
    (part,), *_ = preference_columns(tokenizer, [make_pair("yes.", "no.")], length)
    assert len(part["chosen_ids"]) == 1
    (part,), *_ = preference_columns(tokenizer, [make_pair("yes.", "no.")], length - 1)
    assert part["chosen_ids"] == []


def test_preference_columns_margins_stay_with_their_pairs(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [make_pair("a", "b", 0.5), make_pair("a" * 100, "b", 0.7), make_pair("c", "d", 0.9)]
    (part,), *_ = preference_columns(tokenizer, rows, 50)
    assert part["margin"] == [0.5, 0.9]


def test_columns_in_chunks_equal_columns_in_one_part(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [SftRow("User: hi\n", "good " * n) for n in range(1, 6)]
    pairs = [make_pair("good " * n, "no", 0.5) for n in range(1, 6)]
    makers: list[Callable[[int], TokenColumns]] = [
        lambda chunk_rows: sft_columns(tokenizer, rows, 15, chunk_rows=chunk_rows),
        lambda chunk_rows: preference_columns(tokenizer, pairs, 15, chunk_rows=chunk_rows),
    ]
    for make in makers:
        one, many = make(5), make(2)
        assert len(many.parts) == 3
        for name, column in one.parts[0].items():
            assert [row for part in many.parts for row in part[name]] == column
        assert many.counts == one.counts
        assert sum(one.counts.values()) > 0


def test_fitting_prompts_empty_and_long_ones_are_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [PromptRow(prompt, {}) for prompt in ("", "User", "User: hi\n" * 9)]
    length = len(token_ids(tokenizer, "User"))
    found = fitting_prompts(tokenizer, rows, length)
    assert found.rows == [rows[1]]
    assert found.ids == [token_ids(tokenizer, "User")]
    assert found.counts == {f"dropped: empty, or over {length} tokens": 2}


def test_first_example_skips_dropped_rows_and_truncates(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = "User: hi\n"
    length = len(token_ids(tokenizer, prompt)) + 2
    encoded = first_example(tokenizer, [SftRow(prompt * 3, "x"), SftRow(prompt, "good night.")], length)
    assert encoded.prompt_ids == token_ids(tokenizer, prompt)
    assert encoded.completion_ids == token_ids(tokenizer, "good night.")[:2]


def test_first_example_of_pairs_is_chosen_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = first_example(tokenizer, [make_pair("yes." * 30, "no."), make_pair("yes.", "no.")], 30)
    assert encoded.completion_ids == [*token_ids(tokenizer, "yes."), tokenizer.eos_token_id]
