"""What is exported is what was trained: files, tensors, distributions, end tokens, and nothing after a failure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_cli.errors import ModelError
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.lock import LOCK_FILE, STARTED_FILE
from rlhf_cli.runs.manifest import sha256
from rlhf_cli.runs.run import Run
from rlhf_cli.stages import export

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
MERGED = [
    "Modelfile",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
ADAPTER = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
]
WORDS = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", "User", "Assistant", ":", "what", "is", "red", "blue"]


class Silent:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, total: int, unit: str) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def info(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    silence_library_logging()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=7,  # wrong: the tokenizer says 2
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=7, pad_token_id=5)
    model.save_pretrained(folder)
    # as some hub models have it, and as save_pretrained refuses to write it
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6, "top_p": 0.9}))
    vocabulary = {word: i for i, word in enumerate([*WORDS, *(f"w{i}" for i in range(32 - len(WORDS)))])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def train(folder: Path, base_folder: Path, **kwargs: Any) -> Path:
    """An adapter with random weights, by peft alone."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    scale = kwargs.pop("scale", 0.1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **kwargs)
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    return folder


Export = Callable[..., tuple[dict[str, float], Run]]


@pytest.fixture
def run_export(base_folder: Path, tmp_path: Path) -> Export:
    def call(of: Path, **sections: Any) -> tuple[dict[str, float], Run]:
        settings: dict[str, Any] = {
            "name": "bot",
            "base": {"model": str(base_folder)},
            "adapter": {"rank": 4, "alpha": 8},
            **sections,
        }
        settings["export"] = {"of": str(of), **settings.get("export", {})}
        recipe = Recipe(**settings)
        base = recipe.base.model
        run = Run.create(tmp_path / "runs", "bot", "export", smoke=False, base_path=base, reporter=Silent())
        return dict(export.run(recipe, run).metrics), run

    return call


def files(folder: Path) -> list[str]:
    """Their names; what there is while a run is incomplete aside."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (LOCK_FILE, STARTED_FILE))


def test_merged_float32_equals_the_adapter_on_its_base(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    of = train(tmp_path / "sft", base_folder)
    metrics, run = run_export(of, export={"dtype": "float32"})
    assert files(run.path / "model") == MERGED
    assert files(run.path) == ["log.txt", "model"]  # nothing temporary is left
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model")
    before = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), of)
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, before(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=0.1)
    assert abs(metrics["export.kl"]) <= 1e-6
    assert "the model, merged, float32, lies in" in (run.path / "log.txt").read_text()
    assert metrics["export.parameters"] == sum(p.numel() for p in plain.parameters())
    assert metrics["export.bytes"] == sum(path.stat().st_size for path in (run.path / "model").iterdir())


def test_bfloat16_is_what_plain_transformers_loads(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    metrics, run = run_export(train(tmp_path / "sft", base_folder))
    model = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert 0 < metrics["export.kl"] <= 1e-3
    said = "merged, bfloat16 (export.dtype; it was trained in float32)"
    assert said in (run.path / "log.txt").read_text().splitlines()[-1]


def test_a_4_bit_base_is_dequantized_before_the_merge(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    of = train(tmp_path / "sft", base_folder)
    metrics, run = run_export(of, base={"model": str(base_folder), "quantize": "nf4"}, export={"dtype": "float32"})
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    before = AutoModelForCausalLM.from_pretrained(base_folder, quantization_config=nf4).dequantize()
    before = PeftModel.from_pretrained(before, of)
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, before(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert metrics["export.kl"] <= 1e-3


def test_end_and_pad_tokens_agree_in_every_file(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    """The base's own files disagree, and its generation_config is one that save_pretrained refuses."""
    _, run = run_export(train(tmp_path / "sft", base_folder))
    folder = run.path / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (tokenizer.eos_token_id, config["eos_token_id"], generation["eos_token_id"]) == (2, 2, 2)
    assert (tokenizer.pad_token_id, config["pad_token_id"], generation["pad_token_id"]) == (3, 3, 3)
    assert "temperature" not in generation
    GenerationConfig.from_pretrained(folder).validate(strict=True)


def test_a_templates_own_end_token_ends_answers_too(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "chat-base"
    AutoModelForCausalLM.from_pretrained(base_folder).save_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["w9"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }}{% if m.role == 'assistant' %}w9{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} assistant :{% endif %}"
    )
    tokenizer.save_pretrained(source)
    end = tokenizer.convert_tokens_to_ids("w9")
    _, run = run_export(train(tmp_path / "sft", source), base={"model": str(source)})
    folder = run.path / "model"
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [2, end]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, end]
    modelfile = (folder / "Modelfile").read_text()
    assert 'PARAMETER stop "w9"' in modelfile
    assert 'TEMPLATE """user : {{ .Prompt }} assistant :{{ .Response }}w9"""' in modelfile


def test_the_chat_template_stands_in_both_places(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    _, run = run_export(train(tmp_path / "sft", base_folder))
    folder = run.path / "model"
    embedded = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert embedded == (folder / "chat_template.jinja").read_text()
    assert embedded


def test_the_adapter_form_is_what_plain_peft_loads(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    of = train(tmp_path / "sft", base_folder)
    metrics, run = run_export(of, export={"format": "adapter"})
    assert files(run.path / "model") == ADAPTER
    loaded = AutoPeftModelForCausalLM.from_pretrained(run.path / "model")
    before = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), of)
    ids = torch.arange(4, 20)[None]
    assert torch.equal(loaded(input_ids=ids).logits, before(input_ids=ids).logits)
    assert metrics["export.kl"] == 0.0


def test_whole_models_are_cast(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    of = tmp_path / "whole"
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    model.generation_config = GenerationConfig()
    model.save_pretrained(of)
    _, run = run_export(of, adapter=None, export={"dtype": "float16"})
    exported = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype="auto")
    assert torch.equal(exported.lm_head.weight, model.lm_head.weight.half())
    assert files(run.path / "model") == MERGED


@pytest.mark.parametrize(
    "broken", ["tensor", "distribution", "rename"], ids=["a tensor differs", "the distribution differs", "killed"]
)
def test_a_failed_check_leaves_nothing_that_looks_finished(
    run_export: Export, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    of = train(tmp_path / "sft", base_folder)
    save = LlamaForCausalLM.save_pretrained

    def spoil(model: LlamaForCausalLM, folder: Path, **kwargs: Any) -> None:
        """A disk that gives back something else."""
        with torch.no_grad():
            model.lm_head.weight[4] += 1.0
        save(model, folder, **kwargs)
        with torch.no_grad():
            model.lm_head.weight[4] -= 1.0

    if broken == "tensor":
        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", spoil)
        error, message = ModelError, r"lm_head\.weight"
    elif broken == "distribution":  # PEFT's merge goes wrong
        monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
        error, message = ModelError, "mean KL"
    else:
        monkeypatch.setattr(
            export.model_card, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt("by hand"))
        )
        error, message = KeyboardInterrupt, "by hand"
    with pytest.raises(error, match=message):
        run_export(of)
    left = tmp_path / "runs" / "bot" / "export" / "v0001"
    assert not (left / "model").exists() or not files(left / "model")
    assert files(left) in (["log.txt"], ["log.txt", "model"])


def test_weights_beyond_float16_are_refused(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    of = tmp_path / "whole"
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    model.generation_config = GenerationConfig()
    model.save_pretrained(of)
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*float16"):
        run_export(of, adapter=None, export={"dtype": "float16"})


def test_there_is_no_adapter_form_of_a_whole_model(run_export: Export, base_folder: Path) -> None:
    with pytest.raises(ModelError, match="adapter: null"):
        run_export(base_folder, adapter=None, export={"format": "adapter"})


def write_run(folder: Path, stage: str, inputs: list[dict[str, Any]], metrics: dict[str, float]) -> Path:
    """A complete run as dispatch leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "schema": 1,
        "stage": stage,
        "name": "bot",
        "version": folder.name,
        "status": "complete",
        "smoke": False,
        "seed": 0,
        "metrics": metrics,
        "inputs": inputs,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def item(role: str, ref: str, kind: str, path: Path, content: str) -> dict[str, Any]:
    return {"role": role, "ref": ref, "kind": kind, "path": str(path), "version": None, "sha256": content}


def test_the_card_tells_lineage_data_hashes_and_evaluation(
    run_export: Export, base_folder: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs" / "bot"
    data = tmp_path / "secret-home" / "demonstrations.jsonl"
    sft = write_run(runs / "sft" / "v0002", "sft", [item("data.sft", str(data), "file", data, "a" * 64)], {})
    train(sft / "model", base_folder)
    ppo = write_run(runs / "ppo" / "v0001", "ppo", [item("start", "sft", "run", sft, "b" * 64)], {})
    train(ppo / "model", base_folder)
    write_run(runs / "eval" / "v0001", "eval", [item("candidate", "ppo", "run", ppo, "c" * 64)], {"win_rate": 0.625})
    write_run(runs / "eval" / "v0002", "eval", [item("candidate", "sft", "run", sft, "d" * 64)], {"win_rate": 0.125})
    _, run = run_export(ppo)
    card = (run.path / "model" / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: transformers" in front
    assert "base_model" not in front  # a folder is no hub id
    assert card.index("bot/sft@v0002") < card.index("bot/ppo@v0001")
    assert "a" * 64 in card
    assert "demonstrations.jsonl" in card
    assert "secret-home" not in card
    assert sha256(ppo / "manifest.json") in card
    assert "| `win_rate` | 0.625 |" in card
    assert "0.125" not in card


def test_the_card_of_a_checkpoint_names_its_run_and_not_the_figures_of_its_end(
    run_export: Export, base_folder: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs" / "bot"
    ppo = write_run(runs / "ppo" / "v0001", "ppo", [], {})
    write_run(runs / "eval" / "v0001", "eval", [item("candidate", "ppo", "run", ppo, "c" * 64)], {"win_rate": 0.625})
    checkpoint = ppo / "checkpoints" / "step-000002"
    train(checkpoint / "model", base_folder)
    (checkpoint / "manifest.json").write_text('{"schema": 1, "step": 2, "files": {}}')
    _, run = run_export(checkpoint)
    card = (run.path / "model" / "README.md").read_text()
    assert "bot/ppo@v0001" in card
    assert "checkpoint step-000002" in card
    assert "win_rate" not in card


def test_the_cards_python_runs_as_it_stands(run_export: Export, base_folder: Path, tmp_path: Path) -> None:
    _, run = run_export(train(tmp_path / "sft", base_folder))
    folder = run.path / "model"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("…", "what is red").replace("max_new_tokens=256", "max_new_tokens=4")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prompts_of_the_recipe_are_compared_on(
    run_export: Export, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"what is w{i}"}]} for i in range(15)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    seen: list[export.Expected] = []
    original = export._verify
    monkeypatch.setattr(export, "_verify", lambda *args: seen.append(args[-1]) or original(*args))
    _, run = run_export(
        train(tmp_path / "sft", base_folder), data={"prompts": {"path": str(path), "eval_fraction": 0.4}}
    )
    assert 1 < len(seen[0].sequences) < 15
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    assert all("what is w" in tokenizer.decode(row) for row in seen[0].sequences)
    assert "apply_chat_template" in (run.path / "model" / "README.md").read_text()


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260k model is not on this machine")
def test_a_real_pretrained_model_is_exported_and_tells_a_story(run_export: Export, tmp_path: Path) -> None:
    of = train(tmp_path / "sft", STORIES, scale=0.03)
    metrics, run = run_export(of, base={"model": str(STORIES)})
    model = AutoModelForCausalLM.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    ids = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**ids, max_new_tokens=8, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    assert metrics["export.kl"] <= 1e-3
