"""The chain as a user runs it: `main()` with arguments, on a real pretrained model and real human judgments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

from rlhf_cli.cli.app import main

pytestmark = pytest.mark.slow


class RunCommand(Protocol):
    """Runs one command."""

    def __call__(self, *words: str | Path) -> dict[str, Any]:
        """Run `rlhf <words> --json`. Return its JSON object, with the exit code under `code`."""


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs one command in this process."""

    def run(*words: str | Path) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, words), "--json"])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        found: dict[str, Any] = json.loads(capfd.readouterr().out)
        return {**found, "code": stopped.value.code}

    return run


def pandalm_preferences(shared: Path) -> list[dict[str, str]]:
    """Return pairs with the response that most of three people preferred, without ties."""
    rows = []
    for item in json.loads((shared / "data/pandalm/testset-v1.json").read_text(encoding="utf-8")):
        votes = [item[f"annotator{i}"] for i in (1, 2, 3)]
        first, second = votes.count(1), votes.count(2)
        if max(first, second) < 2:
            continue
        better, worse = ("response1", "response2") if first > second else ("response2", "response1")
        prompt = f"{item['instruction']}\n{item['input']}".strip() + "\n"
        chosen, rejected = str(item[better]).strip(), str(item[worse]).strip()  # some are booleans, some are empty
        if chosen and rejected:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def self_instruct(shared: Path) -> list[dict[str, str]]:
    """Return instructions with completions that people wrote."""
    rows = []
    for line in (shared / "data/self-instruct/seed_tasks.jsonl").read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        example = task["instances"][0]
        if example["output"].strip():
            prompt = f"{task['instruction']}\n{example['input']}".strip() + "\n"
            rows.append({"prompt": prompt, "completion": example["output"]})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows to a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def recipe_file(tmp_path: Path, shared: Path) -> Path:
    """Write a recipe of a few steps on a model of 260K parameters, with a reward run and a Python reward."""
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


def test_chain_on_real_model_ends_in_an_export_that_transformers_loads(
    recipe_file: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    runs = tmp_path / "runs"
    chain = run_command("run", "-r", recipe_file, "--runs-dir", runs)
    assert chain["code"] == 0
    assert [stage["stage"] for stage in chain["stages"]] == ["sft", "reward", "ppo", "eval", "export"]
    metrics = chain["metrics"]
    assert 0 <= metrics["reward.accuracy.low"] <= metrics["reward.accuracy"] <= metrics["reward.accuracy.high"] <= 1
    assert 0 <= metrics["win_rate.low"] <= metrics["win_rate"] <= metrics["win_rate.high"] <= 1
    assert metrics["export.kl"] <= 1e-6  # float32 throughout
    assert {"brevity", "brevity.baseline", "kl", "response_length", "sft.nll"} <= metrics.keys()

    model_folder = Path(chain["stages"][-1]["path"]) / "model"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    completion = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert completion.shape[1] > prompt["input_ids"].shape[1]

    ppo = json.loads((runs / "real/ppo/latest/manifest.json").read_text())
    inputs = {item["role"]: item for item in ppo["inputs"]}
    assert inputs["start"]["version"] == "v0001"
    assert {"base", "start", "ppo.reward.0", "ppo.reward.1", "data.prompts"} <= inputs.keys()

    again = run_command("run", "-r", recipe_file, "--runs-dir", runs)
    assert again["code"] == 0
    assert all(stage["skipped"] for stage in again["stages"])


def test_stages_run_one_by_one_meet_in_run_folders(recipe_file: Path, tmp_path: Path, run_command: RunCommand) -> None:
    options = ("-r", recipe_file, "--runs-dir", tmp_path / "runs")
    missing = run_command("ppo", *options)
    assert missing["code"] == 2
    assert [issue["code"] for issue in missing["issues"]] == ["recipe.run-not-found"] * 2
    assert [issue["message"].partition(":")[0] for issue in missing["issues"]] == ["ppo.start", "ppo.reward.0"]
    assert all(issue["location"].startswith(f"{recipe_file}:") for issue in missing["issues"])
    assert not (tmp_path / "runs/real/ppo").exists()
    for stage in ("sft", "reward", "ppo"):
        assert run_command(stage, *options)["run"] == f"real/{stage}@v0001"
    assert run_command("sft", *options, "--skip-if-done")["skipped"]
    assert run_command("sft", *options)["run"] == "real/sft@v0002"
    assert not run_command("ppo", *options, "--skip-if-done")["skipped"]  # ppo.start is another run now


def test_smoke_run_makes_its_inputs_and_is_no_input_of_real_run(
    recipe_file: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    runs = tmp_path / "runs"
    smoke = run_command("ppo", "-r", recipe_file, "--runs-dir", runs, "--smoke")
    assert smoke["code"] == 0
    assert smoke["smoke"]
    assert {path.parent.name for path in runs.glob("real/*/v0001")} == {"sft", "reward", "ppo"}
    assert not list(runs.glob("real/*/latest"))
    assert run_command("ppo", "-r", recipe_file, "--runs-dir", runs)["code"] == 2
