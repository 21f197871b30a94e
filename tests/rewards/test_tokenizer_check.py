"""A reward run reads the policy's tokens, so its tokenizer has to be the policy's."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.rewards import build

TEXT: list[Text] = ["w1 w2"]
CONVERSATION: list[Text] = ["w1", [{"role": "user", "content": "w1"}]]


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    """The policy's, prepared as a stage prepares it."""
    made = AutoTokenizer.from_pretrained(base_folder)
    chat_template.prepare(made, "auto")
    return made


def check(tokenizer: PreTrainedTokenizerBase, folder: Path, prompts: list[Text]) -> None:
    build.check_tokenizer(tokenizer, folder, prompts, location="ppo.reward.0")


@pytest.mark.parametrize("prompts", [TEXT, CONVERSATION])
def test_the_tokenizer_that_a_reward_run_saves_is_taken(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, prompts: list[Text]
) -> None:
    check(tokenizer, tmp_path, prompts)  # a folder without one says nothing
    tokenizer.save_pretrained(tmp_path)
    check(tokenizer, tmp_path, prompts)


@pytest.mark.parametrize("prompts", [TEXT, CONVERSATION])
def test_another_vocabulary_is_refused(
    tokenizer: PreTrainedTokenizerBase, base_folder: Path, tmp_path: Path, prompts: list[Text]
) -> None:
    text = (base_folder / "tokenizer.json").read_text()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text.replace('"w1"', '"first"').replace('"w2"', '"w1"'))
    with pytest.raises(ModelError) as raised:
        check(tokenizer, tmp_path, prompts)
    (issue,) = raised.value.issues
    assert f"({tmp_path}, 32 tokens) is not the policy's" in issue.message
    assert "2 of these are not the same there" in issue.message
    assert (raised.value.exit_code, issue.location) == (4, "ppo.reward.0")


def test_another_end_token_is_refused(tokenizer: PreTrainedTokenizerBase, base_folder: Path, tmp_path: Path) -> None:
    other = AutoTokenizer.from_pretrained(base_folder, eos_token="w3")
    chat_template.prepare(other, "auto")
    other.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="trained with eos_token w3, the policy has </s>"):
        check(tokenizer, tmp_path, TEXT)


def test_another_template_is_refused_where_there_are_conversations(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    check(tokenizer, tmp_path, TEXT)
    with pytest.raises(ModelError, match=r"another chat template than base\.chat_template gives") as raised:
        check(tokenizer, tmp_path, CONVERSATION)
    assert "chat_template.jinja" in raised.value.issues[0].hint
