"""`ppo.trainer`: what of TrainingArguments acts on the loop, and that the rest is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf_cli.errors import RecipeError
from rlhf_cli.ppo import optimization
from rlhf_cli.recipe.schema import Critic, Ppo


def build(**trainer):
    asked = optimization.arguments(trainer, folder=Path("unused"))
    settings = Ppo(learning_rate=1e-3, critic=Critic(learning_rate=1e-2), iterations=5, epochs=2, minibatches=2)
    made = optimization.build(settings, asked, [nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))])
    for group in made.optimizer.param_groups:
        group["params"][0].grad = torch.zeros(2)
    return made


def rates(made, steps):
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in made.optimizer.param_groups])
        made.optimizer.step()
        made.schedule.step()
    return found


def test_rates_are_constant_and_apart_by_default_and_the_optimizer_is_adamw():
    made = build()
    assert isinstance(made.optimizer, torch.optim.AdamW)
    assert made.max_grad_norm == 1.0
    assert rates(made, 20) == [[1e-3, 1e-2]] * 20


def test_a_schedule_runs_over_all_optimizer_steps_for_both():
    found = rates(build(lr_scheduler_type="linear", warmup_steps=0.2), 20)  # 5 · 2 · 2 steps, 4 of them warm-up
    assert [rate for rate, _ in found] == pytest.approx([1e-3 * min(step / 4, (20 - step) / 16) for step in range(20)])
    assert [critic / rate for rate, critic in found[1:]] == pytest.approx([10.0] * 19)


def test_settings_of_the_optimizer_reach_it():
    made = build(adam_beta2=0.95, adam_epsilon=1e-5, weight_decay=0.1, max_grad_norm=0.5)
    for group in made.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-5, 0.1)
    assert made.max_grad_norm == 0.5


@pytest.mark.parametrize(
    "wrong", [{"optim": "adamm"}, {"lr_scheduler_type": "sawtooth"}, {"lr_scheduler_type": "greedy"}]
)
def test_a_value_that_transformers_refuses_is_told(wrong, tmp_path):
    with pytest.raises(RecipeError, match=r"ppo\.trainer"):
        optimization.arguments(wrong, folder=tmp_path)


def test_a_tracker_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: False)
    with pytest.raises(RecipeError, match="wandb is not installed"), pytest.warns(UserWarning, match="wandb"):
        optimization.Trackers(optimization.arguments({"report_to": "wandb"}, tmp_path), {})


def test_figures_and_samples_reach_a_tracker(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = optimization.Trackers(optimization.arguments({"report_to": "tensorboard"}, tmp_path), {"clip": 0.2})
    trackers.log(3, {"reward": 0.5})
    trackers.samples(3, [{"prompt": "who?", "response": "I am.", "reward": 0.25}])
    trackers.close()
    (events,) = {path.parent for path in tmp_path.rglob("events.out.*") if path.parent.name == "rlhf"}
    found = EventAccumulator(str(events))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward")] == [(3, 0.5)]
    (text,) = found.Tensors("sample.1/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "prompt: who?\n\nresponse: I am.\n\nreward: 0.25"
