"""What a stage will take is told beforehand, refused where the device has less, and told again where it ran out."""

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


@pytest.fixture
def project(recipe_file: Path, tiny_base: Path) -> Path:
    """The recipe on a base with a tokenizer, with rows of some length; its folder."""
    rows = [{"prompt": f"User: {i} ", "completion": "good night. " * 8} for i in range(40)]
    rows = [row | {"chosen": "yes", "rejected": "no"} for row in rows]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file.write_text(recipe_file.read_text().replace("./base", str(tiny_base)))
    return recipe_file.parent


@pytest.fixture
def capacity(monkeypatch: pytest.MonkeyPatch) -> Capacity:
    """Sets how many bytes the device has; no row is short of memory for the C library's sake."""
    monkeypatch.setattr(device_memory, "release_freed_memory", lambda: None)

    def is_set(size: float) -> None:
        monkeypatch.setattr(device_memory, "memory_capacity", lambda device: size)

    return is_set


def estimated(rlhf: Rlhf, stage: str, *words: str) -> dict[str, Any]:
    (shown,) = rlhf(stage, "-r", "r.yaml", *words, "--dry-run", "--json").json["dry_run"]
    found = shown["memory"]
    assert isinstance(found, dict)
    return found


def test_a_split_base_takes_its_part_in_each_process(rlhf: Rlhf, project: Path, tiny_base: Path) -> None:
    whole = estimated(rlhf, "sft", "--set", "launch.processes=2")
    split = estimated(rlhf, "sft", "--set", "launch.processes=2", "--set", "launch.strategy=fsdp")
    layers = AutoModelForCausalLM.from_pretrained(tiny_base).model.layers
    sizes = [sum(4 * p.numel() for p in layer.parameters()) for layer in layers]
    assert whole["weights"] - split["weights"] == pytest.approx(sum(sizes) / 2 - sizes[0], abs=2)


PARTS = ("weights", "adapters", "training", "activations", "cache", "logits", "copies", "mapped")


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.usefixtures("project")
def test_a_dry_run_estimates_the_peak(rlhf: Rlhf, stage: str) -> None:
    bare = ("--set", f"{stage}.start=base")
    found = estimated(rlhf, stage, *bare)
    assert found["total"] == pytest.approx(sum(found[name] for name in PARTS), abs=len(PARTS))
    assert found["device"] == "cpu"
    assert found["capacity"] > 1e9
    assert found["is_whole"]
    assert re.search(
        r"an estimated [\d.]+ MB of [\d.]+ GB \(cpu\), at", rlhf(stage, "-r", "r.yaml", *bare, "--dry-run").out
    )
    more = estimated(rlhf, stage, *bare, "--set", f"{stage}.micro_batch_size=32", "--set", f"{stage}.batch_size=32")
    less = estimated(rlhf, stage, *bare, "--set", f"{stage}.micro_batch_size=2")
    assert more["activations"] == pytest.approx(16 * less["activations"], rel=0.05)


def test_what_does_not_fit_is_refused_before_weights_are_loaded(
    rlhf: Rlhf, project: Path, capacity: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = estimated(rlhf, "sft", "--set", "sft.micro_batch_size=8")["total"]
    capacity(0.6 * whole)
    monkeypatch.setattr(adapters, "load_policy", None)  # calling it would be a traceback
    ended = rlhf("sft", "-r", "r.yaml", "--set", "sft.micro_batch_size=8", "--json")
    assert ended.code == 5
    (issue,) = ended.json["issues"]
    assert "it does not fit: an estimated" in issue["message"]
    monkeypatch.undo()
    capacity(0.6 * whole)
    monkeypatch.chdir(project)
    named = re.search(r"sft\.micro_batch_size: (\d)", issue["hint"])
    assert named is not None
    assert rlhf("sft", "-r", "r.yaml", "--set", f"sft.micro_batch_size={named[1]}").code == 0
    larger = next(n for n in (2, 4, 8) if n > int(named[1]))  # of those that divide the batch, it named the largest
    assert rlhf("sft", "-r", "r.yaml", "--set", f"sft.micro_batch_size={larger}").code == 5


@pytest.mark.usefixtures("project")
def test_where_no_setting_helps_alone_all_are_named_or_a_smaller_base(rlhf: Rlhf, capacity: Capacity) -> None:
    capacity(1e4)
    (issue,) = rlhf("sft", "-r", "r.yaml", "--json").json["issues"]
    assert issue["hint"].startswith("Take a smaller base or shorter rows")
    assert "sft.micro_batch_size: 1 " in issue["hint"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
@pytest.mark.usefixtures("project")
def test_memory_that_ran_out_is_told_with_the_estimate(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load_policy(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(adapters, "load_policy", load_policy)
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert ended.code == 5
    (issue,) = ended.json["issues"]
    assert re.match(r"out of memory before the first logged step, at a peak of .*B; incomplete: ", issue["message"])
    assert re.search(
        r"It takes an estimated .* with rows of 1,024 tokens\. Set sft\.micro_batch_size: \d", issue["hint"]
    )
    assert "Traceback" not in ended.err
