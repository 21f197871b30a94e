"""Reward runs read the policy's very tokens: its tokenizer has to be the one that they were trained with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.models import loading

SPECIAL = ("bos_token", "eos_token", "pad_token")


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, prompts: Iterable[Text], *, location: str
) -> None:
    """Hold the policy's tokenizer, prepared as for training, against the one beside a reward model.

    A chat template counts where there are conversations; text does not go through it. A folder without a tokenizer,
    such as an adapter that came from elsewhere, says nothing.

    Raises:
        ModelError: the reward model would read other tokens, or another string, than it was trained with.
    """
    if not (folder / loading.TOKENIZER_CONFIG).is_file():
        return
    own = loading.load_tokenizer(str(folder), "main")
    mine, theirs = tokenizer.get_vocab(), own.get_vocab()
    hint = "Train the reward model again with this recipe, or name it under `model`, where it has its own tokenizer."
    if mine != theirs:
        other = sum(theirs.get(token) != number for token, number in mine.items())
        message = (
            f"the tokenizer beside the reward model ({folder}, {len(theirs):,} tokens) is not the policy's "
            f"({tokenizer.name_or_path}, {len(mine):,} tokens): {other:,} of these are not the same there."
        )
        raise ModelError(message, location=location, hint=hint)
    for name in SPECIAL:
        if getattr(own, name) != getattr(tokenizer, name):
            message = f"the reward model was trained with {name} {getattr(own, name)}, the policy has "
            raise ModelError(f"{message}{getattr(tokenizer, name)} ({folder}).", location=location, hint=hint)
    if own.chat_template != tokenizer.chat_template and any(not isinstance(prompt, str) for prompt in prompts):
        message = f"the reward model ({folder}) was trained with another chat template than base.chat_template gives."
        hint = "Set base.chat_template to the reward run's (model/chat_template.jinja), or train it again."
        raise ModelError(message, location=location, hint=hint)
