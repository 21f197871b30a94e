"""Test `ppo.trainer`: which TrainingArguments act on the loop, and that invalid ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_cli.errors import RecipeError
from rlhf_cli.ppo import optimization
from rlhf_cli.ppo.optimization import Optimization
from rlhf_cli.recipe.schema import Critic, Ppo
from tests.support.issues import raises_issue


def build(**options: Any) -> Optimization:
    """Return the optimization of 5 iterations × 2 epochs × 2 minibatches, with zero gradients set."""
    arguments = optimization.training_arguments(options, folder=Path("unused"))
    settings = Ppo(learning_rate=1e-3, critic=Critic(learning_rate=1e-2), iterations=5, epochs=2, minibatches=2)
    policy, critic = [nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]
    built = optimization.build_optimization(settings, arguments, policy, critic)
    for parameter in (*policy, *critic):
        parameter.grad = torch.zeros(2)
    return built


def learning_rates(built: Optimization, steps: int) -> list[list[float]]:
    """Return the learning rates of policy and critic at each of the next steps."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in built.optimizer.param_groups])
        built.optimizer.step()
        built.schedule.step()
    return rates


def test_build_optimization_defaults_are_adamw_with_linear_decay_to_zero() -> None:
    built = build()
    assert isinstance(built.optimizer, torch.optim.AdamW)
    assert built.max_grad_norm == 1.0
    for step, (policy, critic) in enumerate(learning_rates(built, 20)):
        assert (policy, critic) == pytest.approx((1e-3 * (1 - step / 20), 1e-2 * (1 - step / 20)))


def test_build_optimization_critic_rate_by_default_follows_policy_rate() -> None:
    arguments = optimization.training_arguments({}, folder=Path("unused"))
    parameters = [nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]
    for rate in (1e-5, 3e-4):
        built = optimization.build_optimization(Ppo(learning_rate=rate), arguments, *parameters)
        policy, critic = (group["lr"] for group in built.optimizer.param_groups)
        assert (policy, critic) == pytest.approx((rate, optimization.CRITIC_RATE_FACTOR * rate))


def test_build_optimization_schedule_covers_all_steps_of_policy_and_critic() -> None:
    rates = learning_rates(build(lr_scheduler_type="linear", warmup_steps=0.2), 20)  # 4 of 5 · 2 · 2 steps warm up
    expected = [1e-3 * min(step / 4, (20 - step) / 16) for step in range(20)]
    assert [policy for policy, _ in rates] == pytest.approx(expected)
    assert [critic / policy for policy, critic in rates[1:]] == pytest.approx([10.0] * 19)


def test_build_optimization_optimizer_options_reach_both_groups() -> None:
    built = build(adam_beta2=0.95, adam_epsilon=1e-5, weight_decay=0.1, max_grad_norm=0.5)
    for group in built.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-5, 0.1)
    assert built.max_grad_norm == 0.5


@pytest.mark.parametrize(
    ("options", "location", "message"),
    [
        ({"optim": "adamm"}, "ppo.trainer", "adamm"),
        ({"lr_scheduler_type": "sawtooth"}, "ppo.trainer", "sawtooth"),
        ({"lr_scheduler_type": "greedy"}, "ppo.trainer", "eval strategy"),
        (
            {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"},
            "ppo.trainer.lr_scheduler_type",
            "greedy needs an evaluation loss",
        ),
    ],
)
def test_training_arguments_invalid_value_raises_issue(
    tmp_path: Path, options: dict[str, str], location: str, message: str
) -> None:
    with raises_issue("recipe.invalid-value", error=RecipeError, location=location) as issues:
        optimization.training_arguments(options, folder=tmp_path)
    assert message in issues[0].message


def test_trackers_of_transformers_only_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`report_to: all` stands for all that transformers finds, some of which accelerate does not know."""
    installed = ["codecarbon", "tensorboard"]
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: installed)
    arguments = optimization.training_arguments({"report_to": "all"}, tmp_path)
    assert arguments.report_to == installed
    trackers = optimization.Trackers(arguments, {})
    assert trackers._accelerator is not None
    assert [tracker.name for tracker in trackers._accelerator.trackers] == ["tensorboard"]
    trackers.close()


def test_trackers_tensorboard_receives_metrics_and_samples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    arguments = optimization.training_arguments({"report_to": "tensorboard"}, tmp_path)
    config = {"clip": 0.2, "target_kl": None, "reward": [{"run": "reward", "weight": 1.0}], "stop": []}
    trackers = optimization.Trackers(arguments, config)
    trackers.log(3, {"reward": 0.5})
    trackers.log_samples(3, [{"prompt": "who?", "response": "I am.", "reward": 0.25}])
    trackers.close()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*") if path.parent.name == "rlhf"}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(3, 0.5)]
    (text,) = events.Tensors("sample.1/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "prompt: who?\n\nresponse: I am.\n\nreward: 0.25"
