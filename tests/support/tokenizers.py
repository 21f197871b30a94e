"""Small tokenizers and files that the data tests read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
) -> Any:
    """A byte-level BPE tokenizer of a few hundred tokens, whose end token is </s>."""
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
    names = {"eos_token": "</s>", **({"bos_token": "<s>"} if bos else {}), **names}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


@pytest.fixture
def plain() -> Any:
    """Adds no bos, has no chat template and no pad token."""
    return build_tokenizer()


@pytest.fixture
def with_bos() -> Any:
    return build_tokenizer(bos=True)


@pytest.fixture
def chatml() -> Any:
    return build_tokenizer(special=("<|im_start|>", "<|im_end|>", "<|vision_pad|>"), template=CHATML)


@pytest.fixture
def stories() -> Any:
    """The tokenizer of a real pretrained model: it puts a space before each text, and falls back to bytes."""
    folder = Path(__file__).parents[3] / "shared/models/stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows, or lines as they stand, to a .jsonl file."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
