"""Test that adapters start exactly from an earlier run's weights, or are refused with the differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_cli.errors import ModelError, RecipeError
from rlhf_cli.models import adapters
from rlhf_cli.models.loading import load_causal_lm, load_scorer
from rlhf_cli.recipe.schema import Adapter
from tests.support.issues import raises_issue
from tests.support.plain_models import MakeAdapter, Padded, base_of

IDS = torch.arange(3, 23).reshape(2, 10)


def load_policy(folder: Path, adapter: Adapter | None, start: Path | None, **options: Any) -> Any:
    """Load a policy on the base in `folder`."""
    return adapters.load_policy(base_of(folder), adapter, str(folder), start, **options)


def test_load_policy_new_adapter_changes_no_output(base_folder: Path, adapter: Adapter) -> None:
    model = load_policy(base_folder, adapter, None)
    assert torch.equal(model(input_ids=IDS).logits, AutoModelForCausalLM.from_pretrained(base_folder)(IDS).logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_load_policy_from_adapter_equals_the_model_that_peft_loads(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter()
    found = load_policy(base_folder, adapter, folder)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    assert torch.equal(found(input_ids=IDS).logits, by_peft(input_ids=IDS).logits)


def test_attach_causal_adapter_starts_a_scorer_and_the_reverse(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    sft = make_adapter("CAUSAL_LM")
    scorer = adapters.attach(load_scorer(base_of(base_folder), str(base_folder)), adapter, task="SEQ_CLS", start=sft)
    stored = load_file(sft / adapters.ADAPTER_WEIGHTS)
    own = adapters.adapter_weights(scorer, "default")
    assert own.keys() - stored.keys() == {"base_model.model.score.weight"}
    assert all(torch.equal(own[key], stored[key]) for key in stored)
    assert any("score" in name and p.requires_grad for name, p in scorer.named_parameters())
    scorer.save_pretrained(tmp_path / "reward")
    policy = load_policy(base_folder, adapter, tmp_path / "reward")
    assert all(torch.equal(tensor, stored[key]) for key, tensor in adapters.adapter_weights(policy, "default").items())


def test_attach_scorer_starts_with_the_stored_score_head(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter, padded: Padded
) -> None:
    folder = make_adapter("SEQ_CLS")
    found = adapters.attach(load_scorer(base_of(base_folder), str(base_folder)), adapter, task="SEQ_CLS", start=folder)
    by_peft = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1), folder
    )
    assert torch.equal(found(**padded["right"]).logits, by_peft(**padded["right"]).logits)


def test_attach_not_trainable_has_no_trainable_parameter(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter
) -> None:
    model = adapters.attach(
        load_scorer(base_of(base_folder), str(base_folder)),
        adapter,
        task="SEQ_CLS",
        start=make_adapter("SEQ_CLS"),
        trainable=False,
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_attach_further_adapter_leaves_the_first_active_and_unchanged(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter
) -> None:
    model = load_policy(base_folder, adapter, make_adapter(seed=1))
    before = model(input_ids=IDS).logits
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters.attach(model, adapter, task="CAUSAL_LM", start=make_adapter(seed=2), name="other", trainable=False)
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    model.set_adapter("other")
    assert not torch.equal(model(input_ids=IDS).logits, before)


def test_load_policy_on_a_16_bit_base_keeps_adapter_weights_in_float32(base_folder: Path, adapter: Adapter) -> None:
    model = adapters.load_policy(base_of(base_folder, dtype="bfloat16"), adapter, str(base_folder), None)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_load_policy_dora_starts_from_dora(base_folder: Path, make_adapter: MakeAdapter) -> None:
    folder = make_adapter(use_dora=True)
    adapter = Adapter(rank=4, alpha=8, dora=True)
    found = load_policy(base_folder, adapter, folder)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    assert torch.equal(found(input_ids=IDS).logits, by_peft(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("stored", "code", "message"),
    [
        (
            {"r": 8},
            "model.adapter-mismatch",
            "adapter.rank: differs from the stored adapter; found 4 in the recipe, expected 8.",
        ),
        (
            {"lora_alpha": 16},
            "model.adapter-mismatch",
            "adapter.alpha: differs from the stored adapter; found 8 in the recipe, expected 16.",
        ),
        (
            {"use_dora": True},
            "model.adapter-mismatch",
            "adapter.dora: differs from the stored adapter; found False in the recipe, expected True.",
        ),
        (
            {"use_rslora": True},
            "model.unsupported-adapter",
            "use_rslora: unsupported adapter option; found True.",
        ),
    ],
)
def test_load_policy_start_with_other_settings_raises_issue(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter, stored: dict[str, Any], code: str, message: str
) -> None:
    folder = make_adapter(**stored)
    with raises_issue(code, error=ModelError, location=str(folder)) as issues:
        load_policy(base_folder, adapter, folder)
    assert [issue.message for issue in issues] == [message]


def test_load_policy_start_lacks_tensors_raises_issue(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter(target_modules=["q_proj", "v_proj"])
    with raises_issue("model.adapter-mismatch", error=ModelError, location=str(folder)) as issues:
        load_policy(base_folder, adapter, folder)
    assert "tensors are missing, such as base_model.model.model.layers.0." in issues[0].message
    assert "(20 in total)" in issues[0].message


def test_load_policy_start_has_unexpected_tensors_raises_issue(base_folder: Path, make_adapter: MakeAdapter) -> None:
    adapter = Adapter(rank=4, alpha=8, target_modules=["q_proj"])
    with raises_issue("model.adapter-mismatch", error=ModelError) as issues:
        load_policy(base_folder, adapter, make_adapter())
    assert "unexpected tensors, such as base_model.model.model.layers.0." in issues[0].message
    assert "(24 in total)" in issues[0].message


def test_load_policy_start_of_other_shapes_raises_issue(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter()
    weights = load_file(folder / adapters.ADAPTER_WEIGHTS)
    key = next(key for key in weights if "down_proj.lora_A" in key)
    weights[key] = weights[key][:, :64].contiguous()
    save_file(weights, folder / adapters.ADAPTER_WEIGHTS)
    with raises_issue("model.adapter-mismatch", error=ModelError) as issues:
        load_policy(base_folder, adapter, folder)
    assert f"{key}: found shape (4, 64), expected (4, 128)" in issues[0].message


def test_load_policy_unknown_target_modules_raises_issue(base_folder: Path) -> None:
    adapter = Adapter(target_modules=["no_such_module"])
    location = "adapter.target_modules"
    with raises_issue("model.unknown-target-modules", error=ModelError, location=location) as issues:
        load_policy(base_folder, adapter, None)
    assert issues[0].message.startswith("target_modules ['no_such_module']: not found in this base model: ")


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_load_policy_target_is_embedding_or_head_raises_issue(base_folder: Path, target: str) -> None:
    """The recipe's validation knows common names only."""
    adapter = Adapter(target_modules=["q_proj", target])
    with raises_issue("recipe.invalid-value", error=RecipeError, location="adapter.target_modules"):
        load_policy(base_folder, adapter, None)


def test_load_policy_adapter_for_whole_models_raises_issue(base_folder: Path, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    with raises_issue("model.wrong-kind", error=ModelError, location=str(folder)) as issues:
        load_policy(base_folder, None, folder)
    assert issues[0].message.startswith("found an adapter, expected a full model")


def test_load_policy_whole_model_for_adapters_raises_issue(base_folder: Path, adapter: Adapter) -> None:
    with raises_issue("model.wrong-kind", error=ModelError, location=str(base_folder)) as issues:
        load_policy(base_folder, adapter, base_folder)
    assert issues[0].message.startswith("found a full model, expected an adapter")


def test_load_policy_adapter_without_weights_raises_issue(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter()
    (folder / adapters.ADAPTER_WEIGHTS).unlink()
    with raises_issue("model.incomplete", error=ModelError, location=str(folder)) as issues:
        load_policy(base_folder, adapter, folder)
    assert issues[0].message == "adapter_model.safetensors not found in the directory."


def test_load_policy_whole_model_trains_all_weights(base_folder: Path) -> None:
    model = adapters.load_policy(base_of(base_folder), None, "unused", base_folder)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_without_weights_is_told(base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    (folder / adapters.ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ModelError, match=adapters.ADAPTER_WEIGHTS):
        load_policy(base_folder, adapter, folder)


def test_load_policy_smoke_adapter_loads_on_the_smoke_base(base_folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    first = load_policy(base_folder, adapter, None, smoke=True)
    first.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    again = load_policy(base_folder, adapter, tmp_path, smoke=True)
    assert torch.equal(again(input_ids=IDS).logits, first(input_ids=IDS).logits)
    assert load_causal_lm(base_of(base_folder), str(base_folder), smoke=True).config.hidden_size == 64
