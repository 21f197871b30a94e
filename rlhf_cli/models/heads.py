"""Score and value heads: map a hidden state to one number, and load such a head from a reward model's directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rlhf_cli.errors import ModelError
from rlhf_cli.formatting import format_exception

HEAD_KEY = "score.weight"  # name of the head in a transformers SequenceClassification model
STORED_HEAD = f"base_model.model.{HEAD_KEY}"  # name of the head in a PEFT adapter


class ScalarHead(nn.Module):
    """A linear map without bias from a hidden state to one number, computed in float32.

    A new head is zero, so that an untrained critic predicts 0 everywhere, whatever the scale of its hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))

    @classmethod
    def from_weight(cls, weight: Tensor) -> ScalarHead:
        """Return a head with a copy of `weight`, (1, H) or (H,), on its device."""
        head = cls(weight.numel()).to(weight.device)
        with torch.no_grad():
            head.weight.copy_(weight.flatten())
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """Return one number per hidden state: (…, H) -> (…,)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight


def load_score_head(folder: Path) -> ScalarHead:
    """Load the score head of a reward model, which may be an adapter or a whole model.

    Raises:
        ModelError: The model does not have a score head with one output, or a file is damaged.
    """
    weight = _read_head(folder)
    if weight is None:
        raise ModelError(
            "model.not-a-reward-model",
            "score head: not found.",
            location=str(folder),
            hint="Use a run of the reward stage, or another reward model with one label.",
        )
    if weight.ndim != 2 or weight.shape[0] != 1:
        raise ModelError(
            "model.not-a-reward-model",
            f"score head: wrong shape; found {tuple(weight.shape)}, expected (1, hidden size).",
            location=str(folder),
            hint="Use a reward model, which has one label.",
        )
    return ScalarHead.from_weight(weight)


def has_score_head(folder: Path) -> bool:
    """Return whether the directory holds a reward model rather than a language model."""
    return _read_head(folder) is not None


def score_index(input_ids: Tensor, pad_id: int) -> Tensor:
    """Return the position at which transformers' SequenceClassification models read their score: (B, T) -> (B,).

    It is the rightmost token that is not `pad_id`, on either side of the padding and whatever the attention mask is; 0
    for a row that is all padding. If the pad token is also the end token, the score of a right-padded row that ends
    with it is therefore read one token earlier.
    Source: transformers.modeling_layers.GenericForSequenceClassification.forward.
    """
    is_token = input_ids != pad_id  # (B, T)
    positions = torch.arange(input_ids.shape[-1], device=input_ids.device)  # (T,)
    return (positions * is_token).argmax(-1)


def _read_head(folder: Path) -> Tensor | None:
    """Return the weight of the head, (1, H), or None if there is no head. Only this tensor is read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for key, file in shards.items() if key in (HEAD_KEY, STORED_HEAD)})
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
                "model.load-failed",
                f"weights: cannot be read: {format_exception(error)}.",
                location=str(folder / file),
                hint="Train the model again, or download it again.",
            ) from error
    return None
