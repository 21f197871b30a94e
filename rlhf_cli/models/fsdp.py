"""One frozen base over several processes: each holds a part of every layer, and gets the rest when it is called.

FSDP's second version (torch's `fully_shard`; Zhao et al. 2023, arXiv:2304.11277), one unit a layer. Only the frozen
weights are split: adapters and heads, which are small, stay whole in every process, and are trained and saved as ever.
So are embeddings and the output layer, which PPO reads by itself.

A layer is gathered by all processes together: all of them must call the model equally often.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_cli import distributed
from rlhf_cli.errors import ModelError


def split(model: PreTrainedModel, device: torch.device) -> None:
    """Freeze a base and split its layers over all processes, each to its `device`, one layer after another.

    Raises:
        ModelError: it has no layers that transformers marks as such.
    """
    model.requires_grad_(False)
    count = distributed.world_size()
    layers = layers_of(model)
    if not layers:
        found = f"{type(model).__name__} has no layers to split."
        raise ModelError(found, location=model.name_or_path, hint="Set launch.strategy: ddp.")
    if count > 1:
        mesh = init_device_mesh(device.type, (count,))
        for layer in layers:  # where not told so, a unit that is in no other keeps what it was given
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, outermost ones: one may hold another."""
    if isinstance(model, GradientCheckpointingLayer):
        return [model]
    return [layer for child in model.children() for layer in layers_of(child)]


def ignore_in_ddp(model: nn.Module) -> None:
    """Have DistributedDataParallel leave the parts alone: it would broadcast the first process's to all others."""
    # The name that DDP asks for; TRL's own scripts set it too.
    model._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)
    ]
