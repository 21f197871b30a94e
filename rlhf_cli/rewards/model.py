"""Score completions with a separate reward model: a sequence classifier with one label, with its own tokenizer.

It is loaded besides the recipe's base model. Its input has the form that such models are trained on (TRL's
RewardTrainer, `_prepare_dataset`; model cards on the Hub):

- a conversation: prompt and completion together, through the model's own chat template;
- a text prompt and its completion as one text, with the special tokens that the tokenizer puts before a text, and one
  end token after it;
- if the tokenizer is an encoder's ([CLS] … [SEP]), a text prompt and its completion as a pair of segments.

A completion that was truncated at the limit gets an end token too: the template would write it in any case, and
`ppo.missing_eos_penalty` penalizes a missing one. The score comes from the model's own forward pass. Input beyond the
model's context length loses its oldest tokens after the first special one; this is logged and counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.errors import ModelError
from rlhf_cli.formatting import format_exception
from rlhf_cli.inference.batching import pack
from rlhf_cli.models import loading
from rlhf_cli.models.architectures import POSITION_KEYS
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.rewards.base import Completions, SourceScores

logger = logging.getLogger(__name__)

TokenizedInput = dict[str, list[int]]  # input_ids, and token_type_ids if the model has segments


class ModelScorer:
    """Scores with a reward model. Without `load`, only its config and tokenizer are read.

    Args:
        source: Hub id or folder.
        revision: Branch, tag or commit of a Hub model.

    Raises:
        ModelError: It was not found, or is not a reward model.
    """

    def __init__(self, source: str, revision: str = "main") -> None:
        self.source, self.revision = source, revision
        self.tokenizer = loading.load_tokenizer(source, revision)
        self._config = loading.load_reward_model_config(source, revision)
        self.max_length = context_length(self.tokenizer, self._config)
        self._model: PreTrainedModel | None = None
        self._has_warned = False  # of truncated input; one warning per run is enough

    @classmethod
    def from_source(cls, source: RewardSource) -> ModelScorer:
        """Return the scorer of the source's model."""
        assert source.model is not None
        return cls(source.model, source.revision or "main")

    @property
    def name(self) -> str:
        """The last part of the Hub id or path."""
        return Path(self.source).name

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Raise ModelError if the model's chat template rejects one of the conversations."""
        examples: dict[tuple[str, ...] | None, PromptRow] = {}  # one row per sequence of roles; None for text
        for row in rows:
            roles = None if isinstance(row.prompt, str) else tuple(message["role"] for message in row.prompt)
            examples.setdefault(roles, row)
        for roles, row in examples.items():
            if roles is not None:
                tokenize(self.tokenizer, row.prompt, [Message(role="assistant", content="yes")])
            elif self.tokenizer.chat_template:
                logger.warning(f"{self.name}: the prompts are text, so the chat template of the model is not used")

    def load(self, base: Base, *, smoke: bool) -> None:
        """Load the weights in the recipe's dtype. They are never quantized, because that would change the scores."""
        own = Base(model=self.source, revision=self.revision, dtype=base.dtype)
        self._model = loading.load_reward_model(own, self.source, smoke=smoke).requires_grad_(False)
        self._model.config.use_cache = False
        _compute_head_in_float32(self._model)

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:
        """Score each completion with its prompt. The detail `too_long` is 1 if the input was truncated, else 0."""
        pairs = zip(completions.prompts, completions.completions, strict=True)
        complete = [tokenize(self.tokenizer, prompt, completion) for prompt, completion in pairs]
        rows = [self._truncate(row) for row in complete]
        too_long = [len(a["input_ids"]) < len(b["input_ids"]) for a, b in zip(rows, complete, strict=True)]
        if any(too_long) and not self._has_warned:
            self._has_warned = True
            count = f"{too_long.count(True)} of {len(rows)} prompts with completions"
            logger.warning(
                f"{self.name}: {count} are longer than {self.max_length} tokens and are truncated at the beginning"
            )
        scores = [0.0] * len(rows)
        for group in pack([len(row["input_ids"]) for row in rows], max_tokens):
            for index, score in zip(group, self._forward([rows[i] for i in group]), strict=True):
                scores[index] = score
        return SourceScores(scores, {"too_long": [float(flag) for flag in too_long]})

    @torch.no_grad()
    def _forward(self, rows: Sequence[TokenizedInput]) -> list[float]:
        """Return the scores of one batch of b rows, right-padded to width T."""
        assert self._model is not None, "load() comes first"
        width = max(len(row["input_ids"]) for row in rows)
        padding = dict.fromkeys(rows[0], 0) | {"input_ids": self._pad_id(rows)}
        inputs = {name: [row[name] + [pad] * (width - len(row[name])) for row in rows] for name, pad in padding.items()}
        lengths = [len(row["input_ids"]) for row in rows]
        inputs["attention_mask"] = [[1] * length + [0] * (width - length) for length in lengths]
        tensors = {name: torch.tensor(values, device=self._model.device) for name, values in inputs.items()}  # (b, T)
        logits = self._model(**tensors).logits  # (b, 1)
        return logits[:, 0].float().tolist()

    def _pad_id(self, rows: Sequence[TokenizedInput]) -> int:
        """Return the id that the model takes for padding: transformers' classifiers score the last other token.

        It is the config's, if training has set one. Otherwise the score is the last token's, so any id that no row
        ends with will do.
        """
        assert self._model is not None
        config = self._model.config.get_text_config()
        if self._config.get_text_config().pad_token_id is None:
            last = {row["input_ids"][-1] for row in rows}
            config.pad_token_id = next(i for i in range(len(last) + 1) if i not in last)
        return int(config.pad_token_id)

    def _truncate(self, row: TokenizedInput) -> TokenizedInput:
        """Return the row without its oldest tokens beyond the limit, but with its first special token."""
        ids = row["input_ids"]
        if self.max_length is None or len(ids) <= self.max_length:
            return row
        kept = 1 if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else 0
        return {name: values[:kept] + values[len(ids) - self.max_length + kept :] for name, values in row.items()}


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text) -> TokenizedInput:
    """Return a prompt with its completion as the reward model was trained on them; see the module.

    Raises:
        ModelError: The tokenizer has no chat template for a conversation, or its template rejects the conversation.
    """
    if not isinstance(prompt, str):
        assert not isinstance(completion, str), "a completion has the form of its prompt"
        text = _render(tokenizer, [*prompt, *completion])
        return {"input_ids": _input_ids(tokenizer(text, add_special_tokens=False, verbose=False))}
    assert isinstance(completion, str), "a completion has the form of its prompt"
    if _has_segments(tokenizer):
        both = tokenizer(prompt, completion, verbose=False)
        return {name: list(both[name]) for name in ("input_ids", "token_type_ids") if name in both}
    ids = _input_ids(tokenizer(prompt + completion, verbose=False))
    end = tokenizer.eos_token_id
    return {"input_ids": ids if end is None or ids[-1:] == [end] else [*ids, end]}


def _compute_head_in_float32(model: nn.Module) -> None:
    """Compute a linear head in float32: in 16 bits it would round the scores, and small differences to ties."""
    head = getattr(model, "score", getattr(model, "classifier", None))
    if type(head) is nn.Linear:
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def context_length(tokenizer: PreTrainedTokenizerBase, config: Any) -> int | None:
    """Return the model's limit in tokens by its tokenizer and its positions, or None if neither has one."""
    text_config = config.get_text_config()
    positions = [getattr(text_config, name, None) for name in POSITION_KEYS]
    limits = [limit for limit in (*positions, tokenizer.model_max_length) if limit and 0 < limit < 1 << 30]
    return int(min(limits)) if limits else None


def _has_segments(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts [CLS] before a text and [SEP] after it."""
    ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    return None not in ends and _input_ids(tokenizer("")) == ends


def _input_ids(encoding: Any) -> list[int]:
    return list(encoding["input_ids"])


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    location = str(tokenizer.name_or_path)
    if not tokenizer.chat_template:
        message = "the reward model has no chat template; expected one, because the prompts are conversations."
        hint = "Choose a model that was trained on conversations, or provide the prompts as text."
        raise ModelError("model.missing-chat-template", message, location=location, hint=hint)
    try:  # transformers renders in jinja's sandbox
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        reason = format_exception(error).rstrip(".")
        message = f"the reward model's chat template rejects a conversation ({roles}): {reason}."
        hint = "Change the data, or choose another reward model."
        raise ModelError("model.chat-template-failed", message, location=location, hint=hint) from error
