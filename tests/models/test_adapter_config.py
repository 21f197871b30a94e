"""Test that only adapters whose effect is known are loaded, and that these load as PEFT loads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from rlhf_cli.errors import ModelError
from rlhf_cli.models import adapter_config, adapters
from rlhf_cli.recipe.schema import Adapter
from tests.support.issues import raises_issue
from tests.support.plain_models import MakeAdapter, base_of

IDS = torch.arange(3, 23).reshape(2, 10)
CHECKED_ELSEWHERE = {"peft_type", "r", "lora_alpha", "use_dora", *adapter_config.DERIVED, "runtime_config"}
CHANGE_THE_BASE = ("pissa", "pissa_niter_4", "olora")


def stored_adapter(folder: Path, **config: Any) -> Path:
    """Write an adapter_config.json as PEFT writes it, with some values replaced."""
    LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear").save_pretrained(str(folder))
    path = folder / adapter_config.ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize("config", [{}, {"fan_in_fan_out": True}, {"init_lora_weights": "gaussian"}])
def test_check_settings_plain_adapter_is_accepted(tmp_path: Path, adapter: Adapter, config: dict[str, Any]) -> None:
    adapter_config.check_settings(stored_adapter(tmp_path, **config), adapter)


def test_check_settings_any_option_that_is_not_known_is_refused(tmp_path: Path, adapter: Adapter) -> None:
    known = {*CHECKED_ELSEWHERE, *adapter_config.WITHOUT_EFFECT}
    options = {field.name for field in dataclasses.fields(LoraConfig)} - known
    assert {"use_rslora", "alora_invocation_tokens", "lora_bias", "layer_replication", "use_qalora"} <= options
    for option in sorted(options | {"option_of_a_later_version"}):
        folder = stored_adapter(tmp_path / option, **{option: "other"})
        with raises_issue("model.unsupported-adapter", error=ModelError, location=str(folder)) as issues:
            adapter_config.check_settings(folder, adapter)
        assert [issue.message.partition(":")[0] for issue in issues] == [option]


@pytest.mark.parametrize("init", CHANGE_THE_BASE)
def test_attach_adapter_that_changes_the_base_is_refused(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter, init: str
) -> None:
    folder = make_adapter(init_lora_weights=init)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    before = base.model.layers[0].self_attn.q_proj.weight.clone()
    PeftModel.from_pretrained(base, folder)  # the reason: it is not only the adapter that PEFT loads
    assert not torch.equal(base.model.layers[0].self_attn.q_proj.base_layer.weight, before)
    with raises_issue("model.unsupported-adapter", error=ModelError, location=str(folder)):
        adapters.load_policy(base_of(base_folder), adapter, str(base_folder), folder)


@pytest.mark.parametrize("init", [False, "gaussian", "orthogonal"])
def test_attach_other_initial_values_equals_the_model_that_peft_loads(
    base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter, init: str | bool
) -> None:
    folder = make_adapter(init_lora_weights=init)
    found = adapters.load_policy(base_of(base_folder), adapter, str(base_folder), folder)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    assert torch.equal(found(input_ids=IDS).logits, by_peft(input_ids=IDS).logits)


def test_attach_rank_pattern_is_refused(base_folder: Path, adapter: Adapter, make_adapter: MakeAdapter) -> None:
    folder = make_adapter(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 4})
    with raises_issue("model.unsupported-adapter", error=ModelError, location=str(folder)) as issues:
        adapters.load_policy(base_of(base_folder), adapter, str(base_folder), folder)
    assert len(issues) == 2


@pytest.fixture
def experts_folder(tmp_path: Path) -> Path:
    """Write a mixture of experts, for which PEFT adapts fused parameters. Return its folder."""
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    torch.manual_seed(7)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    return tmp_path / "experts"


def test_attach_adapter_of_experts_equals_the_model_that_peft_loads(
    experts_folder: Path, adapter: Adapter, tmp_path: Path
) -> None:
    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(experts_folder)

    made = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear"))
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(tmp_path / "by_peft")
    assert json.loads((tmp_path / "by_peft" / adapter_config.ADAPTER_CONFIG).read_text())["rank_pattern"]

    found = adapters.load_policy(base_of(experts_folder), adapter, str(experts_folder), tmp_path / "by_peft")
    adapters.write(found, tmp_path / "by_us")
    again = adapters.load_policy(base_of(experts_folder), adapter, str(experts_folder), tmp_path / "by_us")
    for folder in ("by_peft", "by_us"):
        expected = PeftModel.from_pretrained(base(), tmp_path / folder)(input_ids=IDS).logits
        assert torch.equal(found(input_ids=IDS).logits, expected)
        assert torch.equal(again(input_ids=IDS).logits, expected)
