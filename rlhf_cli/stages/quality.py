"""How good a model is as it comes out of its trainer, on rows held out: figures named and defined as eval's are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Trainer

from rlhf_cli.evaluation import comparison
from rlhf_cli.evaluation.comparison import Metrics
from rlhf_cli.ppo.experience import pack
from rlhf_cli.stages.encoding import IGNORED, Columns


def loss(trainer: Trainer, columns: Columns, max_tokens: int) -> Metrics:
    """`sft.nll`: nats a completion token, over all of them; nothing where no row is left."""
    rows = [ids for part in columns.parts for ids in part["input_ids"]]
    labels = [ids for part in columns.parts for ids in part["labels"]]
    total, count = 0.0, 0
    for chosen, logits in _forward(trainer, rows, max_tokens):
        for row, scores in zip(chosen, logits, strict=True):
            targets = torch.tensor(labels[row][1:], device=scores.device)
            kept = targets != IGNORED
            total += float(cross_entropy(scores[: len(targets)][kept].float(), targets[kept], reduction="sum"))
            count += int(kept.sum())
    return {"sft.nll": total / count} if count else {}


def ranking(trainer: Trainer, columns: Columns, max_tokens: int) -> Metrics:
    """`reward.accuracy` and what belongs to it; nothing where no pair is left."""
    chosen = [ids for part in columns.parts for ids in part["chosen_ids"]]
    rejected = [ids for part in columns.parts for ids in part["rejected_ids"]]
    if not chosen:
        return {}
    scores = dict[int, float]()
    for rows, logits in _forward(trainer, chosen + rejected, max_tokens):
        scores |= zip(rows, logits[:, 0].float().tolist(), strict=True)
    margins = [scores[i] - scores[len(chosen) + i] for i in range(len(chosen))]
    longer = [float(len(better) - len(worse)) for better, worse in zip(chosen, rejected, strict=True)]
    return comparison.ranking(margins, longer)


def _forward(trainer: Trainer, sequences: Sequence[list[int]], max_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of some rows, of like length, and their logits: (b, T, V), or of a scorer (b, 1).

    `max_tokens`: in memory at once, as many as a step of training had.
    """
    model: Any = trainer.model
    model.eval()
    pad_id = trainer.processing_class.pad_token_id
    for rows in pack([len(ids) for ids in sequences], max_tokens):
        width = len(sequences[rows[0]])
        ids = torch.tensor([sequences[i] + [pad_id] * (width - len(sequences[i])) for i in rows])
        length = torch.tensor([len(sequences[i]) for i in rows])[:, None]
        mask = (torch.arange(width) < length).long()
        with torch.no_grad(), trainer.accelerator.autocast():
            out = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        yield rows, out.logits
