"""The ppo stage from a recipe to a run: what it reads, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_cli.errors import DataError, ModelError, RecipeError
from rlhf_cli.models.base import quiet
from rlhf_cli.models.heads import load_score_head
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run
from rlhf_cli.stages import ppo

VOCABULARY = 32


class Quiet:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: object) -> None: ...
    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an sft adapter, a reward adapter, prompts and a reward function, in one folder."""
    quiet()
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "base")
    for name, task, kind in (
        ("sft", "CAUSAL_LM", AutoModelForCausalLM),
        ("reward", "SEQ_CLS", AutoModelForSequenceClassification),
    ):
        options = {"num_labels": 1} if task == "SEQ_CLS" else {}
        lora = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules="all-linear")
        model = get_peft_model(kind.from_pretrained(folder / "base", **options), lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
        whole = kind.from_pretrained(folder / "base", **options)
        whole.save_pretrained(folder / f"whole-{name}")
    prompts = [{"prompt": f"w{i} w{i % 5}", "level": float(i)} for i in range(24)]
    prompts += [{"prompt": " ".join([f"w{i}"] * 30), "level": 0.0} for i in range(8)]  # too long
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "judge.py").write_text("def by_level(completions, level):\n    return [x / 10 for x in level]\n")
    return folder


def recipe(world: Path, **ppo_fields: object) -> Recipe:
    section = {
        "start": str(world / "sft"),
        "reward": [{"run": str(world / "reward")}, {"python": f"{world}/judge.py:by_level", "weight": 0.5}],
        "iterations": 2,
        "rollout_batch_size": 4,
        "max_prompt_length": 10,
        "max_new_tokens": 4,
        "epochs": 1,
        "minibatches": 2,
        "save_every": 2,
        **ppo_fields,
    }
    return Recipe.model_validate(
        {
            "name": "tiny",
            "base": {"model": str(world / "base")},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"prompts": {"path": str(world / "prompts.jsonl"), "eval_fraction": 0.2}},
            "ppo": section,
        }
    )


@pytest.fixture
def new_run(tmp_path: Path, world: Path) -> Run:
    base = str(world / "base")
    return Run.create(tmp_path / "runs", "tiny", "ppo", smoke=False, base=base, reporter=Quiet())


def test_a_run_leaves_a_policy_and_a_critic_that_plain_libraries_load(world: Path, new_run: Run) -> None:
    result = ppo.run(recipe(world), new_run)
    assert {f.name for f in new_run.model_dir.iterdir()} >= {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "base"), new_run.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(new_run.model_dir)
    policy.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=2)
    scorer = AutoModelForSequenceClassification.from_pretrained(world / "base", num_labels=1)
    PeftModel.from_pretrained(scorer, new_run.path / "critic")
    assert (new_run.path / "checkpoints/step-000002/manifest.json").exists()
    metrics = result.metrics
    assert {"ppo.reward", "ppo.reward.reward", "ppo.reward.by_level", "ppo.kl", "ppo.truncation_rate"} <= set(metrics)
    assert metrics["ppo.episodes"] == 8
    assert metrics["ppo.tokens_per_second"] > 0
    assert metrics["ppo.reward"] == pytest.approx(metrics["ppo.reward.reward"] + 0.5 * metrics["ppo.reward.by_level"])


def test_the_reference_is_what_the_policy_starts_from(world: Path, new_run: Run) -> None:
    ppo.run(recipe(world), new_run)
    first = json.loads((new_run.path / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["kl"]) < 1e-5


def test_held_out_prompts_are_watched_and_long_ones_dropped_and_told(world: Path, new_run: Run) -> None:
    ppo.run(recipe(world), new_run)
    samples = [json.loads(line) for line in (new_run.path / "samples.jsonl").read_text().splitlines()]
    assert [s["step"] for s in samples] == [0] * 4 + [2] * 4
    assert {s["prompt"] for s in samples[:4]} == {s["prompt"] for s in samples[4:]}
    assert any("longer than ppo.max_prompt_length (10 tokens)" in w for w in new_run.warnings)
    assert all(len(s["prompt"].split()) < 10 for s in samples)


def test_a_shared_critic_is_saved_as_its_head(world: Path, new_run: Run) -> None:
    ppo.run(recipe(world, critic={"kind": "shared"}, reward=[{"python": f"{world}/judge.py:by_level"}]), new_run)
    assert [f.name for f in (new_run.path / "critic").rglob("*.*")] == ["model.safetensors"]
    assert load_score_head(new_run.path / "critic" / "head").weight.abs().sum() > 0


@pytest.mark.parametrize("reward", [True, False])
def test_whole_models_train_where_there_is_no_adapter(world: Path, new_run: Run, reward: bool) -> None:
    sources = [{"run": str(world / "whole-reward")}] if reward else [{"python": f"{world}/judge.py:by_level"}]
    whole = recipe(world, start=str(world / "whole-sft"), reward=sources).model_copy(update={"adapter": None})
    ppo.run(whole, new_run)
    assert (new_run.model_dir / "model.safetensors").exists()
    AutoModelForCausalLM.from_pretrained(new_run.model_dir)
    AutoModelForSequenceClassification.from_pretrained(new_run.path / "critic", num_labels=1)
    assert load_score_head(new_run.path / ("critic" if reward else "critic/head")).weight.abs().sum() > 0


def test_the_bare_base_may_be_the_start(world: Path, new_run: Run) -> None:
    assert ppo.run(recipe(world, start="base"), new_run).metrics["ppo.episodes"] == 8


def test_a_source_that_judged_now_and_then_is_summed_up_by_what_it_judged(world: Path, new_run: Run) -> None:
    """The watched prompts come first, so call 21 is the last rollout of 20; a tenth of them is summed up."""
    (world / "moody.py").write_text(
        "calls = []\ndef moody(completions):\n    calls.append(1)\n"
        "    return [3.0 if len(calls) == 21 else None for _ in completions]\n"
    )
    reward = [{"python": f"{world}/judge.py:by_level"}, {"python": f"{world}/moody.py:moody"}]
    result = ppo.run(recipe(world, iterations=20, minibatches=1, save_every=50, reward=reward), new_run)
    assert result.metrics["ppo.reward.moody"] == 3.0
    assert result.metrics["ppo.reward.by_level"] > 0


def test_same_seed_same_run(world: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        run = Run.create(tmp_path, name, "ppo", smoke=False, base=str(world / "base"), reporter=Quiet())
        torch.manual_seed(0)
        ppo.run(recipe(world), run)
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        timed = ("time", "tokens_per_second", "memory_peak_bytes")
        found.append([{k: v for k, v in r.items() if k not in timed and not k.startswith("seconds")} for r in rows])
    assert found[0] == found[1]


def test_what_cannot_work_is_told(world: Path, new_run: Run) -> None:
    given = recipe(world)
    without = given.model_copy(update={"data": given.data.model_copy(update={"prompts": None})})
    with pytest.raises(RecipeError, match="preferences' file"):
        ppo.run(without, new_run)
    with pytest.raises(DataError, match="no prompt is left"):
        ppo.run(recipe(world, max_prompt_length=1), new_run)
    with pytest.raises(ModelError, match="no reward model"):
        ppo.run(recipe(world, reward=[{"run": str(world / "sft")}]), new_run)
