"""The head that turns a hidden state into one number (a reward, a value), and where in a sequence it is read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rlhf_cli.errors import ModelError

HEAD_KEY = "score.weight"  # what transformers calls it in a SequenceClassification model
STORED_HEAD = f"base_model.model.{HEAD_KEY}"  # what PEFT calls it in an adapter


class ScalarHead(nn.Module):
    """A linear map without bias from a hidden state to one number, computed in float32.

    A new head is zero: a critic that knows nothing predicts 0 everywhere, whatever the scale of its trunk.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))

    def forward(self, hidden: Tensor) -> Tensor:  # (…, H) -> (…,)
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight


def load_score_head(folder: Path) -> ScalarHead:
    """The score head of a reward model's folder, be it an adapter or a whole model."""
    weight = _read_head(folder)
    if weight is None:
        raise ModelError(
            "this model has no score head",
            location=str(folder),
            hint="Name a reward run, or another scorer of one label.",
        )
    if weight.ndim != 2 or weight.shape[0] != 1:
        raise ModelError(
            f"the score head has shape {tuple(weight.shape)}; a reward model has one label: (1, hidden size)",
            location=str(folder),
        )
    head = ScalarHead(weight.shape[1])
    with torch.no_grad():
        head.weight.copy_(weight[0])
    return head


def has_score_head(folder: Path) -> bool:
    """Whether the folder holds a reward model rather than a language model."""
    return _read_head(folder) is not None


def score_index(input_ids: Tensor, pad_id: int) -> Tensor:
    """Where transformers' SequenceClassification models read their score: (B, T) -> (B,).

    It is the rightmost token that is not `pad_id`, whatever the attention mask says, on either side of padding; a row
    of padding alone gives 0. So where the pad token is the end token too, the score of a right-padded row that ends
    in it is read one token before it.
    Source: transformers.modeling_layers.GenericForSequenceClassification.forward.
    """
    is_token = input_ids != pad_id  # (B, T)
    positions = torch.arange(input_ids.shape[-1], device=input_ids.device)  # (T,)
    return (positions * is_token).argmax(-1)


def _read_head(folder: Path) -> Tensor | None:
    """The head's weight (1, H), or None. Reads that one tensor alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for key, file in names.items() if key in (HEAD_KEY, STORED_HEAD)})
    else:
        files = [name for name in ("adapter_model.safetensors", "model.safetensors") if (folder / name).is_file()]
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a mapping
                    if key in (HEAD_KEY, STORED_HEAD):
                        return tensors.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"damaged: {error}", location=str(folder / file), hint="Train or fetch it again."
            ) from error
    return None
