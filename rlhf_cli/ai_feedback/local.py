"""Ask a local language model: the verdict comes from the log-probabilities of the answers' tokens, not from samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_cli.ai_feedback.questions import Answers
from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import Message, Text
from rlhf_cli.errors import ModelError
from rlhf_cli.inference import scoring
from rlhf_cli.inference.batching import micro_batches
from rlhf_cli.models import loading
from rlhf_cli.models.adapter_config import is_adapter
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Adapter, Base

ROLE = "judge"


class ModelSource(NamedTuple):
    """The model that judges.

    Attributes:
        base: Gives the base model's revision, dtype, attention kernel and quantization.
        adapter: Settings of the recipe's adapters, or None.
        base_path: Folder or Hub id of the base model.
        path: Folder or Hub id of the model that judges, or None for the base model.
        revision: Branch, tag or commit, if `path` is a Hub id.
    """

    base: Base
    adapter: Adapter | None
    base_path: str
    path: str | None
    revision: str = "main"

    @property
    def is_on_base(self) -> bool:
        """Whether the model is the base model, or an adapter on it."""
        return self.path is None or is_adapter(Path(self.path))


class _Question(NamedTuple):
    """A question in token ids, up to the first token in which the answers differ, and that token of both answers."""

    ids: list[int]
    first: int
    second: int


class LocalModel:
    """A language model in this process.

    Args:
        source: The model.
        batch_size: Questions per forward pass.
    """

    has_weights = True

    def __init__(self, source: ModelSource, *, batch_size: int) -> None:
        self.source, self.batch_size = source, batch_size
        self._model: MultiAdapterModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._positions: int | None = None

    def load(self, *, smoke: bool) -> None:
        """Load the tokenizer and the weights. A model other than the recipe's base is never quantized."""
        source = self.source
        if source.is_on_base:
            base, adapter, path = source.base, source.adapter, source.base_path
            roles = {ROLE: None if source.path is None else Path(source.path)}
        else:
            assert source.path is not None
            base = Base(model=source.path, revision=source.revision, dtype=source.base.dtype)
            adapter, path, roles = None, source.path, {ROLE: None}
        self._tokenizer = loading.load_tokenizer(path, base.revision)
        chat_template.prepare(self._tokenizer, base.chat_template)
        self._positions = None if smoke else loading.read_model_sizes(path, base.revision).positions
        self._model = MultiAdapterModel.load(base, adapter, path, roles, smoke=smoke)

    def log_odds(self, asked: Sequence[str], answers: Answers) -> list[float | None]:
        """Return log(p(first answer) / p(second answer)) of each question; None if it exceeds the model's positions.

        Raises:
            ModelError: The tokenizer gives both answers the same ids.
        """
        assert self._tokenizer is not None, "load() comes first"
        encoded = _encode(self._tokenizer, asked, answers)
        limit = self._positions
        fitting = [index for index, question in enumerate(encoded) if limit is None or len(question.ids) < limit]
        fitting.sort(key=lambda index: -len(encoded[index].ids))
        found: list[float | None] = [None] * len(encoded)
        for start in range(0, len(fitting), self.batch_size):
            indices = fitting[start : start + self.batch_size]
            for index, value in zip(indices, self._forward([encoded[index] for index in indices]), strict=True):
                found[index] = value
        return found

    @torch.no_grad()
    def _forward(self, batch: Sequence[_Question]) -> list[float]:
        """Return the log-odds of one batch of b questions."""
        assert self._model is not None, "load() comes first"
        assert self._tokenizer is not None, "load() comes first"
        model, found = self._model, [0.0] * len(batch)
        width = max(len(question.ids) for question in batch) + 1
        for part in micro_batches(
            [question.ids for question in batch],
            [[question.first] for question in batch],
            pad_id=int(self._tokenizer.pad_token_id),
            max_tokens=width * len(batch),
            model=model,
        ):
            hidden = scoring.token_hidden(model, ROLE, part)  # (b, H)
            other = torch.tensor([batch[row].second for row in part.rows], device=model.device)  # (b,)
            first, second = (
                scoring.token_scores(model, ROLE, hidden, tokens, 1.0, with_entropy=False).logprobs
                for tokens in (part.tokens, other)
            )
            for row, value in zip(part.rows, (first - second).tolist(), strict=True):
                found[row] = value
        return found


def _encode(tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], answers: Answers) -> list[_Question]:
    """Return each question with both answers as token ids.

    Raises:
        ModelError: The tokenizer gives both answers the same ids.
    """
    prompts: list[Text] = [[Message(role="user", content=text)] for text in asked]
    first, second = (
        chat_template.encode_pairs(
            tokenizer, [(prompt, [Message(role="assistant", content=answer)]) for prompt in prompts]
        )
        for answer in answers
    )
    found = []
    for one, other in zip(first, second, strict=True):
        both = zip(one.completion_ids, other.completion_ids, strict=False)
        common = next((index for index, (a, b) in enumerate(both) if a != b), None)
        if common is None:
            message = f"the tokenizer of the judge cannot distinguish {answers.first} and {answers.second}."
            hint = "Use a model with a vocabulary of natural language."
            raise ModelError("model.judge-tokenizer", message, location="feedback.judge.model", hint=hint)
        ids = [*one.prompt_ids, *one.completion_ids[:common]]
        found.append(_Question(ids, one.completion_ids[common], other.completion_ids[common]))
    return found
