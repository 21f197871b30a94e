"""Compute metrics on held-out rows right after training, with the names and definitions of `eval`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer

from rlhf_cli.data.tokenization import IGNORE_INDEX, TokenColumns
from rlhf_cli.evaluation import metrics
from rlhf_cli.evaluation.measurements import PreferenceMargins
from rlhf_cli.inference.batching import PaddedBatch, padded_batches

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


def ranking(trainer: Trainer, columns: TokenColumns, max_tokens: int) -> dict[str, float]:
    """Return `reward.accuracy` and the other metrics of preferences; empty if there are no pairs."""
    chosen = [ids for part in columns.parts for ids in part["chosen_ids"]]
    rejected = [ids for part in columns.parts for ids in part["rejected_ids"]]
    if not chosen:
        return {}
    scores = dict[int, float]()
    for batch in _batches(trainer, chosen + rejected, max_tokens):
        scores |= zip(batch.rows, _call(trainer, batch)[:, 0].float().tolist(), strict=True)
    margins = [scores[i] - scores[len(chosen) + i] for i in range(len(chosen))]
    longer = [float(len(better) - len(worse)) for better, worse in zip(chosen, rejected, strict=True)]
    return metrics.compute(metrics.PREFERENCE_METRICS, "preferences", PreferenceMargins(margins, longer))


def _batches(trainer: Trainer, sequences: Sequence[list[int]], max_tokens: int) -> Iterator[PaddedBatch]:
    """Yield right-padded batches of at most `max_tokens` tokens on the trainer's device."""
    model: Any = trainer.model
    pad_id = trainer.processing_class.pad_token_id
    return padded_batches(sequences, pad_id=pad_id, max_tokens=max_tokens, device=model.device)


def _call(trainer: Trainer, batch: PaddedBatch, **options: Tensor) -> Tensor:
    """Return the model's logits: (b, T, V), or (b, 1) for a scorer."""
    model: Any = trainer.model
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **options
        ).logits
    assert isinstance(logits, Tensor)
    return logits
