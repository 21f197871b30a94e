"""The loop: what an iteration does to the models, what it logs, when it stops, and that it learns."""

import pytest
import torch

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.errors import DivergedError
from rlhf_cli.inference import scoring
from rlhf_cli.ppo import actor_critic
from rlhf_cli.recipe.schema import Critic, Kl, Ppo
from rlhf_cli.rewards import build
from tests.support.tiny_policy import EOS, PAD, Says, lines, small

LOGGED = {
    *("reward", "reward.std", "reward.share", "kl", "kl.token", "kl.k3", "kl.coef", "entropy"),
    *("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "approx_kl"),
    *("ratio.mean", "ratio.min", "ratio.max", "explained_variance", "advantage.mean", "return.mean"),
    *("response_length", "truncation_rate", "repeated_4gram_rate", "distinct_2"),
    *("learning_rate", "learning_rate.critic", "grad_norm.policy", "grad_norm.critic", "optimizer_steps", "episodes"),
    *("seconds.rollout", "seconds.scoring", "seconds.update", "tokens_per_second", "memory_peak_bytes"),
}


def test_every_rollout_gets_epochs_times_minibatches_optimizer_steps(make_trainer):
    trainer = make_trainer(small(epochs=3, minibatches=2, save_every=10))
    taken = []
    trainer.optimization.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    history = trainer.train()
    assert [m["optimizer_steps"] for m in history] == [6.0, 6.0]
    assert len(taken) == 12


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_policy_starts_as_the_reference_and_alone_moves_away(make_trainer, sft_folder, reward_folder, ragged, kind):
    trainer = make_trainer(small(critic=Critic(kind=kind, learning_rate=1e-3)), sft_folder, reward_folder)
    bank = trainer.bank

    def logprobs(role):
        limits = {"pad_id": PAD, "temperature": 1.0, "max_tokens": 60}
        return torch.cat(scoring.token_logprobs(bank, role, *ragged, **limits))

    start = logprobs(actor_critic.POLICY)
    assert torch.equal(start, logprobs(actor_critic.REFERENCE))
    base = {id(p): p.detach().clone() for p in bank._base.parameters() if not p.requires_grad}
    scores = scoring.final_scores(bank, "reward", ragged[0], pad_id=PAD, max_tokens=60)
    history = trainer.train()
    assert abs(history[0]["kl"]) < 1e-5  # nats: nothing has moved yet
    assert (logprobs(actor_critic.POLICY) - start).abs().max() > 1e-3
    assert torch.equal(logprobs(actor_critic.REFERENCE), start)
    assert torch.equal(scoring.final_scores(bank, "reward", ragged[0], pad_id=PAD, max_tokens=60), scores)
    assert all(torch.equal(base[id(p)], p) for p in bank._base.parameters() if id(p) in base)


def test_the_bare_base_is_the_reference_of_a_policy_that_starts_from_it(make_trainer, ragged):
    trainer = make_trainer(small())
    history = trainer.train()
    assert abs(history[0]["kl"]) < 1e-5
    assert trainer.bank.parameters(actor_critic.REFERENCE) == []


def test_an_iteration_logs_every_figure(make_trainer):
    trainer = make_trainer(small(save_every=10))
    history = trainer.train()
    assert set(history[0]) == LOGGED
    logged = lines(trainer.run, "metrics.jsonl")
    assert [line["step"] for line in logged] == [1, 2]
    assert set(logged[0]) == LOGGED | {"step", "time"}
    assert logged[1]["episodes"] == 8
    assert history[0]["response_length"] <= 5
    assert history[0]["ratio.min"] <= history[0]["ratio.mean"] <= history[0]["ratio.max"]


def test_end_token_in_the_last_slot_is_no_truncation_and_the_penalty_falls_on_the_others(make_trainer):
    trainer = make_trainer(small(missing_eos_penalty=3.0), function=lambda completions: [1.0] * len(completions))
    rows, responses = [PromptRow("w1", {})] * 3, [[5, 6, 7, 8, EOS], [5, 6, 7, 8, 9], [EOS]]
    answered = build.Completions(rows, [[5]] * 3, responses, ["x"] * 3)
    total = trainer.scorer.earned(answered).shaped
    assert total.tolist() == [1.0, -2.0, 1.0]
    scored = trainer.scorer.score(answered, trainer.coefficient)
    assert scored.metrics["truncation_rate"] == pytest.approx(1 / 3)
    assert scored.experience.mask.sum(dim=1).tolist() == [5, 5, 1]


def test_a_sources_mean_is_over_what_it_judged(make_trainer):
    trainer = make_trainer(small(), function=lambda completions: [None, 4.0, 8.0])
    answered = build.Completions([PromptRow("w1", {})] * 3, [[5]] * 3, [[6, EOS]] * 3, ["x"] * 3)
    found = trainer.scorer.score(answered, trainer.coefficient).metrics
    assert (found["reward"], found["reward.share"]) == (4.0, 6.0)
    terms = trainer.scorer.terms
    terms[0] = terms[0]._replace(judge=Says(lambda completions: [None] * 3))
    with pytest.raises(DivergedError, match=r"share.* judged none of 3 answers"):
        trainer.scorer.score(answered, trainer.coefficient)


def test_score_and_kl_reach_the_returns(make_trainer, sft_folder):
    """With λ = γ = 1, the return of a token is the score less the KL still to come."""
    trainer = make_trainer(small(gae_lambda=1.0, kl=Kl(coef=0.5)), sft_folder, function=lambda completions: [2.0, 7.0])
    for p in trainer.bank.parameters(actor_critic.POLICY):
        p.data += 0.01 * torch.randn_like(p)  # away from the reference
    rows, prompts, responses = [PromptRow("w1", {})] * 2, [[5, 6], [7]], [[8, 9, EOS], [10, EOS]]
    scored = trainer.scorer.score(build.Completions(rows, prompts, responses, ["x", "y"]), 0.5)
    limits = {"pad_id": PAD, "temperature": 0.7, "max_tokens": 60}
    pairs = zip(
        *(scoring.token_logprobs(trainer.bank, r, prompts, responses, **limits) for r in ("policy", "reference")),
        strict=True,
    )
    for row, (score, (logprobs, ref)) in enumerate(zip((2.0, 7.0), pairs, strict=True)):
        kl = logprobs - ref
        assert kl.abs().max() > 1e-3
        expected = score - 0.5 * kl.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(scored.experience.returns[row, : len(kl)], expected, atol=1e-5, rtol=0)


def test_adaptive_kl_moves_the_coefficient_between_rollouts(make_trainer):
    trainer = make_trainer(small(kl=Kl(coef=0.1, target=5.0, horizon=100), save_every=10))
    history = trainer.train()
    # No KL in the first rollout: −100 % of the target, clipped to −20 %, of 4 episodes in 100.
    assert [m["kl.coef"] for m in history] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 4 / 100)])


def test_target_kl_ends_an_iterations_updates(make_trainer):
    trainer = make_trainer(small(epochs=8, learning_rate=3e-2, target_kl=1e-4, save_every=10))
    history = trainer.train()
    assert all(1 <= m["optimizer_steps"] < 16 for m in history)
    assert all(m["approx_kl"] <= 1e-4 for m in history)


def test_critic_warm_up_trains_the_critic_alone(make_trainer, sft_folder, reward_folder):
    critic = Critic(learning_rate=1e-2, warmup_iterations=1)
    trainer = make_trainer(small(iterations=1, critic=critic), sft_folder, reward_folder)
    before = {role: [p.detach().clone() for p in trainer.bank.parameters(role)] for role in ("policy", "value")}
    trainer.train()
    now = {role: trainer.bank.parameters(role) for role in before}
    assert all(torch.equal(a, b) for a, b in zip(before["policy"], now["policy"], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before["value"], now["value"], strict=True))


def test_checkpoints_and_samples_come_every_so_many_iterations(make_trainer, sft_folder, reward_folder):
    trainer = make_trainer(small(iterations=5, save_every=2), sft_folder, reward_folder)
    trainer.train()
    folders = sorted(p.name for p in (trainer.run.path / "checkpoints").iterdir())
    assert folders == ["step-000002", "step-000004"]
    files = {p.name for p in (trainer.run.path / "checkpoints/step-000004/model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    samples = lines(trainer.run, "samples.jsonl")
    assert [s["step"] for s in samples] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert set(samples[0]) == {"step", "prompt", "response", "reward"}
    assert samples[0]["prompt"] == samples[2]["prompt"] == "w0 w0"


def test_sampling_for_the_eye_changes_no_training(make_trainer, sft_folder):
    rewards_of = [
        [m["reward"] for m in make_trainer(small(iterations=3, save_every=n), sft_folder).train()] for n in (1, 9)
    ]
    assert rewards_of[0] == rewards_of[1]


def snapshots(trainer):
    """The policy's parameters behind each iteration's update, from the start on."""
    found = [[p.detach().clone() for p in trainer.bank.parameters(actor_critic.POLICY)]]
    learn = trainer._learn

    def watched(*args, **options):
        learned = learn(*args, **options)
        found.append([p.detach().clone() for p in trainer.bank.parameters(actor_critic.POLICY)])
        return learned

    trainer._learn = watched
    return found


@pytest.mark.parametrize("save_every", [100, 1])
def test_kl_beyond_its_limit_ends_the_run_with_the_last_policy_below_it(
    make_trainer, make_cast, sft_folder, ragged, save_every
):
    settings = small(iterations=50, learning_rate=1e-2, kl=Kl(coef=0.0, abort=2.0), save_every=save_every)
    trainer = make_trainer(settings, sft_folder)
    policies = snapshots(trainer)
    with pytest.raises(DivergedError, match=r"kl\.abort is 2\..*last good policy is in .*checkpoints.step-") as caught:
        trainer.train()
    assert caught.value.code == 7
    *well, offending = lines(trainer.run, "metrics.jsonl")
    assert len(well) >= 2  # so that the last good policy is not the start
    assert all(line["kl"] <= 2 for line in well)
    assert offending["kl"] > 2
    assert offending["step"] == len(well) + 1
    # The policy of a step is judged by the rollout of the next: the last well rollout is of the policy before it.
    step = len(well) - 1
    folder = trainer.run.path / "checkpoints" / f"step-{step:06d}"
    assert str(caught.value).endswith(f"The last good policy is in {folder}.")
    now = trainer.bank.parameters(actor_critic.POLICY)
    assert all(torch.equal(a, b) for a, b in zip(now, policies[step], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(now, policies[step + 1], strict=True))
    limits = {"pad_id": PAD, "temperature": 1.0, "max_tokens": 60}
    saved = make_cast(folder / "model").bank
    for role in (actor_critic.POLICY, actor_critic.REFERENCE):
        found = scoring.token_logprobs(saved, role, *ragged, **limits)
        torch.testing.assert_close(found, scoring.token_logprobs(trainer.bank, actor_critic.POLICY, *ragged, **limits))


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_an_update_that_diverges_is_undone_for_policy_and_critic(make_trainer, sft_folder, reward_folder, kind):
    settings = small(iterations=9, critic=Critic(kind=kind, learning_rate=1e-2), save_every=100)
    trainer = make_trainer(settings, sft_folder, reward_folder)
    both = [p for role in (actor_critic.POLICY, actor_critic.VALUE) for p in trainer.bank.parameters(role)]
    done = []

    def poison(*_):
        if not done and trainer.order.served == 12:  # the third iteration's first step is taken
            done.append(1)
            for p in both:
                p.data.fill_(float("nan"))

    learn, before = trainer._learn, []

    def watched(*args, **options):
        before[:] = [p.detach().clone() for p in both]
        return learn(*args, **options)

    trainer._learn = watched
    trainer.optimization.optimizer.register_step_post_hook(poison)
    with pytest.raises(DivergedError, match=r"gradient norm.*step-000002"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(both, before, strict=True))
    assert [line["step"] for line in lines(trainer.run, "metrics.jsonl")] == [1, 2, 3]


def test_a_reward_that_turns_nan_ends_the_run_and_keeps_what_was_judged(make_trainer, sft_folder):
    calls = []

    def judge(completions):
        calls.append(1)
        return [float("nan") if len(calls) > 4 else 1.0] * len(completions)  # a sample and three rollouts are well

    trainer = make_trainer(small(iterations=9, save_every=100), sft_folder, function=judge)
    with pytest.raises(DivergedError, match="share"):
        trainer.train()
    assert [p.name for p in (trainer.run.path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_policy_that_is_not_finite_is_in_no_checkpoint(make_trainer, sft_folder):
    trainer = make_trainer(small(save_every=100), sft_folder)
    trainer._sample = lambda iteration: trainer.bank.parameters(actor_critic.POLICY)[0].data.fill_(float("nan"))
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    assert not (trainer.run.path / "checkpoints").exists()
    assert "last good policy" not in str(caught.value)


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_it_learns_to_say_what_is_rewarded(make_trainer, kind):
    settings = Ppo(
        iterations=15,
        rollout_batch_size=32,
        max_new_tokens=8,
        epochs=4,
        minibatches=2,
        learning_rate=5e-3,
        critic=Critic(kind=kind, learning_rate=5e-3),
        kl=Kl(coef=0.01),
        save_every=100,
    )
    trainer = make_trainer(settings)
    history = trainer.train()
    first, last = history[0]["reward"], history[-1]["reward"]
    assert first < 0.15
    assert last > 0.5
    assert history[-1]["kl"] > 0.5  # it was paid for in distance from the reference
