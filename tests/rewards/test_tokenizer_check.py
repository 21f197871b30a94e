"""A reward run reads the policy's token ids, so its tokenizer must be the policy's."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.rewards.tokenizer_check import check_tokenizer
from tests.support.issues import raises_issue

CODE = "model.reward-tokenizer-mismatch"
TEXT: list[Text] = ["w1 w2"]
CONVERSATION: list[Text] = ["w1", [{"role": "user", "content": "w1"}]]


@pytest.fixture
def tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    """Return the policy's tokenizer, prepared as for training."""
    loaded = AutoTokenizer.from_pretrained(base_folder)
    chat_template.prepare(loaded, "auto")
    return loaded


def check(tokenizer: PreTrainedTokenizerBase, folder: Path, prompts: list[Text]) -> None:
    """Compare `tokenizer` with the one in `folder`."""
    check_tokenizer(tokenizer, folder, prompts, location="ppo.reward.0")


@pytest.mark.parametrize("prompts", [TEXT, CONVERSATION])
def test_saved_tokenizer_or_none_is_accepted(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, prompts: list[Text]
) -> None:
    check(tokenizer, tmp_path, prompts)  # no tokenizer, so nothing to compare
    tokenizer.save_pretrained(tmp_path)
    check(tokenizer, tmp_path, prompts)


@pytest.mark.parametrize("prompts", [TEXT, CONVERSATION])
def test_other_vocabulary_raises(
    tokenizer: PreTrainedTokenizerBase, base_folder: Path, tmp_path: Path, prompts: list[Text]
) -> None:
    text = (base_folder / "tokenizer.json").read_text()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text.replace('"w1"', '"first"').replace('"w2"', '"w1"'))
    with raises_issue(CODE, error=ModelError, location="ppo.reward.0") as issues:
        check(tokenizer, tmp_path, prompts)
    assert issues[0].message == (
        f"the tokenizer of the reward model in {tmp_path} differs from the policy's: "
        "found 32 tokens, expected 32, of which 2 differ."
    )
    assert ModelError.exit_code == 4


def test_other_end_token_raises(tokenizer: PreTrainedTokenizerBase, base_folder: Path, tmp_path: Path) -> None:
    other = AutoTokenizer.from_pretrained(base_folder, eos_token="w3")
    chat_template.prepare(other, "auto")
    other.save_pretrained(tmp_path)
    with raises_issue(CODE, error=ModelError) as issues:
        check(tokenizer, tmp_path, TEXT)
    assert "found eos_token w3, expected </s>" in issues[0].message


def test_other_template_raises_only_for_conversations(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    check(tokenizer, tmp_path, TEXT)
    with raises_issue(CODE, error=ModelError, location="ppo.reward.0") as issues:
        check(tokenizer, tmp_path, CONVERSATION)
    expected = f"the chat template of the reward model in {tmp_path} differs from base.chat_template."
    assert issues[0].message == expected
    assert "chat_template.jinja" in issues[0].hint
