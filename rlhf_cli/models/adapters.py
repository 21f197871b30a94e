"""Attach LoRA adapters to a base model, new ones or copies of an earlier run's, and read and write their files.

Adapter weights are float32 even on a 16-bit or quantized base, which is PEFT's default (autocast_adapter_dtype): at a
learning rate of 1e-5 most Adam updates are smaller than half a bfloat16 spacing and round to zero, and an adapter is
too small for its memory to matter. PEFT's prepare_model_for_kbit_training is not called: it casts embeddings and norms
to float32 and enables gradient checkpointing, and get_peft_model already freezes the base.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_cli.errors import ModelError, RecipeError
from rlhf_cli.formatting import format_exception
from rlhf_cli.models import adapter_config
from rlhf_cli.models.adapter_targets import excluded_modules
from rlhf_cli.models.heads import STORED_HEAD
from rlhf_cli.models.loading import load_causal_lm
from rlhf_cli.recipe.schema import Adapter, Base

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def attach(
    model: PreTrainedModel | PeftModel,
    adapter: Adapter,
    *,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    start: Path | None,
    name: str = "default",
    trainable: bool = True,
) -> PeftModel:
    """Attach a LoRA adapter to `model`. A further adapter on a PeftModel does not become the active one.

    Args:
        model: The base model, or one that already has adapters.
        adapter: Rank, target modules and the other settings of the recipe.
        task: Task type of the adapter. It may differ from that of `start`: a score head is copied if both have one, and
            is new if `start` has none.
        start: The adapter directory whose weights are copied, or None for a new adapter.
        name: PEFT's name of the adapter.
        trainable: Whether the adapter's parameters get gradients.

    Raises:
        ModelError: The stored adapter is damaged or differs from the recipe or the base; PEFT would load the tensors
            that fit and leave the others random. Or the base lacks the target modules.
        RecipeError: The target modules select embeddings or an output head.
    """
    stored = None if start is None else read_adapter(start)
    if start is not None:
        adapter_config.check_settings(start, adapter)
    config = lora_config(adapter, task, model.get_base_model() if isinstance(model, PeftModel) else model)
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise ModelError(
            "model.unknown-target-modules",
            f"target_modules {adapter.target_modules!r}: not found in this base model: "
            f"{format_exception(error).rstrip('.')}.",
            location="adapter.target_modules",
            hint="Use names of modules in the base model, or `all-linear`.",
        ) from error
    _check_targets(model)
    if start is not None:
        assert stored is not None
        adapter_config.check_derived(start, model.peft_config[name])
        _copy_weights(model, name, stored, start)
    model.set_requires_grad(name, trainable)
    return model


def _check_targets(model: PeftModel) -> None:
    """Raise RecipeError if an embedding or output head is adapted.

    They may be tied to each other, so that merging would change both, and PEFT stores whole copies of them.
    """
    head = model.get_base_model().get_output_embeddings()
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and (layer is head or isinstance(layer.get_base_layer(), nn.Embedding)):
            raise RecipeError(
                "recipe.invalid-value",
                "adapters of embeddings and output heads are not supported; "
                f"found {name.removeprefix('base_model.model.')}.",
                location="adapter.target_modules",
                hint="Use names of linear layers inside the transformer blocks, or all-linear.",
            )


def load_policy(
    base: Base,
    adapter: Adapter | None,
    source: str,
    start: Path | None,
    *,
    smoke: bool = False,
    trainable: bool = True,
    sharded: bool = False,
) -> PreTrainedModel | PeftModel:
    """Load a language model to train or to sample from.

    Args:
        base: Gives the revision, dtype, attention kernel and quantization.
        adapter: Settings of the adapter, or None for a whole model.
        source: A Hub id or a directory of the base model.
        start: The adapter or whole model to start from, or None for the base model.
        smoke: Load random weights of a tiny model (see `models.loading`).
        trainable: Whether the adapter's or the whole model's parameters get gradients.
        sharded: Shard the layers of the base over all processes (see `models.fsdp`).

    Raises:
        ModelError: A model is missing or damaged, or `start` does not match `adapter`.
        HardwareError: The machine cannot load the model with these settings.
    """
    if start is not None:
        adapter_config.check_kind(start, adapter)
    if adapter is not None:
        model = load_causal_lm(base, source, smoke=smoke, sharded=sharded)
        return attach(model, adapter, task="CAUSAL_LM", start=start, trainable=trainable)
    if start is not None:  # the whole model of a smoke run is already tiny
        return load_causal_lm(base, str(start)).requires_grad_(trainable)
    return load_causal_lm(base, source, smoke=smoke).requires_grad_(trainable)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the stored weights of an adapter, on the CPU.

    Raises:
        ModelError: The file is missing or damaged.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(
            "model.incomplete",
            f"{ADAPTER_WEIGHTS} not found in the directory.",
            location=str(folder),
            hint="Use the directory of an adapter.",
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            "model.load-failed",
            f"weights: cannot be read: {format_exception(error).rstrip('.')}.",
            location=str(path),
            hint="Run the stage that wrote it again.",
        ) from error


def write(
    model: PeftModel, folder: Path, *, name: str = "default", head: Tensor | None = None, revision: str | None = None
) -> None:
    """Write one adapter in PEFT's format: adapter_config.json and adapter_model.safetensors.

    PEFT's own save_pretrained adds a model card, and puts an adapter that is not named `default` into a subdirectory.

    Args:
        model: The model with the adapter.
        folder: The directory to write to.
        name: PEFT's name of the adapter.
        head: A score head (1, H) to save with it, which makes it a scorer.
        revision: Commit of a base model from the Hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = adapter_weights(model, name)
    config = copy.copy(model.peft_config[name])
    config.inference_mode = True
    config.base_model_name_or_path = model.get_base_model().name_or_path
    config.revision = revision
    if head is not None:
        weights = {**weights, STORED_HEAD: head}
        config.task_type = "SEQ_CLS"
        config.modules_to_save = list(adapter_config.SCORE_HEADS)
    for option in ("target_modules", "target_parameters"):
        if isinstance(getattr(config, option), set):
            setattr(config, option, sorted(getattr(config, option)))  # the order of a set changes from run to run
    config.save_pretrained(str(folder))
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    save_file(stored, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def adapter_weights(model: PeftModel, name: str) -> dict[str, Tensor]:
    """Return an adapter's own tensors, not copied, by the names that PEFT stores them under."""
    # Not "auto", which asks the Hub for the base's vocabulary size.
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def lora_config(adapter: Adapter, task: str, model: PreTrainedModel) -> LoraConfig:
    """Return PEFT's config for the adapter settings of a recipe on `model`."""
    targets = adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
    return LoraConfig(
        task_type=task,
        r=adapter.rank,
        lora_alpha=adapter_config.as_int_if_whole(adapter.alpha),
        lora_dropout=adapter.dropout,
        target_modules=targets,
        exclude_modules=excluded_modules(model),
        use_dora=adapter.dora,
    )


def _copy_weights(model: PeftModel, name: str, stored: dict[str, Tensor], folder: Path) -> None:
    """Copy `stored` into the adapter `name`. Raise ModelError unless keys and shapes match exactly."""
    own = adapter_weights(model, name)
    weights = {key: tensor for key, tensor in stored.items() if key != STORED_HEAD or key in own}
    if STORED_HEAD in own:
        weights.setdefault(STORED_HEAD, own[STORED_HEAD])
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [key for key in sorted(own.keys() & weights.keys()) if own[key].shape != weights[key].shape]
    problems = []
    if missing:
        problems.append(f"tensors are missing, such as {missing[0]} ({len(missing)} in total)")
    if unexpected:
        problems.append(f"unexpected tensors, such as {unexpected[0]} ({len(unexpected)} in total)")
    if misshapen:
        key = misshapen[0]
        problems.append(f"{key}: found shape {tuple(weights[key].shape)}, expected {tuple(own[key].shape)}")
    if problems:
        raise ModelError(
            "model.adapter-mismatch",
            f"the tensors do not match the recipe's adapter on this base model: {'; '.join(problems)}.",
            location=str(folder),
            hint="Set the `base` and `adapter.target_modules` that the adapter was trained with, or start from base.",
        )
    with torch.no_grad():
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    assert not result.unexpected_keys, result.unexpected_keys
