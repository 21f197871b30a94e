"""sft, reward and pretrain as they run: what they optimize, in which precision, and how they refuse."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli.cli import progress
from rlhf_cli.data import sources
from rlhf_cli.errors import DivergedError, RecipeError
from rlhf_cli.pipeline.runner import StageResult, run_stage
from tests.support.recipe_files import load_recipe

Go = Callable[..., StageResult]
WORDS = ["red", "blue", "cat", "dog", "sun", "tree"]


@pytest.fixture
def go(tmp_path: Path, tiny_base: Path) -> Go:
    """Run one stage on a few rows of text."""
    rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    pairs = [{"prompt": r["prompt"], "chosen": " tree", "rejected": " dog dog"} for r in rows]
    for name, content in (("sft", rows), ("preferences", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat sat on the red tree {i % 5}" for i in range(200)))
    (tmp_path / "recipe.yaml").write_text(
        f"""
name: t
base: {{model: {tiny_base}}}
adapter: {{rank: 4, alpha: 8}}
data:
  pretrain: {{path: text.txt}}
  sft: {{path: sft.jsonl}}
  preferences: {{path: preferences.jsonl}}
sft: {{max_steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64}}
reward: {{start: base, max_steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64}}
pretrain:
  architecture: {{vocab_size: 280, hidden_size: 64, intermediate_size: 128, layers: 2, heads: 4, context: 32}}
  max_steps: 30
  batch_size: 8
  micro_batch_size: 8
  max_length: 32
"""
    )

    def run(stage: str, *overrides: str) -> StageResult:
        recipe = load_recipe(tmp_path / "recipe.yaml", overrides, [stage])
        with progress.reporter(json=True, quiet=True) as reporter:
            return run_stage(stage, recipe, tmp_path / "runs", smoke=False, reporter=reporter)

    return run


def steps(outcome: StageResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]


def test_sft_minimizes_the_loss_of_completions_alone(go: Go, tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "sft.jsonl").write_text(
        json.dumps({"prompt": "red and", "completion": " blue"})
        + "\n"
        + json.dumps({"prompt": "cat and", "completion": " dog sun"})
        + "\n"
    )
    outcome = go("sft", "sft.max_steps=1", "sft.batch_size=2", "sft.micro_batch_size=2", "data.sft.eval_fraction=0")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    total, count = 0.0, 0
    for prompt, completion in (("red and", " blue"), ("cat and", " dog sun")):
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([[*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        own = logprobs[range(ids.shape[1] - 1), ids[0, 1:]][start - 1 :]
        total, count = total - float(own.sum()), count + len(own)
    assert steps(outcome)[0]["loss"] == pytest.approx(total / count, rel=1e-5)  # an adapter starts as no change


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("base", ["quantize=nf4", "dtype=bfloat16"])
def test_on_a_base_of_fewer_bits_the_adapter_stays_in_float32(go: Go, stage: str, base: str) -> None:
    outcome = go(stage, f"base.{base}")
    stored = load_file(outcome.path / "model" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(math.isfinite(step["loss"]) for step in steps(outcome))


def test_reward_learns_which_answer_is_chosen(go: Go) -> None:
    outcome = go("reward", "reward.max_steps=30", "reward.learning_rate=5e-3")
    first, last = steps(outcome)[0], steps(outcome)[-1]
    assert last["accuracy"] == 1.0
    assert last["loss"] < first["loss"] / 10
    assert any(name.endswith("score.weight") for name in load_file(outcome.path / "model/adapter_model.safetensors"))


def test_pretrain_makes_a_base_that_predicts_its_text(go: Go) -> None:
    outcome = go("pretrain", "pretrain.learning_rate=1e-2")
    assert outcome.manifest["metrics"]["pretrain.nll"] < 2.8  # of ln 280 = 5.6 for a guess
    files = {path.name for path in (outcome.path / "model").iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(go: Go, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"(loss|grad_norm) is (nan|inf) at step \d") as raised:
        go("sft", "sft.learning_rate=1e38", "sft.max_steps=5", "sft.trainer={max_grad_norm: 0.0}")
    assert raised.value.exit_code == 7
    folder = tmp_path / "runs/t/sft/v0001"
    assert not (folder / "manifest.json").exists()
    told = raised.value.issues[0].message
    shown = re.findall("“(.+?)”", told)
    log = (folder / "log.txt").read_text()
    noted = log.partition("rows of the step that went wrong:\n")[2].splitlines()[:4]
    assert shown == noted[:3]
    assert f"and {len(noted) - 3} more" in told
    assert len(noted) == 4  # the batch
    texts = {f"{row['prompt']}{row['completion']}" for row in map(json.loads, (tmp_path / "sft.jsonl").open())}
    assert set(noted) <= texts


def test_a_trainer_key_that_trl_has_not_is_refused_with_the_nearest(go: Go) -> None:
    with pytest.raises(RecipeError, match=r"sft\.trainer\.warmup_step: SFTConfig has no such key") as raised:
        go("sft", "sft.trainer={warmup_step: 3}")
    assert "warmup_steps" in raised.value.issues[0].hint


def test_trainer_keys_reach_trl(go: Go) -> None:
    outcome = go("sft", "sft.max_steps=4", "sft.trainer={lr_scheduler_type: constant}")
    assert {step["learning_rate"] for step in steps(outcome)} == {2e-4}


def test_sft_ends_with_its_loss_on_held_out_rows(go: Go, tmp_path: Path) -> None:
    """Against plain peft, a row at a time without padding; the figure is a mean over tokens, not over rows."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    rows = [{"prompt": f"{a} and", "completion": f" {a}" * n} for n, a in enumerate(WORDS * 4, 1)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = go("sft", "sft.learning_rate=0.05", "sft.max_length=20", "data.sft.eval_fraction=0.4")
    model = AutoPeftModelForCausalLM.from_pretrained(outcome.path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(outcome.path / "model")
    total, count = 0.0, 0
    recipe = load_recipe(tmp_path / "recipe.yaml", ["data.sft.eval_fraction=0.4"], ["sft"])
    assert recipe.data.sft is not None
    for row in sources.load(recipe.data.sft, "sft", seed=0, find=Path).held_out:
        start = len(tokenizer(row.prompt)["input_ids"])
        ids = [*tokenizer(f"{row.prompt}{row.completion}")["input_ids"], tokenizer.eos_token_id][:20]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[at - 1, ids[at]]) for at in range(start, len(ids)))
        count += len(ids) - start
    assert count > 50
    assert outcome.manifest["metrics"]["sft.nll"] == pytest.approx(total / count, rel=1e-4)


def test_reward_ends_with_its_accuracy_on_held_out_pairs(go: Go, tmp_path: Path) -> None:
    """Against plain peft, an answer at a time without padding."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    pairs = [{"prompt": f"{a} {b} and", "chosen": f" {b} {a}", "rejected": f" {a}" * n}
             for n, a in enumerate(WORDS * 4, 1) for b in WORDS[:3]]  # fmt: skip
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    setting = "data.preferences.eval_fraction=0.5"
    outcome = go("reward", "reward.learning_rate=0.01", "reward.max_length=30", setting)
    folder = outcome.path / "model"
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    recipe = load_recipe(tmp_path / "recipe.yaml", [setting], ["reward"])
    assert recipe.data.preferences is not None

    def tokens(text: str) -> list[int]:
        return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    def score(ids: list[int]) -> float:
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits[0, 0])

    right = []
    for row in sources.load(recipe.data.preferences, "preferences", seed=0, find=Path).held_out:
        better, worse = tokens(f"{row.prompt}{row.chosen}"), tokens(f"{row.prompt}{row.rejected}")
        if max(len(better), len(worse)) <= 30:
            right.append(score(better) > score(worse))
    metrics = outcome.manifest["metrics"]
    assert metrics["reward.accuracy.n"] == len(right) > 10
    assert metrics["reward.accuracy"] == pytest.approx(sum(right) / len(right))
    assert metrics["reward.accuracy.low"] < metrics["reward.accuracy"] < metrics["reward.accuracy.high"]


def test_where_nothing_is_held_out_there_is_no_such_figure(go: Go) -> None:
    assert "sft.nll" not in go("sft", "data.sft.eval_fraction=0").manifest["metrics"]
    assert "reward.accuracy" not in go("reward", "data.preferences.eval_fraction=0").manifest["metrics"]
