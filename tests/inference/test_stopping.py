"""Test where a completion ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.inference.stopping import StoppingRules
from tests.support.tiny_policy import EOS


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of 28 words; w1 is token 5."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def test_trim_keeps_the_end_token_and_drops_padding_with_it(tokenizer: PreTrainedTokenizerBase) -> None:
    stops = StoppingRules(tokenizer)
    assert stops.trim([5, 6, EOS, EOS, EOS]) == [5, 6, EOS]
    assert stops.trim([5, 6, EOS]) == [5, 6, EOS]
    assert stops.trim([5, 6, 7]) == [5, 6, 7]


def test_is_truncated_end_token_in_last_slot_is_no_truncation(tokenizer: PreTrainedTokenizerBase) -> None:
    stops = StoppingRules(tokenizer)
    assert not stops.is_truncated([5, 6, EOS])
    assert stops.is_truncated([5, 6, 7])
    assert stops.is_truncated([])


def test_trim_stop_string_that_the_prompt_began_does_not_count(tokenizer: PreTrainedTokenizerBase) -> None:
    """`w1 w2` only counts inside the response."""
    stops = StoppingRules(tokenizer, ["w1 w2"])
    assert stops.trim([6, 7, 5, 6]) == [6, 7, 5, 6]  # w2 w3 w1 w2: only the last two are the stop string
    assert stops.trim([6, 7, 8]) == [6, 7, 8]


def test_text_ends_before_the_first_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    assert StoppingRules(tokenizer, ["w3", "w2"]).text([5, 6, 7, EOS]).strip() == "w1"
    assert StoppingRules(tokenizer).text([5, 6, 7, EOS]) == "w1 w2 w3"
