"""`reward.members` trains several reward models in one run, which later stages and plain PEFT can load."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from rlhf_cli.models.ensemble import member_folder
from rlhf_cli.runs import layout, lineage
from rlhf_cli.training import memory_check
from rlhf_cli.training.members import member_rows, member_seed
from rlhf_cli.training.trl import dataset
from tests.support.plain_models import scores_by_peft
from tests.support.stage_harness import logged_steps
from tests.support.training_project import TrainingProject

THREE = "reward.members=3"
HELD_OUT = "data.preferences.eval_fraction=0.3"


@pytest.fixture
def project(training_project: TrainingProject) -> TrainingProject:
    """Give the chosen completions different lengths, so that members can disagree."""
    rows = [
        {"prompt": f"{i} and", "chosen": " tree" * (1 + i % 3), "rejected": " dog" * (1 + i % 4)} for i in range(60)
    ]
    training_project.write_rows("preferences.jsonl", rows)
    return training_project


def test_first_member_is_the_model_of_a_run_with_one(project: TrainingProject) -> None:
    single, several = project.train("reward"), project.train("reward", THREE)
    weights = "adapter_model.safetensors"
    files = several.manifest["files"]
    assert files[weights] == single.manifest["files"][weights]
    hashes = {files[name]["sha256"] for name in (weights, f"member-2/{weights}", f"member-3/{weights}")}
    assert len(hashes) == 3
    assert set(files) - set(single.manifest["files"]) == {
        "ensemble.json",
        *(f"member-{number}/{name}" for number in (2, 3) for name in (weights, "adapter_config.json")),
    }
    entry = layout.read_entry(several.path)
    assert lineage.verify(entry).issues == []


def test_steps_of_members_are_logged_one_after_another(project: TrainingProject) -> None:
    result = project.train("reward", THREE)
    rows = logged_steps(result.path)
    assert [(row["step"], row["member"]) for row in rows] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]
    assert [row["num_tokens"] for row in rows] == sorted(row["num_tokens"] for row in rows)
    assert result.manifest["metrics"]["reward.steps"] == 6
    losses = statistics.mean(row["loss"] for row in rows)
    assert result.manifest["metrics"]["reward.train_loss"] == pytest.approx(losses)


def test_accuracy_is_that_of_the_mean_score_by_peft(project: TrainingProject, tiny_base: Path) -> None:
    result = project.train("reward", THREE, HELD_OUT)
    pairs = project.held_out_preferences(HELD_OUT)
    texts = [pair.prompt + pair.chosen for pair in pairs] + [pair.prompt + pair.rejected for pair in pairs]
    members = [scores_by_peft(tiny_base, member_folder(result.path / "model", index), texts) for index in range(3)]
    offsets = json.loads((result.path / "model/ensemble.json").read_text())["offsets"]
    means = [statistics.mean(scores) for scores in members]
    assert offsets == pytest.approx([means[0] - mean for mean in means], abs=1e-5)  # float32 sums of 50 terms
    combined = [statistics.mean(scores) for scores in zip(*members, strict=True)]
    margins = [c - r for c, r in zip(combined[: len(pairs)], combined[len(pairs) :], strict=True)]
    accuracy = statistics.mean(margin > 0 for margin in margins)
    assert result.manifest["metrics"]["reward.accuracy"] == pytest.approx(accuracy)
    assert result.manifest["metrics"]["reward.margin"] == pytest.approx(statistics.mean(margins), abs=1e-5)


def test_eval_scores_with_the_mean_of_the_members(project: TrainingProject) -> None:
    trained = project.train("reward", THREE, HELD_OUT).manifest["metrics"]
    overrides = ("eval.candidate=sft", "eval.baseline=null", "eval.reward=reward", HELD_OUT, "data.prompts=null")
    project.train("sft")
    evaluated = project.train("eval", *overrides).manifest["metrics"]
    for name in ("reward.accuracy", "reward.margin"):
        assert evaluated[name] == pytest.approx(trained[name], abs=1e-5)


def test_ppo_combines_the_members_and_counts_their_memory(project: TrainingProject) -> None:
    overrides = ("ppo.reward=[{run: reward, combine: min}]",)
    estimates = []
    for members in (1, 3):
        project.train("reward", f"reward.members={members}")
        resolved = project.resolve("ppo", *overrides, f"reward.members={max(members, 2)}")
        found = memory_check.estimate(resolved, 16, 0)
        assert found is not None
        estimates.append(found.parts.adapters)
    # Policy, critic and reward, and then two further members; each role's adapter has the same size.
    assert estimates[1] / estimates[0] == pytest.approx(5 / 3)
    metrics = project.train("ppo", *overrides, THREE).manifest["metrics"]
    assert metrics["ppo.score.reward.disagreement"] > 0


def test_members_start_from_the_members_of_an_ensemble(project: TrainingProject) -> None:
    start = project.train("reward", "reward.members=2").path
    frozen = ("reward.learning_rate=1e-30", "reward.members=2", f"reward.start={start}")
    again = project.train("reward", *frozen)
    for index in (0, 1):
        both = [member_folder(path / "model", index) / "adapter_model.safetensors" for path in (start, again.path)]
        assert both[0].read_bytes() == both[1].read_bytes()


def test_first_member_gets_all_rows_and_others_bootstrap_samples() -> None:
    rows = dataset([{"number": list(range(500))}])
    assert member_rows(rows, 7, 0)["number"][:] == list(range(500))
    samples = [member_rows(rows, member_seed(7, index), index)["number"][:] for index in (1, 2)]
    assert samples[0] != samples[1]
    for sample in samples:
        assert len(sample) == 500
        # A bootstrap sample misses (1 - 1/n)^n = 36.8 % of the rows; the deviation is 1.4 % at n = 500.
        assert len(set(sample)) / 500 == pytest.approx(1 - (1 - 1 / 500) ** 500, abs=0.06)
