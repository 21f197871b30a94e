"""Load a base model and its tokenizer: device, dtype, attention kernel, quantization, and the tiny smoke model.

Not supported on purpose: remote code and pickled weights, which both run code from the model's author, and device maps
over several GPUs, which accelerate's launchers replace.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_cli.errors import HardwareError, ModelError
from rlhf_cli.formatting import format_exception
from rlhf_cli.models import fsdp, quantization, scorers
from rlhf_cli.models.adapter_config import is_adapter
from rlhf_cli.models.architectures import POSITION_KEYS
from rlhf_cli.models.tiny_model import save_tiny_model
from rlhf_cli.recipe.schema import Base

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
NEW_HEADS = ("score.weight",)  # tensors that a scorer lacks if it starts from a causal language model


class ModelSizes(NamedTuple):
    """Sizes that a model's config gives. None if there is no such limit, or the config does not give it."""

    positions: int | None  # the maximum number of tokens in a row
    embeddings: int | None  # the number of token ids
    hidden: int | None  # the width of a hidden state
    rope_switch: int | None = None  # tokens; if one row of a batch is longer, all rows get other rope factors


def silence_library_logging() -> None:
    """Silence progress bars of loading and log messages among the libraries, which a user cannot act on.

    Call it before peft or trl is imported: bitsandbytes logs about an optional kernel while it is imported.
    """
    transformers.utils.logging.disable_progress_bar()
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def default_device() -> torch.device:
    """Return the accelerator of this process, or the CPU. accelerate and torchrun set its index as LOCAL_RANK."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    if accelerator.type == "mps":  # has one device and no index
        return accelerator
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def compute_dtype(base: Base, device: torch.device) -> torch.dtype:
    """Return the dtype of weights and computation. `auto` is bfloat16 on a GPU that supports it, else float32.

    Raises:
        HardwareError: The device does not support the dtype of the recipe.
    """
    has_bfloat16 = device.type == "xpu" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if base.dtype == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    reason = None
    if base.dtype == "bfloat16" and device.type == "cuda" and not has_bfloat16:
        reason = "this GPU only emulates it"
    elif base.dtype == "float16" and device.type == "cpu":
        reason = "on a CPU its gradients overflow and underflow, and it is slow"
    if reason is not None:
        raise HardwareError(
            "hardware.unsupported-dtype",
            f"{base.dtype} is not supported: {reason}.",
            location="base.dtype",
            hint="Set it to auto or float32.",
        )
    dtype = getattr(torch, base.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_tokenizer(source: str, revision: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hub id or directory, unchanged.

    Raises:
        ModelError: The tokenizer is missing or cannot be loaded.
    """
    if not (Path(source) / TOKENIZER_CONFIG).is_file():  # an adapter's directory may hold a tokenizer and no config
        _check_model_directory(source)
        if Path(source).is_dir() and not any(any(Path(source).glob(pattern)) for pattern in TOKENIZER_FILES):
            raise ModelError(
                "model.incomplete",
                "tokenizer: not found in the directory.",
                location=source,
                hint="Copy the model's tokenizer.json and tokenizer_config.json into it.",
            )
    with _convert_load_errors(source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def read_model_sizes(source: str, revision: str) -> ModelSizes:
    """Return the sizes in the config of the model at `source`, without loading weights.

    Raises:
        ModelError: The config is missing or cannot be loaded.
    """
    _check_model_directory(source)
    config = _load_config(source, revision).get_text_config()
    positions = next(filter(None, (getattr(config, name, None) for name in POSITION_KEYS)), None)
    values = (positions, getattr(config, "vocab_size", None), getattr(config, "hidden_size", None))
    positions, embeddings, hidden = (value if isinstance(value, int) and value > 0 else None for value in values)
    return ModelSizes(positions, embeddings, hidden, rope_switch=_rope_switch(config))


def _rope_switch(config: Any) -> int | None:
    """Return the number of tokens beyond which a model takes other rope factors for all rows of a batch, or None."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)


def load_causal_lm(base: Base, source: str, *, smoke: bool = False, sharded: bool = False) -> PreTrainedModel:
    """Load the language model at `source` onto this process's device, in eval mode.

    Args:
        base: Gives the revision, dtype, attention kernel and quantization.
        source: A Hub id or a directory.
        smoke: Load random weights of the same architecture with 2 layers and small width, the same ones every time.
        sharded: Freeze the model and shard its layers over all processes (see `models.fsdp`).

    Raises:
        ModelError: The model is missing, damaged or not supported.
        HardwareError: The machine cannot load the model with these settings.
    """
    return _load(AutoModelForCausalLM, base, source, smoke=smoke, sharded=sharded)


def load_scorer(base: Base, source: str, *, smoke: bool = False, sharded: bool = False) -> PreTrainedModel:
    """Load the model at `source` with a head that returns one score. The head is new if `source` has none.

    The caller sets `model.config.pad_token_id`: without it, transformers refuses batches. Arguments and errors are
    those of `load_causal_lm`.
    """
    return _load(AutoModelForSequenceClassification, base, source, smoke=smoke, sharded=sharded)


def check_quantization(base: Base, source: str) -> None:
    """Check that layers of the language model at `source` can be quantized. Its weights are not read.

    No-op if the recipe does not quantize, or if the model cannot be built, for which loading raises the real error.

    Raises:
        ModelError: No layer can be quantized, or the config is missing or cannot be loaded.
    """
    if base.quantize == "none":
        return
    silence_library_logging()
    _check_model_directory(source)
    config = _load_config(source, base.revision)
    try:
        with _errors_only():
            model = quantization.build_quantized_meta_model(base, config)
    except Exception:  # an architecture may fail in any way
        return
    quantization.check_quantized(model)


def load_reward_model_config(source: str, revision: str) -> PreTrainedConfig:
    """Load the config of a third-party reward model.

    Raises:
        ModelError: The model is missing, or it is not a whole model with one label.
    """
    if is_adapter(Path(source)) and not (Path(source) / "config.json").is_file():
        raise ModelError(
            "model.wrong-kind",
            "found an adapter, expected a full reward model.",
            location=source,
            hint="Use `run` for a reward run on the recipe's base model; merge any other adapter into its base model.",
        )
    _check_model_directory(source)
    config = _load_config(source, revision)
    if config.num_labels != 1:
        name = ", ".join(config.architectures or [config.model_type])
        raise ModelError(
            "model.not-a-reward-model",
            f"{name}: a reward model has one label; found {config.num_labels} labels, expected 1.",
            location=source,
            hint="Use a sequence classifier that was trained as a reward model.",
        )
    return config


def load_reward_model(base: Base, source: str, *, smoke: bool = False) -> PreTrainedModel:
    """Load a third-party reward model with its head. Arguments and errors are those of `load_causal_lm`."""
    return _load(AutoModelForSequenceClassification, base, source, smoke=smoke, has_head=True)


def _load(
    model_class: Any,
    base: Base,
    source: str,
    *,
    smoke: bool,
    has_head: bool = False,
    sharded: bool = False,
) -> PreTrainedModel:
    """Load a model of `model_class`.

    Args:
        model_class: The transformers Auto class.
        base: Gives the revision, dtype, attention kernel and quantization.
        source: A Hub id or a directory.
        smoke: Load random weights of a tiny model of the same architecture.
        has_head: Whether the stored model is of `model_class` with its head; else it is a causal language model.
        sharded: Shard the layers over all processes.
    """
    silence_library_logging()
    _check_model_directory(source)
    may_lack = () if has_head else NEW_HEADS
    if not smoke:
        return _from_pretrained(model_class, base, source, may_lack, sharded=sharded)
    # The tiny model goes through a directory, so that quantization and all else takes the path of a real load.
    with tempfile.TemporaryDirectory(prefix="rlhf-smoke-") as folder:
        tiny_class = model_class if has_head else AutoModelForCausalLM
        save_tiny_model(tiny_class, _load_config(source, base.revision), folder, source=source)
        model = _from_pretrained(model_class, base, folder, may_lack, sharded=sharded)
    # PEFT writes this name into adapter_config.json; the temporary directory no longer exists then.
    model.name_or_path = model.config.name_or_path = source
    return model


def _from_pretrained(
    model_class: Any, base: Base, source: str, may_lack: Sequence[str], *, sharded: bool
) -> PreTrainedModel:
    """Load stored weights. Tensors in `may_lack` may be missing and are then new."""
    device = default_device()
    dtype = compute_dtype(base, device)
    kwargs: dict[str, Any] = {}
    if model_class is AutoModelForSequenceClassification:
        kwargs["config"] = scorers.prepare_config(_load_config(source, base.revision), new_head=bool(may_lack))
    if base.attention != "auto":
        kwargs["attn_implementation"] = base.attention
    if base.quantize != "none":
        kwargs["quantization_config"] = quantization.quantization_config(base, dtype)
    try:
        with _convert_load_errors(source), _errors_only():
            model, info = model_class.from_pretrained(
                source,
                revision=base.revision,
                dtype=dtype,
                device_map={"": "cpu" if sharded else device},  # a sharded base may not fit on one device
                use_safetensors=True,
                trust_remote_code=False,  # None would ask at a terminal
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # checked below: the exception of transformers names no tensor
                **kwargs,
            )
    except (ImportError, torch.OutOfMemoryError) as error:
        is_full = isinstance(error, torch.OutOfMemoryError)
        raise HardwareError(
            "hardware.out-of-memory" if is_full else "hardware.missing-kernel",
            f"{source} cannot be loaded with quantize: {base.quantize} and attention: {base.attention}: "
            f"{format_exception(error).rstrip('.')}.",
            location="base",
            hint="Set `base.quantize: none` or `base.attention: auto`, or use a smaller model.",
        ) from error
    _check_tensors(type(model).__name__, info, source, may_lack)
    if sharded:
        fsdp.shard(model, device)
    if base.quantize != "none":
        quantization.warn_of_unquantized(base, quantization.check_quantized(model))
    if base.quantize == "nf4" and device.type == "cpu":
        quantization.use_exact_kernels(model)
    return model


def _check_tensors(class_name: str, info: dict[str, Any], source: str, may_lack: Sequence[str]) -> None:
    """Raise ModelError if stored tensors are missing or misshapen; transformers would leave random weights there."""
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            "model.shape-mismatch",
            f"weights: tensors do not have the shapes given in config.json, such as {name} ({len(mismatched)} in "
            f"total); found {tuple(stored)}, expected {tuple(expected)}.",
            location=source,
            hint="Download the model again: its config.json and its weights belong to different models.",
        )
    missing = sorted(set(info["missing_keys"]) - set(may_lack))
    if missing:
        raise ModelError(
            "model.incomplete",
            f"weights: tensors of a {class_name} are missing, such as {missing[0]} ({len(missing)} in total).",
            location=source,
            hint="Check that the download is complete and that the model is of this type.",
        )


def _load_config(source: str, revision: str) -> PreTrainedConfig:
    """Load the config of the model at `source`. Raises ModelError if this fails."""
    with _convert_load_errors(source):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)


def _check_model_directory(source: str) -> None:
    """Raise ModelError for an invalid model directory; otherwise transformers would try the Hub.

    No-op if `source` is a Hub id.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith((".", "~")) or folder.exists():
            raise ModelError(
                "model.not-found", "model directory not found.", location=source, hint="Check `base.model`."
            )
        return
    if not (folder / "config.json").is_file():
        if is_adapter(folder):
            raise ModelError(
                "model.wrong-kind",
                "found an adapter, expected a full model.",
                location=source,
                hint="Set `base.model` to the model that it adapts, and the stage's `start` to the adapter.",
            )
        raise ModelError(
            "model.incomplete",
            "config.json not found in the directory.",
            location=source,
            hint="Use the directory of a transformers model.",
        )
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            "model.pickled-weights",
            "weights: pickles can run code when they are loaded; "
            f"found only pickles ({pickles[0]}), expected *.safetensors.",
            location=source,
            hint="Use a version with *.safetensors, or convert the weights in an environment that you trust.",
        )


@contextmanager
def _errors_only() -> Iterator[None]:
    """Hide transformers' table of new and missing tensors, which `_check_tensors` replaces by exceptions."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@contextmanager
def _convert_load_errors(source: str) -> Iterator[None]:
    """Convert exceptions of transformers about a missing, damaged or unknown model to a ModelError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if Path(source).is_dir():
            hint = "Use a complete transformers model directory with *.safetensors weights."
        else:
            hint = (
                f"Check the id and its revision. Run `hf auth login` for a gated model, and `hf download {source}` to "
                "work offline."
            )
        message = f"the model cannot be loaded: {format_exception(error).rstrip('.')}."
        raise ModelError("model.load-failed", message, location=source, hint=hint) from error
