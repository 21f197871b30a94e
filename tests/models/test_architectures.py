"""Test which base models are refused by their config.json, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlhf_cli.errors import ModelError
from rlhf_cli.models.architectures import REFUSED, check_architecture, read_context_limit
from rlhf_cli.models.loading import read_model_sizes
from rlhf_cli.pipeline import preflight
from tests.support.families import FAMILIES, MakeFamily
from tests.support.issues import raises_issue
from tests.support.recipe_files import load_recipe


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "rwkv"},
        {"model_type": "t5", "is_encoder_decoder": True},
        {"model_type": "qwen2_vl", "vision_config": {}},
    ],
)
def test_check_architecture_unsupported_raises_issue(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with raises_issue("model.unsupported-architecture", error=ModelError, location="base.model") as issues:
        check_architecture(tmp_path, location="base.model")
    assert issues[0].message.startswith(f"{config['model_type']}: architecture is not supported: ")


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_5"])
def test_check_architecture_supported_passes(make_family: MakeFamily, name: str) -> None:
    check_architecture(make_family(name), location="base.model")


def test_families_are_not_both_tested_and_refused() -> None:
    assert not {family.model_type for family in FAMILIES} & REFUSED.keys()
    assert len({family.id for family in FAMILIES}) == len(FAMILIES)


def test_check_of_unsupported_base_raises_issue_before_training(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps({"model_type": "mamba"}))
    (tmp_path / "recipe.yaml").write_text("name: x\nbase: {model: ./base}\ndata: {sft: {path: rows.jsonl}}\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", stages=["sft"])
    with raises_issue("model.unsupported-architecture", error=ModelError, location="base.model"):
        preflight.check(recipe, ["sft"], tmp_path / "runs")


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gpt2", {"n_positions": 96}),
        ("gptj", {"n_positions": 96}),
        ("gpt_neo", {"max_position_embeddings": 96}),
        ("mpt", {"max_seq_len": 96}),
        ("opt", {"max_position_embeddings": 96}),
        ("llama", {"max_position_embeddings": 96}),
        ("gemma3", {"text_config": {"max_position_embeddings": 96}}),
        ("bloom", {}),
    ],
)
def test_positions_of_every_spelling_are_read_with_and_without_transformers(
    tmp_path: Path, model_type: str, fields: dict[str, Any]
) -> None:
    AutoConfig.for_model(model_type, **fields).save_pretrained(tmp_path)
    expected = 96 if fields else None
    assert read_context_limit(tmp_path) == expected
    assert read_model_sizes(str(tmp_path), "main").positions == expected


def test_read_context_limit_of_long_rope_is_the_switch(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48, "rope_theta": 10000.0}
    AutoConfig.for_model(
        "phi3", max_position_embeddings=131072, original_max_position_embeddings=4096, rope_parameters=rope
    ).save_pretrained(tmp_path)
    assert read_context_limit(tmp_path) == 4096


def test_read_context_limit_of_other_rope_is_the_number_of_positions(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    AutoConfig.for_model("llama", max_position_embeddings=131072, rope_parameters=rope).save_pretrained(tmp_path)
    assert read_context_limit(tmp_path) == 131072
