"""Loads the base model and its tokenizer: device, dtype, attention kernel, quantization, and the tiny smoke copy.

Left out on purpose: remote code and pickled weights (both run a stranger's program), and device maps over several
GPUs (accelerate's launchers do that).
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
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_cli.errors import HardwareError, ModelError
from rlhf_cli.models import fsdp
from rlhf_cli.recipe.schema import Base

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
NEW_HEADS = ("score.weight",)  # what a scorer may lack when it starts from a causal model


class Sizes(NamedTuple):
    """What a model's config says of its tables; None where there is no such bound, or it does not say."""

    positions: int | None  # tokens of a row
    embeddings: int | None  # token ids
    hidden: int | None  # width of a hidden state


def silence_library_logging() -> None:
    """Silence what a user cannot act on: progress bars of loading, and notes of the libraries to one another.

    Call it before peft or trl is imported: bitsandbytes logs about an optional kernel as it is imported.
    """
    transformers.utils.logging.disable_progress_bar()
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def default_device() -> torch.device:
    """The accelerator of this process (by LOCAL_RANK, as accelerate and torchrun set it), else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    if accelerator.type == "mps":  # has one device, and no index
        return accelerator
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def compute_dtype(base: Base, device: torch.device) -> torch.dtype:
    """The dtype of weights and computation; auto is bfloat16 on a GPU that has it, else float32.

    Raises:
        HardwareError: the device has not the one that is asked for.
    """
    has_bfloat16 = device.type == "xpu" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if base.dtype == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    lacks = base.dtype == "bfloat16" and device.type == "cuda" and not has_bfloat16
    if lacks or (base.dtype == "float16" and device.type == "cpu"):
        reason = "this GPU emulates it" if lacks else "on a CPU its gradients under- and overflow, and it is slow"
        raise HardwareError(f"{base.dtype}: {reason}.", location="base.dtype", hint="Set auto, or float32.")
    dtype = getattr(torch, base.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_tokenizer(source: str, revision: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, as it is stored. Raises ModelError where there is none."""
    if not (Path(source) / TOKENIZER_CONFIG).is_file():  # an adapter's folder may have one, and no config of a model
        _check_folder(source)
        if Path(source).is_dir() and not any(any(Path(source).glob(pattern)) for pattern in TOKENIZER_FILES):
            hint = "Copy the model's tokenizer.json and tokenizer_config.json into it."
            raise ModelError("this folder holds no tokenizer", location=source, hint=hint)
    with _told(source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def sizes(source: str, revision: str) -> Sizes:
    """How long and how rich in tokens the rows of the model at `source` may be."""
    _check_folder(source)
    with _told(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False).get_text_config()
    names = ("max_position_embeddings", "vocab_size", "hidden_size")
    return Sizes(*(n if isinstance(n := getattr(config, name, None), int) and n > 0 else None for name in names))


def load_causal_lm(base: Base, source: str, *, smoke: bool = False, sharded: bool = False) -> PreTrainedModel:
    """The language model at `source` on this process's device, quantized as asked, in eval mode.

    `smoke` loads random weights of the same architecture at 2 layers and small width, the same ones every time.
    `is_split`: frozen, its layers over all processes (see `models.splitting`).
    """
    return _load(AutoModelForCausalLM, base, source, smoke=smoke, sharded=sharded)


def load_scorer(base: Base, source: str, *, smoke: bool = False, sharded: bool = False) -> PreTrainedModel:
    """The model at `source` with a head that gives one score; the head is new where `source` has none.

    The caller sets `model.config.pad_token_id`: without it transformers refuses batches.
    """
    return _load(AutoModelForSequenceClassification, base, source, smoke=smoke, sharded=sharded, num_labels=1)


def reward_model_config(source: str, revision: str) -> PreTrainedConfig:
    """The config of somebody's whole reward model. Raises ModelError where it is no scorer of one label."""
    if (Path(source) / ADAPTER_CONFIG).is_file() and not (Path(source) / "config.json").is_file():
        hint = "A reward run on the recipe's base goes under `run`; merge another one into its model."
        raise ModelError("this is an adapter, not a whole reward model.", location=source, hint=hint)
    _check_folder(source)
    with _told(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if config.num_labels != 1:
        name = ", ".join(config.architectures or [config.model_type])
        found = f"{name} with {config.num_labels} labels; a reward model gives one score (num_labels: 1)."
        raise ModelError(found, location=source, hint="Name a sequence classifier that was trained as a reward model.")
    return config


def load_reward_model(base: Base, source: str, *, smoke: bool = False) -> PreTrainedModel:
    """Somebody's whole reward model at `source`, head included; `smoke` as in `load_causal_lm`.

    `base`: its revision, dtype, attention and quantization.
    """
    return _load(AutoModelForSequenceClassification, base, source, smoke=smoke, whole=True)


def _load(
    model_class: Any,
    base: Base,
    source: str,
    *,
    smoke: bool,
    whole: bool = False,
    sharded: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """`whole`: the stored model is of this very class, and has its head; else it is a causal language model."""
    silence_library_logging()
    _check_folder(source)
    new = () if whole else NEW_HEADS
    if not smoke:
        return _from_pretrained(model_class, base, source, new, sharded, **kwargs)
    # Through a folder, so that quantization and everything else takes the very path of a real load.
    with tempfile.TemporaryDirectory(prefix="rlhf-smoke-") as folder:
        _save_tiny(model_class if whole else AutoModelForCausalLM, source, base.revision, folder)
        model = _from_pretrained(model_class, base, folder, new, sharded, **kwargs)
    # PEFT writes this name into adapter_config.json; the temporary folder is gone by then.
    model.name_or_path = model.config.name_or_path = source
    return model


def _from_pretrained(
    model_class: Any, base: Base, source: str, new: Sequence[str], sharded: bool, **kwargs: Any
) -> PreTrainedModel:
    """`new`: tensors that the weights may lack."""
    device = default_device()
    dtype = compute_dtype(base, device)
    if base.attention != "auto":
        kwargs["attn_implementation"] = base.attention
    if base.quantize != "none":
        kwargs["quantization_config"] = _quantization(base, dtype)
    try:
        with _told(source), _errors_only():
            model, info = model_class.from_pretrained(
                source,
                revision=base.revision,
                dtype=dtype,
                device_map={"": "cpu" if sharded else device},  # no device holds a base whole that is split
                use_safetensors=True,
                trust_remote_code=False,  # None would ask at a terminal
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below: transformers logs them, and raises without a name
                **kwargs,
            )
    except (ImportError, torch.OutOfMemoryError) as error:  # an absent kernel or too small a device
        raise HardwareError(
            f"this machine cannot load {source} with quantize: {base.quantize}, attention: {base.attention}: "
            f"{_first_line(error)}",
            location="base",
            hint="Set `base.quantize: none` or `base.attention: auto`, or take a smaller model.",
        ) from error
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        message = f"{len(mismatched)} tensors have another shape than config.json gives them, such as {name}: "
        raise ModelError(
            f"{message}{tuple(stored)}, and not {tuple(expected)}",
            location=source,
            hint="Its config.json and its weights are not of one model: fetch it again.",
        )
    missing = sorted(set(info["missing_keys"]) - set(new))
    if missing:  # transformers would go on with random weights there
        raise ModelError(
            f"the weights lack {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}",
            location=source,
            hint="Check that the download is complete, and that it is such a model.",
        )
    if sharded:
        fsdp.split(model, device)
    if base.quantize == "nf4" and device.type == "cpu":
        _use_exact_kernels(model)
    return model


def _quantization(base: Base, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The output head and a score head stay unquantized: transformers leaves both out of its own accord."""
    if base.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def _use_exact_kernels(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking the weights for its bfloat16 CPU kernel.

    It does so for good at the first forward pass in eval mode without gradients, such as a rollout. That kernel has
    no backward pass: every gradient through the layer is lost from then on, with no more than a warning (measured:
    LoRA gradients off by 100 % of their norm), and it takes widths that are multiples of 32 alone. The plain path
    dequantizes and multiplies: exact, differentiable, any width, about 1.5 to 4 times slower in batches.
    """
    from bitsandbytes.nn import Linear4bit  # here, for its import costs 2 s

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _save_tiny(model_class: Any, source: str, revision: str, folder: str) -> None:
    """Write random weights of the shrunk architecture of `source` to `folder`, the same ones at every call."""
    with _told(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    _shrink(config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"the architecture {config.model_type} cannot be made tiny for --smoke: {_first_line(error)}",
            location=source,
            hint="Smoke with another model of the same family: `--set base.model=…`, or that of ppo.reward.",
        ) from error
    model.save_pretrained(folder)


def _shrink(config: Any) -> None:
    """Make a config tiny in place: 2 layers, width 64, everything that hangs on these along with them."""
    text = config.get_text_config()
    one_head_group = getattr(text, "num_key_value_heads", None) == 1
    grouped = getattr(text, "num_key_value_heads", None) not in (None, getattr(text, "num_attention_heads", None))
    sizes: dict[str, object] = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 1 if one_head_group else 2 if grouped else 4,
        "head_dim": 16,
        "intermediate_size": 128,
        "moe_intermediate_size": 128,
        "ffn_dim": 128,
        "word_embed_proj_dim": 64,
        "pooler_hidden_size": 64,
    }
    if kinds := getattr(text, "layer_types", None):  # one layer of each of two kinds, where there are two
        sizes["layer_types"] = (list(dict.fromkeys(kinds)) * 2)[:2]
    for name, size in sizes.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, size)


def _check_folder(source: str) -> None:
    """Say plainly what is wrong with a folder; transformers would ask the hub for it instead."""
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or source.startswith((".", "~")) or folder.exists():
            raise ModelError("there is no model folder here", location=source, hint="Check `base.model`.")
        return  # a hub id
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(
                "this is an adapter, not a whole model",
                location=source,
                hint="Name the model that it adapts as `base.model`, and the adapter as the stage's `start`.",
            )
        raise ModelError("this folder holds no config.json", location=source, hint="Name a transformers model folder.")
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        message = f"the weights are pickles alone ({pickles[0]}), which run a stranger's program as they are loaded"
        hint = "Take a version with *.safetensors, or convert them where you trust them."
        raise ModelError(message, location=source, hint=hint)


@contextmanager
def _errors_only() -> Iterator[None]:
    """Without transformers' table of new and missing tensors: what is wrong with them is raised instead."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Turn what transformers raises about a model that is absent, damaged or unknown into a ModelError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if Path(source).is_dir():
            hint = "It has to be a complete transformers folder with *.safetensors weights."
        else:
            hint = f"Check the id and its revision; `hf auth login` for a gated model; offline: `hf download {source}`."
        raise ModelError(f"cannot be loaded: {_first_line(error)}", location=source, hint=hint) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
