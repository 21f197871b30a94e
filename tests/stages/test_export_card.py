"""The card of an exported model: its provenance and evaluation, and code that runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.runs.manifest import sha256
from tests.support.exports import Exporter, save_adapter
from tests.support.made_runs import make_run, run_input


def evaluation_facts(candidate: str) -> dict[str, Any]:
    """Return what only the manifest of an evaluation has: its verdict and the verdicts of its gates."""
    gate = {"metric": "win_rate", "min": 0.7, "max": None, "value": 0.6, "passed": False}
    return {"gates": [gate], "verdict": {"text": f"{candidate} beats base.", "warnings": ["few prompts."]}}


def test_card_has_lineage_data_hashes_and_evaluation(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    runs = run_export.runs_dir
    data = tmp_path / "secret-home" / "demonstrations.jsonl"
    make_run(runs, "sft", seed=0)
    sft = make_run(runs, "sft", seed=0, inputs=[run_input("data.sft", str(data), "file", data, "a" * 64)])
    save_adapter(sft / "model", base_folder)
    ppo = make_run(runs, "ppo", seed=0, inputs=[run_input("start", "sft", "run", sft, "b" * 64)])
    save_adapter(ppo / "model", base_folder)
    for ref, path, win_rate in (("ppo", ppo, 0.625), ("sft", sft, 0.125)):
        candidate = run_input("candidate", ref, "run", path, "c" * 64)
        make_run(runs, "eval", seed=0, inputs=[candidate], metrics={"win_rate": win_rate}, **evaluation_facts(ref))
    _, run = run_export(ppo)
    card = (run.path / "model" / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: transformers" in front
    assert "base_model" not in front  # a folder is not a Hub id
    assert card.index("bot/sft@v0002") < card.index("bot/ppo@v0001")
    assert "a" * 64 in card
    assert "demonstrations.jsonl" in card
    assert "secret-home" not in card
    assert sha256(ppo / "manifest.json") in card
    assert "| `win_rate` | 0.625 |" in card
    assert "0.125" not in card
    assert "**ppo beats base.**\n\nWarning: few prompts.\n\n1 gate of 1 failed: win_rate = 0.6" in card
    assert "sft beats base" not in card


def test_card_of_checkpoint_names_its_run_without_evaluation_of_final_model(
    run_export: Exporter, base_folder: Path
) -> None:
    runs = run_export.runs_dir
    ppo = make_run(runs, "ppo", seed=0)
    candidate = run_input("candidate", "ppo", "run", ppo, "c" * 64)
    make_run(runs, "eval", seed=0, inputs=[candidate], metrics={"win_rate": 0.625}, **evaluation_facts("ppo"))
    checkpoint = ppo / "checkpoints" / "step-000002"
    save_adapter(checkpoint / "model", base_folder)
    (checkpoint / "manifest.json").write_text('{"schema": 1, "step": 2, "files": {}}')
    _, run = run_export(checkpoint)
    card = (run.path / "model" / "README.md").read_text()
    assert "bot/ppo@v0001" in card
    assert "checkpoint step-000002" in card
    assert "win_rate" not in card


@pytest.mark.subprocess
def test_python_code_of_card_runs(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    _, run = run_export(save_adapter(tmp_path / "sft", base_folder))
    folder = run.path / "model"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("…", "what is red").replace("max_new_tokens=256", "max_new_tokens=4")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.subprocess
def test_python_code_of_adapter_card_runs_where_the_base_was_moved(
    run_export: Exporter, base_folder: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(base_folder, tmp_path / "project" / "base")
    of = save_adapter(tmp_path / "sft", old)
    _, run = run_export(of, base={"model": str(old)}, export={"format": "adapter"})
    folder = Path(shutil.move(run.path / "model", tmp_path / "shipped"))
    shutil.move(old, tmp_path / "elsewhere")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "path/to/base" in code
    code = code.replace("path/to/base", str(tmp_path / "elsewhere"))
    code = code.replace("…", "what is red").replace("max_new_tokens=256", "max_new_tokens=4")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
