"""The checks of `rlhf doctor`: packages, devices, kernels, disk and Hub.

No check raises: whatever a broken installation raises becomes a failed check.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from rlhf_cli import __version__
from rlhf_cli.formatting import format_bytes, format_count, format_exception

if TYPE_CHECKING:
    import torch

PACKAGES: Mapping[str, tuple[str, ...]] = {  # attributes to read: transformers, peft and trl import lazily
    "torch": (),
    "transformers": ("AutoModelForCausalLM",),
    "accelerate": ("Accelerator",),
    "datasets": ("Dataset",),
    "bitsandbytes": ("nn",),
    "peft": ("LoraConfig",),
    "trl": ("SFTTrainer", "RewardTrainer"),
}
OPTIONAL_PACKAGES = ("bitsandbytes",)  # `quantize: none` works without it
WIDTH, ROWS = 64, 8  # of the layer that tests a kernel; 64 weights are one block of either quantization
# Largest accepted relative error (root of the mean square). Measured for normally distributed weights: nf4 9.2%, int8
# 0.6%, and the same for a product of 64 of them. One rounding to the 8 bits of bfloat16 is at most 0.4%.
TOLERANCES = {"nf4": 0.15, "int8": 0.02, "bfloat16": 0.02}
MIN_FREE_BYTES = 2e9  # less hardly holds a base model
HUB_TIMEOUT = 4.0  # seconds

State = Literal["ok", "missing", "fail"]
LayerFactory = Callable[["torch.Tensor"], "torch.nn.Module"]  # from a weight matrix (WIDTH, WIDTH)


class CheckResult(NamedTuple):
    """The result of one check.

    Attributes:
        group: The key of the check in CHECKS.
        name: What was checked.
        state: `missing` means not available, but most recipes work without it.
        found: What was found, in one line.
        hint: How to fix it; empty if the state is `ok`.
        required: Whether rlhf cannot work unless the state is `ok`.
    """

    group: str
    name: str
    state: State
    found: str
    hint: str = ""
    required: bool = False


def run_checks(runs_dir: Path) -> Iterator[CheckResult]:
    """Run every check of CHECKS and yield each result as soon as it is known."""
    for group, check in CHECKS.items():
        try:
            yield from check(runs_dir)
        except Exception as error:  # a broken library raises anything; the other checks are still worth running
            found = f"check failed: {format_exception(error)}"
            yield CheckResult(group, group, "fail", found, "Fix the packages first.")


def check_packages() -> Iterator[CheckResult]:
    """Check that every package has a supported version and can be imported."""
    yield CheckResult("packages", "rlhf", "ok", f"{__version__}, on Python {platform.python_version()}")
    requirements = _requirements()
    for name, attributes in PACKAGES.items():
        yield _check_package(name, attributes, requirements.get(name))


def _check_package(name: str, attributes: tuple[str, ...], requirement: Any) -> CheckResult:
    required = name not in OPTIONAL_PACKAGES
    otherwise = "" if required else ", or set `base.quantize: none`"
    install = f'pip install "{requirement or name}"'
    hint = f"Run `{install}`{otherwise}."
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return CheckResult("packages", name, "missing", "not installed", hint, required)
    if requirement is not None and not requirement.specifier.contains(version, prereleases=True):
        return CheckResult("packages", name, "fail", f"{version}, expected {requirement.specifier}", hint, required)
    try:
        _import_package(name, attributes)
    except Exception as error:  # a missing shared library or dependency may raise anything
        found = f"{version}, but the import fails: {format_exception(error)}"
        hint = hint.replace("pip install", "pip install --force-reinstall", 1)
        return CheckResult("packages", name, "fail", found, hint, required)
    return CheckResult("packages", name, "ok", version, required=required)


def _requirements() -> dict[str, Any]:
    """Return the requirements of this package by name; empty if it is on the path without being installed."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("rlhf") or []]
    except metadata.PackageNotFoundError:
        return {}
    return {requirement.name: requirement for requirement in requirements if requirement.marker is None}


def _import_package(name: str, attributes: tuple[str, ...]) -> None:
    module = importlib.import_module(name)
    if name == "transformers":
        from rlhf_cli.models.loading import silence_library_logging

        silence_library_logging()  # before bitsandbytes is imported, which logs
    for attribute in attributes:
        getattr(module, attribute)


def check_devices() -> Iterator[CheckResult]:
    """Check the CPU and every accelerator."""
    import torch

    from rlhf_cli.models.device_memory import memory_capacity
    from rlhf_cli.models.loading import compute_dtype
    from rlhf_cli.recipe.schema import Base

    multiplies = bool((torch.ones(3, 3) @ torch.ones(3, 3) == 3).all())
    memory = format_bytes(memory_capacity(torch.device("cpu")))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = format_count(count, "core")
    found = f"{platform.machine()}, {memory}, {cores}, {format_count(torch.get_num_threads(), 'thread')} used"
    hint = "" if multiplies else "Reinstall torch."
    yield CheckResult("devices", "cpu", "ok" if multiplies else "fail", found, hint, required=True)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        yield explain_missing_gpu(torch.version.cuda)
        return
    for index in range(torch.accelerator.device_count()):
        device = torch.device(accelerator.type, index)
        dtype = str(compute_dtype(Base(model="any"), device)).removeprefix("torch.")
        yield CheckResult("devices", str(device), "ok", f"{_describe_device(device)}; `dtype: auto` means {dtype}")


def _describe_device(device: torch.device) -> str:
    import torch

    from rlhf_cli.models.device_memory import memory_capacity

    if device.type not in ("cuda", "xpu"):
        return f"{device.type}, shares the memory of the CPU"
    backend = getattr(torch, device.type)
    free = backend.mem_get_info(device)[0]
    return f"{backend.get_device_name(device)}, {format_bytes(memory_capacity(device))}, {format_bytes(free)} free"


def explain_missing_gpu(cuda_version: str | None) -> CheckResult:
    """Return a failed check if there is an NVIDIA driver that torch cannot use, or else a missing GPU.

    Args:
        cuda_version: The CUDA version that torch is built for, or None.
    """
    if shutil.which("nvidia-smi") is None:
        return CheckResult("devices", "gpu", "missing", "none; stages run on the CPU", "Use a small base model.")
    reason = f"torch, built for CUDA {cuda_version}, finds no GPU" if cuda_version else "torch is built without CUDA"
    hint = "Install the torch build that matches your driver version (`nvidia-smi`); see pytorch.org."
    return CheckResult("devices", "gpu", "fail", f"NVIDIA driver found, but {reason}", hint)


def check_kernels(layers: Mapping[str, LayerFactory] | None = None) -> Iterator[CheckResult]:
    """Run a small layer of each kind forward and backward on the default device, and compare it with float32.

    Args:
        layers: A function per kernel that builds the layer from a weight; default `kernel_layers()`.
    """
    import torch

    from rlhf_cli.models.loading import compute_dtype, default_device
    from rlhf_cli.recipe.schema import Base

    device = default_device()
    dtype = compute_dtype(Base(model="any"), device)
    for kind, layer in (layers or kernel_layers()).items():
        instead = "base.dtype: float32" if kind == "bfloat16" else "base.quantize: none"
        package = "torch" if kind == "bfloat16" else "bitsandbytes"
        hint = f"Set `{instead}`, or install a release of {package} that supports {kind} on {device}."
        try:
            error = _relative_error(layer, device, torch.bfloat16 if kind == "bfloat16" else dtype)
        except Exception as failure:  # a missing kernel may raise anything
            yield CheckResult("kernels", kind, "fail", f"fails on {device}: {format_exception(failure)}", hint)
            continue
        found = f"forward and backward on {device}: error {100 * error:.1f}% compared with float32"
        if error < TOLERANCES[kind]:  # False if it is NaN
            yield CheckResult("kernels", kind, "ok", found)
        else:
            found += f", expected at most {100 * TOLERANCES[kind]:.0f}%"
            yield CheckResult("kernels", kind, "fail", found, hint)


def kernel_layers() -> dict[str, LayerFactory]:
    """Return the functions that build a layer for each kernel from a float32 weight (WIDTH, WIDTH)."""
    from rlhf_cli.models.loading import compute_dtype, default_device
    from rlhf_cli.recipe.schema import Base

    dtype = compute_dtype(Base(model="any"), default_device())
    return {
        "nf4": lambda weight: _nf4_layer(weight.to(dtype)),
        "int8": lambda weight: _int8_layer(weight.to(dtype)),
        "bfloat16": lambda weight: _bfloat16_layer(weight),
    }


def _relative_error(layer: LayerFactory, device: torch.device, dtype: torch.dtype) -> float:
    """Return the larger relative error of a layer's output and of its input's gradient, against float32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    inputs = torch.randn(ROWS, WIDTH, generator=generator)
    grad_output = torch.randn(ROWS, WIDTH, generator=generator)
    given = inputs.to(device, dtype, copy=True).requires_grad_()
    output = layer(weight).to(device)(given)
    output.backward(grad_output.to(device, output.dtype))
    assert given.grad is not None
    pairs = ((output.detach(), inputs @ weight.T), (given.grad, grad_output @ weight))
    return max(float((found.float().cpu() - true).norm() / true.norm()) for found, true in pairs)


def _bfloat16_layer(weight: torch.Tensor) -> torch.nn.Module:
    from torch import nn

    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    return layer


def _nf4_layer(weight: torch.Tensor) -> torch.nn.Module:
    """Return a layer with the options of models/loading.py. It is quantized when it moves to its device."""
    from bitsandbytes import nn

    layer = nn.Linear4bit(WIDTH, WIDTH, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
    layer.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    layer.support_avx512bf16_for_cpu = False
    return layer


def _int8_layer(weight: torch.Tensor) -> torch.nn.Module:
    from bitsandbytes import nn

    layer = nn.Linear8bitLt(WIDTH, WIDTH, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer


def check_disk(runs_dir: Path) -> Iterator[CheckResult]:
    """Check the runs directory and the Hub cache."""
    from huggingface_hub import constants

    yield check_folder("runs directory", runs_dir, "Choose another one with --runs-dir or RLHF_RUNS.", required=True)
    yield check_folder("hub cache", Path(constants.HF_HUB_CACHE), "Set HF_HOME to another directory.", required=False)


def check_folder(name: str, folder: Path, hint: str, *, required: bool) -> CheckResult:
    """Check that `folder`, or the parent in which it will be created, is writable and has free space."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return CheckResult("disk", name, "fail", f"{folder} is not writable", hint, required)
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {format_bytes(free)} free"
    if free < MIN_FREE_BYTES:
        return CheckResult("disk", name, "fail", found, f"Free up space. {hint}")
    return CheckResult("disk", name, "ok", found)


def check_hub() -> Iterator[CheckResult]:
    """Check that the Hub can be reached, which models are cached, and whether a token is set."""
    from huggingface_hub import constants

    yield check_reachable(constants.ENDPOINT, offline=constants.HF_HUB_OFFLINE)
    yield from check_cache()
    if os.environ.get("HF_TOKEN"):
        yield CheckResult("hub", "token", "ok", "HF_TOKEN is set")
    elif Path(constants.HF_TOKEN_PATH).is_file():
        yield CheckResult("hub", "token", "ok", "logged in with `hf auth login`")
    else:
        hint = "For gated and private models, set HF_TOKEN or run `hf auth login`."
        yield CheckResult("hub", "token", "missing", "HF_TOKEN is not set", hint)


def check_reachable(endpoint: str, *, offline: bool) -> CheckResult:
    """Check that the Hub responds at `endpoint`, whose user and password are not shown."""
    from huggingface_hub import get_session

    if offline:
        found = "HF_HUB_OFFLINE is set; models and datasets are read from the cache"
        return CheckResult("hub", "connection", "ok", found)
    parts = urlsplit(endpoint)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    started = time.monotonic()
    try:
        status = get_session().get(f"{endpoint}/api/models?limit=1", timeout=HUB_TIMEOUT).status_code
    except Exception as error:  # the exceptions of the transports have no common public class
        reason = f"{shown} cannot be reached ({type(error).__name__})"
    else:
        if status < 400:
            found = f"{shown} responded in {time.monotonic() - started:.1f} s"
            return CheckResult("hub", "connection", "ok", found)
        reason = f"{shown} responded with status {status}"
    hint = "Check the network, set HF_ENDPOINT to a mirror, or set HF_HUB_OFFLINE=1 to skip the wait."
    found = f"{reason}; only cached models and local directories are available"
    return CheckResult("hub", "connection", "missing", found, hint)


def check_cache() -> Iterator[CheckResult]:
    """List the cached models, and check for damaged entries of the cache."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        yield _cached_models([])
        return
    models = sorted((repo for repo in cache.repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
    yield _cached_models([f"{repo.repo_id} ({format_bytes(repo.size_on_disk)})" for repo in models])
    for warning in cache.warnings:
        hint = "Remove this directory; it will be downloaded again."
        yield CheckResult("hub", "cache", "fail", format_exception(warning), hint)


def _cached_models(models: list[str]) -> CheckResult:
    if not models:
        hint = "The first stage that needs a model downloads it."
        return CheckResult("hub", "cached models", "missing", "none", hint)
    return CheckResult("hub", "cached models", "ok", ", ".join(models))


CHECKS: dict[str, Callable[[Path], Iterator[CheckResult]]] = {  # in the order in which they run
    "packages": lambda _runs_dir: check_packages(),
    "devices": lambda _runs_dir: check_devices(),
    "kernels": lambda _runs_dir: check_kernels(),
    "disk": check_disk,
    "hub": lambda _runs_dir: check_hub(),
}
