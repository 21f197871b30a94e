"""Shard the layers of a frozen base model over several processes.

torch's FSDP2 (`fully_shard`; Zhao et al. 2023, arXiv:2304.11277), one unit per layer. Only the frozen layers are
sharded. Adapters and heads are small: every process holds, trains and saves them whole. Embeddings and the output layer
also stay whole, because PPO reads them directly.

All processes gather a layer together, so all of them must call the model equally often.
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


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Freeze a base model, shard its layers over all processes and move it to `device`, one layer after another.

    Raises:
        ModelError: transformers does not mark the layers of this architecture.
    """
    model.requires_grad_(False)
    process_count = distributed.world_size()
    layers = find_layers(model)
    if not layers:
        raise ModelError(
            "model.unsupported-architecture",
            f"{type(model).__name__}: layers not found; launch.strategy fsdp cannot shard this architecture.",
            location=model.name_or_path,
            hint="Set launch.strategy: ddp.",
        )
    if process_count > 1:
        mesh = init_device_mesh(device.type, (process_count,))
        for layer in layers:  # by default, a unit that is inside no other unit is not resharded after its forward pass
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(device)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the transformer layers of a model; of nested layers only the outermost."""
    if isinstance(model, GradientCheckpointingLayer):
        return [model]
    return [layer for child in model.children() for layer in find_layers(child)]


def ignore_in_ddp(model: nn.Module) -> None:
    """Make DistributedDataParallel ignore sharded parameters; it would broadcast the first process's shards."""
    # The attribute that DDP reads; TRL's own scripts set it too.
    model._ddp_params_and_buffers_to_ignore = [  # type: ignore[assignment]
        name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)
    ]
