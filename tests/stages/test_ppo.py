"""The ppo stage from a recipe to a run: what it reads, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_cli.errors import DataError, DivergedError, ModelError, RecipeError
from rlhf_cli.models.heads import load_score_head
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.pipeline.runner import StageResult, run_stage
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run
from rlhf_cli.stages import ppo
from tests.support.recipe_files import load_recipe
from tests.support.reward_server import Server, ok

VOCABULARY = 32


class Quiet:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: object) -> None: ...
    def info(self, text: str) -> None: ...

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an sft adapter, a reward adapter, prompts and a reward function, in one folder."""
    silence_library_logging()
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
    return Run.create(tmp_path / "runs", "tiny", "ppo", smoke=False, base_path=base, reporter=Quiet())


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
    assert any("rows dropped: empty, or over 10 tokens" in w for w in new_run.reporter.warnings)
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
        run = Run.create(tmp_path, name, "ppo", smoke=False, base_path=str(world / "base"), reporter=Quiet())
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
    with pytest.raises(DataError, match="no row is left to train on"):
        ppo.run(recipe(world, max_prompt_length=1), new_run)
    with pytest.raises(ModelError, match="no reward model"):
        ppo.run(recipe(world, reward=[{"run": str(world / "sft")}]), new_run)


@pytest.fixture(scope="module")
def scorer(world: Path) -> Path:
    """A reward model of another shape than the base, whose tokenizer has the words in another order."""
    folder = world / "scorer"
    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in reversed(range(40)))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=0,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_kinds_of_reward_train_together_and_are_logged_apart(
    world: Path, scorer: Path, server: Server, new_run: Run
) -> None:
    weights = {"reward": 1.0, "by_level": 0.5, "scorer": 2.0, "http": 0.25, "length": -1.0}
    sources = [
        {"run": str(world / "reward")},
        {"python": f"{world}/judge.py:by_level", "weight": 0.5},
        {"model": str(scorer), "weight": 2.0},
        {"http": server.url, "batch_size": 3, "weight": 0.25},
        {"rule": {"length": {"max": 3}}, "weight": -1.0},
    ]
    result = ppo.run(recipe(world, reward=sources), new_run)
    for row in (*lines(new_run.path / "metrics.jsonl"), {k.removeprefix("ppo."): v for k, v in result.metrics.items()}):
        assert {n for n in row if n.startswith("reward.") and not n.endswith((".std", ".too_long"))} == {
            f"reward.{name}" for name in weights
        }
        assert row["reward"] == pytest.approx(sum(w * row[f"reward.{name}"] for name, w in weights.items()), abs=1e-5)
        assert row["reward.scorer.too_long"] == 0.0
    # once before anything is loaded; four watched prompts before and after; four answers an iteration
    assert [len(asked["prompts"]) for asked in server.asked] == [1, 3, 1, 3, 1, 3, 1, 3, 1]
    assert all(len(asked["level"]) == len(asked["completions"]) for asked in server.asked)


def test_a_server_that_fails_leaves_the_last_good_policy(world: Path, server: Server, new_run: Run) -> None:
    replies = [ok([0.0]), ok([0.0] * 4), ok([0.5] * 4)]  # the check, the watched prompts, the first iteration
    server.replies = [*replies, (200, b"oops", {})]
    with pytest.raises(
        DivergedError, match=r"iteration 2: .* answered what is not JSON: 'oops'.*The last good policy is in"
    ) as raised:
        ppo.run(recipe(world, reward=[{"http": server.url}], iterations=9, save_every=9), new_run)
    assert raised.value.exit_code == 7
    (folder,) = (new_run.path / "checkpoints").iterdir()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "base"), folder / "model")
    assert [row["reward.http"] for row in lines(new_run.path / "metrics.jsonl")] == [0.5]
    log = (new_run.path / "log.txt").read_text()
    noted = log.partition("prompts of iteration 2:\n")[2].splitlines()[:4]
    assert noted == server.asked[-1]["prompts"]


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_cannot_judge_is_told_before_a_model_is_loaded(
    world: Path, server: Server, new_run: Run, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "Bank", None)
    server.replies = [(status, b"", {})]
    with pytest.raises(DivergedError, match=f"answered {status}"):
        ppo.run(recipe(world, reward=[{"http": server.url, "retries": 0}]), new_run)


def test_a_reward_run_with_another_tokenizer_is_refused(
    world: Path, scorer: Path, tmp_path: Path, new_run: Run
) -> None:
    shutil.copytree(world / "reward", tmp_path / "reward")
    shutil.copy(scorer / "tokenizer.json", tmp_path / "reward")
    shutil.copy(scorer / "tokenizer_config.json", tmp_path / "reward")
    with pytest.raises(ModelError, match="is not the policy's") as raised:
        ppo.run(recipe(world, reward=[{"run": str(world / "reward")}, {"run": str(tmp_path / "reward")}]), new_run)
    assert raised.value.issues[0].location == "ppo.reward.1"


def test_a_function_that_asks_for_what_there_is_not_is_told_before_a_model_is_loaded(
    world: Path, new_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "asks.py").write_text("def asks(completions, tone):\n    return [0.0 for _ in completions]\n")
    monkeypatch.setattr(ppo, "Bank", None)
    with pytest.raises(RecipeError, match=r"asks\.py:asks.*asks for tone, and there is level"):
        ppo.run(recipe(world, reward=[{"python": f"{world}/asks.py:asks"}]), new_run)


class Telling(Quiet):
    """What dispatch tells of stages, too."""

    def stage(self, stage: str, run: Run) -> None: ...
    def done(self, outcome: StageResult) -> None: ...


def test_smoke_calls_the_server_and_makes_a_stand_in_of_the_model(
    world: Path, scorer: Path, server: Server, tmp_path: Path
) -> None:
    sources = [{"model": str(scorer)}, {"http": server.url, "retries": 0}, {"rule": {"pattern": "w1"}}]
    made = run_stage(
        "ppo", recipe(world, start="base", reward=sources), tmp_path / "runs", smoke=True, reporter=Telling()
    )
    assert made.manifest["smoke"]
    assert {"ppo.reward.scorer", "ppo.reward.http", "ppo.reward.pattern"} <= set(made.manifest["metrics"])
    assert len(server.asked) > 2
    inputs = {item["role"]: item for item in made.manifest["inputs"]}
    assert (inputs["ppo.reward.0"]["kind"], len(inputs["ppo.reward.0"]["sha256"])) == ("folder", 64)
    again = load_recipe(made.path / "recipe.yaml", stages=("ppo",))
    assert again.ppo.reward[1].http == server.url
