"""Compute metrics on held-out rows right after training, with the names and definitions of `eval`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer

from rlhf_cli.data.rows import PreferenceRow
from rlhf_cli.data.tokenization import IGNORE_INDEX, TokenColumns
from rlhf_cli.evaluation import metrics
from rlhf_cli.evaluation.measurements import Ceiling, PreferenceMargins
from rlhf_cli.evaluation.preference_metrics import PREFERENCE_METRICS
from rlhf_cli.inference.batching import PaddedBatch, padded_batches
from rlhf_cli.inference.scoring import read_scores
from rlhf_cli.models.heads import ScalarHead

MAX_LOGITS = 2**27  # computed at a time: 0.5 GB in float32. A longer batch is run once for each part of that size


def loss(trainer: Trainer, stage: str, columns: TokenColumns, max_tokens: int) -> dict[str, float]:
    """Return `<stage>.nll`, in nats per completion token over all rows; empty if there are no rows."""
    rows = [ids for part in columns.parts for ids in part["input_ids"]]
    labels = [ids for part in columns.parts for ids in part["labels"]]
    vocab_size = trainer.model.config.get_text_config().vocab_size
    total, count = 0.0, 0
    for batch in _batches(trainer, rows, max_tokens):
        height, width = batch.input_ids.shape
        # The label of a position is the next token: (b, T)
        targets = torch.tensor([labels[i][1:] + [IGNORE_INDEX] * (width + 1 - len(labels[i])) for i in batch.rows])
        parts = torch.arange(width).split(max(1, MAX_LOGITS // (height * vocab_size)))
        for part in parts:
            some = targets[:, part].to(batch.input_ids.device)
            kept = {"logits_to_keep": part.to(some.device)} if len(parts) > 1 else {}
            logits = _call(trainer, batch, **kept)  # (b, t, V)
            scores = logits.flatten(0, 1).float()
            total += float(cross_entropy(scores, some.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"))
            count += int((some != IGNORE_INDEX).sum())
    return {f"{stage}.nll": total / count} if count else {}


def pair_scores(trainer: Trainer, columns: TokenColumns, max_tokens: int, limit: int | None = None) -> list[float]:
    """Return the scores of all chosen completions, then those of all rejected ones; of the first `limit` pairs."""
    chosen, rejected = _pairs(columns)
    return _scores(trainer, chosen[:limit] + rejected[:limit], max_tokens) if chosen else []


def ranking(
    scores: Sequence[float], columns: TokenColumns, rows: Sequence[PreferenceRow], ceiling: Ceiling | None = None
) -> dict[str, float]:
    """Return `reward.accuracy` and the other metrics of preferences from `pair_scores`; empty if there are no pairs.

    Args:
        scores: The result of `pair_scores`.
        columns: The tokenized pairs.
        rows: The rows that were tokenized, with those that were dropped.
        ceiling: How often people agree with the labels; None if it is not known.
    """
    chosen, rejected = _pairs(columns)
    if not chosen:
        return {}
    margins = [scores[i] - scores[len(chosen) + i] for i in range(len(chosen))]
    longer = [float(len(better) - len(worse)) for better, worse in zip(chosen, rejected, strict=True)]
    kept = [row.extra for index, row in enumerate(rows) if index not in columns.dropped]
    pairs = PreferenceMargins.from_rows(margins, longer, kept, ceiling)
    return metrics.compute(PREFERENCE_METRICS, "preferences", pairs)


def _pairs(columns: TokenColumns) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of the chosen and of the rejected completions, each with its prompt."""
    chosen = [ids for part in columns.parts for ids in part["chosen_ids"]]
    rejected = [ids for part in columns.parts for ids in part["rejected_ids"]]
    return chosen, rejected


def _batches(trainer: Trainer, sequences: Sequence[list[int]], max_tokens: int) -> Iterator[PaddedBatch]:
    """Yield right-padded batches of at most `max_tokens` tokens on the trainer's device."""
    model: Any = trainer.model
    pad_id = trainer.processing_class.pad_token_id
    return padded_batches(sequences, pad_id=pad_id, max_tokens=max_tokens, device=model.device)


def _scores(trainer: Trainer, sequences: Sequence[list[int]], max_tokens: int) -> list[float]:
    """Return the trained scorer's score of each sequence, as eval and PPO compute it."""
    model: Any = trainer.model
    model.eval()
    scorer = model.get_base_model() if isinstance(model, PeftModel) else model

    def hidden_states(input_ids: Tensor) -> Tensor:
        with trainer.accelerator.autocast():
            output = scorer.get_decoder()(input_ids=input_ids, use_cache=False)
        return cast(Tensor, output.last_hidden_state)

    head = ScalarHead.from_weight(scorer.score.weight)
    pad_id = trainer.processing_class.pad_token_id
    return read_scores(hidden_states, head, _batches(trainer, sequences, max_tokens), pad_id=pad_id).tolist()


def _call(trainer: Trainer, batch: PaddedBatch, **options: Tensor) -> Tensor:
    """Return the model's logits (b, T, V)."""
    model: Any = trainer.model
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **options
        ).logits
    assert isinstance(logits, Tensor)
    return logits
