"""One base, many roles: what each role computes, what is shared, and what training one leaves alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Gemma2Config, Gemma2ForCausalLM

from rlhf_cli.errors import ModelError
from rlhf_cli.models import heads
from rlhf_cli.models.adapters import load_policy
from rlhf_cli.models.loading import load_causal_lm
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Adapter, Base

PAD = 0
Make = Callable[..., Path]


@pytest.fixture
def folders(make_adapter: Make) -> dict[str, Path | None]:
    sft = make_adapter("CAUSAL_LM", seed=1)
    return {"policy": sft, "reference": sft, "reward": make_adapter("SEQ_CLS", seed=2)}


@pytest.fixture
def bank(base_folder: Path, adapter: Adapter, folders: dict) -> MultiAdapterModel:
    bank = MultiAdapterModel.load(Base(model=str(base_folder)), adapter, str(base_folder), folders)
    bank.add("value", copy_of="reward")
    return bank


def logits(bank: MultiAdapterModel, name: str, batch: dict) -> torch.Tensor:
    with torch.no_grad(), bank.use(name) as model:
        return model(**batch).logits


def take_steps(bank: MultiAdapterModel, name: str, batch: dict, steps: int = 3) -> None:
    """Train a role, far enough to show in its outputs."""
    optimizer = torch.optim.SGD(bank.parameters(name), lr=1.0)
    for _ in range(steps):
        hidden = bank.hidden(name, **batch)
        if name in bank.heads:
            loss = bank.heads[name](hidden).square().mean()
        else:
            loss = bank.output_head(name)(hidden)[..., 3].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("side", ["left", "right"])
def test_policy_gives_the_logits_of_its_adapter_alone(
    bank: MultiAdapterModel, base_folder: Path, folders: dict, padded: dict, side: str
) -> None:
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folders["policy"])
    with torch.no_grad():
        expected = alone(**padded[side]).logits
        assert torch.equal(logits(bank, "policy", padded[side]), expected)
        assert torch.equal(bank.output_head("policy")(bank.hidden("policy", **padded[side])), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_reward_gives_the_scores_of_its_model_alone(
    bank: MultiAdapterModel, base_folder: Path, folders: dict, padded: dict, side: str
) -> None:
    alone = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    alone = PeftModel.from_pretrained(alone, folders["reward"])
    alone.config.pad_token_id = PAD
    with torch.no_grad():
        expected = alone(**padded[side]).logits[:, 0]
        values = bank.heads["reward"](bank.hidden("reward", **padded[side]))  # (B, T)
    ours = values.gather(1, heads.score_index(padded[side]["input_ids"], PAD)[:, None])[:, 0]
    torch.testing.assert_close(ours, expected)  # the head's sum runs in another order


def test_a_bare_role_is_the_base_and_shares_the_adapters_base(
    base_folder: Path, adapter: Adapter, folders: dict, padded: dict
) -> None:
    bank = MultiAdapterModel.load(
        Base(model=str(base_folder)), adapter, str(base_folder), {"reference": None, "policy": folders["policy"]}
    )
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        expected = plain(**padded["left"]).logits
    before = logits(bank, "policy", padded["left"])
    assert torch.equal(logits(bank, "reference", padded["left"]), expected)
    assert torch.equal(logits(bank, "policy", padded["left"]), before)
    assert not torch.equal(before, expected)
    with torch.no_grad(), bank.use("policy"), bank.use("reference") as model:
        assert torch.equal(model(**padded["left"]).logits, expected)
    assert bank.parameters("reference") == []


def test_a_bare_policy_gets_an_adapter_when_it_is_trained(base_folder: Path, adapter: Adapter, padded: dict) -> None:
    bank = MultiAdapterModel.load(
        Base(model=str(base_folder)), adapter, str(base_folder), {"policy": None, "reference": None}
    )
    before = logits(bank, "reference", padded["left"])
    bank.train(["policy"])
    assert torch.equal(logits(bank, "policy", padded["left"]), before)
    take_steps(bank, "policy", padded["left"], steps=5)
    assert not torch.equal(logits(bank, "policy", padded["left"]), before)
    assert torch.equal(logits(bank, "reference", padded["left"]), before)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_one_copy_of_every_base_tensor_is_in_memory(
    base_folder: Path, adapter: Adapter, folders: dict, quantize: str
) -> None:
    base = Base(model=str(base_folder), quantize=quantize)
    bank = MultiAdapterModel.load(base, adapter, str(base_folder), folders)
    bank.add("value", copy_of="reward")
    plain = load_causal_lm(base, str(base_folder))

    def storages(parameters: list[nn.Parameter]) -> set[int]:
        return {parameter.untyped_storage().data_ptr() for parameter in parameters}

    own = [p for name in bank.roles for p in bank.parameters(name)]
    seen: list[nn.Parameter] = []
    for name in ("policy", "reference", "reward", "value"):
        with bank.use(name) as model:
            seen += list(model.parameters())
    in_adapters = storages(own)
    assert len(storages(seen) - in_adapters) == len(storages(list(plain.parameters())))
    assert sum(p.nbytes for p in {id(p): p for p in seen}.values()) == sum(p.nbytes for p in plain.parameters()) + sum(
        p.nbytes for name in bank.roles for p in bank.parameters(name) if p.ndim == 2
    )
    assert len(in_adapters) == len(own)  # no two roles share an adapter tensor


def test_training_the_policy_leaves_every_other_role_bit_equal(bank: MultiAdapterModel, padded: dict) -> None:
    batch = padded["left"]
    before = {name: logits(bank, name, batch) for name in ("reference", "reward", "value")}
    policy = logits(bank, "policy", batch)
    bank.train(["policy"])
    take_steps(bank, "policy", batch)
    assert not torch.equal(logits(bank, "policy", batch), policy)
    for name, expected in before.items():
        assert torch.equal(logits(bank, name, batch), expected), name


def test_training_the_value_leaves_the_reward_and_its_head_as_they_were(bank: MultiAdapterModel, padded: dict) -> None:
    batch = padded["left"]

    def score(name: str) -> torch.Tensor:
        with torch.no_grad():
            return bank.heads[name](bank.hidden(name, **batch))

    reward = score("reward")
    assert torch.equal(score("value"), reward)  # a copy, head included
    bank.train(["policy", "value"])
    take_steps(bank, "value", batch)
    assert torch.equal(score("reward"), reward)
    assert not torch.equal(score("value"), reward)


def test_all_roles_start_frozen_and_train_sets_these_roles_alone(bank: MultiAdapterModel) -> None:
    def trained() -> set[str]:
        assert not any(p.requires_grad for p in bank._base.get_input_embeddings().parameters())
        flags = {name: {p.requires_grad for p in bank.parameters(name)} for name in bank.roles}
        assert all(len(kinds) == 1 for kinds in flags.values())
        return {name for name, kinds in flags.items() if True in kinds}

    assert trained() == set()
    bank.train(["policy", "value"])
    assert trained() == {"policy", "value"}
    for name in bank.roles:  # switching, in any order, changes no flag
        with bank.use(name), bank.use("reference"):
            assert trained() == {"policy", "value"}
    bank.add("other", copy_of="policy")
    assert trained() == {"policy", "value"}
    bank.train(["value"])
    assert trained() == {"value"}


def test_nested_use_comes_back_to_the_outer_role(bank: MultiAdapterModel, padded: dict) -> None:
    batch = padded["left"]
    policy, reward = logits(bank, "policy", batch), logits(bank, "reward", batch)
    with torch.no_grad(), bank.use("policy") as model:
        with bank.use("reward"):
            assert torch.equal(model(**batch).logits, reward)
        assert torch.equal(model(**batch).logits, policy)
        with pytest.raises(RuntimeError), bank.use("reward"):
            raise RuntimeError
        assert torch.equal(model(**batch).logits, policy)


def test_dropout_of_the_recipe_is_off(base_folder: Path, folders: dict, padded: dict) -> None:
    adapter = Adapter(rank=4, alpha=8, dropout=0.5)
    bank = MultiAdapterModel.load(Base(model=str(base_folder)), adapter, str(base_folder), folders)
    bank.add("value", copy_of="reward")
    bank.train(["policy", "value"])
    with torch.no_grad(), bank.use("policy") as model:
        expected = model(**padded["left"]).logits
        model.train()
        assert torch.equal(model(**padded["left"]).logits, expected)


def test_a_saved_policy_is_what_peft_loads(
    bank: MultiAdapterModel, base_folder: Path, adapter: Adapter, padded: dict, tmp_path: Path
) -> None:
    bank.train(["policy"])
    take_steps(bank, "policy", padded["left"])
    bank.save("policy", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "out")
    ours = load_policy(Base(model=str(base_folder)), adapter, str(base_folder), tmp_path / "out")
    with torch.no_grad():
        expected = logits(bank, "policy", padded["left"])
        assert torch.equal(theirs(**padded["left"]).logits, expected)
        assert torch.equal(ours(**padded["left"]).logits, expected)


def test_a_saved_critic_keeps_its_head(
    bank: MultiAdapterModel, base_folder: Path, adapter: Adapter, padded: dict, tmp_path: Path
) -> None:
    bank.train(["value"])
    take_steps(bank, "value", padded["left"])
    bank.save("value", tmp_path)
    again = MultiAdapterModel.load(Base(model=str(base_folder)), adapter, str(base_folder), {"value": tmp_path})
    theirs = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    theirs = PeftModel.from_pretrained(theirs, tmp_path)
    theirs.config.pad_token_id = PAD
    with torch.no_grad():
        expected = bank.heads["value"](bank.hidden("value", **padded["right"]))
        assert torch.equal(again.heads["value"](again.hidden("value", **padded["right"])), expected)
        at = heads.score_index(padded["right"]["input_ids"], PAD)[:, None]
        torch.testing.assert_close(theirs(**padded["right"]).logits, expected.gather(1, at))


def test_the_policy_generates_as_its_adapter_alone(bank: MultiAdapterModel, base_folder: Path, folders: dict) -> None:
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folders["policy"])
    prompt = torch.tensor([[1, 5, 9]])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False}
    with bank.use("policy") as model:
        ours = model.generate(prompt, **settings)
    assert torch.equal(ours, alone.generate(input_ids=prompt, **settings))


def test_whole_models_are_a_role_each(base_folder: Path, padded: dict, tmp_path: Path) -> None:
    batch = padded["right"]
    torch.manual_seed(4)
    scorer = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=1)
    scorer.config.pad_token_id = PAD
    scorer.save_pretrained(tmp_path / "reward")
    roles = {"policy": base_folder, "reference": None, "reward": tmp_path / "reward"}
    bank = MultiAdapterModel.load(Base(model=str(base_folder)), None, str(base_folder), roles)
    bank.add("value", copy_of="reward")
    with torch.no_grad():
        expected = scorer(**batch).logits[:, 0]
        values = bank.heads["reward"](bank.hidden("reward", **batch))
        torch.testing.assert_close(
            values.gather(1, heads.score_index(batch["input_ids"], PAD)[:, None])[:, 0], expected
        )
    reference, reward = logits(bank, "reference", batch), logits(bank, "reward", batch)
    bank.train(["policy", "value"])
    take_steps(bank, "policy", batch)
    take_steps(bank, "value", batch)
    assert torch.equal(logits(bank, "reference", batch), reference)
    assert torch.equal(logits(bank, "reward", batch), reward)
    bank.save("value", tmp_path / "value")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    assert torch.equal(again.score.weight[0], bank.heads["value"].weight)


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_16_bit_base_computes_in_16_bits_and_trains_32_bit_weights(
    base_folder: Path, adapter: Adapter, padded: dict, is_whole: bool
) -> None:
    def load(dtype: str) -> MultiAdapterModel:
        folders = {"policy": None, "reference": None}
        bank = MultiAdapterModel.load(
            Base(model=str(base_folder), dtype=dtype), None if is_whole else adapter, str(base_folder), folders
        )
        bank.train(["policy"])
        return bank

    bank, exact = load("bfloat16"), load("float32")
    assert {p.dtype for p in bank.parameters("policy")} == {torch.float32}
    found, reference = bank.hidden("policy", **padded["right"]), bank.hidden("reference", **padded["right"])
    logits_of = bank.output_head("policy")
    with bank.use("policy"):
        assert logits_of(found).dtype == torch.bfloat16
    expected = exact.hidden("policy", **padded["right"])
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.float(), reference.float(), rtol=0.1, atol=0.1)
    optimizer = torch.optim.SGD(bank.parameters("policy"), lr=1e-6)  # a step that bfloat16 cannot hold
    found.float().square().mean().backward()
    before = [p.detach().clone() for p in bank.parameters("policy")]
    optimizer.step()
    moved = [bool((p != b).any()) for p, b in zip(bank.parameters("policy"), before, strict=True)]
    assert any(moved)


def test_an_adapter_as_a_whole_role_is_refused(base_folder: Path, make_adapter: Make) -> None:
    with pytest.raises(ModelError, match="adapter: null"):
        MultiAdapterModel.load(Base(model=str(base_folder)), None, str(base_folder), {"policy": make_adapter()})


def test_a_base_that_caps_its_logits_is_refused(tmp_path: Path, adapter: Adapter) -> None:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.5,
        initializer_range=0.2,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="changes its logits"):
        MultiAdapterModel.load(Base(model=str(tmp_path)), adapter, str(tmp_path), {"policy": None})
