"""`--smoke`: sizes shrink, all other settings stay, and no other run is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.recipe import validation
from rlhf_cli.recipe.schema import Recipe, TrainerSection
from rlhf_cli.recipe.smoke import shrink
from rlhf_cli.stages import STAGES
from tests.support.recipe_files import WriteRecipe, load_recipe

TRAINER_SECTIONS = TrainerSection.__subclasses__()
TRAINER_SIZES = {"epochs", "max_steps", "batch_size", "micro_batch_size", "max_length", "save_every"}
SIZES = {  # section: the fields that may change, besides references to runs
    **{name: TRAINER_SIZES for name, value in Recipe.model_fields.items() if value.annotation in TRAINER_SECTIONS},
    "reward": {*TRAINER_SIZES, "members"},
    "data": {"max_overlong"},
    "launch": {"processes"},
    "pretrain.architecture": {"hidden_size", "intermediate_size", "layers", "heads", "kv_heads"},
    "ppo": {"iterations", "rollout_batch_size", "minibatches", "max_prompt_length", "max_new_tokens", "save_every"},
    "ppo.critic": {"warmup_iterations"},
    "ppo.kl": {"abort"},  # random weights exceed any limit
    "eval": {"samples", "max_new_tokens", "gates"},
    "revise": {"prompts", "rounds", "max_new_tokens"},
    "sample": {"prompts", "max_new_tokens", "max_prompt_length"},
}
REFERENCE_FIELDS = {field for spec in STAGES.values() for field in spec.accepts}

EVERYTHING = """
seed: 5
base: {model: org/model, revision: abc, dtype: float32, attention: eager}
adapter: {rank: 3, alpha: 5, dropout: 0.5, target_modules: [q_proj], dora: true}
data: {sft: {hub: a/b}, preferences: {hub: a/b}, prompts: {hub: a/b}, pretrain: {hub: a/b}, max_overlong: 0.1}
launch: {processes: 2}
pretrain: {epochs: 3, batch_size: 64, learning_rate: 0.5, max_length: 2000, trainer: {optim: sgd},
  architecture: {vocab_size: 999, hidden_size: 1024, layers: 12, heads: 16, kv_heads: 8, context: 4096}}
sft: {start: other/sft@v0003, max_steps: 900, learning_rate: 0.6, max_length: 77, trainer: {optim: sgd}}
sample: {of: [sft@v0002, other/ppo@v0007], samples_per_prompt: 6, temperature: 0.5, max_similarity: 0.4,
  batch_size: 7}
reward: {start: sft@v0009, members: 4, epochs: 2.5, learning_rate: 0.7, trainer: {center_rewards_coefficient: 0.1}}
ppo: {start: sft@latest, reward: [{run: other/reward@v0004, weight: 0.3}, {run: FOLDER, weight: -1}], iterations: 99,
  rollout_batch_size: 120, minibatches: 5, max_prompt_length: 3000, temperature: 0.7, epochs: 3, learning_rate: 0.8,
  micro_batch_tokens: 99,
  critic: {kind: shared, learning_rate: 0.9, warmup_iterations: 50},
  kl: {coef: 0.11, target: 3, horizon: 77, estimator: k3, apply_to: loss, abort: 4},
  clip: 0.33, value_clip: 0.44, target_kl: 0.5,
  gamma: 0.91, gae_lambda: 0.92, missing_eos_penalty: 2}
eval: {candidate: ppo@v0001, baseline: FOLDER, reward: FOLDER, temperature: 0.2, samples: 999, batch_size: 3,
  gates: [{metric: win_rate, min: 0.5}]}
export: {of: FOLDER, format: adapter, dtype: float16}
"""


@pytest.fixture
def recipe(write_recipe: WriteRecipe, tmp_path: Path) -> Recipe:
    return load_recipe(write_recipe(f"name: x\n{EVERYTHING}".replace("FOLDER", str(tmp_path)), bare=True))


def changed_keys(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted keys whose values differ."""
    changed = set()
    for name, value in before.items():
        if isinstance(value, dict) and isinstance(after[name], dict):
            changed |= changed_keys(value, after[name], f"{prefix}{name}.")
        elif value != after[name]:
            changed.add(f"{prefix}{name}")
    return changed


def test_shrink_changes_only_sizes_and_references(recipe: Recipe) -> None:
    changed = changed_keys(recipe.model_dump(), shrink(recipe).model_dump())
    sizes = {f"{section}.{name}" for section, names in SIZES.items() for name in names}
    references = {key for key in changed if key.rpartition(".")[2] in REFERENCE_FIELDS}
    assert changed - references <= sizes
    assert {"sft.max_steps", "ppo.iterations", "eval.samples", "pretrain.architecture.layers"} <= changed
    before, after = recipe.ppo.reward, shrink(recipe).ppo.reward
    assert [source.weight for source in after] == [source.weight for source in before]


def test_shrink_makes_sizes_small(recipe: Recipe) -> None:
    small = shrink(recipe)
    for section in (small.pretrain, small.sft, small.reward):
        assert isinstance(section, TrainerSection)
        assert (section.max_steps, section.epochs) == (2, None)
        assert section.max_length <= 512
        assert section.batch_size <= 2
    assert small.pretrain.architecture.layers == 2
    assert small.reward.members == 2
    assert (small.ppo.iterations, small.ppo.critic.warmup_iterations) == (2, 1)
    assert small.ppo.rollout_batch_size <= 4
    assert small.ppo.max_new_tokens <= 8
    assert small.eval.samples <= 8
    assert small.launch.processes == 1
    assert small.sample.prompts == 8
    assert small.sample.max_new_tokens <= 8


def test_shrink_keeps_smaller_sizes(write_recipe: WriteRecipe) -> None:
    text = "sft: {max_length: 20}\nppo: {max_new_tokens: 3, minibatches: 1, max_prompt_length: 9}\neval: {samples: 2}\n"
    small = shrink(load_recipe(write_recipe(text), stages=()))
    assert small.sft.max_length == 20
    assert (small.ppo.max_new_tokens, small.ppo.minibatches, small.ppo.max_prompt_length) == (3, 1, 9)
    assert small.eval.samples == 2


def test_shrink_replaces_runs_and_adapter_folders_with_own_stages(recipe: Recipe) -> None:
    small = shrink(recipe)
    assert (small.reward.start, small.ppo.start) == ("sft", "sft")
    assert [source.run for source in small.ppo.reward] == ["reward", "reward"]
    assert (small.eval.candidate, small.eval.baseline, small.eval.reward) == ("ppo", "base", "reward")
    assert small.export.of == "ppo"
    assert small.sample.of == ["sft", "base"]  # ppo comes after sample


def test_shrink_replaces_exported_folder_with_last_policy_of_the_recipe(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    text = f"sft:\nexport: {{of: {tmp_path}}}"
    assert shrink(load_recipe(write_recipe(text), stages=())).export.of == "sft"


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
def test_shrink_of_stage_that_starts_from_itself_uses_special_word(
    write_recipe: WriteRecipe, text: str, stage: str, start: str
) -> None:
    small = shrink(load_recipe(write_recipe(text), stages=()))
    assert getattr(small, stage).start == start


def test_shrink_keeps_special_words_functions_and_null(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def g(): ...\n")
    text = "sft: {start: base}\nppo: {reward: [{python: 'f.py:g'}]}\neval: {baseline: null, reward: null}\n"
    small = shrink(load_recipe(write_recipe(text), stages=()))
    assert small.sft.start == "base"
    assert [(source.run, source.python) for source in small.ppo.reward] == [(None, f"{tmp_path}/f.py:g")]
    assert (small.eval.baseline, small.eval.reward) == (None, None)


@pytest.mark.parametrize("start", ["org/model", "./folder"])
def test_shrink_keeps_base_models(write_recipe: WriteRecipe, tmp_path: Path, start: str) -> None:
    (tmp_path / "folder").mkdir()
    recipe = load_recipe(write_recipe(f"pretrain: {{start: {start}}}"), stages=())
    assert shrink(recipe).pretrain.start == recipe.pretrain.start  # shrunk when it is loaded


def test_shrink_result_is_valid_and_has_the_same_stages(recipe: Recipe) -> None:
    small = shrink(recipe)
    assert [*validation.find_issues(small, [stage for stage in STAGES if stage != "revise"])] == []  # no constitution
    assert validation.named_stages(small) == validation.named_stages(recipe)
    Recipe.model_validate(small.model_dump(exclude={"base"}) | {"base": small.base.model_dump()})


@pytest.mark.parametrize("minibatches", [1, 2, 3, 4, 8])
def test_shrink_result_has_divisible_minibatches(write_recipe: WriteRecipe, minibatches: int) -> None:
    text = f"ppo: {{rollout_batch_size: 24, minibatches: {minibatches}}}"
    recipe = load_recipe(write_recipe(text), stages=())
    assert [*validation.find_issues(shrink(recipe), ())] == []
