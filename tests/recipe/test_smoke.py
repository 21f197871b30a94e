"""`--smoke`: sizes shrink, every other setting stays, and no run of anybody else is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.recipe import validation
from rlhf_cli.recipe.loader import load
from rlhf_cli.recipe.schema import STAGES, Recipe
from rlhf_cli.recipe.smoke import shrink
from tests.support.recipe_files import Write

SIZES = {  # what may differ, besides the names of runs
    "pretrain": {"epochs", "max_steps", "batch_size", "micro_batch_size", "max_length"},
    "pretrain.architecture": {"hidden_size", "intermediate_size", "layers", "heads", "kv_heads"},
    "sft": {"epochs", "max_steps", "batch_size", "micro_batch_size", "max_length"},
    "reward": {"epochs", "max_steps", "batch_size", "micro_batch_size", "max_length"},
    "ppo": {"iterations", "rollout_batch_size", "minibatches", "max_prompt_length", "max_new_tokens", "save_every"},
    "ppo.critic": {"warmup_iterations"},
    "ppo.kl": {"abort"},  # random weights are far from anything
    "eval": {"samples", "max_new_tokens", "gates"},
}
RUNS = {"start", "candidate", "baseline", "reward", "run"}

EVERYTHING = """
seed: 5
base: {model: org/model, revision: abc, dtype: float32, attention: eager}
adapter: {rank: 3, alpha: 5, dropout: 0.5, target_modules: [q_proj], dora: true}
data: {sft: {hub: a/b}, preferences: {hub: a/b}, prompts: {hub: a/b}, pretrain: {hub: a/b}}
pretrain: {epochs: 3, batch_size: 64, learning_rate: 0.5, max_length: 2000, trainer: {optim: sgd},
  architecture: {vocab_size: 999, hidden_size: 1024, layers: 12, heads: 16, kv_heads: 8, context: 4096}}
sft: {start: other/sft@v0003, max_steps: 900, learning_rate: 0.6, max_length: 77, trainer: {optim: sgd}}
reward: {start: sft@v0009, epochs: 2.5, learning_rate: 0.7, trainer: {center_rewards_coefficient: 0.1}}
ppo: {start: sft@latest, reward: [{run: other/reward@v0004, weight: 0.3}, {run: FOLDER, weight: -1}], iterations: 99,
  rollout_batch_size: 120, minibatches: 5, max_prompt_length: 3000, temperature: 0.7, epochs: 3, learning_rate: 0.8,
  micro_batch_tokens: 99,
  critic: {kind: shared, learning_rate: 0.9, warmup_iterations: 50},
  kl: {coef: 0.11, target: 3, horizon: 77, estimator: k3, abort: 4}, clip: 0.33, value_clip: 0.44, target_kl: 0.5,
  gamma: 0.91, gae_lambda: 0.92, missing_eos_penalty: 2}
eval: {candidate: ppo@v0001, baseline: FOLDER, reward: FOLDER, temperature: 0.2, samples: 999, batch_size: 3,
  gates: [{metric: win_rate, min: 0.5}]}
export: {of: FOLDER, format: adapter, dtype: float16}
"""


@pytest.fixture
def recipe(write: Write, tmp_path: Path) -> Recipe:
    return load(write(f"name: x\n{EVERYTHING}".replace("FOLDER", str(tmp_path)), bare=True))


def differences(before: dict[str, Any], after: dict[str, Any], dotted: str = "") -> set[str]:
    changed = set()
    for name, value in before.items():
        key = f"{dotted}.{name}".strip(".")
        if isinstance(value, dict) and isinstance(after[name], dict):
            changed |= differences(value, after[name], key)
        elif value != after[name]:
            changed.add(key)
    return changed


def test_only_sizes_and_the_names_of_runs_change(recipe: Recipe) -> None:
    changed = differences(recipe.model_dump(), shrink(recipe).model_dump())
    sizes = {f"{section}.{name}" for section, names in SIZES.items() for name in names}
    named = {key for key in changed if key.rpartition(".")[2] in RUNS}
    assert changed - named <= sizes | {f"{stage}.save_every" for stage in ("pretrain", "sft", "reward")}
    assert {"sft.max_steps", "ppo.iterations", "eval.samples", "pretrain.architecture.layers"} <= changed
    before, after = recipe.ppo.reward, shrink(recipe).ppo.reward
    assert [term.weight for term in after] == [term.weight for term in before]


def test_sizes_become_small(recipe: Recipe) -> None:
    small = shrink(recipe)
    for section in (small.pretrain, small.sft, small.reward):
        assert (section.max_steps, section.epochs) == (2, None)
        assert section.max_length <= 512
        assert section.batch_size <= 2
    assert small.pretrain.architecture.layers == 2
    assert (small.ppo.iterations, small.ppo.critic.warmup_iterations) == (2, 1)
    assert small.ppo.rollout_batch_size <= 4
    assert small.ppo.max_new_tokens <= 8
    assert small.eval.samples <= 8


def test_what_is_smaller_already_stays(write: Write) -> None:
    text = "sft: {max_length: 20}\nppo: {max_new_tokens: 3, minibatches: 1, max_prompt_length: 9}\neval: {samples: 2}\n"
    small = shrink(load(write(text), stages=()))
    assert small.sft.max_length == 20
    assert (small.ppo.max_new_tokens, small.ppo.minibatches, small.ppo.max_prompt_length) == (3, 1, 9)
    assert small.eval.samples == 2


def test_runs_become_the_recipes_own_stages(recipe: Recipe) -> None:
    small = shrink(recipe)
    assert (small.reward.start, small.ppo.start) == ("sft", "sft")
    assert [term.run for term in small.ppo.reward] == ["reward", "reward"]  # a folder of full size fits no small base
    assert (small.eval.candidate, small.eval.baseline, small.eval.reward) == ("ppo", "base", "reward")
    assert small.export.of == "ppo"


@pytest.mark.parametrize(
    ("text", "stage", "start"),
    [
        ("sft: {start: other/sft@v0003}", "sft", "base"),
        ("sft: {start: ppo@v0001}", "sft", "base"),  # a next round
        ("reward: {start: reward@v0001}", "reward", "base"),
        ("ppo: {start: ppo@v0001}", "ppo", "base"),
        ("pretrain: {start: pretrain@v0001}", "pretrain", "scratch"),
    ],
)
def test_no_stage_waits_for_itself(write: Write, text: str, stage: str, start: str) -> None:
    small = shrink(load(write(text), stages=()))
    assert getattr(small, stage).start == start


def test_what_is_no_run_stays_none(write: Write, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def g(): ...\n")
    text = "sft: {start: base}\nppo: {reward: [{python: 'f.py:g'}]}\neval: {baseline: null, reward: null}\n"
    small = shrink(load(write(text), stages=()))
    assert small.sft.start == "base"
    assert [(term.run, term.python) for term in small.ppo.reward] == [(None, f"{tmp_path}/f.py:g")]
    assert (small.eval.baseline, small.eval.reward) == (None, None)


def test_the_shrunken_recipe_passes_its_check_and_names_the_same_stages(recipe: Recipe) -> None:
    small = shrink(recipe)
    assert [*validation.problems(small, STAGES)] == []
    assert validation.named_stages(small) == validation.named_stages(recipe)
    Recipe.model_validate(small.model_dump(exclude={"base"}) | {"base": small.base.model_dump()})


@pytest.mark.parametrize("minibatches", [1, 2, 3, 4, 8])
def test_minibatches_divide_what_is_rolled_out(write: Write, minibatches: int) -> None:
    recipe = load(write(f"ppo: {{rollout_batch_size: 24, minibatches: {minibatches}}}"), stages=())
    assert [*validation.problems(shrink(recipe), ())] == []
