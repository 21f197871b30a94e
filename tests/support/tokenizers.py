"""Small tokenizers, and a fixture that writes .jsonl files, for the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.shared_data import require_shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCES = [
    "What is the colour of the sky? The sky is blue.",
    "Be kind and answer in one word. Yes, of course!",
    "User: hello there\nAssistant: good day to you\nSystem: be short\n\n",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(
    *, bos: bool = False, special: tuple[str, ...] = (), template: str | None = None, **names: str
) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer with a few hundred tokens and the end token </s>.

    Args:
        bos: Whether it puts <s> before each text.
        special: Further special tokens.
        template: Its chat template.
        names: Special tokens by role, such as `pad_token`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        names = {"bos_token": "<s>", **names}
    names = {"eos_token": "</s>", **names}
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)
    return made


@pytest.fixture
def plain() -> PreTrainedTokenizerBase:
    """Return a tokenizer without <s>, chat template and pad token."""
    return build_tokenizer()


@pytest.fixture
def with_bos() -> PreTrainedTokenizerBase:
    """Return a tokenizer that puts <s> before each text."""
    return build_tokenizer(bos=True)


@pytest.fixture
def chatml() -> PreTrainedTokenizerBase:
    """Return a tokenizer with a ChatML template."""
    return build_tokenizer(special=("<|im_start|>", "<|im_end|>", "<|vision_pad|>"), template=CHATML)


@pytest.fixture
def stories() -> PreTrainedTokenizerBase:
    """Return the tokenizer of a real pretrained model, which puts a space before each text and falls back to bytes."""
    from transformers import AutoTokenizer

    folder = require_shared("models", "stories260k")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    return tokenizer


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows, or lines verbatim, to a .jsonl file."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
