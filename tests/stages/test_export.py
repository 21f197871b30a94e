"""An exported model equals the trained one: files, tensors, logits and end tokens; a failed export leaves none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

from rlhf_cli.errors import ModelError
from rlhf_cli.models import adapters
from rlhf_cli.models.loading import silence_library_logging
from rlhf_cli.pipeline import cards
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.lock import LOCK_FILE, STARTED_FILE
from rlhf_cli.stages import export
from tests.support.exports import Exporter, save_adapter
from tests.support.issues import raises_issue
from tests.support.made_runs import make_run, run_input

MERGED = [
    "Modelfile",
    "README.md",
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
    "tokenizer.json",
    "tokenizer_config.json",
]
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}


@pytest.fixture(scope="module", autouse=True)
def silence() -> None:
    """Silence the libraries' own logs."""
    silence_library_logging()


def list_files(folder: Path) -> list[str]:
    """Return the names in a folder, except for those that only an incomplete run has."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (LOCK_FILE, STARTED_FILE))


def test_merged_float32_model_equals_adapter_on_base(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    of = save_adapter(tmp_path / "sft", base_folder)
    metrics, run = run_export(of, export={"dtype": "float32"})
    assert list_files(run.path / "model") == MERGED
    assert list_files(run.path) == ["log.txt", "model"]  # no temporary folder is left
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model")
    before = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), of)
    plain = AutoModelForCausalLM.from_pretrained(base_folder)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, before(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=0.1)
    assert abs(metrics["export.kl"]) <= 1e-6
    assert run_export.reporter.texts("info")[-1] == f"exported merged float32 model to {run.path / 'model'}"
    assert metrics["export.parameters"] == sum(p.numel() for p in plain.parameters())
    assert metrics["export.bytes"] == sum(path.stat().st_size for path in (run.path / "model").iterdir())


def test_merged_bfloat16_model_loads_in_plain_transformers(
    run_export: Exporter, base_folder: Path, tmp_path: Path
) -> None:
    metrics, run = run_export(save_adapter(tmp_path / "sft", base_folder))
    model = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert 0 < metrics["export.kl"] <= 1e-3
    last_line = (run.path / "log.txt").read_text().splitlines()[-1]
    assert "exported merged bfloat16 model, trained in float32 to " in last_line


def test_4_bit_base_is_dequantized_before_merge(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    of = save_adapter(tmp_path / "sft", base_folder)
    metrics, run = run_export(of, base={"model": str(base_folder), "quantize": "nf4"}, export={"dtype": "float32"})
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    nf4 = BitsAndBytesConfig(**NF4)
    before = AutoModelForCausalLM.from_pretrained(base_folder, quantization_config=nf4).dequantize()
    before = PeftModel.from_pretrained(before, of)
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, before(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert metrics["export.kl"] <= 1e-3


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantized_transposed_layers_are_merged_in_their_own_layout(
    run_export: Exporter, base_folder: Path, tmp_path: Path, quantize: str
) -> None:
    """GPT-2's linear layers store their weight transposed, and bitsandbytes does not."""
    folder = tmp_path / "gpt2"
    shutil.copytree(base_folder, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    torch.manual_seed(3)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_embd=64, n_layer=2, n_head=4, n_positions=160, initializer_range=0.1)
    ).save_pretrained(folder)
    of = save_adapter(tmp_path / "sft", folder)
    metrics, run = run_export(of, base={"model": str(folder), "quantize": quantize}, export={"dtype": "float32"})
    options = {"load_in_8bit": True} if quantize == "int8" else NF4
    before = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options))
    if quantize == "int8":
        before = before.dequantize()  # 8-bit layers also round their inputs
    before = PeftModel.from_pretrained(before, of)
    merged, info = AutoModelForCausalLM.from_pretrained(run.path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, before(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert metrics["export.kl"] <= 1e-3


def test_end_and_pad_tokens_agree_in_every_file(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    """The files of the base disagree, and its generation config is one that save_pretrained refuses."""
    _, run = run_export(save_adapter(tmp_path / "sft", base_folder))
    folder = run.path / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (tokenizer.eos_token_id, config["eos_token_id"], generation["eos_token_id"]) == (2, 2, 2)
    assert (tokenizer.pad_token_id, config["pad_token_id"], generation["pad_token_id"]) == (3, 3, 3)
    assert "temperature" not in generation
    GenerationConfig.from_pretrained(folder).validate(strict=True)


def test_end_token_of_chat_template_is_exported_too(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
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
    _, run = run_export(save_adapter(tmp_path / "sft", source), base={"model": str(source)})
    folder = run.path / "model"
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [2, end]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, end]
    modelfile = (folder / "Modelfile").read_text()
    assert 'PARAMETER stop "w9"' in modelfile
    assert "assistant : {{ .Content }}{{ if not $last }}w9{{ end }}" in modelfile


def test_chat_template_is_saved_in_both_places(run_export: Exporter, base_folder: Path) -> None:
    sft = make_run(run_export.runs_dir, "sft", seed=0, conversational=True)
    save_adapter(sft / "model", base_folder)
    _, run = run_export(sft)
    folder = run.path / "model"
    embedded = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert embedded == (folder / "chat_template.jinja").read_text()
    assert embedded


def test_exported_adapter_loads_in_plain_peft(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    of = save_adapter(tmp_path / "sft", base_folder)
    metrics, run = run_export(of, export={"format": "adapter"})
    assert list_files(run.path / "model") == ADAPTER
    loaded = AutoPeftModelForCausalLM.from_pretrained(run.path / "model")
    before = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), of)
    ids = torch.arange(4, 20)[None]
    assert torch.equal(loaded(input_ids=ids).logits, before(input_ids=ids).logits)
    assert metrics["export.kl"] == 0.0


def test_whole_model_is_cast_to_export_dtype(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    of = tmp_path / "whole"
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    model.generation_config = GenerationConfig()
    model.save_pretrained(of)
    _, run = run_export(of, adapter=None, export={"dtype": "float16"})
    exported = AutoModelForCausalLM.from_pretrained(run.path / "model", dtype="auto")
    assert torch.equal(exported.lm_head.weight, model.lm_head.weight.half())
    assert list_files(run.path / "model") == MERGED


def change_weights_on_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save other weights than those in memory, like a defective disk."""
    save = LlamaForCausalLM.save_pretrained

    def save_changed(model: LlamaForCausalLM, folder: Path, **options: Any) -> None:
        with torch.no_grad():
            model.lm_head.weight[4] += 1.0
        save(model, folder, **options)
        with torch.no_grad():
            model.lm_head.weight[4] -= 1.0

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_changed)


def drop_adapter_in_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge without the adapter."""
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)


def double_scale_of_loaded_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make our own loader of adapters multiply by twice their scale."""
    original = adapters.lora_config

    def doubled(*args: Any, **kwargs: Any) -> LoraConfig:
        config = original(*args, **kwargs)
        config.lora_alpha *= 2
        return config

    monkeypatch.setattr(adapters, "lora_config", doubled)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (double_scale_of_loaded_adapters, "the exported model differs from the trained one; found a mean KL of "),
        (
            change_weights_on_save,
            "tensors in the exported files differ from the saved ones, such as lm_head.weight (1 in total).",
        ),
        (drop_adapter_in_merge, "the exported model differs from the trained one; found a mean KL of "),
    ],
)
def test_differing_export_is_refused_and_leaves_no_model(
    run_export: Exporter,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    of = save_adapter(tmp_path / "sft", base_folder)
    damage(monkeypatch)
    with raises_issue("model.export-differs", error=ModelError, location="export") as issues:
        run_export(of)
    assert issues[0].message.startswith(message)
    assert_no_model(run_export.runs_dir)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"dtype": "bfloat16"}, "Set export.dtype: float32 or export.format: adapter."),
        ({"dtype": "float32"}, "Set export.format: adapter."),
    ],
)
def test_differing_export_hint_names_no_setting_of_the_recipe(
    run_export: Exporter,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    hint: str,
) -> None:
    of = save_adapter(tmp_path / "sft", base_folder)
    drop_adapter_in_merge(monkeypatch)
    with raises_issue("model.export-differs") as issues:
        run_export(of, export=settings)
    assert issues[0].hint == hint


def test_interrupted_export_leaves_no_model(
    run_export: Exporter, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(cards, "write_model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_export(save_adapter(tmp_path / "sft", base_folder))
    assert_no_model(run_export.runs_dir)


def assert_no_model(runs_dir: Path) -> None:
    """Assert that a failed export left its log, and at most an empty model folder."""
    left = runs_dir / "bot" / "export" / "v0001"
    assert not (left / "model").exists() or not list_files(left / "model")
    assert list_files(left) in (["log.txt"], ["log.txt", "model"])


def test_weights_beyond_float16_are_refused(run_export: Exporter, base_folder: Path, tmp_path: Path) -> None:
    of = tmp_path / "whole"
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    model.generation_config = GenerationConfig()
    model.save_pretrained(of)
    with raises_issue("model.non-finite", error=ModelError, location="export.dtype") as issues:
        run_export(of, adapter=None, export={"dtype": "float16"})
    assert issues[0].message == "model.norm.weight has values outside the range of float16."


def test_adapter_format_of_whole_model_is_refused(run_export: Exporter, base_folder: Path) -> None:
    with raises_issue("model.wrong-kind", error=ModelError, location="export.format"):
        run_export(base_folder, adapter=None, export={"format": "adapter"})


def test_model_of_plain_text_is_exported_without_a_chat_template(
    run_export: Exporter, base_folder: Path, tmp_path: Path
) -> None:
    """The template that the base lacks is only added if a run was trained on conversations."""
    prompts = tmp_path / "prompts.jsonl"
    for conversational in (False, True):
        sft = make_run(run_export.runs_dir, "sft", seed=0, conversational=conversational)
        save_adapter(sft / "model", base_folder)
        ppo = make_run(run_export.runs_dir, "ppo", seed=0, inputs=[run_input("start", "sft", "run", sft, "b" * 64)])
        save_adapter(ppo / "model", base_folder)
        # Prompts of the other form than the runs'.
        message = [{"role": "user", "content": "what is red"}]
        rows = [{"prompt": f"what is w{i}" if conversational else message} for i in range(3)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        _, run = run_export(ppo, data={"prompts": {"path": str(prompts)}})
        folder = run.path / "model"
        assert bool(AutoTokenizer.from_pretrained(folder).chat_template) is conversational
        assert (folder / "chat_template.jinja").exists() is conversational
        assert ("apply_chat_template" in (folder / "README.md").read_text()) is conversational
        modelfile = (folder / "Modelfile").read_text()
        assert ('TEMPLATE """{{ .Prompt }}"""' in modelfile) is not conversational
        assert ('{{ if eq .Role "system" }}' in modelfile) is conversational


def test_models_are_compared_on_held_out_prompts_of_recipe(
    run_export: Exporter, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"what is w{i}"}]} for i in range(15)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    seen: list[export.Expected] = []
    verify = export.verify

    def record(stage: ResolvedStage, folder: Path, digests: export.Digests, expected: export.Expected) -> float:
        seen.append(expected)
        return verify(stage, folder, digests, expected)

    monkeypatch.setattr(export, "verify", record)
    of = save_adapter(tmp_path / "sft", base_folder)
    _, run = run_export(of, data={"prompts": {"path": str(path), "eval_fraction": 0.4}})
    (expected,) = seen
    assert 1 < len(expected.sequences) < 15
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    assert all("what is w" in tokenizer.decode(row) for row in expected.sequences)
    assert "apply_chat_template" in (run.path / "model" / "README.md").read_text()


def test_export_of_real_pretrained_model_generates_text(run_export: Exporter, shared: Path, tmp_path: Path) -> None:
    base = shared / "models" / "stories260k"
    of = save_adapter(tmp_path / "sft", base, scale=0.03)
    metrics, run = run_export(of, base={"model": str(base)})
    model = AutoModelForCausalLM.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    ids = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**ids, max_new_tokens=8, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    assert metrics["export.kl"] <= 1e-3
