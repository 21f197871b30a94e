"""Tests of the memory estimate through the commands: in a dry run, if it does not fit, and if memory ran out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_cli.models import adapters, device_memory
from tests.support.command import Rlhf

Capacity = Callable[[float], None]
PARTS = ("weights", "adapters", "training", "activations", "cache", "logits", "copies", "mapped")


@pytest.fixture
def project(recipe_file: Path, tiny_base: Path) -> Path:
    """Put the recipe on a base with a tokenizer, and write rows of some length. Return its folder."""
    rows = [{"prompt": f"User: {i} ", "completion": "good night. " * 8} for i in range(40)]
    rows = [row | {"chosen": "yes", "rejected": "no"} for row in rows]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file.write_text(recipe_file.read_text().replace("./base", str(tiny_base)))
    return recipe_file.parent


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> Capacity:
    """Return a function that sets the device's memory in bytes. The C library's allocator keeps its settings."""
    monkeypatch.setattr(device_memory, "release_freed_memory", lambda: None)

    def is_set(size: float) -> None:
        monkeypatch.setattr(device_memory, "memory_capacity", lambda _: size)

    return is_set


def estimate(rlhf: Rlhf, stage: str, *words: str) -> dict[str, Any]:
    """Return the memory estimate of a dry run."""
    (preview,) = rlhf(stage, "-r", "r.yaml", *words, "--dry-run", "--json").json["dry_run"]
    found = preview["memory"]
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("project")
def test_estimate_of_sharded_base_has_half_of_it_and_one_whole_layer(rlhf: Rlhf, tiny_base: Path) -> None:
    whole = estimate(rlhf, "sft", "--set", "launch.processes=2")
    sharded = estimate(rlhf, "sft", "--set", "launch.processes=2", "--set", "launch.strategy=fsdp")
    layers = AutoModelForCausalLM.from_pretrained(tiny_base).model.layers
    sizes = [sum(4 * p.numel() for p in layer.parameters()) for layer in layers]
    assert whole["weights"] - sharded["weights"] == pytest.approx(sum(sizes) / 2 - sizes[0], abs=2)


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.usefixtures("project")
def test_dry_run_estimates_peak_from_its_parts(rlhf: Rlhf, stage: str) -> None:
    from_base = ("--set", f"{stage}.start=base")
    found = estimate(rlhf, stage, *from_base)
    assert found["total"] == pytest.approx(sum(found[name] for name in PARTS), abs=len(PARTS))
    assert found["device"] == "cpu"
    assert found["capacity"] > 1e9
    assert found["is_whole"]
    out = rlhf(stage, "-r", "r.yaml", *from_base, "--dry-run").out
    assert re.search(r"  memory +an estimated [\d.]+ MB \(cpu has [\d.,]+ GB\)", out)
    more = estimate(rlhf, stage, *from_base, "--set", f"{stage}.micro_batch_size=32", "--set", f"{stage}.batch_size=32")
    less = estimate(rlhf, stage, *from_base, "--set", f"{stage}.micro_batch_size=2")
    assert more["activations"] == pytest.approx(16 * less["activations"], rel=0.05)


def test_stage_that_does_not_fit_exits_5_before_weights_are_loaded_and_names_the_largest_batch_that_does(
    rlhf: Rlhf, project: Path, capacity: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = estimate(rlhf, "sft", "--set", "sft.micro_batch_size=8")["total"]
    capacity(0.6 * total)
    monkeypatch.setattr(adapters, "load_policy", None)  # calling it would raise TypeError
    result = rlhf("sft", "-r", "r.yaml", "--set", "sft.micro_batch_size=8", "--json")
    assert (result.code, result.issue["code"]) == (5, "hardware.not-enough-memory")
    suggested = re.search(r"sft\.micro_batch_size: (\d)", result.issue["hint"])
    assert suggested is not None
    monkeypatch.undo()
    capacity(0.6 * total)
    monkeypatch.chdir(project)
    assert rlhf("sft", "-r", "r.yaml", "--set", f"sft.micro_batch_size={suggested[1]}").code == 0
    larger = next(n for n in (2, 4, 8) if n > int(suggested[1]))  # the divisors of the batch size
    assert rlhf("sft", "-r", "r.yaml", "--set", f"sft.micro_batch_size={larger}").code == 5


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        ((), "Set base.quantize: nf4."),
        (("--set", "adapter=null"), "Train an adapter"),
        (("--set", "base.quantize=nf4"), "Use a smaller base model"),
    ],
)
@pytest.mark.usefixtures("project")
def test_stage_that_fits_with_no_batch_size_suggests_the_next_setting(
    rlhf: Rlhf, capacity: Capacity, overrides: tuple[str, ...], hint: str
) -> None:
    capacity(1e4)
    result = rlhf("sft", "-r", "r.yaml", *overrides, "--json")
    assert (result.code, result.issue["code"]) == (5, "hardware.not-enough-memory")
    assert result.issue["hint"].startswith(hint)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
@pytest.mark.usefixtures("project")
def test_out_of_memory_exits_5_with_peak_estimate_and_a_setting(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load_policy(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(adapters, "load_policy", load_policy)
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert (result.code, result.issue["code"]) == (5, "hardware.out-of-memory")
    assert re.match(r"out of memory before the first step, at a peak of .*B; incomplete run: ", result.issue["message"])
    for text in ("an estimated", "1,024 tokens", "sft.micro_batch_size: "):
        assert text in result.issue["hint"]
    assert "Traceback" not in result.err
