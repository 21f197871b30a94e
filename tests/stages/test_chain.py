"""The chain as a user runs it: `main()` with arguments, on a real pretrained model and real human labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.cli.app import main

Rlhf = Callable[..., dict[str, Any]]


@pytest.fixture
def rlhf(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rlhf:
    """Run one command with --json in this process; give back its object, `code` with it."""

    def call(*words: str | Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, words), "--json"])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return {**found, "code": stopped.value.code}

    return call


def pandalm_preferences(shared: Path) -> list[dict[str, str]]:
    """The answer that most of three people preferred; ties are left out."""
    rows = []
    for item in json.loads((shared / "data/pandalm/testset-v1.json").read_text(encoding="utf-8")):
        votes = [item[f"annotator{i}"] for i in (1, 2, 3)]
        first, second = votes.count(1), votes.count(2)
        if max(first, second) < 2:
            continue
        better, worse = ("response1", "response2") if first > second else ("response2", "response1")
        prompt = f"{item['instruction']}\n{item['input']}".strip() + "\n"
        chosen, rejected = str(item[better]).strip(), str(item[worse]).strip()  # some say true or false, some nothing
        if chosen and rejected:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def self_instruct(shared: Path) -> list[dict[str, str]]:
    """Instructions with answers that people wrote."""
    rows = []
    for line in (shared / "data/self-instruct/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        case = task["instances"][0]
        if case["output"].strip():
            prompt = f"{task['instruction']}\n{case['input']}".strip() + "\n"
            rows.append({"prompt": prompt, "completion": case["output"]})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def real_recipe(tmp_path: Path, shared: Path) -> Path:
    """A recipe on the real 260K-parameter model: the issue's data, a reward run and a Python reward, few steps."""
    write_jsonl(tmp_path / "sft.jsonl", self_instruct(shared))
    write_jsonl(tmp_path / "preferences.jsonl", pandalm_preferences(shared))
    (tmp_path / "rewards.py").write_text(
        "def brevity(prompts, completions, **columns):\n    return [-len(c) / 100 for c in completions]\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        f"""
name: real
base: {{model: {shared / "models/stories260k"}}}
adapter: {{rank: 8, alpha: 16}}
data:
  sft: {{path: sft.jsonl}}
  preferences: {{path: preferences.jsonl, eval_fraction: 0.1}}
  prompts: {{path: preferences.jsonl, eval_fraction: 0.1}}
sft: {{max_steps: 8, batch_size: 8, max_length: 384}}
reward: {{max_steps: 8, batch_size: 8, max_length: 384}}
ppo:
  reward: [{{run: reward}}, {{python: "rewards.py:brevity", weight: 0.5}}]
  iterations: 2
  rollout_batch_size: 8
  minibatches: 2
  epochs: 2
  max_prompt_length: 256
  max_new_tokens: 16
eval: {{samples: 40, max_new_tokens: 16, python: ["rewards.py:brevity"]}}
export: {{format: merged, dtype: float32}}
"""
    )
    return tmp_path / "recipe.yaml"


@pytest.mark.usefixtures("shared")
def test_chain_on_a_real_model_ends_in_an_export_that_transformers_loads(
    real_recipe: Path, tmp_path: Path, rlhf: Rlhf
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    runs = tmp_path / "runs"
    chain = rlhf("run", "-r", real_recipe, "--runs-dir", runs)
    assert chain["code"] == 0
    assert [stage["stage"] for stage in chain["stages"]] == ["sft", "reward", "ppo", "eval", "export"]
    metrics = chain["metrics"]
    assert 0 <= metrics["reward.accuracy.low"] <= metrics["reward.accuracy"] <= metrics["reward.accuracy.high"] <= 1
    assert 0 <= metrics["win_rate.low"] <= metrics["win_rate"] <= metrics["win_rate.high"] <= 1
    assert metrics["export.kl"] <= 1e-6  # float32 all the way
    assert {"brevity", "brevity.baseline", "kl", "response_length", "sft.nll"} <= metrics.keys()

    model_folder = Path(chain["stages"][-1]["path"]) / "model"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]

    ppo = json.loads((runs / "real/ppo/latest/manifest.json").read_text())
    roles = {item["role"]: item for item in ppo["inputs"]}
    assert roles["start"]["version"] == "v0001"
    assert {"base", "start", "ppo.reward.0", "ppo.reward.1", "data.prompts"} <= roles.keys()

    again = rlhf("run", "-r", real_recipe, "--runs-dir", runs)
    assert again["code"] == 0
    assert all(stage["skipped"] for stage in again["stages"])


@pytest.mark.usefixtures("shared")
def test_stages_chain_by_hand_and_meet_in_run_folders_alone(real_recipe: Path, tmp_path: Path, rlhf: Rlhf) -> None:
    runs = tmp_path / "runs"
    absent = rlhf("ppo", "-r", real_recipe, "--runs-dir", runs)
    assert absent["code"] == 2
    assert [error["message"].partition(":")[0] for error in absent["issues"]] == ["ppo.start", "ppo.reward.0"]
    assert all(error["location"].startswith(f"{real_recipe}:") for error in absent["issues"])
    assert not (runs / "real/ppo").exists()
    for stage in ("sft", "reward", "ppo"):
        assert rlhf(stage, "-r", real_recipe, "--runs-dir", runs)["run"] == f"real/{stage}@v0001"
    assert rlhf("sft", "-r", real_recipe, "--runs-dir", runs, "--skip-if-done")["skipped"]
    assert rlhf("sft", "-r", real_recipe, "--runs-dir", runs)["run"] == "real/sft@v0002"
    stale = rlhf("ppo", "-r", real_recipe, "--runs-dir", runs, "--skip-if-done")
    assert not stale["skipped"]  # its start is another run now


@pytest.mark.usefixtures("shared")
def test_smoke_makes_what_it_needs_and_is_never_taken_for_real(real_recipe: Path, tmp_path: Path, rlhf: Rlhf) -> None:
    runs = tmp_path / "runs"
    smoke = rlhf("ppo", "-r", real_recipe, "--runs-dir", runs, "--smoke")
    assert smoke["code"] == 0
    assert smoke["smoke"]
    assert {path.parent.name for path in runs.glob("real/*/v0001")} == {"sft", "reward", "ppo"}
    assert not list(runs.glob("real/*/latest"))
    assert rlhf("ppo", "-r", real_recipe, "--runs-dir", runs)["code"] == 2
