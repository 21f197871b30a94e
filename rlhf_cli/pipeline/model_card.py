"""What an exported model says of itself: its lineage with hashes, its figures, and how to load it.

Only the names of files are given, not their folders: the card travels, and a machine's paths are nobody's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.pipeline.references import is_checkpoint, run_of_model_dir
from rlhf_cli.recipe.schema import Recipe, is_run_reference
from rlhf_cli.runs import layout
from rlhf_cli.runs.manifest import FILE, Manifest, read_manifest, sha256
from rlhf_cli.runs.run import Run

PROBE, ANSWER = "rlhfquestion", "rlhfanswer"  # text that no template holds


class Ancestor(NamedTuple):
    """A run that the model comes from, and its manifest."""

    path: Path
    manifest: Manifest


def write(
    recipe: Recipe, run: Run, folder: Path, tokenizer: PreTrainedTokenizerBase, *, kl: float, conversational: bool
) -> None:
    """Write README.md into `folder`, and for a merged model Ollama's Modelfile."""
    merged = recipe.export.format == "merged"
    policy = run_of_model_dir(run.find(recipe.export.of))
    ancestors = _ancestors(policy)
    form = f"merged into its base, {recipe.export.dtype}" if merged else "a LoRA adapter"
    parts = [
        _front_matter(recipe, run),
        f"# {recipe.name}\n\n`{_base_name(recipe, run)}` adapted with rlhf; {form}. "
        "The licence of the base and of the data applies.",
        _lineage(ancestors, policy),
        _evaluation(run, policy),
        f"## Verified\n\nLoaded again after it was written: every tensor as saved, mean KL {kl:.1e} nats a token "
        "against the model as it was trained.",
        _usage(recipe, run, conversational=conversational),
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    if merged:
        (folder / "Modelfile").write_text(_modelfile(tokenizer, conversational=conversational), encoding="utf-8")


def _base_name(recipe: Recipe, run: Run) -> str:
    if is_run_reference(recipe.base.model):
        return recipe.base.model
    source = run.base_source()
    return Path(source).name if Path(source).is_dir() else source  # else a hub id


def _front_matter(recipe: Recipe, run: Run) -> str:
    """YAML of a hub's model card. A base from a folder is not named there: the hub would look for it."""
    source = run.base_source()
    library = "transformers" if recipe.export.format == "merged" else "peft"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    if not Path(source).is_dir():
        lines.append(f"base_model: {source}")
    return "\n".join([*lines, "tags:", "- rlhf", "- trl", "- ppo", "---"])


def _ancestors(policy: Path) -> list[Ancestor]:
    """Every run that the policy comes from, its own last; none where it is a plain folder, or its run incomplete."""
    found: dict[Path, Ancestor] = {}

    def visit(path: Path) -> None:
        manifest = read_manifest(path)
        if manifest is None or path in found:
            return
        for item in manifest["inputs"]:
            if item["kind"] == "run":
                visit(Path(item["path"]))
        found[path] = Ancestor(path, manifest)

    visit(policy.parents[1] if is_checkpoint(policy) else policy)
    return list(found.values())


def _lineage(ancestors: list[Ancestor], policy: Path) -> str:
    if not ancestors:
        return ""
    which = f"The model is the checkpoint {policy.name} of the last of these runs.\n\n" if is_checkpoint(policy) else ""
    runs = [
        (m["stage"], f"{m['name']}/{m['stage']}@{m['version']}", str(m["seed"]), f"`{sha256(path / FILE)}`")
        for path, m in ancestors
    ]
    text = f"## Lineage\n\n{which}" + _table(("stage", "run", "seed", "sha256 of its manifest"), runs)
    inputs = sorted(set(_outside_inputs(ancestors)))
    return f"{text}\n\n{_table(('input', 'read by', 'role', 'sha256 or commit'), inputs)}" if inputs else text


def _outside_inputs(ancestors: list[Ancestor]) -> Iterator[tuple[str, str, str, str]]:
    """Data files, folders and hub models: what the runs read that is not a run."""
    for _, manifest in ancestors:
        for item in manifest["inputs"]:
            if item["kind"] != "run":
                name = item["path"] if item["kind"] == "hub" else Path(item["path"]).name
                content = item["sha256"] or item["version"] or "unknown"
                yield f"`{name}`", manifest["stage"], item["role"], f"`{content}`"


def _evaluation(run: Run, policy: Path) -> str:
    """The figures of the newest complete evaluation of this very run."""
    for entry in reversed(layout.versions(run.runs_dir, run.name, "eval")):
        manifest = entry.manifest
        if manifest is None or manifest["smoke"] != run.smoke:
            continue
        judged = [Path(item["path"]) for item in manifest["inputs"] if item["role"] == "candidate"]
        if policy in judged or policy / "model" in judged:
            figures: Mapping[str, Any] = manifest["metrics"]
            rows = [(f"`{name}`", "–" if value is None else f"{value:.4g}") for name, value in sorted(figures.items())]
            against = next((item["ref"] for item in manifest["inputs"] if item["role"] == "baseline"), None)
            title = f"## Evaluation\n\nBy eval@{manifest['version']}" + (f", against {against}" if against else "")
            return f"{title}.\n\n{_table(('metric', 'value'), rows)}"
    return ""


def _usage(recipe: Recipe, run: Run, *, conversational: bool) -> str:
    if recipe.export.format == "merged":
        load = 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")'
        serve = "vllm serve ."
        after = f"Ollama, in this folder: `ollama create {recipe.name} -f Modelfile && ollama run {recipe.name}`"
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    else:
        name = _base_name(recipe, run)
        assert recipe.adapter is not None
        load = 'model = AutoPeftModelForCausalLM.from_pretrained(".", dtype="auto")'
        # vLLM takes these ranks alone
        rank = next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= recipe.adapter.rank), recipe.adapter.rank)
        serve = f"vllm serve {name} --enable-lora --max-lora-rank {rank} --lora-modules {recipe.name}=."
        after = f"The base is `{name}`."
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    if conversational:
        ask = (
            'messages = [{"role": "user", "content": "…"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
        )
    else:
        ask = 'inputs = tokenizer("…", return_tensors="pt", return_token_type_ids=False)'
    return (
        f'## Use\n\n```python\n{imports}\n\ntokenizer = AutoTokenizer.from_pretrained(".")\n{load}\n{ask}\n'
        "answer = model.generate(**inputs, max_new_tokens=256)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```\n\n'
        f"vLLM: `{serve}`\n\n{after}"
    )


def _modelfile(tokenizer: PreTrainedTokenizerBase, *, conversational: bool) -> str:
    """For `ollama create`: the weights here, what ends an answer, and the template in Ollama's own language.

    Ollama knows no Jinja; the text before, between and after question and answer is all that it is told of it.
    """
    lines = ["FROM ."]
    lines += [f'PARAMETER stop "{tokenizer.decode([i])}"' for i in chat_template.stop_ids(tokenizer)]
    layout_text = "{{ .Prompt }}"
    if conversational:
        asked = [{"role": "user", "content": PROBE}]
        answered = [*asked, {"role": "assistant", "content": ANSWER}]
        before, _, behind = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True).partition(
            PROBE
        )
        end = tokenizer.apply_chat_template(answered, tokenize=False).rpartition(ANSWER)[2]
        before = before.removeprefix(tokenizer.bos_token or "")  # Ollama adds it
        layout_text = f"{before}{{{{ .Prompt }}}}{behind}{{{{ .Response }}}}{end}"
    return "\n".join([*lines, f'TEMPLATE """{layout_text}"""', ""])


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
