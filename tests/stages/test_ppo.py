"""The ppo stage from a recipe to a run: what it reads, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_cli.errors import DataError, DivergedError, ModelError, RecipeError
from rlhf_cli.inference import generation
from rlhf_cli.models.heads import load_score_head
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.pipeline.runner import run_stage
from rlhf_cli.runs.run import Run
from rlhf_cli.training import memory_check
from rlhf_cli.training.memory_estimate import PPOPlan
from tests.support.issues import raises_issue
from tests.support.ppo_project import PPOProject, save_reward_model
from tests.support.recipe_files import load_recipe
from tests.support.reporters import RecordingReporter
from tests.support.reward_server import Server, ok
from tests.support.stage_harness import TIMED_PPO_METRICS, logged_steps
from tests.support.stages import run_stage_function


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> PPOProject:
    """Write models, prompts and a reward function."""
    silence_library_logging()
    return PPOProject(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def reward_model(project: PPOProject) -> Path:
    """Save a reward model of another shape than the base, whose tokenizer has the words in another order."""
    return save_reward_model(project.folder / "scorer")


@pytest.fixture
def reporter() -> RecordingReporter:
    """Return the reporter of `new_run`."""
    return RecordingReporter()


@pytest.fixture
def new_run(tmp_path: Path, reporter: RecordingReporter) -> Run:
    """Open a run of ppo."""
    return Run.create(tmp_path / "runs", "tiny", "ppo", smoke=False, reporter=reporter)


@pytest.fixture
def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a stage loads models."""

    def load(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the models were loaded")

    monkeypatch.setattr(MultiAdapterModel, "load", load)


def read_samples(run: Run) -> list[dict[str, Any]]:
    """Return the lines of samples.jsonl."""
    return [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]


def test_policy_and_critic_load_in_plain_libraries(project: PPOProject, new_run: Run) -> None:
    metrics = run_stage_function(project.recipe(), new_run).metrics
    assert {path.name for path in new_run.model_dir.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(project.base), new_run.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(new_run.model_dir)
    policy.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=2)
    scorer = AutoModelForSequenceClassification.from_pretrained(project.base, num_labels=1)
    PeftModel.from_pretrained(scorer, new_run.path / "critic")
    assert (new_run.path / "checkpoints/step-000002/manifest.json").exists()
    assert {"ppo.reward", "ppo.score.reward", "ppo.score.by_level", "ppo.kl", "ppo.truncation_rate"} <= set(metrics)
    assert metrics["ppo.episodes"] == 8
    assert metrics["ppo.tokens_per_second"] > 0
    total = metrics["ppo.score.reward"] + 0.5 * metrics["ppo.score.by_level"]
    assert metrics["ppo.reward"] == pytest.approx(total)


def test_reference_is_the_policy_at_its_start(project: PPOProject, new_run: Run) -> None:
    run_stage_function(project.recipe(), new_run)
    assert abs(logged_steps(new_run.path)[0]["kl"]) < 1e-5


def test_memory_decides_batches_of_rollout_and_recomputation(
    project: PPOProject, new_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes: list[int] = []
    library_generate = generation.generate

    def record(*args: Any, batch_size: int, **options: Any) -> list[list[int]]:
        batch_sizes.append(batch_size)
        return library_generate(*args, batch_size=batch_size, **options)

    recomputed: list[bool] = []
    monkeypatch.setattr(generation, "generate", record)
    monkeypatch.setattr(memory_check, "check", lambda *_: PPOPlan(rollout_tokens=10_000, recompute=True))
    monkeypatch.setattr(MultiAdapterModel, "recompute_activations", lambda _: recomputed.append(True))
    recipe = project.recipe()
    run_stage_function(recipe, new_run)
    assert recomputed == [True]
    # 10,000 tokens over prompts of 1 to 10 tokens and their completions.
    assert min(batch_sizes) >= 10_000 // (10 + recipe.ppo.max_new_tokens)
    assert max(batch_sizes) < 10_000 // recipe.ppo.max_new_tokens


def test_held_out_prompts_are_sampled_and_long_prompts_dropped(
    project: PPOProject, new_run: Run, reporter: RecordingReporter
) -> None:
    run_stage_function(project.recipe(), new_run)
    samples = read_samples(new_run)
    assert [sample["step"] for sample in samples] == [0] * 4 + [2] * 4
    assert {sample["prompt"] for sample in samples[:4]} == {sample["prompt"] for sample in samples[4:]}
    assert any("rows dropped: empty, or over 10 tokens" in text for text in reporter.texts("warning"))
    assert all(len(sample["prompt"].split()) < 10 for sample in samples)


def test_shared_critic_is_saved_as_its_head(project: PPOProject, new_run: Run) -> None:
    run_stage_function(project.recipe(critic={"kind": "shared"}, reward=[project.by_level]), new_run)
    assert [path.name for path in (new_run.path / "critic").rglob("*.*")] == ["model.safetensors"]
    assert load_score_head(new_run.path / "critic" / "head").weight.abs().sum() > 0


@pytest.mark.parametrize("has_reward_run", [True, False])
def test_whole_models_are_trained_without_adapter(project: PPOProject, new_run: Run, has_reward_run: bool) -> None:
    reward = {"run": str(project.folder / "whole-reward")} if has_reward_run else project.by_level
    run_stage_function(project.recipe(whole=True, start=str(project.folder / "whole-sft"), reward=[reward]), new_run)
    assert (new_run.model_dir / "model.safetensors").exists()
    AutoModelForCausalLM.from_pretrained(new_run.model_dir)
    AutoModelForSequenceClassification.from_pretrained(new_run.path / "critic", num_labels=1)
    head = new_run.path / ("critic" if has_reward_run else "critic/head")
    assert load_score_head(head).weight.abs().sum() > 0


def test_policy_may_start_from_bare_base(project: PPOProject, new_run: Run) -> None:
    assert run_stage_function(project.recipe(start="base"), new_run).metrics["ppo.episodes"] == 8


def test_summary_of_source_ignores_iterations_that_it_did_not_score(project: PPOProject, new_run: Run) -> None:
    """The samples are scored first, so call 21 is the last rollout of 20; the last tenth is summarized."""
    moody = project.reward_function(
        "moody",
        "calls = []\ndef moody(completions):\n    calls.append(1)\n"
        "    return [3.0 if len(calls) == 21 else None for _ in completions]\n",
    )
    recipe = project.recipe(iterations=20, minibatches=1, save_every=50, reward=[project.by_level, moody])
    metrics = run_stage_function(recipe, new_run).metrics
    assert metrics["ppo.score.moody"] == 3.0
    assert metrics["ppo.score.by_level"] > 0


def test_same_seed_gives_same_metrics(project: PPOProject, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        run = Run.create(tmp_path, name, "ppo", smoke=False, reporter=RecordingReporter())
        torch.manual_seed(0)
        run_stage_function(project.recipe(), run)
        rows = logged_steps(run.path)
        found.append([{k: v for k, v in row.items() if not k.startswith(TIMED_PPO_METRICS)} for row in rows])
    assert found[0] == found[1]


def test_prompts_that_are_all_too_long_are_refused(project: PPOProject, new_run: Run) -> None:
    with raises_issue("data.no-usable-rows", error=DataError, location="ppo.max_prompt_length"):
        run_stage_function(project.recipe(max_prompt_length=1), new_run)


def test_reward_run_without_score_head_is_refused(project: PPOProject, new_run: Run) -> None:
    with raises_issue("model.not-a-reward-model", error=ModelError):
        run_stage_function(project.recipe(reward=[{"run": str(project.folder / "sft")}]), new_run)


def test_reward_sources_of_all_kinds_are_summed_and_logged_apart(
    project: PPOProject, reward_model: Path, server: Server, new_run: Run
) -> None:
    weights = {"reward": 1.0, "by_level": 0.5, "scorer": 2.0, "http": 0.25, "length": -1.0}
    sources = [
        {"run": str(project.folder / "reward")},
        {**project.by_level, "weight": 0.5},
        {"model": str(reward_model), "weight": 2.0},
        {"http": server.url, "batch_size": 3, "weight": 0.25},
        {"rule": {"length": {"max": 3}}, "weight": -1.0},
    ]
    metrics = run_stage_function(project.recipe(reward=sources), new_run).metrics
    for row in (*logged_steps(new_run.path), {k.removeprefix("ppo."): v for k, v in metrics.items()}):
        assert {n for n in row if n.startswith("score.") and not n.endswith(".too_long")} == {
            f"score.{name}" for name in weights
        }
        total = sum(weight * row[f"score.{name}"] for name, weight in weights.items())
        assert row["reward"] == pytest.approx(total, abs=1e-5)
        assert row["score.scorer.too_long"] == 0.0
    # One prompt before models are loaded, four samples before and after training, four completions per iteration.
    assert [len(request["prompts"]) for request in server.requests] == [1, 3, 1, 3, 1, 3, 1, 3, 1]
    assert all(len(request["level"]) == len(request["completions"]) for request in server.requests)


def test_failing_server_leaves_last_valid_policy(project: PPOProject, server: Server, new_run: Run) -> None:
    replies = [ok([0.0]), ok([0.0] * 4), ok([0.5] * 4)]  # the check, the samples, the first iteration
    server.replies = [*replies, (200, b"oops", {})]
    recipe = project.recipe(reward=[{"http": server.url}], iterations=9, save_every=9)
    with raises_issue("training.invalid-reward", error=DivergedError, location="ppo.reward") as issues:
        run_stage_function(recipe, new_run)
    (issue,) = issues
    assert issue.message.startswith("iteration 2: ")
    assert "oops" in issue.message
    (checkpoint,) = (new_run.path / "checkpoints").iterdir()
    assert issue.hint.endswith(f"The last valid policy is in {checkpoint}.")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(project.base), checkpoint / "model")
    assert [row["score.http"] for row in logged_steps(new_run.path)] == [0.5]
    log = (new_run.path / "log.txt").read_text()
    logged = log.partition("prompts of iteration 2:\n")[2].splitlines()[:4]
    assert logged == server.requests[-1]["prompts"]


@pytest.mark.parametrize("status", [404, 500])
@pytest.mark.usefixtures("forbid_loading")
def test_failing_server_is_reported_before_models_are_loaded(
    project: PPOProject, server: Server, new_run: Run, status: int
) -> None:
    server.replies = [(status, b"", {})]
    with raises_issue("training.reward-server", error=DivergedError, location="ppo.reward") as issues:
        run_stage_function(project.recipe(reward=[{"http": server.url, "retries": 0}]), new_run)
    assert f"status {status}" in issues[0].message


@pytest.mark.usefixtures("forbid_loading")
def test_reward_function_with_unknown_argument_is_reported_before_models_are_loaded(
    project: PPOProject, new_run: Run
) -> None:
    asks = project.reward_function("asks", "def asks(completions, tone):\n    return [0.0 for _ in completions]\n")
    with raises_issue("recipe.function-signature", error=RecipeError, location="asks.py:asks") as issues:
        run_stage_function(project.recipe(reward=[asks]), new_run)
    assert "tone" in issues[0].message
    assert "level" in issues[0].message  # what is available


@pytest.mark.usefixtures("forbid_loading")
def test_reward_run_with_other_tokenizer_is_refused(
    project: PPOProject, reward_model: Path, tmp_path: Path, new_run: Run
) -> None:
    other = tmp_path / "reward"
    shutil.copytree(project.folder / "reward", other)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reward_model / file, other)
    reward = [{"run": str(project.folder / "reward")}, {"run": str(other)}]
    with raises_issue("model.reward-tokenizer-mismatch", error=ModelError, location="ppo.reward.1"):
        run_stage_function(project.recipe(reward=reward), new_run)


def test_smoke_run_calls_server_and_replaces_reward_model(
    project: PPOProject, reward_model: Path, server: Server, tmp_path: Path, reporter: RecordingReporter
) -> None:
    reward = [{"model": str(reward_model)}, {"http": server.url, "retries": 0}, {"rule": {"pattern": "w1"}}]
    recipe = project.recipe(start="base", reward=reward)
    result = run_stage("ppo", recipe, tmp_path / "runs", smoke=True, reporter=reporter)
    assert result.manifest["smoke"]
    assert {"ppo.score.scorer", "ppo.score.http", "ppo.score.pattern"} <= set(result.manifest["metrics"])
    assert len(server.requests) > 2
    inputs = {item["role"]: item for item in result.manifest["inputs"]}
    assert (inputs["ppo.reward.0"]["kind"], len(inputs["ppo.reward.0"]["sha256"])) == ("folder", 64)
    again = load_recipe(result.path / "recipe.yaml", stages=("ppo",))
    assert again.ppo.reward[1].http == server.url
