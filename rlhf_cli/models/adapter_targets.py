"""Decide which modules of a base model no adapter may change, whatever the recipe's target modules are."""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel


def excluded_modules(model: PreTrainedModel) -> str | None:
    """Return a regular expression of module names for PEFT's `exclude_modules`, or None if there are none.

    - Modules outside the language model, such as a vision tower: text never reaches them, so their adapters would get
      no gradients, which DistributedDataParallel rejects.
    - Routers that are linear layers, such as those of Phi-3.5-MoE and Llama 4: they return tuples, and PEFT adds the
      update to a tensor.
    - The output projection and convolution of state-space mixers: fused kernels read their weights and would leave the
      update out.
    """
    decoder = model.get_decoder()
    names = {module: name for name, module in model.named_modules()}
    patterns = set()
    inside = set(decoder.modules())
    if any(isinstance(module, nn.Linear) for module in model.base_model.modules() if module not in inside):
        patterns.add(rf"(?!{re.escape(names[decoder])}\.).*")
    for module in inside:
        if isinstance(module, nn.Linear) and _is_router(module):
            patterns.add(_in_every_layer(names[module]))
        elif hasattr(module, "A_log") and hasattr(module, "D"):  # Gu and Dao 2023, "Mamba", arXiv:2312.00752
            patterns.add(_in_every_layer(names[module]) + r"\.(out_proj|conv1d)")
    return "|".join(sorted(patterns)) or None


def _is_router(layer: nn.Linear) -> bool:
    """Return whether a linear layer is a router. Other classes of an architecture, as FalconLinear, return a tensor."""
    return "Router" in type(layer).__name__


def _in_every_layer(name: str) -> str:
    """Return a regular expression that matches the module of that name in every layer."""
    return re.sub(r"(?<=\.)\d+(?=\\)", r"\\d+", re.escape(name))
