"""What this machine can do, tried rather than believed: packages, devices, kernels, disk, hub.

Nothing here raises: whatever a broken installation throws becomes a finding.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from rlhf_cli import __version__
from rlhf_cli.runs.disk import size

if TYPE_CHECKING:
    import torch

PACKAGES = {  # what is asked of each, so that it is really imported; transformers, peft and trl do it late
    "torch": (),
    "transformers": ("AutoModelForCausalLM",),
    "accelerate": ("Accelerator",),
    "datasets": ("Dataset",),
    "bitsandbytes": ("nn",),
    "peft": ("LoraConfig",),
    "trl": ("SFTTrainer", "RewardTrainer"),
}
OPTIONAL = ("bitsandbytes",)  # without it `quantize: none` works
WIDTH, ROWS = 64, 8  # of the layer that is tried: a whole block of either quantization
# Relative error (root of the mean square) of normally distributed weights, measured: nf4 9.2 %, int8 0.6 %; the
# product with 64 of them has the same. bfloat16 has 8 bits: 0.4 % at most for one rounding.
TOLERANCE = {"nf4": 0.15, "int8": 0.02, "bfloat16": 0.02}
LEAST = 2e9  # bytes, under which a base hardly fits
HUB_TIMEOUT = 4.0  # seconds

State = Literal["ok", "missing", "wrong"]


class CheckResult(NamedTuple):
    """One thing that was looked at. `missing`: not there, and what it would be for can be done without."""

    part: str
    name: str
    state: State
    found: str
    hint: str = ""
    needed: bool = False  # the tool cannot work where this is not ok


def findings(runs_dir: Path) -> Iterator[CheckResult]:
    """Each finding as soon as it is made."""
    parts: dict[str, Callable[[], Iterator[CheckResult]]] = {
        "packages": _packages,
        "devices": _devices,
        "kernels": _kernels,
        "disk": lambda: _disk(runs_dir),
        "hub": _hub,
    }
    for part, look in parts.items():
        try:
            yield from look()
        except Exception as error:  # a broken library raises anything, and the rest is still worth knowing
            yield CheckResult(part, part, "wrong", f"cannot be looked at: {_told(error)}", "Mend the packages first.")


def _packages() -> Iterator[CheckResult]:
    yield CheckResult("packages", "rlhf", "ok", f"{__version__}, on Python {platform.python_version()}")
    asked = _requirements()
    for name, attributes in PACKAGES.items():
        requirement = asked.get(name)
        needed = name not in OPTIONAL
        install = f'pip install "{requirement or name}"'
        hint = f"`{install}`" + ("." if needed else ", or leave `base.quantize` at none.")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield CheckResult("packages", name, "missing", "not installed", hint, needed)
            continue
        if requirement is not None and not requirement.specifier.contains(version, prereleases=True):
            yield CheckResult("packages", name, "wrong", f"{version}, expected {requirement.specifier}", hint, needed)
            continue
        try:
            _import(name, attributes)
        except Exception as error:  # of a shared library, of a package below it, of anything at its top
            hint = hint.replace("pip install", "pip install --force-reinstall", 1)
            yield CheckResult("packages", name, "wrong", f"{version}, but it fails: {_told(error)}", hint, needed)
        else:
            yield CheckResult("packages", name, "ok", version, needed=needed)


def _requirements() -> dict[str, Any]:
    """What this package asks of others, by name; nothing where it is not installed but lies on the path."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires("rlhf") or []]
    except metadata.PackageNotFoundError:
        return {}
    return {requirement.name: requirement for requirement in asked if requirement.marker is None}


def _import(name: str, attributes: tuple[str, ...]) -> None:
    module = importlib.import_module(name)
    if name == "transformers":
        from rlhf_cli.models.loading import silence_library_logging

        silence_library_logging()  # before bitsandbytes is imported, which logs
    for attribute in attributes:
        getattr(module, attribute)


def _devices() -> Iterator[CheckResult]:
    import torch

    from rlhf_cli.models.footprint import capacity
    from rlhf_cli.models.loading import compute_dtype
    from rlhf_cli.recipe.schema import Base

    right = bool((torch.ones(3, 3) @ torch.ones(3, 3) == 3).all())
    memory = size(capacity(torch.device("cpu")))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{platform.machine()}, {memory}, cores: {cores}, threads in use: {torch.get_num_threads()}"
    yield CheckResult("devices", "cpu", "ok" if right else "wrong", text, "" if right else "Install torch again.", True)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        yield _no_accelerator(torch.version.cuda)
        return
    for index in range(torch.accelerator.device_count()):
        device = torch.device(accelerator.type, index)
        name, memory = device.type, "shares the memory of the CPU"
        if device.type in ("cuda", "xpu"):
            backend = getattr(torch, device.type)
            name, free = backend.get_device_name(device), backend.mem_get_info(device)[0]
            memory = f"{size(capacity(device))}, {size(free)} free"
        dtype = str(compute_dtype(Base(model="any"), device)).removeprefix("torch.")
        yield CheckResult("devices", str(device), "ok", f"{name}, {memory}; `dtype: auto` is {dtype}")


def _no_accelerator(built_for: str | None) -> CheckResult:
    """A driver without a torch that uses it is a issue; neither is but a slow machine."""
    if shutil.which("nvidia-smi") is None:
        return CheckResult("devices", "gpu", "missing", "none: stages run on the CPU", "Take a small base.")
    why = f"torch is built for CUDA {built_for} and finds no GPU" if built_for else "this torch is built without CUDA"
    hint = "Install the torch that fits your driver: see pytorch.org; `nvidia-smi` tells the driver."
    return CheckResult("devices", "gpu", "wrong", f"there is an NVIDIA driver, but {why}", hint)


def _kernels() -> Iterator[CheckResult]:
    import torch

    from rlhf_cli.models.loading import compute_dtype, default_device
    from rlhf_cli.recipe.schema import Base

    device = default_device()
    dtype = compute_dtype(Base(model="any"), device)
    made: dict[str, Callable[[torch.Tensor], torch.nn.Module]] = {
        "nf4": lambda weight: _nf4(weight.to(dtype)),
        "int8": lambda weight: _int8(weight.to(dtype)),
        "bfloat16": lambda weight: _linear(weight.bfloat16()),
    }
    for kind, layer in made.items():
        instead = "base.dtype: float32" if kind == "bfloat16" else "base.quantize: none"
        hint = f"Use `{instead}` here, or a release of {'torch' if kind == 'bfloat16' else 'bitsandbytes'} that has it."
        try:
            error = _error(layer, device, torch.bfloat16 if kind == "bfloat16" else dtype)
        except Exception as failure:  # what a kernel raises that is not there, is anything
            yield CheckResult("kernels", kind, "wrong", f"fails on {device}: {_told(failure)}", hint)
            continue
        text = f"forward and backward on {device}: within {100 * error:.1f} % of float32"
        right = error < TOLERANCE[kind]  # also False where it is NaN
        expected = "" if right else f", expected {100 * TOLERANCE[kind]:.0f} % at most"
        yield CheckResult("kernels", kind, "ok" if right else "wrong", text + expected, "" if right else hint)


def _error(layer: Callable[[torch.Tensor], torch.nn.Module], device: torch.device, dtype: torch.dtype) -> float:
    """The larger relative error of a layer's output and of its input's gradient, beside the product in float32."""
    import torch

    draw = torch.Generator().manual_seed(0)
    weight, given, above = (torch.randn(rows, WIDTH, generator=draw) for rows in (WIDTH, ROWS, ROWS))
    input = given.to(device, dtype, copy=True).requires_grad_()
    output = layer(weight).to(device)(input)
    output.backward(above.to(device, output.dtype))
    assert input.grad is not None
    pairs = ((output.detach(), given @ weight.T), (input.grad, above @ weight))
    return max(float((found.float().cpu() - true).norm() / true.norm()) for found, true in pairs)


def _linear(weight: torch.Tensor) -> torch.nn.Module:
    from torch import nn

    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _nf4(weight: torch.Tensor) -> torch.nn.Module:
    """As models/base.py asks for it; quantized when it moves to its device."""
    from bitsandbytes import nn

    layer = nn.Linear4bit(WIDTH, WIDTH, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
    layer.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    layer.support_avx512bf16_for_cpu = False
    return layer


def _int8(weight: torch.Tensor) -> torch.nn.Module:
    from bitsandbytes import nn

    layer = nn.Linear8bitLt(WIDTH, WIDTH, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer


def _disk(runs_dir: Path) -> Iterator[CheckResult]:
    from huggingface_hub import constants

    yield _room("runs folder", runs_dir, "Choose another one with --runs-dir or RLHF_RUNS.", needed=True)
    yield _room("hub cache", Path(constants.HF_HUB_CACHE), "Set HF_HOME to another folder.", needed=False)


def _room(name: str, folder: Path, hint: str, *, needed: bool) -> CheckResult:
    """Whether `folder`, or the one in which it will be made, can be written to, and what is free there."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return CheckResult("disk", name, "wrong", f"{folder} cannot be written to", hint, needed)
    free = shutil.disk_usage(there).free
    text = f"{folder}: {size(free)} free"
    if free < LEAST:
        return CheckResult("disk", name, "wrong", text, f"Free space. {hint}")
    return CheckResult("disk", name, "ok", text)


def _hub() -> Iterator[CheckResult]:
    from huggingface_hub import constants

    yield _reached(constants.ENDPOINT, offline=constants.HF_HUB_OFFLINE)
    yield from _cached()
    if os.environ.get("HF_TOKEN"):
        yield CheckResult("hub", "token", "ok", "HF_TOKEN is set")
    elif Path(constants.HF_TOKEN_PATH).is_file():
        yield CheckResult("hub", "token", "ok", "logged in by `hf auth login`")
    else:
        hint = "For gated and private models: set HF_TOKEN, or `hf auth login`."
        yield CheckResult("hub", "token", "missing", "HF_TOKEN is not set", hint)


def _reached(endpoint: str, *, offline: bool) -> CheckResult:
    from huggingface_hub import get_session

    parts = urlsplit(endpoint)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no user, no password
    if offline:
        return CheckResult(
            "hub", "reach", "ok", "HF_HUB_OFFLINE is set: models and data of the hub come from the cache"
        )
    since = time.monotonic()
    try:
        status = get_session().get(f"{endpoint}/api/models?limit=1", timeout=HUB_TIMEOUT).status_code
    except Exception as error:  # what the transports raise shares no public class
        why = f"{shown} cannot be reached ({type(error).__name__})"
    else:
        if status < 400:
            return CheckResult("hub", "reach", "ok", f"{shown} answers in {time.monotonic() - since:.1f} s")
        why = f"{shown} answers {status}"
    hint = "Check the network, or HF_ENDPOINT for a mirror; HF_HUB_OFFLINE=1 saves the waiting."
    return CheckResult("hub", "reach", "missing", f"{why}: only what is cached, and folders, can be used", hint)


def _cached() -> Iterator[CheckResult]:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        yield CheckResult("hub", "cached models", "missing", "none", "The first stage that needs one downloads it.")
        return
    models = sorted((repo for repo in cache.repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
    text = ", ".join(f"{repo.repo_id} ({size(repo.size_on_disk)})" for repo in models)
    state: State = "ok" if models else "missing"
    hint = "" if models else "The first stage that needs one downloads it."
    yield CheckResult("hub", "cached models", state, text or "none", hint)
    for damage in cache.warnings:
        yield CheckResult("hub", "cache", "wrong", _told(damage), "Remove that folder; it is downloaded again.")


def _told(error: BaseException) -> str:
    """Kind and first line."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
