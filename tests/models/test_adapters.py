"""Adapters go on exactly where an earlier run left off, or are refused with what differs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_cli.errors import ModelError
from rlhf_cli.models import adapters
from rlhf_cli.models.loading import load_causal_lm, load_scorer
from rlhf_cli.recipe.schema import Adapter, Base

IDS = torch.arange(3, 23).reshape(2, 10)
Make = Callable[..., Path]


def recipe(folder: Path, **fields: object) -> Base:
    return Base(model=str(folder), **fields)


def test_a_new_adapter_changes_nothing_yet(base_folder: Path, adapter: Adapter) -> None:
    model = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), None)
    assert torch.equal(model(input_ids=IDS).logits, AutoModelForCausalLM.from_pretrained(base_folder)(IDS).logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_start_gives_the_model_that_peft_loads(base_folder: Path, adapter: Adapter, make_adapter: Make) -> None:
    folder = make_adapter()
    ours = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), folder)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    assert torch.equal(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


def test_a_causal_adapter_starts_a_scorer_and_the_other_way_round(
    base_folder: Path, adapter: Adapter, make_adapter: Make, tmp_path: Path
) -> None:
    sft = make_adapter("CAUSAL_LM")
    scorer = adapters.attach(load_scorer(recipe(base_folder), str(base_folder)), adapter, task="SEQ_CLS", start=sft)
    stored = load_file(sft / adapters.ADAPTER_WEIGHTS)
    own = adapters.adapter_weights(scorer, "default")
    assert own.keys() - stored.keys() == {"base_model.model.score.weight"}
    assert all(torch.equal(own[key], stored[key]) for key in stored)
    assert any("score" in name and p.requires_grad for name, p in scorer.named_parameters())
    scorer.save_pretrained(tmp_path / "reward")
    policy = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), tmp_path / "reward")
    assert all(torch.equal(tensor, stored[key]) for key, tensor in adapters.adapter_weights(policy, "default").items())


def test_a_scorer_starts_with_the_stored_score_head(
    base_folder: Path, adapter: Adapter, make_adapter: Make, padded: dict
) -> None:
    folder = make_adapter("SEQ_CLS")
    ours = adapters.attach(load_scorer(recipe(base_folder), str(base_folder)), adapter, task="SEQ_CLS", start=folder)
    theirs = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1), folder
    )
    assert torch.equal(ours(**padded["right"]).logits, theirs(**padded["right"]).logits)


def test_a_frozen_adapter_has_no_trained_parameter(base_folder: Path, adapter: Adapter, make_adapter: Make) -> None:
    model = adapters.attach(
        load_scorer(recipe(base_folder), str(base_folder)),
        adapter,
        task="SEQ_CLS",
        start=make_adapter("SEQ_CLS"),
        trainable=False,
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_further_adapter_leaves_the_first_active_and_as_it_was(
    base_folder: Path, adapter: Adapter, make_adapter: Make
) -> None:
    model = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), make_adapter(seed=1))
    before = model(input_ids=IDS).logits
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters.attach(model, adapter, task="CAUSAL_LM", start=make_adapter(seed=2), name="other", trainable=False)
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    model.set_adapter("other")
    assert not torch.equal(model(input_ids=IDS).logits, before)


def test_adapter_weights_are_float32_on_a_16_bit_base(base_folder: Path, adapter: Adapter) -> None:
    model = adapters.load_policy(recipe(base_folder, dtype="bfloat16"), adapter, str(base_folder), None)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_dora_starts_from_dora(base_folder: Path, make_adapter: Make) -> None:
    folder = make_adapter(use_dora=True)
    adapter = Adapter(rank=4, alpha=8, dora=True)
    ours = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), folder)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
    assert torch.equal(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"r": 8}, r"adapter\.rank is 4, and this adapter was trained with 8"),
        ({"lora_alpha": 16}, r"adapter\.alpha is 8, and this adapter was trained with 16"),
        ({"use_dora": True}, r"adapter\.dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lacks 20 tensors"),
    ],
)
def test_a_start_that_differs_from_the_recipe_is_refused(
    base_folder: Path, adapter: Adapter, make_adapter: Make, stored: dict, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        adapters.load_policy(recipe(base_folder), adapter, str(base_folder), make_adapter(**stored))


def test_an_adapter_of_more_modules_than_asked_is_refused(base_folder: Path, make_adapter: Make) -> None:
    with pytest.raises(ModelError, match="have no place there"):
        adapters.load_policy(
            recipe(base_folder), Adapter(rank=4, alpha=8, target_modules=["q_proj"]), str(base_folder), make_adapter()
        )


def test_an_adapter_of_other_shapes_is_refused(base_folder: Path, adapter: Adapter, make_adapter: Make) -> None:
    folder = make_adapter()
    weights = load_file(folder / adapters.ADAPTER_WEIGHTS)
    key = next(key for key in weights if "down_proj.lora_A" in key)
    weights[key] = weights[key][:, :64].contiguous()
    save_file(weights, folder / adapters.ADAPTER_WEIGHTS)
    with pytest.raises(ModelError, match=r"\(4, 64\), and there it is \(4, 128\)"):
        adapters.load_policy(recipe(base_folder), adapter, str(base_folder), folder)


def test_targets_that_the_model_lacks_are_refused(base_folder: Path) -> None:
    with pytest.raises(ModelError, match="no_such_module"):
        adapters.load_policy(recipe(base_folder), Adapter(target_modules=["no_such_module"]), str(base_folder), None)


def test_whole_and_adapter_are_not_taken_for_each_other(
    base_folder: Path, adapter: Adapter, make_adapter: Make
) -> None:
    with pytest.raises(ModelError, match="adapter: null"):
        adapters.load_policy(recipe(base_folder), None, str(base_folder), make_adapter())
    with pytest.raises(ModelError, match="not an adapter"):
        adapters.load_policy(recipe(base_folder), adapter, str(base_folder), base_folder)


def test_whole_models_train_all_weights(base_folder: Path) -> None:
    model = adapters.load_policy(recipe(base_folder), None, "unused", base_folder)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_without_weights_is_told(base_folder: Path, adapter: Adapter, make_adapter: Make) -> None:
    folder = make_adapter()
    (folder / adapters.ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ModelError, match=adapters.ADAPTER_WEIGHTS):
        adapters.load_policy(recipe(base_folder), adapter, str(base_folder), folder)


def test_smoke_adapters_load_on_the_smoke_base(base_folder: Path, adapter: Adapter, tmp_path: Path) -> None:
    first = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), None, smoke=True)
    first.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    again = adapters.load_policy(recipe(base_folder), adapter, str(base_folder), tmp_path, smoke=True)
    assert torch.equal(again(input_ids=IDS).logits, first(input_ids=IDS).logits)
    assert load_causal_lm(recipe(base_folder), str(base_folder), smoke=True).config.hidden_size == 64
