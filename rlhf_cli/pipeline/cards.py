"""Write the README of a run's model and of an exported model.

PEFT and TRL write a README of their own, which knows nothing of the run; these replace it. Only the names of files are
given, not their folders, because a card travels with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from rlhf_cli.evaluation.gates import summarize
from rlhf_cli.formatting import format_metric, format_number, markdown_table
from rlhf_cli.models.ensemble import read_members
from rlhf_cli.pipeline import ollama
from rlhf_cli.pipeline.references import entry_of_model, is_checkpoint, run_of_model_dir
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import is_run_reference
from rlhf_cli.runs import lineage
from rlhf_cli.runs.layout import RunEntry
from rlhf_cli.runs.manifest import MANIFEST_FILE, sha256
from rlhf_cli.runs.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for --max-lora-rank
CLASS_SUFFIX = {"causal_lm": "CausalLM", "scorer": "SequenceClassification"}


def write_run_card(run: Run, stage: ResolvedStage, metrics: Mapping[str, float]) -> None:
    """Write `model/README.md` of a run whose model later stages load."""
    assert stage.spec.model_class is not None
    folder = run.path / "model"
    is_adapter = (folder / "adapter_config.json").exists()
    library, prefix = ("peft", "AutoPeftModelFor") if is_adapter else ("transformers", "AutoModelFor")
    loader = prefix + CLASS_SUFFIX[stage.spec.model_class]
    options = ", num_labels=1" if is_adapter and stage.spec.model_class == "scorer" else ""
    note = " This is a smoke run: its weights are random." if run.smoke else ""
    inputs = [
        (item.role, _input_name(item._asdict()), item.version or "", f"`{item.sha256 or 'unknown'}`")
        for item in stage.inputs
    ]
    members = len(read_members(folder)) if stage.spec.model_class == "scorer" else 1
    if members > 1:
        note += f" It is the first of {members} reward models, whose scores rlhf combines; see `ensemble.json`."
    values = [(f"`{name}`", format_metric(name, value)) for name, value in metrics.items()]
    sections = [
        f"# {run.name}/{run.stage}@{run.version}",
        f"Written by `rlhf {run.stage}` with seed {stage.recipe.seed}.{note}",
        markdown_table(("input", "name", "version", "SHA-256 or commit"), inputs),
        markdown_table(("metric", "value"), values),
        f'```python\nfrom {library} import {loader}\n\nmodel = {loader}.from_pretrained("."{options})\n```',
    ]
    _save(folder, ModelCardData(library_name=library, tags=["rlhf", run.stage]), sections)


def write_model_card(
    stage: ResolvedStage, folder: Path, tokenizer: PreTrainedTokenizerBase, *, kl: float, conversational: bool
) -> None:
    """Write README.md of an exported model into `folder`, and Ollama's Modelfile for a merged model.

    Args:
        stage: The resolved export stage.
        folder: The folder of the exported model.
        tokenizer: The exported tokenizer.
        kl: Mean KL divergence of the exported model from the trained one, in nats per token.
        conversational: Whether the model was trained on conversations.
    """
    source = stage.model_path("of")
    assert source is not None
    model_run = run_of_model_dir(source.resolve())
    runs = lineage.ancestor_runs(entry_of_model(source))
    is_merged, base_name = stage.section.format == "merged", _base_name(stage)
    form = f"merged, {stage.section.dtype}" if is_merged else "a LoRA adapter"
    sections = [
        f"# {stage.recipe.name}",
        f"`{base_name}` adapted with rlhf ({form}). The licenses of the base model and of the data apply.",
        _lineage(runs, model_run),
        _evaluation(stage, model_run),
        f"## Verified\n\nThe exported files were loaded again: every tensor is identical to the saved one, and the "
        f"mean KL divergence from the trained model is {format_number(kl)} nats per token.",
        _usage(stage, base_name, conversational=conversational),
    ]
    data = ModelCardData(
        library_name="transformers" if is_merged else "peft",
        pipeline_tag="text-generation",
        # The Hub would look for a base model that is only a local folder.
        base_model=None if Path(stage.base_path).is_dir() else stage.base_path,
        tags=["rlhf", "trl", *dict.fromkeys(run.stage for run in runs)],
    )
    _save(folder, data, sections)
    if is_merged:
        text = ollama.modelfile(tokenizer, conversational=conversational)
        (folder / "Modelfile").write_text(text, encoding="utf-8")


def _save(folder: Path, data: ModelCardData, sections: Sequence[str]) -> None:
    body = "\n\n".join(section for section in sections if section)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / "README.md")


def _input_name(item: Mapping[str, Any]) -> str:
    return item["ref"] if item["kind"] in ("run", "hub") else Path(item["path"]).name


def _base_name(stage: ResolvedStage) -> str:
    """Return the run, Hub id or folder name of the base model."""
    model = stage.recipe.base.model
    if is_run_reference(model):
        return model
    return Path(stage.base_path).name if Path(stage.base_path).is_dir() else stage.base_path


def _lineage(runs: Sequence[RunEntry], model_run: Path) -> str:
    if not runs:
        return ""
    rows = [
        (run.stage, lineage.name_of(run), str(run.manifest["seed"]), f"`{sha256(run.path / MANIFEST_FILE)}`")
        for run in runs
        if run.manifest is not None
    ]
    note = f"The model is the checkpoint {model_run.name} of the last of these runs.\n\n"
    table = markdown_table(("stage", "run", "seed", "SHA-256 of its manifest"), rows)
    text = f"## Lineage\n\n{note if is_checkpoint(model_run) else ''}{table}"
    judged = [f"{lineage.name_of(run)}: {found}." for run in runs if (found := lineage.describe_feedback(run))]
    if judged:
        text += f"\n\nPreferences of people: {' '.join(judged)}"
    inputs = sorted({row for run in runs for row in _outside_inputs(run)})
    if not inputs:
        return text
    return f"{text}\n\n{markdown_table(('input', 'read by', 'role', 'SHA-256 or commit'), inputs)}"


def _outside_inputs(run: RunEntry) -> list[tuple[str, str, str, str]]:
    """Return the data files, folders and Hub models that a run read, as table rows."""
    rows = []
    for item in lineage.inputs(run):
        if item["kind"] != "run":
            name = item["path"] if item["kind"] == "hub" else Path(item["path"]).name
            content = item["sha256"] or item["version"] or "unknown"
            rows.append((f"`{name}`", run.stage, item["role"], f"`{content}`"))
    return rows


def _evaluation(stage: ResolvedStage, model_run: Path) -> str:
    """Return the metrics of the newest complete evaluation of the exported run, or "" if there is none."""
    entry = lineage.newest_evaluation(stage.runs_dir, stage.recipe.name, model_run, smoke=stage.smoke)
    if entry is None or entry.manifest is None:
        return ""
    metrics: Mapping[str, Any] = entry.manifest["metrics"]
    rows = [(f"`{name}`", "–" if value is None else format_metric(name, value)) for name, value in metrics.items()]
    verdict = entry.manifest["verdict"]
    baseline = next((item["ref"] for item in lineage.inputs(entry) if item["role"] == "baseline"), None)
    compared = f", with {baseline} as the baseline" if baseline else ""
    parts = [
        "## Evaluation",
        f"**{verdict['text']}**",
        *(f"Warning: {text}" for text in verdict["warnings"]),
        summarize(entry.manifest["gates"]),
        f"By {lineage.name_of(entry)}{compared}.",
        markdown_table(("metric", "value"), rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _usage(stage: ResolvedStage, base_name: str, *, conversational: bool) -> str:
    name = stage.recipe.name
    if stage.section.format == "merged":
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
        load = 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")'
        serve = "vllm serve ."
        note = f"Ollama, in this directory: `ollama create {name} -f Modelfile && ollama run {name}`"
    else:
        assert stage.recipe.adapter is not None
        # adapter_config.json has the path of a local base on the machine that trained, where no other machine has it.
        base = f"path/to/{base_name}" if Path(stage.base_path).is_dir() else base_name
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer"
        load = (
            f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")\n'
            'model = PeftModel.from_pretrained(base, ".")'
        )
        trained_rank = stage.recipe.adapter.rank
        rank = next((rank for rank in VLLM_RANKS if rank >= trained_rank), trained_rank)
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}=."
        note = f"The base model is `{base_name}`."
        if base != base_name:
            note += f" Replace `{base}` by its directory."
    if conversational:
        encode = (
            'messages = [{"role": "user", "content": "…"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
        )
    else:
        encode = 'inputs = tokenizer("…", return_tensors="pt", return_token_type_ids=False)'
    return (
        f'## Use\n\n```python\n{imports}\n\ntokenizer = AutoTokenizer.from_pretrained(".")\n{load}\n{encode}\n'
        "completion = model.generate(**inputs, max_new_tokens=256)\n"
        'print(tokenizer.decode(completion[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```\n\n'
        f"vLLM: `{serve}`\n\n{note}"
    )
