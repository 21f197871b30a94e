"""Map hidden states to logits as a model itself does: some scale or cap the logits after their output layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from rlhf_cli.errors import ModelError


class OutputPath(nn.Module):
    """Everything that a language model does after its decoder, called as one layer.

    The model's own forward pass runs with the decoder replaced by given hidden states. So it holds for every
    architecture, and no name of a config value is needed: Gemma 2 caps its logits, Granite and Cohere scale them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = [model]  # in a list, because it is not a part of this layer

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits: (…, H) -> (…, V)."""
        (model,) = self._model
        rows = hidden.reshape(1, -1, hidden.shape[-1])  # (1, N, H)
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)  # no one reads them
        with _decoder_returns(model, rows):
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)


def find_output_head(model: PreTrainedModel) -> nn.Module:
    """Return the module from hidden states (…, H) to logits (…, V): the output layer if it is all, or an OutputPath.

    Raises:
        ModelError: Neither of them gives the model's own logits.
    """
    head: nn.Module = model.get_output_embeddings()
    ids = torch.arange(4, device=model.device)[None]  # (1, 4)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        if torch.equal(head(hidden), expected):  # exactly: a cap hardly shows where logits are small
            return head
        path = OutputPath(model)
        if torch.allclose(path(hidden).float(), expected.float(), rtol=1e-3, atol=1e-3):
            return path
    raise ModelError(
        "model.unsupported-architecture",
        f"{type(model).__name__}: the logits are not a function of the decoder's last hidden states.",
        location=model.name_or_path,
        hint="Use another base model, such as Llama, Qwen or Mistral.",
    )


class _DecoderOutput(BaseModelOutput):
    """Hidden states, and None for all that a decoder may return besides them."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _decoder_returns(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Make the model's decoder return these hidden states inside the block."""

    def forward(*_: Any, **__: Any) -> _DecoderOutput:
        return _DecoderOutput(last_hidden_state=hidden)

    decoder = model.base_model
    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
