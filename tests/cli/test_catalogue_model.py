"""Each issue of a model, an adapter or a tokenizer, through the stage that loads it: code, location, and no run left.

The messages and hints are asserted in tests/models, tests/data and tests/rewards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.catalogue import edit_json
from tests.support.command import Rlhf
from tests.support.damaged_models import DAMAGES, flip_bit, truncate
from tests.support.made_runs import make_run

TURNS = [{"role": "user", "content": "Hi there"}]
START_COMMANDS = (("sft",), ("sft", "--dry-run"), ("run", "sft"))


def run_versions(folder: Path) -> list[Path]:
    """Return the folders of runs."""
    return list((folder / "runs").rglob("v0001"))


@pytest.mark.parametrize("name", DAMAGES)
def test_sft_damaged_base_raises_issue_and_leaves_no_run(rlhf: Rlhf, base: Path, name: str) -> None:
    damage, code = DAMAGES[name]
    damage(base)
    ended = rlhf("sft", "-r", "r.yaml", "--json")
    assert (ended.code, ended.json["exit_code"]) == (4, 4), ended.err
    (issue,) = ended.json["issues"]
    assert issue["code"] == f"model.{code}"
    assert "model" in issue["location"] or str(base) in issue["message"]
    assert issue["hint"]
    assert "Traceback" not in ended.err
    assert not run_versions(base.parent)


@pytest.mark.parametrize("words", START_COMMANDS, ids=" ".join)
def test_base_neither_local_nor_cached_raises_issue_before_a_run_starts(
    rlhf: Rlhf, base: Path, words: tuple[str, ...]
) -> None:
    ended = rlhf(*words, "-r", "r.yaml", "--set", "base.model=org/model", "--json")
    (issue,) = ended.json["issues"]
    assert (ended.code, issue["code"]) == (4, "model.not-cached")
    assert issue["location"] == "--set base.model=org/model"
    assert not (base.parent / "runs").exists()


def write_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """Write an adapter on a variant of the base, with plain PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    variant = AutoConfig.from_pretrained(base, **config)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_config(variant), lora).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"intermediate_size": 64}],
    ids=["fewer_layers", "more_layers", "another_width"],
)
def test_start_adapter_of_another_architecture_raises_issue_and_leaves_no_run(
    rlhf: Rlhf, base: Path, config: dict[str, Any]
) -> None:
    write_adapter(base, base.parent / "adapter", **config)
    ended = rlhf("sft", "-r", "r.yaml", "--set", "sft.start=./adapter", "--json")
    (issue,) = ended.json["issues"]
    assert (ended.code, issue["code"]) == (4, "model.adapter-mismatch")
    assert issue["location"].endswith("adapter")
    assert not run_versions(base.parent)


@pytest.mark.parametrize("words", START_COMMANDS, ids=" ".join)
def test_start_run_on_another_base_raises_issue_before_a_run_starts(
    rlhf: Rlhf, base: Path, words: tuple[str, ...]
) -> None:
    make_run(base.parent / "runs", "sft", base="0" * 64)
    ended = rlhf(*words, "-r", "r.yaml", "--set", "sft.start=sft", "--json")
    (issue,) = ended.json["issues"]
    assert (ended.code, issue["code"]) == (4, "model.adapter-of-other-base")
    assert issue["location"] == "--set sft.start=sft"
    assert [path.name for path in (base.parent / "runs/bot/sft").glob("v*")] == ["v0001"]


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink], ids=["changed", "truncated", "removed"])
def test_export_damaged_run_raises_issue_and_leaves_no_run(
    rlhf: Rlhf, base: Path, damage: Callable[[Path], object]
) -> None:
    from rlhf_cli.runs.manifest import hash_files

    run = base.parent / "runs/bot/sft/v0001"
    write_adapter(base, run / "model")
    made = make_run(base.parent / "elsewhere", "sft")
    shutil.copy(made / "manifest.json", run / "manifest.json")
    edit_json(run / "manifest.json", files=hash_files(run / "model"))
    damage(run / "model" / "adapter_model.safetensors")
    ended = rlhf("export", "-r", "r.yaml", "--json")
    (issue,) = ended.json["issues"]
    assert (ended.code, issue["code"]) == (4, "model.damaged-file")
    assert issue["location"].endswith("v0001/model/adapter_model.safetensors")
    assert not (base.parent / "runs/bot/export").exists()


def write_scorer(base: Path, folder: Path, labels: int) -> Path:
    """Write a whole reward model with the base's tokenizer, and no chat template."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(base, num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("labels", "code"),
    [(2, "model.not-a-reward-model"), (1, "model.missing-chat-template")],
    ids=["two_labels", "no_chat_template_for_conversations"],
)
def test_ppo_reward_model_that_cannot_score_raises_issue_and_leaves_no_run(
    rlhf: Rlhf, base: Path, labels: int, code: str
) -> None:
    write_scorer(base, base.parent / "scorer", labels)
    (base.parent / "rows.jsonl").write_text(json.dumps({"prompt": TURNS}) + "\n")
    ended = rlhf("ppo", "-r", "r.yaml", "--set", "ppo.reward=[{model: ./scorer}]", "--json")
    (issue,) = ended.json["issues"]
    assert (ended.code, issue["code"]) == (4, code)
    assert issue["location"].endswith("scorer")
    assert not run_versions(base.parent)


# --- handled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, "</s>"], ids=["no_pad_token", "end_token_pads"])
def test_dry_run_without_template_or_pad_token_renders_and_pads_conversations(
    rlhf: Rlhf, base: Path, pad: str | None
) -> None:
    edit_json(base / "tokenizer_config.json", pad_token=pad)
    row = {"messages": [*TURNS, {"role": "assistant", "content": "Good night."}]}
    (base.parent / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (shown,) = rlhf("sft", "-r", "r.yaml", "--dry-run", "--json").json["dry_run"]
    assert shown["example"] == "User: Hi there\nAssistant:⟦ Good night.</s>⟧"
    assert shown["facts"]["pad token"].startswith("<pad> ")


def test_sft_whole_model_with_invalid_generation_config_is_trained_and_saved(rlhf: Rlhf, base: Path) -> None:
    edit_json(base / "generation_config.json", temperature=0.3, do_sample=False, eos_token_id=2)
    ended = rlhf("sft", "-r", "r.yaml", "--set", "adapter=null", "--json")
    assert ended.code == 0, ended.err
    saved = json.loads((Path(ended.json["path"]) / "model/generation_config.json").read_text())
    assert saved["eos_token_id"] == 2
    assert "temperature" not in saved
