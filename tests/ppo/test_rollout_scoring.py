"""Test rewards between the sources and the advantages: normalized, clipped, penalized; and the rollout's metrics."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.ppo import algorithm
from rlhf_cli.ppo.actor_critic import POLICY, REFERENCE, VALUE
from rlhf_cli.ppo.trainer import PPOTrainer
from rlhf_cli.ppo.types import Experience
from rlhf_cli.recipe.schema import Kl
from rlhf_cli.rewards.base import Completions
from tests.support.issues import raises_issue
from tests.support.tiny_policy import EOS, PAD, MakeActorCritic, MakeTrainer, Ragged, small_settings

BATCH_OPTIONS: dict[str, Any] = {"pad_id": PAD, "max_tokens": 60}


def completions_of(responses: list[list[int]], prompts: list[list[int]] | None = None) -> Completions:
    """Return completions with these token ids."""
    count = len(responses)
    return Completions([PromptRow("w1", {})] * count, prompts or [[5]] * count, responses, ["x"] * count)


def move_from_reference(parameters: list[torch.nn.Parameter], scale: float) -> None:
    """Add noise to the policy's parameters."""
    for parameter in parameters:
        parameter.data += scale * torch.randn_like(parameter)


def test_score_completions_normalizes_by_whole_run_then_clips_then_penalizes(make_trainer: MakeTrainer) -> None:
    batches = iter([[1.0, 2.0, 9.0], [4.0, 4.0, 100.0]])
    settings = small_settings(normalize_reward=True, reward_clip=1.5, missing_eos_penalty=3.0)
    scorer = make_trainer(settings, function=lambda _: next(batches)).scorer
    first = scorer.score_completions(completions_of([[5, EOS]] * 3))
    mean, deviation = statistics.mean([1, 2, 9]), statistics.stdev([1, 2, 9])
    assert first.raw.tolist() == [1.0, 2.0, 9.0]
    assert first.shaped.tolist() == pytest.approx([(x - mean) / deviation for x in (1, 2, 9)])
    second = scorer.score_completions(completions_of([[5, EOS], [5, 6], [5, EOS]]))
    seen = [1, 2, 9, 4, 4, 100]
    normalized = (4 - statistics.mean(seen)) / statistics.stdev(seen)
    assert second.shaped.tolist() == pytest.approx([normalized, normalized - 3.0, 1.5])
    assert second.by_source == {"share": [4.0, 4.0, 100.0]}


def test_score_completions_end_token_in_last_slot_is_not_penalized(make_trainer: MakeTrainer) -> None:
    settings = small_settings(missing_eos_penalty=3.0)
    trainer = make_trainer(settings, function=lambda completions: [1.0] * len(completions))
    completions = completions_of([[5, 6, 7, 8, EOS], [5, 6, 7, 8, 9], [EOS]])
    assert trainer.scorer.score_completions(completions).shaped.tolist() == [1.0, -2.0, 1.0]
    rollout = trainer.scorer.score_rollout(completions, trainer.kl_coef)
    assert rollout.metrics["truncation_rate"] == pytest.approx(1 / 3)
    assert rollout.experience.mask.sum(dim=1).tolist() == [5, 5, 1]


def test_source_mean_ignores_none_scores(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings(), function=lambda _: [None, 4.0, 8.0])
    metrics = trainer.scorer.score_rollout(completions_of([[6, EOS]] * 3), trainer.kl_coef).metrics
    assert (metrics["reward"], metrics["reward.std"], metrics["score.share"]) == (6.0, 2.0, 6.0)


def test_score_rollout_unscored_completion_teaches_nothing(make_trainer: MakeTrainer, sft_folder: Path) -> None:
    """The other completions are learned from as if it had not been in the rollout."""
    settings = small_settings(normalize_reward=True, missing_eos_penalty=1.0)
    responses = [[6, EOS], [7, 8, 9], [8, EOS], [9, 10, EOS]]

    def score(kept: list[int], scores: list[float | None]) -> tuple[PPOTrainer, Experience, dict[str, float]]:
        torch.manual_seed(0)
        trainer = make_trainer(settings, sft_folder, function=lambda _: scores)
        move_from_reference(trainer.model.parameters(POLICY), scale=0.01)
        rollout = trainer.scorer.score_rollout(completions_of([responses[i] for i in kept]), trainer.kl_coef)
        return trainer, rollout.experience, rollout.metrics

    trainer, found, metrics = score([0, 1, 2, 3], [9.0, None, 4.0, 8.0])
    without, expected, expected_metrics = score([0, 2, 3], [9.0, 4.0, 8.0])
    assert vars(trainer.scorer.moments) == pytest.approx(vars(without.scorer.moments))
    for name in ("reward", "reward.std", "explained_variance", "advantage.mean", "return.mean"):
        assert metrics[name] == pytest.approx(expected_metrics[name], abs=1e-5)
    torch.testing.assert_close(found.advantages[[0, 2, 3]], expected.advantages, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.returns[[0, 2, 3]], expected.returns, atol=1e-5, rtol=0)
    assert found.advantages[1].tolist() == [0.0] * 3
    assert torch.equal(found.returns[1], found.values[1])
    assert found.mask[1].all()


def test_score_rollout_constant_source_warns_once(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings(), function=lambda texts: [0.5] * len(texts))
    for _ in range(2):
        trainer.scorer.score_rollout(completions_of([[6, EOS]] * 3), trainer.kl_coef)
    (line,) = (trainer.run.path / "log.txt").read_text().splitlines()
    assert line.endswith(
        "warning: ppo.reward (share): constant; found the score 0.5 for all completions of a rollout, from which PPO "
        "cannot learn"
    )


@pytest.mark.parametrize("weight", [1.0, 0.05])
def test_critic_at_start_is_reward_head_times_its_weight(
    make_actor_critic: MakeActorCritic, reward_folder: Path, weight: float
) -> None:
    """A critic that predicts weight · score explains the same fraction of the returns at every weight."""
    heads = make_actor_critic(None, reward_folder, weight=weight).model.heads
    (found,), (expected,) = heads[VALUE].parameters(), heads["reward"].parameters()
    torch.testing.assert_close(found, weight * expected, check_stride=False)


@pytest.mark.parametrize("normalize_reward", [False, True])
def test_score_rollout_critic_copied_from_reward_run_explains_as_much_whatever_the_weight(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path, ragged: Ragged, normalize_reward: bool
) -> None:
    prompts, responses = ragged
    settings = small_settings(normalize_reward=normalize_reward)
    found = []
    for weight in (1.0, 0.05, -20.0):
        trainer = make_trainer(settings, sft_folder, reward_folder, weight=weight, function=None)
        completions = completions_of(responses, prompts)
        experience, metrics = trainer.scorer.score_rollout(completions, trainer.kl_coef)
        assert experience.values.std() > 1e-3
        found.append(metrics["explained_variance"])
    assert found == pytest.approx([found[0]] * 3, abs=1e-4)


def test_score_rollout_copied_critic_predicts_normalized_rewards(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path, ragged: Ragged
) -> None:
    prompts, responses = ragged
    trainer = make_trainer(small_settings(normalize_reward=True), sft_folder, reward_folder, weight=3.0, function=None)
    experience = trainer.scorer.score_rollout(completions_of(responses, prompts), trainer.kl_coef).experience
    prefixes = [prompt + response[:-1] for prompt, response in zip(prompts, responses, strict=True)]
    complete = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    before, scores = (
        3.0 * scoring.final_scores(trainer.model, "reward", sequences, **BATCH_OPTIONS)
        for sequences in (prefixes, complete)
    )
    last = torch.tensor([len(response) - 1 for response in responses])
    found = experience.values[torch.arange(len(responses)), last]
    torch.testing.assert_close(found, (before - scores.mean()) / scores.std(), atol=1e-4, rtol=1e-4)


def test_score_rollout_nothing_scored_raises_issue(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings(), function=lambda _: [None] * 3)
    with raises_issue("training.nothing-scored", error=DivergedError, location="ppo.reward") as issues:
        trainer.scorer.score_rollout(completions_of([[6, EOS]] * 3), trainer.kl_coef)
    assert issues[0].message == "share: no completion was scored; found None for all 3 completions."


def test_score_rollout_samples_move_no_running_mean(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings(normalize_reward=True, iterations=1))
    trainer.train()
    assert trainer.scorer.moments.count == 4  # completions of the rollout, and none of the samples


def test_score_rollout_returns_are_score_minus_remaining_kl(make_trainer: MakeTrainer, sft_folder: Path) -> None:
    """With λ = γ = 1, the return of a token is the score minus the KL of this and later tokens."""
    settings = small_settings(gae_lambda=1.0, kl=Kl(coef=0.5))
    trainer = make_trainer(settings, sft_folder, function=lambda _: [2.0, 7.0])
    move_from_reference(trainer.model.parameters(POLICY), scale=0.01)
    prompts, responses = [[5, 6], [7]], [[8, 9, EOS], [10, EOS]]
    experience = trainer.scorer.score_rollout(completions_of(responses, prompts), 0.5).experience
    logprobs, ref_logprobs = (
        scoring.token_logprobs(trainer.model, role, prompts, responses, temperature=0.7, **BATCH_OPTIONS)
        for role in (POLICY, REFERENCE)
    )
    for row, score in enumerate((2.0, 7.0)):
        kl = logprobs[row] - ref_logprobs[row]
        assert kl.abs().max() > 1e-3
        expected = score - 0.5 * kl.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(experience.returns[row, : len(kl)], expected, atol=1e-5, rtol=0)


def test_score_rollout_copies_to_main_memory_do_not_grow_with_rows(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(small_settings(), function=lambda texts: [1.0] * len(texts))
    copies: list[int] = []
    library_cpu = torch.Tensor.cpu

    def count(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(1)
        return library_cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", count)
    found = []
    for rows in (2, 16):
        copies.clear()
        trainer.scorer.score_rollout(completions_of([[6, 7, EOS]] * rows), trainer.kl_coef)
        found.append(len(copies))
    assert found[0] == found[1] < 10


def test_score_rollout_kl_in_loss_is_not_charged_in_reward(make_trainer: MakeTrainer, sft_folder: Path) -> None:
    settings = small_settings(gae_lambda=1.0, kl=Kl(coef=0.5, apply_to="loss", estimator="k3"))
    trainer = make_trainer(settings, sft_folder, function=lambda _: [2.0, 7.0])
    move_from_reference(trainer.model.parameters(POLICY), scale=0.05)
    rollout = trainer.scorer.score_rollout(completions_of([[8, 9, EOS], [10, EOS]]), 0.5)
    assert rollout.metrics["kl.k3"] > 1e-3
    experience = rollout.experience
    assert experience.returns[experience.mask].tolist() == pytest.approx([2.0] * 3 + [7.0] * 2)


@pytest.mark.parametrize("parts", [[7], [1, 6], [3, 2, 2]])
def test_running_moments_updated_in_parts_equal_those_of_all_scores(parts: list[int]) -> None:
    torch.manual_seed(0)
    scores = 100 + 0.1 * torch.randn(7, dtype=torch.float64)
    moments = algorithm.RunningMoments()
    for part in scores.split(parts):
        moments.update(part)
    expected = (scores - scores.mean()) / scores.std()
    torch.testing.assert_close(moments.normalize(scores), expected)


def test_running_moments_equal_scores_normalize_to_zero() -> None:
    moments = algorithm.RunningMoments()
    moments.update(torch.full((4,), 2.5))
    assert moments.normalize(torch.full((4,), 2.5)).tolist() == [0.0] * 4
