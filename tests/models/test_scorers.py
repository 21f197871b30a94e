"""Test scorers of families that have none in transformers, and of models with a vision part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from rlhf_cli.models import heads
from rlhf_cli.models.adapters import attach
from rlhf_cli.models.loading import load_causal_lm, load_reward_model, load_scorer
from rlhf_cli.recipe.schema import Adapter
from tests.support.families import MakeFamily
from tests.support.plain_models import base_of

IDS = torch.arange(3, 15).reshape(2, 6)


@pytest.mark.parametrize("name", ["granite", "codegen", "olmoe"])
def test_load_scorer_of_family_without_one_reads_the_last_token(make_family: MakeFamily, name: str) -> None:
    folder = make_family(name)
    scorer = load_scorer(base_of(folder), str(folder))
    decoder = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        expected = scorer.score(decoder(IDS).last_hidden_state[:, -1])
        assert torch.allclose(scorer(IDS).logits, expected, atol=1e-5)
    assert scorer.num_labels == 1


def test_load_reward_model_of_family_without_one_loads_its_head(make_family: MakeFamily, tmp_path: Path) -> None:
    folder = make_family("granite")
    scorer = load_scorer(base_of(folder), str(folder))
    scorer.save_pretrained(tmp_path)
    again = load_reward_model(base_of(tmp_path), str(tmp_path))
    assert torch.equal(again(IDS).logits, scorer(IDS).logits)
    assert torch.equal(heads.load_score_head(tmp_path).weight, scorer.score.weight[0])


@pytest.mark.parametrize("name", ["qwen3_5", "gemma3", "codegen", "opt", "gpt2"])
def test_load_scorer_has_the_module_tree_of_the_language_model(make_family: MakeFamily, name: str) -> None:
    """One adapter must fit both."""
    folder, settings = make_family(name), Adapter(rank=2, alpha=4)
    names = []
    for load, task in ((load_causal_lm, "CAUSAL_LM"), (load_scorer, "SEQ_CLS")):
        model = attach(load(base_of(folder), str(folder)), settings, task=task, start=None)  # type: ignore[arg-type]
        names.append({key for key, parameter in model.named_parameters() if "lora_" in key and parameter.requires_grad})
    assert names[0] == names[1]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    modules = {key for key, _ in plain.named_modules()}
    assert {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in names[0]} <= modules
