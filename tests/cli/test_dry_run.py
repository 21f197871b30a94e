"""Tests of `--dry-run` through the commands: the rows and the example that a stage would train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.support.command import CommandResult, Rlhf


def preview(result: CommandResult) -> dict[str, Any]:
    (content,) = result.json["dry_run"]
    assert isinstance(content, dict)
    return content


def facts(result: CommandResult) -> dict[str, Any]:
    content = preview(result)["facts"]
    assert isinstance(content, dict)
    return content


def test_dry_run_shows_example_with_loss_mask_and_trainable_parameters(
    rlhf: Rlhf, recipe_file: Path, tiny_base: Path
) -> None:
    words = ("-r", "r.yaml", "--set", f"base.model={tiny_base}", "--dry-run")
    result = rlhf("sft", *words, "--json")
    content = preview(result)
    assert (result.json["status"], result.json["stage"], content["stage"]) == ("ok", "sft", "sft")
    row = json.loads((recipe_file.parent / "rows.jsonl").read_text().splitlines()[0])
    assert content["example"].endswith(f"⟦{row['completion']}</s>⟧")
    assert content["facts"]["EOS token included in loss"] == "yes"
    assert f"⟦{row['completion']}</s>⟧" in rlhf("sft", *words).out
    # PEFT's own count: LoRA of rank 16 on seven layers of two blocks, A and B each.
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(content["trainable"].values()) == adapted.get_nb_trainable_parameters()[0]
    assert set(content["trainable"]) == {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}


def test_dry_run_on_color_terminal_shows_completion_in_green(
    rlhf: Rlhf, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = rlhf("sft", "-r", "r.yaml", "--set", f"base.model={tiny_base}", "--dry-run").out
    assert "⟦" not in out
    assert "\x1b[32mb</s>\x1b[0m" in out


def test_dry_run_counts_duplicate_rows(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    row = (recipe_file.parent / "rows.jsonl").read_text().splitlines(keepends=True)[0]
    (recipe_file.parent / "rows.jsonl").write_text(row * 3 + row.replace('"a"', '"z"'))
    words = ("-r", "r.yaml", "--set", f"base.model={tiny_base}", "--set", "data.sft.eval_fraction=0", "--dry-run")
    found = facts(rlhf("sft", *words, "--json"))
    assert (found["duplicate rows"], found["rows train"]) == (2, 4)


def test_dry_run_creates_no_run(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    rlhf("sft", "-r", "r.yaml", "--set", f"base.model={tiny_base}", "--dry-run")
    assert not (recipe_file.parent / "runs").exists()


@pytest.fixture
def real_base(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    """Put the recipe on a base with a tokenizer and 512 positions, write thirty rows, and run sft and reward."""
    rows = [
        {"prompt": f"User: {i} ", "completion": "good night. " * i, "chosen": "yes", "rejected": "no"}
        for i in range(1, 31)
    ]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file.write_text(recipe_file.read_text().replace("./base", str(tiny_base)))
    for stage in ("sft", "reward"):
        assert rlhf(stage, "-r", "r.yaml").code == 0


@pytest.mark.usefixtures("stand_ins", "real_base")
def test_dry_run_of_sft_shows_rows_truncated_as_in_training(rlhf: Rlhf) -> None:
    result = rlhf("sft", "-r", "r.yaml", "--dry-run", "--set", "sft.max_length=20", "--json")
    found = facts(result)
    assert found["longest row (tokens)"] == 20
    assert found["rows train"] == 29
    assert not [name for name in found if name.startswith("dropped")]  # counts of zero are left out
    (truncated,) = (count for name, count in found.items() if name.startswith("truncated"))
    assert truncated > 20
    assert len(preview(result)["example"]) < len("User: 30 ⟦" + "good night. " * 6)


@pytest.mark.usefixtures("stand_ins", "real_base")
def test_dry_run_of_ppo_shows_prompt_without_loss_mask_and_warns_about_context(rlhf: Rlhf) -> None:
    result = rlhf("ppo", "-r", "r.yaml", "--dry-run", "--json")
    assert facts(result)["rows train"] == 29
    assert preview(result)["example"].startswith("User: ")
    assert "⟦" not in preview(result)["example"]
    long = rlhf("ppo", "-r", "r.yaml", "--dry-run", "--set", "ppo.max_new_tokens=480", "--json")
    for text in ("ppo.max_new_tokens", "992", "512"):
        assert text in facts(long)["warning"]


def test_dry_run_of_smoke_run_names_the_stages_it_depends_on(rlhf: Rlhf) -> None:
    found = facts(rlhf("ppo", "-r", "r.yaml", "--smoke", "--dry-run", "--json"))
    assert found["depends on"] == "sft, reward (not yet run)"


@pytest.mark.usefixtures("stand_ins", "real_base")
def test_dry_run_of_eval_counts_held_out_rows(rlhf: Rlhf) -> None:
    overrides = ("--set", "eval.candidate=sft", "--set", "eval.samples=1")
    found = facts(rlhf("eval", "-r", "r.yaml", "--dry-run", *overrides, "--json"))
    assert {name: count for name, count in found.items() if name.startswith("held out")} == {
        "held out sft": 1,
        "held out preferences": 1,
        "held out prompts": 1,
    }


@pytest.mark.usefixtures("stand_ins", "real_base")
@pytest.mark.parametrize(
    ("stage", "setting", "exit_code", "code"),
    [
        ("sft", "sft.max_length=3", 3, "data.no-usable-rows"),
        ("reward", "reward.max_length=3", 3, "data.no-usable-rows"),
        ("ppo", "ppo.max_prompt_length=3", 3, "data.no-usable-rows"),
        ("ppo", "ppo.max_new_tokens=510", 2, "recipe.context-exceeded"),
        ("eval", "data.sft.eval_fraction=0", 3, "data.nothing-held-out"),
    ],
)
def test_dry_run_fails_as_the_stage_would(rlhf: Rlhf, stage: str, setting: str, exit_code: int, code: str) -> None:
    words = ("-r", "r.yaml", "--dry-run", "--set", "eval.candidate=sft", "--set", setting, "--json")
    result = rlhf(stage, *words)
    key = setting.partition("=")[0].removesuffix(".eval_fraction")
    assert (result.code, result.issue["code"]) == (exit_code, code)
    assert result.issue["location"] == f"--set {setting}" or key in result.issue["message"]
