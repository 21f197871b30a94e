"""How good a model is as it comes out of its trainer, on rows held out: figures named and defined as eval's are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer

from rlhf_cli.data.tokenization import IGNORE_INDEX, TokenColumns
from rlhf_cli.evaluation import comparison
from rlhf_cli.evaluation.comparison import Metrics
from rlhf_cli.inference.scoring import pack

LOGITS = 2**27  # of held-out rows at a time: 0.5 GB in float32. Longer rows are read once for each such part of them


def loss(trainer: Trainer, columns: TokenColumns, max_tokens: int) -> Metrics:
    """`sft.nll`: nats a completion token, over all of them; nothing where no row is left."""
    rows = [ids for part in columns.parts for ids in part["input_ids"]]
    labels = [ids for part in columns.parts for ids in part["labels"]]
    vocab_size = trainer.model.config.get_text_config().vocab_size
    total, count = 0.0, 0
    for chosen, inputs in _batches(trainer, rows, max_tokens):
        wide, width = len(chosen), inputs["input_ids"].shape[1]
        targets = torch.tensor([labels[i][1:] + [IGNORE_INDEX] * (width + 1 - len(labels[i])) for i in chosen])  # (b, T)
        parts = torch.arange(width).split(max(1, LOGITS // (wide * vocab_size)))
        for part in parts:
            some = targets[:, part].to(inputs["input_ids"].device)
            kept = {"logits_to_keep": part.to(some.device)} if len(parts) > 1 else {}
            logits = _call(trainer, **inputs, **kept)  # (b, t, V)
            scores = logits.flatten(0, 1).float()
            total += float(cross_entropy(scores, some.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"))
            count += int((some != IGNORE_INDEX).sum())
    return {"sft.nll": total / count} if count else {}


def ranking(trainer: Trainer, columns: TokenColumns, max_tokens: int) -> Metrics:
    """`reward.accuracy` and what belongs to it; nothing where no pair is left."""
    chosen = [ids for part in columns.parts for ids in part["chosen_ids"]]
    rejected = [ids for part in columns.parts for ids in part["rejected_ids"]]
    if not chosen:
        return {}
    scores = dict[int, float]()
    for rows, inputs in _batches(trainer, chosen + rejected, max_tokens):
        scores |= zip(rows, _call(trainer, **inputs)[:, 0].float().tolist(), strict=True)
    margins = [scores[i] - scores[len(chosen) + i] for i in range(len(chosen))]
    longer = [float(len(better) - len(worse)) for better, worse in zip(chosen, rejected, strict=True)]
    return comparison.ranking(margins, longer)


def _batches(
    trainer: Trainer, sequences: Sequence[list[int]], max_tokens: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Indices of some rows, of like length, and what a model takes of them: input_ids and attention_mask, (b, T).

    `max_tokens`: in memory at once, as many as a step of training had.
    """
    model: Any = trainer.model
    pad_id = trainer.processing_class.pad_token_id
    for rows in pack([len(ids) for ids in sequences], max_tokens):
        width = len(sequences[rows[0]])
        ids = torch.tensor([sequences[i] + [pad_id] * (width - len(sequences[i])) for i in rows])
        length = torch.tensor([len(sequences[i]) for i in rows])[:, None]
        mask = (torch.arange(width) < length).long()
        yield rows, {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def _call(trainer: Trainer, **inputs: Tensor) -> Tensor:
    """The model's logits: (b, T, V), or of a scorer (b, 1)."""
    model: Any = trainer.model
    model.eval()
    with torch.no_grad(), trainer.accelerator.autocast():
        logits = model(**inputs, use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits
