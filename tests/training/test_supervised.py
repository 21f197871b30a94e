"""What sft, reward and pretrain optimize, and in which precision."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.support.stage_harness import logged_steps
from tests.support.training_project import TrainingProject


def test_sft_loss_is_mean_over_completion_tokens(training_project: TrainingProject) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pairs = (("red and", " blue"), ("cat and", " dog sun"))
    training_project.write_rows("sft.jsonl", ({"prompt": p, "completion": c} for p, c in pairs))
    overrides = ("sft.max_steps=1", "sft.batch_size=2", "sft.micro_batch_size=2", "data.sft.eval_fraction=0")
    base = training_project.resolve("sft").base_path
    result = training_project.train("sft", *overrides)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for prompt, completion in pairs:
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([[*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]])  # (1, T)
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
        own = logprobs[range(ids.shape[1] - 1), ids[0, 1:]][start - 1 :]
        total, count = total - float(own.sum()), count + len(own)
    loss = logged_steps(result.path)[0]["loss"]
    assert loss == pytest.approx(total / count, rel=1e-5)  # a new adapter does not change the model


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("base", ["quantize=nf4", "dtype=bfloat16"])
def test_adapter_on_base_of_few_bits_stays_float32(training_project: TrainingProject, stage: str, base: str) -> None:
    result = training_project.train(stage, f"base.{base}")
    stored = load_file(result.path / "model" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(math.isfinite(step["loss"]) for step in logged_steps(result.path))


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_adapter_dropout_changes_what_is_trained(training_project: TrainingProject, stage: str) -> None:
    def loss_and_weights(dropout: float, *overrides: str) -> tuple[float, torch.Tensor]:
        result = training_project.train(stage, f"adapter.dropout={dropout}", *overrides)
        stored = load_file(result.path / "model" / "adapter_model.safetensors")
        weights = torch.cat([stored[name].flatten() for name in sorted(stored) if "lora_B" in name])
        return logged_steps(result.path)[1]["loss"], weights

    without, dropped = loss_and_weights(0.0), loss_and_weights(0.5)
    assert dropped[0] != without[0]  # in the first step, the adapter's B is zero
    assert not torch.equal(dropped[1], without[1])
    if stage == "reward":
        disabled = loss_and_weights(0.5, "reward.trainer={disable_dropout: true}")
        assert disabled[0] == without[0]
        assert torch.equal(disabled[1], without[1])


def test_run_records_whether_its_rows_were_conversations(training_project: TrainingProject) -> None:
    assert training_project.train("sft").manifest["conversational"] is False
    turns = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    training_project.write_rows("sft.jsonl", [{"messages": turns}] * 8)
    assert training_project.train("sft", "data.sft.eval_fraction=0").manifest["conversational"] is True
    assert training_project.train("ppo").manifest["conversational"] is True


def test_reward_learns_which_completion_is_chosen(training_project: TrainingProject) -> None:
    result = training_project.train("reward", "reward.max_steps=30", "reward.learning_rate=5e-3")
    first, *_, last = logged_steps(result.path)
    assert last["accuracy"] == 1.0
    assert last["loss"] < first["loss"] / 10
    stored = load_file(result.path / "model/adapter_model.safetensors")
    assert any(name.endswith("score.weight") for name in stored)


def test_pretrain_makes_a_base_that_predicts_its_text(training_project: TrainingProject) -> None:
    result = training_project.train("pretrain", "pretrain.learning_rate=1e-2")
    assert result.manifest["metrics"]["pretrain.nll"] < 2.8  # a guess among 280 tokens has ln 280 = 5.6
    assert {path.name for path in (result.path / "model").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
