"""Check that reward runs were trained with the policy's tokenizer, because they read the policy's token ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.models import loading

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")
HINT = "Train the reward model again with this recipe, or specify it as `model`, which uses its own tokenizer."


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: Path, prompts: Iterable[Text], *, location: str
) -> None:
    """Compare the policy's tokenizer with the one saved with a reward model.

    The chat template only matters if there are conversations, because text does not go through it. A folder without a
    tokenizer, such as an adapter that rlhf did not write, is not checked.

    Args:
        tokenizer: The policy's tokenizer, prepared for training.
        folder: The reward model's folder.
        prompts: The prompts.
        location: The location of an issue.

    Raises:
        ModelError: The reward model would read other token ids, or another text, than it was trained with.
    """
    if not (folder / loading.TOKENIZER_CONFIG).is_file():
        return
    theirs = loading.load_tokenizer(str(folder), "main")
    differences = list(_token_differences(tokenizer, theirs))
    if differences:
        message = f"the tokenizer of the reward model in {folder} differs from the policy's: {'; '.join(differences)}."
        raise ModelError("model.reward-tokenizer-mismatch", message, location=location, hint=HINT)
    if theirs.chat_template != tokenizer.chat_template and any(not isinstance(prompt, str) for prompt in prompts):
        message = f"the chat template of the reward model in {folder} differs from base.chat_template."
        hint = "Set base.chat_template to the reward run's model/chat_template.jinja, or train the reward model again."
        raise ModelError("model.reward-tokenizer-mismatch", message, location=location, hint=hint)


def _token_differences(tokenizer: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> Iterable[str]:
    """Yield how the vocabulary and the special tokens of a reward model differ from the policy's."""
    vocabulary, other_vocabulary = tokenizer.get_vocab(), theirs.get_vocab()
    if vocabulary != other_vocabulary:
        changed = sum(other_vocabulary.get(token) != number for token, number in vocabulary.items())
        yield f"found {len(other_vocabulary):,} tokens, expected {len(vocabulary):,}, of which {changed:,} differ"
    for name in SPECIAL_TOKENS:
        found, expected = getattr(theirs, name), getattr(tokenizer, name)
        if found != expected:
            yield f"found {name} {found}, expected {expected}"
