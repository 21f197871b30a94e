"""Score the completions of prompts with every member of a reward run, to compare the members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.rewards.ensemble import RewardEnsemble, find_ensemble, member_scores

ROLE = "reward"
PROMPTS_PER_STEP = 64  # rows of similar length share a forward pass

Question = tuple[Text, Sequence[Text]]  # a prompt, and its completions


class ComparisonScorer:
    """The members of a reward run on the recipe's base model.

    Args:
        recipe: Gives the base, the adapter and the limits on tokens.
        base_path: Folder or Hub id of the base model.
        folder: The reward model's folder.
        tokenizer: The base model's tokenizer, prepared for training.
        location: The location of an issue.

    Raises:
        ModelError: A model is missing, damaged or not a reward model.
    """

    def __init__(
        self, recipe: Recipe, base_path: str, folder: Path, tokenizer: PreTrainedTokenizerBase, *, location: str
    ) -> None:
        self.ensemble: RewardEnsemble = find_ensemble(ROLE, folder, "mean")
        self._recipe, self._tokenizer = recipe, tokenizer
        self._model = MultiAdapterModel.load(recipe.base, recipe.adapter, base_path, self.ensemble.folders)
        self._model.set_trainable([])
        if not set(self.ensemble.folders) <= set(self._model.heads):
            message = f"{folder} is not a reward model; expected a run of the reward stage."
            raise ModelError("model.not-a-reward-model", message, location=location, hint="Use another run.")

    def score(self, questions: Sequence[Question]) -> Iterator[list[list[float]] | None]:
        """Yield the scores of each prompt's completions, (M, k).

        They are None if a completion with its prompt has more than `reward.max_length` tokens, on which the reward
        model was not trained.
        """
        for start in range(0, len(questions), PROMPTS_PER_STEP):
            yield from self._score(questions[start : start + PROMPTS_PER_STEP])

    def _score(self, questions: Sequence[Question]) -> Iterator[list[list[float]] | None]:
        pairs = [(prompt, completion) for prompt, completions in questions for completion in completions]
        encoded = chat_template.encode_pairs(self._tokenizer, pairs)
        sequences = [pair.prompt_ids + pair.completion_ids for pair in encoded]
        fits = [len(ids) <= self._recipe.reward.max_length for ids in sequences]
        kept = [ids for ids, is_kept in zip(sequences, fits, strict=True) if is_kept]
        scores: Iterator[list[float]] = iter(())  # (M,) of each kept sequence
        if kept:
            pad_id = int(self._tokenizer.pad_token_id)
            max_tokens = self._recipe.ppo.micro_batch_tokens
            found = member_scores(self._model, self.ensemble, kept, pad_id=pad_id, max_tokens=max_tokens)  # (M, B)
            scores = iter(found.T.tolist())
        position = 0
        for _, completions in questions:
            own = [next(scores) if fits[position + index] else None for index in range(len(completions))]
            position += len(completions)
            complete = [row for row in own if row is not None]
            yield [list(member) for member in zip(*complete, strict=True)] if len(complete) == len(own) else None
