"""Rewards from somebody's whole reward model: a sequence classifier of one label, with its own tokenizer, on its own
base, loaded beside the recipe's.

It is given what such models are trained on (TRL's RewardTrainer, `_prepare_dataset`; their cards on the hub):

- a conversation, prompt and answer together, through the model's own chat template;
- a text prompt and its answer as one text, with the special tokens that its tokenizer puts before a text, and one end
  token behind it;
- where the tokenizer is an encoder's ([CLS] … [SEP]), a text prompt and its answer as a pair of segments.

An answer that was cut off at the limit gets its end all the same: the template would write it in any case, and a
missing end is punished by `ppo.missing_eos_penalty`. The score is read by the model's own forward pass. What is longer
than the model's positions loses its oldest tokens, those behind the first special one; that is told and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.errors import ModelError
from rlhf_cli.inference import scoring
from rlhf_cli.models import loading
from rlhf_cli.recipe.schema import Base
from rlhf_cli.rewards.base import Completions

Encoded = dict[str, list[int]]  # input_ids, and token_type_ids where the model knows segments


class ModelScorer:
    """A reward model. `load` brings its weights; everything else about it is known before.

    `too_long`: of the answers that were judged last, whether the model saw their end alone.
    """

    def __init__(self, source: str, revision: str, tell: Callable[[str], None]) -> None:
        self.source, self.revision, self._tell = source, revision, tell
        self._config = loading.load_reward_model_config(source, revision)
        self.tokenizer = loading.load_tokenizer(source, revision)
        self.limit = max_length(self.tokenizer, self._config)
        self.too_long: list[bool] = []
        self._model: PreTrainedModel | None = None
        self._has_told = False

    @property
    def name(self) -> str:
        return Path(self.source).name

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Raise ModelError where the model's template does not take the prompts' conversations."""
        kinds: dict[tuple[str, ...] | None, PromptRow] = {}  # each order of roles once; None: text
        for row in rows:
            roles = None if isinstance(row.prompt, str) else tuple(message["role"] for message in row.prompt)
            kinds.setdefault(roles, row)
        for roles, row in kinds.items():
            if roles is not None:
                encode(self.tokenizer, row.prompt, [Message(role="assistant", content="yes")])
            elif self.tokenizer.chat_template:
                self._tell(f"{self.name} has a chat template, and the prompts are text, which does not go through it")

    def load(self, recipe: Base, *, smoke: bool) -> None:
        """Load the weights, in the recipe's dtype; never quantized, for that would change the scores."""
        own = Base(model=self.source, revision=self.revision, dtype=recipe.dtype)
        self._model = loading.load_reward_model(own, self.source, smoke=smoke).requires_grad_(False)
        self._model.config.use_cache = False

    def score(self, answered: Completions, *, max_tokens: int) -> list[float]:
        """The model's score of each answer with its prompt."""
        pairs = zip(answered.prompts, answered.completions, strict=True)
        whole = [encode(self.tokenizer, prompt, completion) for prompt, completion in pairs]
        rows = [self._cut(row) for row in whole]
        self.too_long = [len(a["input_ids"]) < len(b["input_ids"]) for a, b in zip(rows, whole, strict=True)]
        if any(self.too_long) and not self._has_told:
            self._has_told = True
            self._tell(
                f"{self.name} takes {self.limit} tokens: {sum(self.too_long)} of {len(rows)} prompts with their "
                "answers are longer, and lose their beginning"
            )
        lengths = [len(row["input_ids"]) for row in rows]
        scores = [0.0] * len(rows)
        for group in scoring.pack(lengths, max_tokens):
            for index, score in zip(group, self._forward([rows[i] for i in group]), strict=True):
                scores[index] = score
        return scores

    @torch.no_grad()
    def _forward(self, rows: Sequence[Encoded]) -> list[float]:
        assert self._model is not None, "load() comes first"
        width = max(len(row["input_ids"]) for row in rows)
        pad_id = self._pad_id(rows)
        inputs = {
            name: [row[name] + [pad_id if name == "input_ids" else 0] * (width - len(row[name])) for row in rows]
            for name in rows[0]
        }
        inputs["attention_mask"] = [[int(at < len(row["input_ids"])) for at in range(width)] for row in rows]
        tensors = {name: torch.tensor(values, device=self._model.device) for name, values in inputs.items()}  # (b, T)
        logits = self._model(**tensors).logits  # (b, 1)
        return logits[:, 0].float().tolist()

    def _pad_id(self, rows: Sequence[Encoded]) -> int:
        """The id behind which transformers' classifiers look for a row's last token.

        It is the config's, where training left one there. Without one the score is the last token's: so the id is one
        that none of the rows ends with.
        """
        assert self._model is not None
        config = self._model.config.get_text_config()
        if self._config.get_text_config().pad_token_id is None:
            last = {row["input_ids"][-1] for row in rows}
            config.pad_token_id = next(i for i in range(len(last) + 1) if i not in last)
        return int(config.pad_token_id)

    def _cut(self, row: Encoded) -> Encoded:
        """The row without its oldest tokens beyond the limit; its first special token stays."""
        ids = row["input_ids"]
        if self.limit is None or len(ids) <= self.limit:
            return row
        kept = int(ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id))
        return {name: values[:kept] + values[len(ids) - self.limit + kept :] for name, values in row.items()}


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text) -> Encoded:
    """A prompt with its answer as the reward model was trained on it; see the module.

    Raises:
        ModelError: the tokenizer has no chat template for a conversation, or one that does not take it.
    """
    if not isinstance(prompt, str):
        assert not isinstance(completion, str), "an answer has the form of its prompt"
        text = _render(tokenizer, [*prompt, *completion])
        return {"input_ids": _ids(tokenizer(text, add_special_tokens=False, verbose=False))}
    assert isinstance(completion, str), "an answer has the form of its prompt"
    if _takes_pairs(tokenizer):
        both = tokenizer(prompt, completion, verbose=False)
        return {name: list(both[name]) for name in ("input_ids", "token_type_ids") if name in both}
    ids = _ids(tokenizer(prompt + completion, verbose=False))
    end = tokenizer.eos_token_id
    return {"input_ids": ids if end is None or ids[-1:] == [end] else [*ids, end]}


def max_length(tokenizer: PreTrainedTokenizerBase, config: Any) -> int | None:
    """Tokens that the model takes at once, by its tokenizer or its positions; None where neither says."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and 0 < limit < 1 << 30]
    return int(min(limits)) if limits else None


def _takes_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer writes [CLS] before a text and [SEP] behind it."""
    ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    return None not in ends and _ids(tokenizer("")) == ends


def _ids(encoding: Any) -> list[int]:
    return list(encoding["input_ids"])


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    location = str(tokenizer.name_or_path)
    if not tokenizer.chat_template:
        hint = "Name one that was trained on conversations, or give the prompts as text."
        message = "this reward model's tokenizer has no chat template, and the prompts are conversations."
        raise ModelError(message, location=location, hint=hint)
    try:  # in jinja's sandbox, by transformers
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is a program, and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        message = (
            f"the reward model's chat template does not take this conversation ({roles}): {str(error).rstrip('.')}."
        )
        raise ModelError(message, location=location, hint="Change the data, or name another reward model.") from error
