"""Rewards between the sources and the advantages: normalized, clipped, punished."""

import statistics

import pytest
import torch

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.ppo import actor_critic, algorithm, update
from rlhf_cli.recipe.schema import Kl
from rlhf_cli.rewards import build
from tests.support.tiny_policy import EOS, lines, small


def answered(responses):
    count = len(responses)
    return build.Completions([PromptRow("w1", {})] * count, [[5]] * count, responses, ["x"] * count)


def test_rewards_are_normalized_by_all_of_the_run_so_far_then_clipped_then_punished(make_trainer):
    batches = iter([[1.0, 2.0, 9.0], [4.0, 4.0, 100.0]])
    settings = small(normalize_reward=True, reward_clip=1.5, missing_eos_penalty=3.0)
    scorer = make_trainer(settings, function=lambda completions: next(batches)).scorer
    first = scorer.earned(answered([[5, EOS]] * 3))
    mean, deviation = statistics.mean([1, 2, 9]), statistics.stdev([1, 2, 9])
    assert first.raw.tolist() == [1.0, 2.0, 9.0]
    assert first.shaped.tolist() == pytest.approx([(x - mean) / deviation for x in (1, 2, 9)])
    second = scorer.earned(answered([[5, EOS], [5, 6], [5, EOS]]))
    seen = [1, 2, 9, 4, 4, 100]
    own = (4 - statistics.mean(seen)) / statistics.stdev(seen)
    assert second.shaped.tolist() == pytest.approx([own, own - 3.0, 1.5])
    assert second.by_source == {"share": [4.0, 4.0, 100.0]}  # as the source gave them


def test_watched_samples_move_no_running_mean(make_trainer):
    trainer = make_trainer(small(normalize_reward=True, iterations=1))
    trainer.train()
    assert trainer.scorer.moments.count == 4  # the rollout's answers, and none of the samples'


@pytest.mark.parametrize("parts", [[7], [1, 6], [3, 2, 2]])
def test_moments_in_parts_are_those_of_the_whole(parts):
    torch.manual_seed(0)
    scores = 100 + 0.1 * torch.randn(7, dtype=torch.float64)
    moments = algorithm.RunningMoments()
    for part in scores.split(parts):
        moments.update(part)
    whole = (scores - scores.mean()) / scores.std()
    torch.testing.assert_close(moments.normalize(scores), whole)


def test_equal_scores_become_zero():
    moments = algorithm.RunningMoments()
    moments.update(torch.full((4,), 2.5))
    assert moments.normalize(torch.full((4,), 2.5)).tolist() == [0.0] * 4


def test_kl_as_a_loss_is_not_charged_in_the_reward_too(make_trainer, sft_folder):
    kl = Kl(coef=0.5, apply_to="loss", estimator="k3")
    trainer = make_trainer(small(gae_lambda=1.0, kl=kl), sft_folder, function=lambda completions: [2.0, 7.0])
    for p in trainer.bank.parameters(actor_critic.POLICY):
        p.data += 0.05 * torch.randn_like(p)  # away from the reference
    scored = trainer.scorer.score(answered([[8, 9, EOS], [10, EOS]]), 0.5)
    assert scored.metrics["kl.k3"] > 1e-3
    assert scored.experience.returns[scored.experience.mask].tolist() == pytest.approx([2.0] * 3 + [7.0] * 2)


def test_each_prompt_gets_as_many_answers_as_asked(make_trainer):
    seen = []
    trainer = make_trainer(small(samples_per_prompt=3), function=lambda completions: [0.0] * len(completions))
    answer = trainer._answer
    trainer._answer = lambda prompts: seen.append([row.prompt for row in prompts.rows]) or answer(prompts)
    history = trainer.train()
    rollouts = [prompts for prompts in seen if len(prompts) == 12]
    assert len(rollouts) == 2
    assert all(prompts[i] == prompts[i + 1] == prompts[i + 2] for prompts in rollouts for i in (0, 3, 6, 9))
    assert len(set(rollouts[0])) == 4
    assert history[-1]["episodes"] == 24


def test_demonstrations_are_mixed_in_and_logged(make_trainer):
    rows = update.Demonstrations([[5, 6]] * 3, [[10, 11, EOS]] * 3)
    still = {"learning_rate": 1e-2, "iterations": 10, "rollout_batch_size": 4}
    trainer = make_trainer(
        small(ptx_coef=1.0, **still), function=lambda completions: [0.0] * len(completions), demonstrations=rows
    )
    trainer.train()
    losses = [line["ptx_loss"] for line in lines(trainer.run, "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2  # it learns to say them
