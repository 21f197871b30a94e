"""LoRA adapters on a base: a new one, or one that goes on from an earlier run's weights.

Adapter weights are float32 also on a 16-bit or quantized base, which is PEFT's default (autocast_adapter_dtype): at a
learning rate of 1e-5 most of Adam's steps are smaller than half a bfloat16 spacing and would be rounded away, and an
adapter is too small for its size to matter. PEFT's prepare_model_for_kbit_training is not called: it casts embeddings
and norms to float32 and switches gradient checkpointing on, and get_peft_model freezes the base by itself.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_cli.errors import Issue, ModelError
from rlhf_cli.models.heads import STORED_HEAD
from rlhf_cli.models.loading import ADAPTER_CONFIG, load_causal_lm
from rlhf_cli.recipe.schema import Adapter, Base

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def attach(
    model: PreTrainedModel | PeftModel,
    adapter: Adapter,
    *,
    task: Literal["CAUSAL_LM", "SEQ_CLS"],
    start: Path | None,
    name: str = "default",
    trainable: bool = True,
) -> PeftModel:
    """Put a LoRA adapter on `model`: a new one, or a copy of the weights in the adapter folder `start`.

    The task types may differ: a score head is taken where both have one, and is new where `start` has none. A further
    adapter on a PeftModel is not made the active one. Raises ModelError where the recipe and the stored adapter
    differ, for PEFT would load what fits and leave the rest random.
    """
    stored = None if start is None else read_adapter(start)
    if start is not None:
        _check_config(start, adapter)
    config = lora_config(adapter, task)
    if isinstance(model, PeftModel):
        try:
            model.add_adapter(name, config)
        except ValueError as error:
            raise _unfit_targets(adapter, error) from error
    else:
        try:
            model = get_peft_model(model, config, adapter_name=name)
        except ValueError as error:
            raise _unfit_targets(adapter, error) from error
    if start is not None:
        assert stored is not None
        _set_weights(model, name, stored, start)
    model.set_requires_grad(name, trainable)
    return model


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
    """A language model to train or to sample from: the base with an adapter, or (adapter None) a whole model.

    `start` is the folder that it goes on from; None is the bare base (with a new adapter, where there is one).
    `is_split`: over all processes, as `models.splitting` does it.
    """
    if start is not None:
        check_form(start, adapter)
    if adapter is not None:
        model = load_causal_lm(base, source, smoke=smoke, sharded=sharded)
        return attach(model, adapter, task="CAUSAL_LM", start=start, trainable=trainable)
    if start is not None:  # a smoke run's own model is tiny already
        return load_causal_lm(base, str(start)).requires_grad_(trainable)
    return load_causal_lm(base, source, smoke=smoke).requires_grad_(trainable)


def check_form(folder: Path, adapter: Adapter | None) -> None:
    """Raise ModelError where the folder holds an adapter and a whole model is asked for, or the other way round."""
    if adapter is None and is_adapter(folder):
        raise ModelError(
            "this is an adapter, and the recipe says `adapter: null`",
            location=str(folder),
            hint="Give the recipe the `adapter` section that it was trained with, or start from a whole model.",
        )
    if adapter is not None and not is_adapter(folder):
        raise ModelError(
            "this is not an adapter, and the recipe trains adapters",
            location=str(folder),
            hint="A whole model goes into `base.model`; or set `adapter: null` to train whole models.",
        )


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The stored weights of an adapter folder, on the CPU."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(f"there is no {ADAPTER_WEIGHTS} here", location=str(folder), hint="Name an adapter's folder.")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"damaged: {error}", location=str(path), hint="Run its stage again.") from error


def write(
    model: PeftModel, folder: Path, *, name: str = "default", head: Tensor | None = None, revision: str | None = None
) -> None:
    """Write one adapter as plain peft reads it: adapter_config.json and adapter_model.safetensors, no more.

    PEFT's own save_pretrained puts an adapter of another name than `default` into a sub-folder, and adds a card.
    `head` (1, H) makes a scorer of it; `revision` is the commit of a base from the hub.
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
        config.modules_to_save = ["classifier", "score"]  # as PEFT names them itself
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # a set's order changes from run to run
    config.save_pretrained(str(folder))
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    save_file(stored, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def adapter_weights(model: PeftModel, name: str) -> dict[str, Tensor]:
    """An adapter's own tensors by the names that PEFT stores them under; not copies."""
    # False: "auto" asks the hub for the base's vocabulary size.
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def lora_config(adapter: Adapter, task: str) -> LoraConfig:
    targets = adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
    return LoraConfig(
        task_type=task,
        r=adapter.rank,
        lora_alpha=neutral_generation_config(adapter.alpha),
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_dora=adapter.dora,
    )


def neutral_generation_config(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _check_config(folder: Path, adapter: Adapter) -> None:
    """Compare what decides how the stored tensors act; which modules they sit on is compared by the tensors."""
    try:
        stored: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{ADAPTER_CONFIG} cannot be read: {error}", location=str(folder)) from error
    if stored.get("peft_type") != "LORA":
        raise ModelError(f"a {stored.get('peft_type')} adapter; only LORA is supported", location=str(folder))
    asked = {
        "rank": ("r", adapter.rank),
        "alpha": ("lora_alpha", adapter.alpha),
        "dora": ("use_dora", adapter.dora),
    }
    issues = [
        Issue(
            f"the recipe's adapter.{field} is {neutral_generation_config(value)}, and this adapter was trained with {stored.get(key)}",
            str(folder),
            f"Set `adapter.{field}: {json.dumps(stored.get(key))}`, or start from base.",
        )
        for field, (key, value) in asked.items()
        if stored.get(key) != value
    ]
    for key in (
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
    ):  # scale or add in ways that a recipe has no word for
        if stored.get(key) not in (None, False, {}, "none"):
            issues.append(Issue(f"this adapter sets {key}: {stored[key]}, which is not supported", str(folder)))
    if issues:
        raise ModelError(issues)


def _set_weights(model: PeftModel, name: str, stored: dict[str, Tensor], folder: Path) -> None:
    """Copy `stored` into adapter `name`; all tensors have to be there, in equal shapes, and no other."""
    own = adapter_weights(model, name)
    weights = {key: tensor for key, tensor in stored.items() if key != STORED_HEAD or key in own}
    if STORED_HEAD in own:
        weights.setdefault(STORED_HEAD, own[STORED_HEAD])
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    issues = []
    if missing:
        issues.append(
            f"it lacks {len(missing)} tensors that the recipe's adapter has on this base, such as {missing[0]}"
        )
    if foreign:
        issues.append(f"it has {len(foreign)} tensors that have no place there, such as {foreign[0]}")
    for key in sorted(own.keys() & weights.keys()):
        if own[key].shape != weights[key].shape:
            shapes = f"{tuple(weights[key].shape)}, and there it is {tuple(own[key].shape)}"
            issues.append(f"{key} is {shapes}")
            break
    if issues:
        raise ModelError(
            "this adapter does not fit: " + "; ".join(issues),
            location=str(folder),
            hint="It belongs to another base or other `adapter.target_modules`; name those, or start from base.",
        )
    with torch.no_grad():
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    assert not result.unexpected_keys, result.unexpected_keys


def _unfit_targets(adapter: Adapter, error: ValueError) -> ModelError:
    return ModelError(
        f"the adapter's targets {adapter.target_modules!r} do not suit this base: {error}",
        location="adapter.target_modules",
        hint="Name modules that the model has, or `all-linear`.",
    )
