"""Take a tiny model of every family in docs/models.md through the whole chain, and compare its numbers with plain PEFT.

docs/generate.py makes the table in docs/models.md from the same list.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.recipe.schema import Adapter
from tests.support.chain_project import ChainProject
from tests.support.families import FAMILIES, MakeFamily
from tests.support.plain_models import base_of
from tests.support.processes import start_rlhf

pytestmark = pytest.mark.slow

NAMES = [family.id for family in FAMILIES]
WORDS = ["red", "blue", "cat", "dog", "sun", "tree"]
RECIPE = """
name: bot
base: {{model: {base}, dtype: float32}}
adapter: {{rank: 2, alpha: 4}}
data:
  sft: {{path: sft.jsonl, eval_fraction: 0.2}}
  preferences: {{path: preferences.jsonl, eval_fraction: 0.2}}
  prompts: {{path: sft.jsonl, eval_fraction: 0.2}}
sft: {{max_steps: 1, batch_size: 4, micro_batch_size: 2, learning_rate: 0.01, max_length: 40}}
reward: {{max_steps: 1, batch_size: 4, micro_batch_size: 2, learning_rate: 0.01, max_length: 40}}
ppo:
  iterations: 1
  rollout_batch_size: 16
  max_prompt_length: 24
  max_new_tokens: 12
  stop: ["e", "a"]
  epochs: 1
  minibatches: 1
  micro_batch_tokens: 200
  learning_rate: 0.001
eval: {{samples: 4, max_new_tokens: 4}}
export: {{format: merged, dtype: float32}}
"""


def write_project(folder: Path, base: Path) -> ChainProject:
    """Write a recipe for the whole chain, and its data: prompts of three lengths."""
    pairs = [(i + j, a, b) for i, a in enumerate(WORDS) for j, b in enumerate(WORDS)]
    rows = [{"prompt": f"{a} and" * (1 + number % 3), "completion": f" {b} {a}"} for number, a, b in pairs]
    preferences = [{"prompt": row["prompt"], "chosen": " tree", "rejected": " dog dog"} for row in rows]
    for name, content in (("sft", rows), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base))
    return ChainProject(folder / "recipe.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_chain_of_family_trains_and_exports(make_family: MakeFamily, tmp_path: Path, name: str) -> None:
    base = make_family(name)
    project = write_project(tmp_path, base)
    project.run_chain()
    (step,) = map(json.loads, (project.stage_dir("ppo") / "v0001/metrics.jsonl").read_text().splitlines())
    # Nothing was trained before the first minibatch. Batches of other sizes sum in another order: some 1e-6 in float32.
    assert [step["ratio.min"], step["ratio.max"]] == pytest.approx([1, 1], abs=1e-5)

    policy = project.stage_dir("ppo") / "v0001/model"
    model = MultiAdapterModel.load(base_of(base), Adapter(rank=2, alpha=4), str(base), {"policy": policy})
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), policy).eval()
    ids = torch.arange(5, 35).reshape(2, 15)
    with torch.no_grad(), model.use("policy"):
        found = model.output_head("policy")(model.hidden_states("policy", ids))
        for row, logits in zip(ids, found, strict=True):
            expected = plain(input_ids=row[None, :9], use_cache=False).logits[0]  # alone, and without what follows
            torch.testing.assert_close(logits[:9], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.subprocess
@pytest.mark.parametrize("name", ["gemma3", "opt", "mixtral"])
def test_chain_of_family_in_two_processes_with_recomputed_activations(
    make_family: MakeFamily, tmp_path: Path, name: str
) -> None:
    project = write_project(tmp_path, make_family(name))
    settings = ["launch.processes=2", "ppo.trainer.activation_checkpointing=true"]
    process = start_rlhf(
        project.folder, "run", "sft", "reward", "ppo", *(word for setting in settings for word in ("--set", setting))
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
