"""What the model folder of a run says of itself: what made it, from what, and how it loads.

PEFT and TRL write a README of their own, which knows nothing of the run; this one takes its place. The exported model
has a longer one, see `model_card.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_cli.pipeline.inputs import Input
from rlhf_cli.runs.run import Run

LOADS = {  # stage: the classes that load its model, as an adapter and as a whole
    "pretrain": ("AutoPeftModelForCausalLM", "AutoModelForCausalLM"),
    "sft": ("AutoPeftModelForCausalLM", "AutoModelForCausalLM"),
    "reward": ("AutoPeftModelForSequenceClassification", "AutoModelForSequenceClassification"),
    "ppo": ("AutoPeftModelForCausalLM", "AutoModelForCausalLM"),
}


def write(run: Run, inputs: Sequence[Input], metrics: Mapping[str, float], seed: int) -> None:
    """Write `model/README.md` of a stage in LOADS. Files are given by name alone: the card travels."""
    folder = run.path / "model"
    is_adapter = (folder / "adapter_config.json").exists()
    loader = LOADS[run.stage][0 if is_adapter else 1]
    more = ", num_labels=1" if run.stage == "reward" and is_adapter else ""
    lines = [
        "---",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        f"tags: [rlhf, {run.stage}]",
        "---",
        "",
        f"# {run.name}/{run.stage}@{run.version}",
        "",
        f"Made by `rlhf {run.stage}`, seed {seed}." + (" A smoke run: its weights are random." if run.smoke else ""),
        "",
        "| input | what | version | sha256 or commit |",
        "| --- | --- | --- | --- |",
        *(f"| {i.role} | {_name(i)} | {i.version or ''} | `{i.sha256 or 'unknown'}` |" for i in inputs),
        "",
        "| figure | value |",
        "| --- | --- |",
        *(f"| `{name}` | {value:.4g} |" for name, value in metrics.items()),
        "",
        "```python",
        f"from {'peft' if is_adapter else 'transformers'} import {loader}",
        "",
        f'model = {loader}.from_pretrained("."{more})',
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _name(item: Input) -> str:
    return item.ref if item.kind in ("run", "hub") else Path(item.path).name
