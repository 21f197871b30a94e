"""Test the PPO loop: what an iteration changes and logs, when a run stops, and that the policy learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo.actor_critic import POLICY, REFERENCE, VALUE
from rlhf_cli.ppo.trainer import PPOTrainer
from rlhf_cli.ppo.types import Demonstrations
from rlhf_cli.recipe.schema import Critic, Kl, Ppo
from tests.support.issues import raises_issue
from tests.support.tiny_policy import (
    EOS,
    PAD,
    FakeScorer,
    MakeActorCritic,
    MakeTrainer,
    Ragged,
    read_log,
    small_settings,
)

METRICS = {
    *("reward", "reward.std", "score.share", "kl", "kl.token", "kl.k3", "kl.coef", "entropy"),
    *("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl"),
    *("ratio.mean", "ratio.min", "ratio.max", "explained_variance", "advantage.mean", "return.mean"),
    *("response_length", "truncation_rate", "repeated_4gram_rate", "distinct_2"),
    *("learning_rate", "learning_rate.critic", "grad_norm.policy", "grad_norm.critic", "optimizer_steps", "episodes"),
    *("seconds.rollout", "seconds.scoring", "seconds.update", "tokens_per_second", "memory_peak_bytes"),
}


def constant_reward(completions: list[str]) -> list[float]:
    """Return the same score for all completions."""
    return [0.0] * len(completions)


def copy_parameters(trainer: PPOTrainer, *roles: str) -> list[Tensor]:
    """Return copies of the parameters of the roles, all trained ones by default."""
    return [p.detach().clone() for role in roles or (POLICY, VALUE) for p in trainer.model.parameters(role)]


def logprobs_of(model: MultiAdapterModel, role: str, ragged: Ragged) -> Tensor:
    """Return the log-probabilities of all response tokens."""
    return torch.cat(scoring.token_logprobs(model, role, *ragged, pad_id=PAD, temperature=1.0, max_tokens=60))


def checkpoint_names(trainer: PPOTrainer) -> list[str]:
    """Return the names of the checkpoints."""
    return sorted(path.name for path in (trainer.run.path / "checkpoints").iterdir())


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Assert that tensors are equal bit for bit."""
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_train_takes_epochs_times_minibatches_optimizer_steps_per_rollout(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings(epochs=3, minibatches=2, save_every=10))
    steps: list[int] = []
    trainer.optimization.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    history = trainer.train()
    assert [metrics["optimizer_steps"] for metrics in history] == [6.0, 6.0]
    assert len(steps) == 12


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_train_moves_only_policy_and_critic_away_from_reference(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path, ragged: Ragged, kind: str
) -> None:
    critic = Critic.model_validate({"kind": kind, "learning_rate": 1e-3})
    trainer = make_trainer(small_settings(critic=critic), sft_folder, reward_folder)
    model = trainer.model
    start = logprobs_of(model, POLICY, ragged)
    assert torch.equal(start, logprobs_of(model, REFERENCE, ragged))
    with model.use(REFERENCE) as shared_model:
        frozen = [(p, p.detach().clone()) for p in shared_model.parameters() if not p.requires_grad]
    scores = scoring.final_scores(model, "reward", ragged[0], pad_id=PAD, max_tokens=60)
    history = trainer.train()
    assert abs(history[0]["kl"]) < 1e-5  # nats: nothing has moved yet
    assert (logprobs_of(model, POLICY, ragged) - start).abs().max() > 1e-3
    assert torch.equal(logprobs_of(model, REFERENCE, ragged), start)
    assert torch.equal(scoring.final_scores(model, "reward", ragged[0], pad_id=PAD, max_tokens=60), scores)
    assert_equal([p for p, _ in frozen], [before for _, before in frozen])


def test_train_policy_from_bare_base_has_the_base_as_reference(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings())
    history = trainer.train()
    assert abs(history[0]["kl"]) < 1e-5
    assert trainer.model.parameters(REFERENCE) == []


def test_train_logs_every_metric(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(small_settings(save_every=10))
    history = trainer.train()
    assert set(history[0]) == METRICS
    logged = read_log(trainer.run, "metrics.jsonl")
    assert [line["step"] for line in logged] == [1, 2]
    assert set(logged[0]) == METRICS | {"step", "time"}
    assert logged[1]["episodes"] == 8
    assert history[0]["response_length"] <= 5
    assert history[0]["ratio.min"] <= history[0]["ratio.mean"] <= history[0]["ratio.max"]


def test_train_samples_per_prompt_repeats_each_prompt(make_trainer: MakeTrainer) -> None:
    scorer = FakeScorer(constant_reward)
    history = make_trainer(small_settings(samples_per_prompt=3), scorer=scorer).train()
    rollouts = [prompts for prompts in scorer.prompts if len(prompts) == 12]
    assert len(rollouts) == 2
    assert all(prompts[i] == prompts[i + 1] == prompts[i + 2] for prompts in rollouts for i in (0, 3, 6, 9))
    assert len({str(prompt) for prompt in rollouts[0]}) == 4
    assert history[-1]["episodes"] == 24


def test_train_ptx_coef_lowers_loss_of_demonstrations(make_trainer: MakeTrainer) -> None:
    demonstrations = Demonstrations([[5, 6]] * 3, [[10, 11, EOS]] * 3)
    settings = small_settings(ptx_coef=1.0, learning_rate=1e-2, iterations=10)
    trainer = make_trainer(settings, function=constant_reward, demonstrations=demonstrations)
    trainer.train()
    losses = [line["ptx_loss"] for line in read_log(trainer.run, "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2


def test_train_adaptive_kl_updates_coef_between_rollouts(make_trainer: MakeTrainer) -> None:
    settings = small_settings(kl=Kl(coef=0.1, target=5.0, horizon=100), save_every=10)
    history = make_trainer(settings).train()
    # No KL in the first rollout, an error of −1: e^-1 at once, and −1 limited to −0.3 over 4 of 100 episodes.
    assert [metrics["kl.coef"] for metrics in history] == pytest.approx([0.1, 0.1 * math.exp(-1 - 0.3 * 4 / 100)])


def test_train_target_kl_ends_updates_of_an_iteration(make_trainer: MakeTrainer) -> None:
    settings = small_settings(epochs=8, learning_rate=3e-2, target_kl=1e-4, save_every=10)
    history = make_trainer(settings).train()
    assert all(1 <= metrics["optimizer_steps"] < 16 for metrics in history)
    assert all(metrics["approx_kl"] <= 1e-4 for metrics in history)
    # Half of the iterations are over, and so is half of the linear decay, however many steps were taken.
    assert [metrics["learning_rate"] for metrics in history] == pytest.approx([3e-2, 1.5e-2])


def test_train_critic_warmup_moves_only_the_critic(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path
) -> None:
    settings = small_settings(iterations=1, critic=Critic(learning_rate=1e-2, warmup_iterations=1))
    trainer = make_trainer(settings, sft_folder, reward_folder)
    policy, critic = copy_parameters(trainer, POLICY), copy_parameters(trainer, VALUE)
    trainer.train()
    assert_equal(trainer.model.parameters(POLICY), policy)
    assert any(not torch.equal(a, b) for a, b in zip(critic, trainer.model.parameters(VALUE), strict=True))


def test_train_save_every_writes_checkpoints_and_samples(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path
) -> None:
    trainer = make_trainer(small_settings(iterations=5, save_every=2), sft_folder, reward_folder)
    trainer.train()
    assert checkpoint_names(trainer) == ["step-000002", "step-000004"]
    files = {path.name for path in (trainer.run.checkpoint_path(4) / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    samples = read_log(trainer.run, "samples.jsonl")
    assert [sample["step"] for sample in samples] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert set(samples[0]) == {"step", "prompt", "response", "reward"}
    assert samples[0]["prompt"] == samples[2]["prompt"] == "w0 w0"


def test_train_logging_samples_changes_no_training(make_trainer: MakeTrainer, sft_folder: Path) -> None:
    rewards = [
        [metrics["reward"] for metrics in make_trainer(small_settings(iterations=3, save_every=n), sft_folder).train()]
        for n in (1, 9)
    ]
    assert rewards[0] == rewards[1]


def record_policies(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Return a list that grows with the policy's parameters at each logged iteration, from the start on."""
    policies = [copy_parameters(trainer, POLICY)]
    log = trainer.run.log

    def log_and_record(step: int, metrics: dict[str, float]) -> None:
        log(step, metrics)
        policies.append(copy_parameters(trainer, POLICY))

    monkeypatch.setattr(trainer.run, "log", log_and_record)
    return policies


@pytest.mark.parametrize("save_every", [100, 1])
def test_train_kl_beyond_abort_raises_issue_and_restores_last_valid_policy(
    make_trainer: MakeTrainer,
    make_actor_critic: MakeActorCritic,
    sft_folder: Path,
    ragged: Ragged,
    monkeypatch: pytest.MonkeyPatch,
    save_every: int,
) -> None:
    settings = small_settings(iterations=50, learning_rate=1e-2, kl=Kl(coef=0.0, abort=2.0), save_every=save_every)
    trainer = make_trainer(settings, sft_folder)
    policies = record_policies(trainer, monkeypatch)
    with raises_issue("training.kl-limit", error=DivergedError, location="ppo.kl.abort") as issues:
        trainer.train()
    *valid, last = read_log(trainer.run, "metrics.jsonl")
    assert len(valid) >= 2  # so that the last valid policy is not the start
    assert all(line["kl"] <= 2 for line in valid)
    assert last["kl"] > 2
    assert last["step"] == len(valid) + 1
    assert issues[0].message == (
        f"iteration {last['step']}: KL from the reference: exceeds kl.abort; found {last['kl']:.3g} nats per "
        "completion, expected at most 2."
    )
    # A policy is validated by the rollout of the next iteration, so the last valid one is of the iteration before.
    iteration = len(valid) - 1
    folder = trainer.run.checkpoint_path(iteration)
    assert issues[0].hint.endswith(f"The last valid policy is in {folder}.")
    assert_equal(trainer.model.parameters(POLICY), policies[iteration])
    assert any(not torch.equal(a, b) for a, b in zip(policies[iteration], policies[iteration + 1], strict=True))
    saved = make_actor_critic(folder / "model").model
    for role in (POLICY, REFERENCE):
        torch.testing.assert_close(logprobs_of(saved, role, ragged), logprobs_of(trainer.model, POLICY, ragged))


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_train_diverging_update_is_undone_for_policy_and_critic(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path, kind: str
) -> None:
    critic = Critic.model_validate({"kind": kind, "learning_rate": 1e-2})
    settings = small_settings(iterations=9, critic=critic, save_every=100)
    trainer = make_trainer(settings, sft_folder, reward_folder)
    trained = [*trainer.model.parameters(POLICY), *trainer.model.parameters(VALUE)]
    steps: list[int] = []
    valid: list[Tensor] = []

    def count_and_damage(*_: object) -> None:
        steps.append(1)
        if len(steps) == 8:  # the end of the second iteration
            valid[:] = copy_parameters(trainer)
        if len(steps) == 9:
            for parameter in trained:
                parameter.data.fill_(float("nan"))

    trainer.optimization.optimizer.register_step_post_hook(count_and_damage)
    with raises_issue("training.non-finite", error=DivergedError, location="ppo") as issues:
        trainer.train()
    assert "gradient norm" in issues[0].message
    assert "step-000002" in issues[0].hint
    assert_equal(trained, valid)
    assert [line["step"] for line in read_log(trainer.run, "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize(("is_whole", "expected"), [(False, [0, 1, 2, 3, 4]), (True, [0, 0, 2, 2, 4])])
def test_train_whole_models_are_copied_as_often_as_they_are_saved(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, is_whole: bool, expected: list[int]
) -> None:
    monkeypatch.setattr(MultiAdapterModel, "has_full_models", is_whole)
    trainer = make_trainer(small_settings(iterations=5, save_every=2, epochs=1))
    copied: list[int] = []
    log = trainer.run.log

    def log_and_record(step: int, metrics: dict[str, float]) -> None:
        log(step, metrics)
        assert trainer._snapshot is not None
        copied.append(trainer._snapshot.iteration)

    monkeypatch.setattr(trainer.run, "log", log_and_record)
    trainer.train()
    assert copied == expected


def test_train_nan_reward_raises_issue_and_saves_last_valid_policy(make_trainer: MakeTrainer, sft_folder: Path) -> None:
    calls: list[int] = []

    def score(completions: list[str]) -> list[float]:
        calls.append(1)
        return [float("nan") if len(calls) > 4 else 1.0] * len(completions)  # the sample and three rollouts are valid

    trainer = make_trainer(small_settings(iterations=9, save_every=100), sft_folder, function=score)
    with raises_issue("training.non-finite", error=DivergedError, location="ppo.reward") as issues:
        trainer.train()
    assert "share" in issues[0].message
    assert checkpoint_names(trainer) == ["step-000002"]


def test_train_policy_not_finite_from_the_start_saves_no_checkpoint(
    make_trainer: MakeTrainer, sft_folder: Path
) -> None:
    def score(completions: list[str]) -> list[float]:
        trainer.model.parameters(POLICY)[0].data.fill_(float("nan"))  # the first call scores the sample
        return constant_reward(completions)

    trainer = make_trainer(small_settings(save_every=100), sft_folder, function=score)
    with raises_issue("training.non-finite", error=DivergedError) as issues:
        trainer.train()
    assert not (trainer.run.path / "checkpoints").exists()
    assert "last policy" not in issues[0].hint


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_train_learns_the_rewarded_word(make_trainer: MakeTrainer, kind: str) -> None:
    settings = Ppo(
        iterations=15,
        rollout_batch_size=32,
        max_new_tokens=8,
        epochs=4,
        minibatches=2,
        learning_rate=5e-3,
        critic=Critic.model_validate({"kind": kind, "learning_rate": 5e-3}),
        kl=Kl(coef=0.01),
        save_every=100,
    )
    history = make_trainer(settings).train()
    assert history[0]["reward"] < 0.15
    assert history[-1]["reward"] > 0.5
    assert history[-1]["kl"] > 0.5  # the policy paid for the reward with KL
