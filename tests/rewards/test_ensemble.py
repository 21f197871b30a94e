"""The members of a reward ensemble are scored separately; their scores are aligned and combined by the formulas."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import ModelError
from rlhf_cli.inference import scoring
from rlhf_cli.models.ensemble import ENSEMBLE_FILE, member_folder, read_members, write_ensemble
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Base
from rlhf_cli.rewards.base import Completions
from rlhf_cli.rewards.build import score_completions
from rlhf_cli.rewards.ensemble import Combine, combine_scores, find_ensemble, member_offsets
from tests.support.issues import raises_issue
from tests.support.tiny_policy import ADAPTER, PAD, MakeAdapter, MakeTrainer, Ragged, read_log, reward_run
from tests.support.tiny_policy import small_settings as settings

OFFSETS = [0.0, 0.75, -1.5]


@pytest.fixture
def ensemble_folder(make_adapter: MakeAdapter) -> Path:
    """Write three reward adapters as an ensemble. Return its folder."""
    folder = make_adapter("SEQ_CLS", seed=2)
    for index in (1, 2):
        shutil.copytree(make_adapter("SEQ_CLS", seed=2 + index), member_folder(folder, index))
    write_ensemble(folder, OFFSETS)
    return folder


def test_combine_scores_follows_the_formulas() -> None:
    """With one column of scores at a time, by the standard library."""
    columns = [[1.0, 2.0, 6.0], [0.5, 0.5, 0.5], [-3.0, 4.0, -1.0]]
    scores = torch.tensor(columns).T  # (M, B)
    spread = [statistics.pstdev(column) for column in columns]
    means = [statistics.mean(column) for column in columns]
    expected: dict[Combine, list[float]] = {
        "mean": means,
        "min": [min(column) for column in columns],
        "uncertainty": [mean - 0.1 * deviation**2 for mean, deviation in zip(means, spread, strict=True)],
    }
    for combine, values in expected.items():
        found = combine_scores(scores, combine)
        torch.testing.assert_close(found.combined, torch.tensor(values))
        torch.testing.assert_close(found.disagreement, torch.tensor(spread))


def test_offsets_move_every_mean_to_that_of_the_first_member() -> None:
    scores = [[1.0, 3.0], [10.0, 14.0], [-2.0, 0.0]]
    offsets = member_offsets(scores)
    moved = [statistics.mean(values) + offset for values, offset in zip(scores, offsets, strict=True)]
    assert moved == [2.0, 2.0, 2.0]
    assert offsets[0] == 0.0  # a critic that starts from the first member predicts the combined score's zero


@pytest.mark.parametrize("combine", ["mean", "min", "uncertainty"])
def test_members_on_one_base_score_like_single_reward_models(
    ensemble_folder: Path, base_folder: Path, ragged: Ragged, combine: Combine
) -> None:
    prompts, responses = ragged
    sequences = [p + r for p, r in zip(prompts, responses, strict=True)]
    alone = []
    for index, offset in enumerate(OFFSETS):
        roles: dict[str, Path | None] = {"only": member_folder(ensemble_folder, index)}
        model = MultiAdapterModel.load(Base(model=str(base_folder)), ADAPTER, str(base_folder), roles)
        alone.append(scoring.final_scores(model, "only", sequences, pad_id=PAD, max_tokens=64) + offset)
    function = reward_run(ensemble_folder, combine)
    assert function.ensemble is not None
    folders: dict[str, Path | None] = dict(function.ensemble.folders)
    model = MultiAdapterModel.load(Base(model=str(base_folder)), ADAPTER, str(base_folder), folders)
    completions = Completions([PromptRow("p", {})] * len(prompts), prompts, responses, ["x"] * len(prompts))
    scores = score_completions([function], model, completions, pad_id=PAD, max_tokens=64)
    expected = combine_scores(torch.stack(alone), combine)
    torch.testing.assert_close(scores["reward"], expected.combined)
    torch.testing.assert_close(scores["reward.disagreement"], expected.disagreement)


def test_ppo_logs_the_disagreement_of_an_ensemble_only(
    ensemble_folder: Path, make_adapter: MakeAdapter, make_trainer: MakeTrainer
) -> None:
    for folder, expected in ((ensemble_folder, True), (make_adapter("SEQ_CLS", seed=9), False)):
        trainer = make_trainer(settings(iterations=1), reward=folder)
        trainer.train()
        (row,) = read_log(trainer.run, "metrics.jsonl")
        assert ("score.reward.disagreement" in row) is expected
        assert not expected or row["score.reward.disagreement"] > 0


def test_folder_without_list_has_one_member(tmp_path: Path) -> None:
    assert read_members(tmp_path) == [(tmp_path, 0.0)]
    ensemble = find_ensemble("reward_2", tmp_path, "mean")
    assert ensemble.folders == {"reward_2": tmp_path}
    assert ensemble.size == 1


def test_roles_of_members_are_numbered_after_their_run(tmp_path: Path) -> None:
    write_ensemble(tmp_path, [0.0, 1.0, 2.0])
    assert find_ensemble("reward_2", tmp_path, "mean").folders == {
        "reward_2": tmp_path,
        "reward_2_member_2": tmp_path / "member-2",
        "reward_2_member_3": tmp_path / "member-3",
    }


@pytest.mark.parametrize("text", ["{", json.dumps({}), json.dumps({"offsets": ["a"]})])
def test_damaged_list_of_members_raises(tmp_path: Path, text: str) -> None:
    (tmp_path / ENSEMBLE_FILE).write_text(text)
    with raises_issue("model.load-failed", error=ModelError, location=str(tmp_path / ENSEMBLE_FILE)):
        read_members(tmp_path)
