"""A run that was stopped after any iteration and gone on with equals the unbroken one to the last bit."""

import shutil

import pytest
import torch

from rlhf_cli.errors import ModelError, StoppedError
from rlhf_cli.ppo import actor_critic, update
from rlhf_cli.recipe.schema import Critic, Kl
from tests.support.tiny_policy import lines, small

ITERATIONS = 4
TIMED = ("seconds.", "tokens_per_second", "memory_peak_bytes", "time")
DEMONSTRATIONS = update.Demonstrations(
    [[5, 6], [7], [8, 9], [10], [4]], [[10, 11, 2], [12, 2], [13, 2], [5, 2], [6, 7, 2]]
)


def settings(kind):
    """Everything that has a state: adaptive KL, running moments, a schedule, demonstrations, several epochs."""
    return small(
        iterations=ITERATIONS,
        rollout_batch_size=6,  # of 16 prompts: the order goes on in the middle of a shuffle
        kl=Kl(coef=0.1, target=0.5, horizon=20),
        critic=Critic(kind=kind, learning_rate=1e-3, warmup_iterations=1),
        normalize_reward=True,
        ptx_coef=0.1,
        learning_rate=1e-2,
        save_every=100,
        trainer={"lr_scheduler_type": "cosine", "warmup_steps": 2},
    )


def left(trainer, history):
    """All that a run leaves: weights, optimizer, schedule, KL coefficient, and every figure that is not a time."""
    state = trainer.optimization.optimizer.state_dict()["state"]
    return (
        [p.detach() for role in (actor_critic.POLICY, actor_critic.VALUE) for p in trainer.bank.parameters(role)],
        [value for _, own in sorted(state.items()) for _, value in sorted(own.items())],
        trainer.optimization.schedule.state_dict()["last_epoch"],
        trainer.coefficient,
        trainer.scorer.moments.__dict__,
        [{k: v for k, v in m.items() if not k.startswith(TIMED)} for m in history],
    )


@pytest.mark.parametrize("kind", ["adapter", "shared"])
def test_stopped_after_any_iteration_and_resumed_it_ends_the_same(make_trainer, sft_folder, reward_folder, kind):
    def new(**more):
        return make_trainer(settings(kind), sft_folder, reward_folder, demonstrations=DEMONSTRATIONS, **more)

    whole = new()
    expected = left(whole, whole.train())
    assert len({m["kl.coef"] for m in expected[5]}) > 1  # what is to be restored does move
    for stop_after in range(1, ITERATIONS):
        stopped = new()
        log = stopped._log

        def watched(iteration, metrics, stopped=stopped, stop_after=stop_after, log=log):
            log(iteration, metrics)
            stopped.run.stop_requested = iteration == stop_after

        stopped._log = watched
        with pytest.raises(StoppedError) as caught:
            stopped.train()
        assert caught.value.code == 75
        resumed = new()  # with other draws and weights so far, all of which the checkpoint replaces
        torch.manual_seed(99)
        shutil.copy(stopped.run.path / "metrics.jsonl", resumed.run.path)
        resumed.run.resumed_from = stopped.run.checkpoint_path(stop_after)
        found = left(resumed, resumed.train())
        for got, wanted in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(got, wanted)
        assert found[2:] == expected[2:]
        assert [line["step"] for line in lines(resumed.run, "metrics.jsonl")] == list(range(1, ITERATIONS + 1))


def test_the_first_ratio_is_one_after_a_resume(make_trainer, sft_folder, reward_folder):
    first = make_trainer(settings("adapter"), sft_folder, reward_folder, demonstrations=DEMONSTRATIONS)
    first.train()
    folder = first._save(ITERATIONS, state=True)
    more = settings("adapter").model_copy(update={"iterations": ITERATIONS + 1, "epochs": 1, "minibatches": 1})
    again = make_trainer(more, sft_folder, reward_folder, demonstrations=DEMONSTRATIONS)
    shutil.copy(first.run.path / "metrics.jsonl", again.run.path)
    again.run.resumed_from = folder
    last = again.train()[-1]
    assert last["kl"] > 0.01  # the policy has moved away from where it started
    assert abs(last["ratio.min"] - 1) < 1e-5
    assert abs(last["ratio.max"] - 1) < 1e-5


def test_a_diverged_runs_last_good_policy_is_no_place_to_resume_from(make_trainer, sft_folder):
    trainer = make_trainer(small(), sft_folder)
    folder = trainer._save(0, state=False)
    again = make_trainer(small(), sft_folder)
    again.run.resumed_from = folder
    with pytest.raises(ModelError, match=r"diverged.*ppo\.start"):
        again.train()
