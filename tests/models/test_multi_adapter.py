"""Test one base with many roles: what each role computes, what is shared, and what training one role changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_cli.errors import ModelError
from rlhf_cli.models import heads
from rlhf_cli.models.adapters import load_policy
from rlhf_cli.models.loading import load_causal_lm
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Adapter, Base
from tests.support.families import MakeFamily
from tests.support.issues import raises_issue
from tests.support.plain_models import PAD, MakeAdapter, Padded, base_of

Batch = dict[str, torch.Tensor]
Folders = dict[str, Path | None]


@pytest.fixture
def folders(make_adapter: MakeAdapter) -> Folders:
    """Write the adapters of three roles. Return their folders."""
    sft = make_adapter("CAUSAL_LM", seed=1)
    return {"policy": sft, "reference": sft, "reward": make_adapter("SEQ_CLS", seed=2)}


@pytest.fixture
def model(base_folder: Path, adapter: Adapter, folders: Folders) -> MultiAdapterModel:
    """Load policy, reference and reward, and add a value role."""
    return load_with_value(base_folder, adapter, folders)


def load_with_value(
    base_folder: Path, adapter: Adapter, folders: Folders, base: Base | None = None
) -> MultiAdapterModel:
    """Load the roles, and add a value role as a copy of the reward."""
    model = MultiAdapterModel.load(base or base_of(base_folder), adapter, str(base_folder), folders)
    model.add("value", copy_of="reward")
    return model


def logits_of(model: MultiAdapterModel, role: str, batch: Batch) -> torch.Tensor:
    """Return the logits of a role."""
    with torch.no_grad(), model.use(role) as causal_lm:
        logits: torch.Tensor = causal_lm(**batch).logits
    return logits


def take_steps(model: MultiAdapterModel, role: str, batch: Batch, steps: int = 3) -> None:
    """Train a role far enough to change its outputs."""
    optimizer = torch.optim.SGD(model.parameters(role), lr=1.0)
    for _ in range(steps):
        hidden = model.hidden_states(role, **batch)
        if role in model.heads:
            loss = model.heads[role](hidden).square().mean()
        else:
            loss = model.output_head(role)(hidden)[..., 3].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("side", ["left", "right"])
def test_use_policy_equals_a_separate_model(
    model: MultiAdapterModel, base_folder: Path, folders: Folders, padded: Padded, side: str
) -> None:
    separate = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folders["policy"])
    with torch.no_grad():
        expected = separate(**padded[side]).logits
        assert torch.equal(logits_of(model, "policy", padded[side]), expected)
        assert torch.equal(model.output_head("policy")(model.hidden_states("policy", **padded[side])), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_heads_reward_equals_a_separate_model(
    model: MultiAdapterModel, base_folder: Path, folders: Folders, padded: Padded, side: str
) -> None:
    separate = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    separate = PeftModel.from_pretrained(separate, folders["reward"])
    separate.config.pad_token_id = PAD
    with torch.no_grad():
        expected = separate(**padded[side]).logits[:, 0]
        values = model.heads["reward"](model.hidden_states("reward", **padded[side]))  # (B, T)
    found = values.gather(1, heads.score_index(padded[side]["input_ids"], PAD)[:, None])[:, 0]
    torch.testing.assert_close(found, expected)  # the head's sum runs in another order


def test_use_base_role_is_the_base_and_shares_it_with_adapters(
    base_folder: Path, adapter: Adapter, folders: Folders, padded: Padded
) -> None:
    model = MultiAdapterModel.load(
        base_of(base_folder), adapter, str(base_folder), {"reference": None, "policy": folders["policy"]}
    )
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        expected = plain(**padded["left"]).logits
    before = logits_of(model, "policy", padded["left"])
    assert torch.equal(logits_of(model, "reference", padded["left"]), expected)
    assert torch.equal(logits_of(model, "policy", padded["left"]), before)
    assert not torch.equal(before, expected)
    with torch.no_grad(), model.use("policy"), model.use("reference") as causal_lm:
        assert torch.equal(causal_lm(**padded["left"]).logits, expected)
    assert model.parameters("reference") == []


def test_set_trainable_base_role_gets_an_adapter(base_folder: Path, adapter: Adapter, padded: Padded) -> None:
    model = MultiAdapterModel.load(base_of(base_folder), adapter, str(base_folder), {"policy": None, "reference": None})
    before = logits_of(model, "reference", padded["left"])
    model.set_trainable(["policy"])
    assert torch.equal(logits_of(model, "policy", padded["left"]), before)
    take_steps(model, "policy", padded["left"], steps=5)
    assert not torch.equal(logits_of(model, "policy", padded["left"]), before)
    assert torch.equal(logits_of(model, "reference", padded["left"]), before)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_load_keeps_one_copy_of_every_base_tensor(
    base_folder: Path, adapter: Adapter, folders: Folders, quantize: str
) -> None:
    base = base_of(base_folder, quantize=quantize)
    model = load_with_value(base_folder, adapter, folders, base)
    plain = load_causal_lm(base, str(base_folder))

    def storages(parameters: list[nn.Parameter]) -> set[int]:
        return {parameter.untyped_storage().data_ptr() for parameter in parameters}

    own = [p for name in model.roles for p in model.parameters(name)]
    seen: list[nn.Parameter] = []
    for name in ("policy", "reference", "reward", "value"):
        with model.use(name) as causal_lm:
            seen += list(causal_lm.parameters())
    in_adapters = storages(own)
    assert len(storages(seen) - in_adapters) == len(storages(list(plain.parameters())))
    assert sum(p.nbytes for p in {id(p): p for p in seen}.values()) == sum(p.nbytes for p in plain.parameters()) + sum(
        p.nbytes for name in model.roles for p in model.parameters(name) if p.ndim == 2
    )
    assert len(in_adapters) == len(own)  # no two roles share an adapter tensor


def test_training_policy_leaves_other_roles_bit_equal(model: MultiAdapterModel, padded: Padded) -> None:
    batch = padded["left"]
    before = {name: logits_of(model, name, batch) for name in ("reference", "reward", "value")}
    policy = logits_of(model, "policy", batch)
    model.set_trainable(["policy"])
    take_steps(model, "policy", batch)
    assert not torch.equal(logits_of(model, "policy", batch), policy)
    for name, expected in before.items():
        assert torch.equal(logits_of(model, name, batch), expected), name


def test_training_value_leaves_reward_and_its_head_unchanged(model: MultiAdapterModel, padded: Padded) -> None:
    batch = padded["left"]

    def score(name: str) -> torch.Tensor:
        with torch.no_grad():
            scores: torch.Tensor = model.heads[name](model.hidden_states(name, **batch))
        return scores

    reward = score("reward")
    assert torch.equal(score("value"), reward)  # a copy, head included
    model.set_trainable(["policy", "value"])
    take_steps(model, "value", batch)
    assert torch.equal(score("reward"), reward)
    assert not torch.equal(score("value"), reward)


def test_set_trainable_makes_only_these_roles_trainable(model: MultiAdapterModel) -> None:
    def trained() -> set[str]:
        with model.use("reference") as causal_lm:
            assert not causal_lm.get_input_embeddings().weight.requires_grad
        flags = {name: {p.requires_grad for p in model.parameters(name)} for name in model.roles}
        assert all(len(kinds) == 1 for kinds in flags.values())
        return {name for name, kinds in flags.items() if True in kinds}

    assert trained() == set()
    model.set_trainable(["policy", "value"])
    assert trained() == {"policy", "value"}
    for name in model.roles:  # switching, in any order, changes no flag
        with model.use(name), model.use("reference"):
            assert trained() == {"policy", "value"}
    model.add("other", copy_of="policy")
    assert trained() == {"policy", "value"}
    model.set_trainable(["value"])
    assert trained() == {"value"}


def test_use_nested_returns_to_the_outer_role(model: MultiAdapterModel, padded: Padded) -> None:
    batch = padded["left"]
    policy, reward = logits_of(model, "policy", batch), logits_of(model, "reward", batch)
    with torch.no_grad(), model.use("policy") as causal_lm:
        with model.use("reward"):
            assert torch.equal(causal_lm(**batch).logits, reward)
        assert torch.equal(causal_lm(**batch).logits, policy)
        with pytest.raises(RuntimeError), model.use("reward"):
            raise RuntimeError
        assert torch.equal(causal_lm(**batch).logits, policy)


def test_load_turns_dropout_of_the_recipe_off(base_folder: Path, folders: Folders, padded: Padded) -> None:
    adapter = Adapter(rank=4, alpha=8, dropout=0.5)
    model = load_with_value(base_folder, adapter, folders)
    model.set_trainable(["policy", "value"])
    with torch.no_grad(), model.use("policy") as causal_lm:
        expected = causal_lm(**padded["left"]).logits
        causal_lm.train()
        assert torch.equal(causal_lm(**padded["left"]).logits, expected)


def test_save_policy_equals_what_peft_loads(
    model: MultiAdapterModel, base_folder: Path, adapter: Adapter, padded: Padded, tmp_path: Path
) -> None:
    model.set_trainable(["policy"])
    take_steps(model, "policy", padded["left"])
    model.save("policy", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "out")
    found = load_policy(base_of(base_folder), adapter, str(base_folder), tmp_path / "out")
    with torch.no_grad():
        expected = logits_of(model, "policy", padded["left"])
        assert torch.equal(by_peft(**padded["left"]).logits, expected)
        assert torch.equal(found(**padded["left"]).logits, expected)


def test_save_critic_keeps_its_head(
    model: MultiAdapterModel, base_folder: Path, adapter: Adapter, padded: Padded, tmp_path: Path
) -> None:
    model.set_trainable(["value"])
    take_steps(model, "value", padded["left"])
    model.save("value", tmp_path)
    again = MultiAdapterModel.load(base_of(base_folder), adapter, str(base_folder), {"value": tmp_path})
    by_peft = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    by_peft = PeftModel.from_pretrained(by_peft, tmp_path)
    by_peft.config.pad_token_id = PAD
    with torch.no_grad():
        expected = model.heads["value"](model.hidden_states("value", **padded["right"]))
        assert torch.equal(again.heads["value"](again.hidden_states("value", **padded["right"])), expected)
        at = heads.score_index(padded["right"]["input_ids"], PAD)[:, None]
        torch.testing.assert_close(by_peft(**padded["right"]).logits, expected.gather(1, at))


def test_use_policy_generates_like_a_separate_model(
    model: MultiAdapterModel, base_folder: Path, folders: Folders
) -> None:
    separate = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folders["policy"])
    prompt = torch.tensor([[1, 5, 9]])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False}
    with model.use("policy") as causal_lm:
        found = causal_lm.generate(prompt, **settings)
    assert torch.equal(found, separate.generate(input_ids=prompt, **settings))


def test_load_without_adapter_makes_each_role_a_whole_model(base_folder: Path, padded: Padded, tmp_path: Path) -> None:
    batch = padded["right"]
    torch.manual_seed(4)
    scorer = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    scorer.config.pad_token_id = PAD
    scorer.save_pretrained(tmp_path / "reward")
    roles = {"policy": base_folder, "reference": None, "reward": tmp_path / "reward"}
    model = MultiAdapterModel.load(base_of(base_folder), None, str(base_folder), roles)
    model.add("value", copy_of="reward")
    with torch.no_grad():
        expected = scorer(**batch).logits[:, 0]
        values = model.heads["reward"](model.hidden_states("reward", **batch))
        torch.testing.assert_close(
            values.gather(1, heads.score_index(batch["input_ids"], PAD)[:, None])[:, 0], expected
        )
    reference, reward = logits_of(model, "reference", batch), logits_of(model, "reward", batch)
    model.set_trainable(["policy", "value"])
    take_steps(model, "policy", batch)
    take_steps(model, "value", batch)
    assert torch.equal(logits_of(model, "reference", batch), reference)
    assert torch.equal(logits_of(model, "reward", batch), reward)
    model.save("value", tmp_path / "value")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    (weight,) = model.heads["value"].parameters()
    assert torch.equal(again.score.weight[0], weight)


@pytest.mark.parametrize("is_whole", [False, True])
def test_use_16_bit_base_computes_in_16_bits_and_trains_float32_weights(
    base_folder: Path, adapter: Adapter, padded: Padded, is_whole: bool
) -> None:
    def load(dtype: str) -> MultiAdapterModel:
        roles: Folders = {"policy": None, "reference": None}
        settings = None if is_whole else adapter
        model = MultiAdapterModel.load(base_of(base_folder, dtype=dtype), settings, str(base_folder), roles)
        model.set_trainable(["policy"])
        return model

    model, exact = load("bfloat16"), load("float32")
    assert {p.dtype for p in model.parameters("policy")} == {torch.float32}
    found = model.hidden_states("policy", **padded["right"])
    reference = model.hidden_states("reference", **padded["right"])
    output_head = model.output_head("policy")
    with model.use("policy"):
        assert output_head(found).dtype == torch.bfloat16
    expected = exact.hidden_states("policy", **padded["right"])
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.float(), reference.float(), rtol=0.1, atol=0.1)
    optimizer = torch.optim.SGD(model.parameters("policy"), lr=1e-6)  # a step that bfloat16 cannot hold
    found.float().square().mean().backward()
    before = [p.detach().clone() for p in model.parameters("policy")]
    optimizer.step()
    moved = [bool((p != b).any()) for p, b in zip(model.parameters("policy"), before, strict=True)]
    assert any(moved)


def test_set_trainable_frozen_adapter_on_16_bit_base_becomes_16_bit_and_computes_the_same(
    base_folder: Path, adapter: Adapter, folders: Folders, padded: Padded
) -> None:
    model = load_with_value(base_folder, adapter, folders, base_of(base_folder, dtype="bfloat16"))
    batch = padded["right"]
    before = {role: logits_of(model, role, batch) for role in ("policy", "reference")}
    model.set_trainable(["policy", "value"])
    for role, expected in before.items():
        assert torch.equal(logits_of(model, role, batch), expected)
    assert torch.equal(before["policy"], before["reference"])  # so the first ratio of PPO is 1
    dtypes = {role: {p.dtype for p in model._adapter_params[role]} for role in model.roles}
    expected_dtypes = {"policy": torch.float32, "value": torch.float32}
    expected_dtypes |= {"reference": torch.bfloat16, "reward": torch.bfloat16}
    assert dtypes == {role: {dtype} for role, dtype in expected_dtypes.items()}


def test_set_trainable_frozen_adapter_on_16_bit_base_is_not_cast_again(
    base_folder: Path, adapter: Adapter, folders: Folders, padded: Padded
) -> None:
    model = MultiAdapterModel.load(base_of(base_folder, dtype="bfloat16"), adapter, str(base_folder), folders)

    def count_casts() -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            logits_of(model, "policy", padded["right"])
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")

    adapted_layers = len(model._adapter_params["policy"]) // 2
    before = count_casts()
    model.set_trainable([])
    # Of each layer: A and B, and its input to the dtype of A.
    assert before - count_casts() >= 3 * adapted_layers


def test_set_trainable_whole_model_on_16_bit_base_policy_equals_its_float32_reference(
    base_folder: Path, padded: Padded
) -> None:
    roles: Folders = {"policy": None, "reference": None}
    model = MultiAdapterModel.load(base_of(base_folder, dtype="bfloat16"), None, str(base_folder), roles)
    model.set_trainable(["policy"], in_float32=["reference"])
    found, expected = (model.hidden_states(role, **padded["right"]) for role in ("policy", "reference"))
    assert torch.equal(found, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters("reference"))


def test_load_adapter_as_whole_model_raises_issue(base_folder: Path, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    with raises_issue("model.wrong-kind", error=ModelError, location=str(folder)):
        MultiAdapterModel.load(base_of(base_folder), None, str(base_folder), {"policy": folder})


@pytest.mark.parametrize("name", ["opt", "biogpt", "xglm", "lfm2"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_recompute_activations_keeps_gradients_of_layers_with_dropout(
    make_family: MakeFamily, adapter: Adapter, name: str, is_whole: bool
) -> None:
    """These layers drop activations out by their own train flag, which must stay off."""
    folder = make_family(name)
    assert AutoConfig.from_pretrained(folder).to_dict().get("dropout", 0.1) > 0

    def gradients(*, recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        settings = None if is_whole else adapter
        model = MultiAdapterModel.load(base_of(folder), settings, str(folder), {"policy": None})
        model.set_trainable(["policy"])
        for parameter in model.parameters("policy"):
            parameter.data += 0.02  # LoRA's second matrix is zero at the start, and then hides the first one's gradient
        if recompute:
            model.recompute_activations()
        with model.use("policy"):
            model.hidden_states("policy", torch.arange(3, 15).reshape(2, 6)).sin().sum().backward()
        return [p.grad for p in model.parameters("policy") if p.grad is not None]

    expected, found = gradients(recompute=False), gradients(recompute=True)
    assert expected
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_hidden_size_of_projected_hidden_states_is_their_width(make_family: MakeFamily, adapter: Adapter) -> None:
    """OPT-350m projects its hidden states to the width of its embeddings; a new head reads them."""
    folder = make_family("opt-projected")
    model = MultiAdapterModel.load(base_of(folder), adapter, str(folder), {"policy": None})
    hidden = model.hidden_states("policy", torch.arange(3, 15).reshape(2, 6))
    assert model.hidden_size == hidden.shape[-1] == 16
    assert heads.ScalarHead(model.hidden_size)(hidden).shape == (2, 6)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_use_roles_on_fused_experts_equal_separate_models(
    make_family: MakeFamily, adapter: Adapter, tmp_path: Path, name: str
) -> None:
    """PEFT adapts fused experts by their parameters, with a rank pattern of its own."""
    folder, folders = make_family(name), dict[str, Path | None]()
    for seed, role in enumerate(("policy", "reference")):
        torch.manual_seed(seed)
        trained = load_policy(base_of(folder), adapter, str(folder), None)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        trained.save_pretrained(tmp_path / role)
        folders[role] = tmp_path / role
    model = MultiAdapterModel.load(base_of(folder), adapter, str(folder), folders)
    ids = torch.arange(3, 15).reshape(2, 6)
    for role, path in folders.items():
        separate = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), path)
        with torch.no_grad():
            assert torch.equal(logits_of(model, role, {"input_ids": ids}), separate(input_ids=ids).logits)
