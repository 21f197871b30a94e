"""Export a model as one folder that other tools load: written, loaded again, and compared with the trained model.

A quantized base is dequantized before the merge: merging into 4-bit weights rounds the adapter away (mean KL 2e-2
instead of 2e-4), and merging into the original weights gives a model that was never trained. One model is in memory at
a time. Not included: pushing to the Hub, and formats other than transformers' own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.models import adapter_config, adapters, loading, quantization
from rlhf_cli.models.generation_config import repair_generation_config
from rlhf_cli.models.heads import has_score_head
from rlhf_cli.pipeline import cards
from rlhf_cli.pipeline.references import entry_of_model
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs import lineage
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.stages import POLICY_STAGES
from rlhf_cli.training.prepared_data import load_rows, load_tokenizer

logger = logging.getLogger(__name__)

MAX_PROMPTS = 16  # that the exported model is compared on
PROMPT_TOKENS = 96  # the last of each prompt; all logits of the comparison are held in memory at once
NEW_TOKENS = 32  # continued greedily by the model before the export
MAX_KL = 1e-3  # nats per token, if weights are rounded to 16 bits or were quantized
MAX_KL_EXACT = 1e-6  # nats per token, if all computation is in float32
MAX_SHARD_SIZE = "5GB"
FALLBACK_TEXTS = (  # if the recipe has no prompts
    "Once upon a time",
    "Question: What is water made of?\nAnswer:",
    "The most important thing about",
    "Dear Sir or Madam,\n",
)
Digests = dict[str, str]


class Expected(NamedTuple):
    """Token ids, and the logits (T, V) that the model gives for each before the export, on the CPU."""

    sequences: list[list[int]]
    logits: list[Tensor]


class Written(NamedTuple):
    """A digest of every tensor that was written, and the number of parameters."""

    digests: Digests
    parameters: int


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Write `export.of` to the run's model folder in `export.format`, and verify it."""
    start = stage.model_path("of")
    assert start is not None, "validation refuses export.of: base"
    adapter_config.check_kind(start, stage.recipe.adapter)
    if has_score_head(start):
        message = "found a reward model, expected a language model."
        raise ModelError("model.wrong-kind", message, location=str(start), hint="Set export.of to an sft or ppo run.")
    if stage.recipe.adapter is None and stage.section.format == "adapter":
        message = "no adapter to export, because the recipe has `adapter: null`."
        hint = "Set export.format: merged."
        raise ModelError("model.wrong-kind", message, location="export.format", hint=hint)
    tokenizer = loading.load_tokenizer(stage.base_path, stage.recipe.base.revision)
    has_own_template = tokenizer.chat_template is not None
    tokenizer = load_tokenizer(stage)
    prompts = comparison_prompts(stage)
    expected = compute_expected(stage, start, tokenizer, prompts)
    conversational = _trained_on_conversations(start)
    if conversational is None:  # not a complete run
        conversational = isinstance(prompts[0], list) if prompts else has_own_template
    keeps_template = conversational or has_own_template or stage.recipe.base.chat_template != "auto"
    folder = run.path / ".unverified"  # beside the model folder, so that the last step is one rename
    folder.mkdir()
    try:
        logger.info(f"writing {stage.section.of} ({_describe(stage)})")
        written = _write(stage, start, folder, tokenizer)
        _save_tokenizer(tokenizer, folder, keeps_template=keeps_template)
        kl = verify(stage, folder, written.digests, expected)
        cards.write_model_card(stage, folder, tokenizer, kl=kl, conversational=conversational)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        run.model_dir.rmdir()
        folder.replace(run.path / "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info(f"verified: all tensors identical, KL {kl:.1e} nats per token")
    logger.info(f"exported {_describe(stage)} to {run.model_dir}")
    return StageMetrics({"export.kl": kl, "export.bytes": float(size), "export.parameters": float(written.parameters)})


def _trained_on_conversations(start: Path) -> bool | None:
    """Return whether a run that the model was made from was trained on conversations, or None if this is not known."""
    runs = lineage.ancestor_runs(entry_of_model(start))
    forms = [run.manifest.get("conversational") for run in runs if run.manifest and run.stage in POLICY_STAGES]
    known = [form for form in forms if form is not None]
    return any(known) if known else None


def comparison_prompts(stage: ResolvedStage) -> list[Text]:
    """Return held-out prompts of the recipe to compare the models on; empty if it has no data for them."""
    for kind in ("prompts", "sft"):
        if getattr(stage.recipe.data, kind) is not None:
            split = load_rows(stage, kind)
            return [row.prompt for row in (split.held_out or split.train)[:MAX_PROMPTS]]
    return []


def compute_expected(
    stage: ResolvedStage, start: Path, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text]
) -> Expected:
    """Run the model as it was trained, the adapter on its (quantized) base, on prompts and its own continuations.

    An adapter is loaded by PEFT itself, as anybody else would load it.
    """
    ids = [row[-PROMPT_TOKENS:] for row in chat_template.encode_prompts(tokenizer, prompts)]
    ids = [row for row in ids if row] or chat_template.encode_prompts(tokenizer, FALLBACK_TEXTS)
    recipe = stage.recipe
    if recipe.adapter is None:
        model = loading.load_causal_lm(recipe.base, str(start))
    else:  # by PEFT, so that an error of our own loader shows as a difference
        base = loading.load_causal_lm(recipe.base, stage.base_path, smoke=stage.smoke)
        model = PeftModel.from_pretrained(base, start)
    model.eval()
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=list(chat_template.stop_ids(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    sequences = []
    for row in ids:
        prompt = torch.tensor([row], device=model.device)  # (1, P)
        whole = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)
        sequences.append(whole[0].tolist())
    return Expected(sequences, _logits(model, sequences))


def verify(stage: ResolvedStage, folder: Path, digests: Digests, expected: Expected) -> float:
    """Load the exported files as any user would, and compare them with the saved tensors and the trained model.

    Logits are computed in the data type of training on both sides: bfloat16 arithmetic alone costs 4e-4 nats per token
    on a small model, and shows nothing about the weights.

    Returns:
        The mean KL divergence in nats per token.

    Raises:
        ModelError: A tensor differs, or the KL divergence is too large.
    """
    trained_in = loading.compute_dtype(stage.recipe.base, loading.default_device())
    if stage.section.format == "adapter":
        base = loading.load_causal_lm(stage.recipe.base, stage.base_path, smoke=stage.smoke)
        model = PeftModel.from_pretrained(base, folder).eval()
        found = _digests(adapters.adapter_weights(model, "default"))
    else:
        model = _reload(stage, folder, "auto")
        dtype = getattr(torch, stage.section.dtype)
        # transformers loads a few layers of some architectures in float32, whatever they are stored in.
        found = _digests({name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()})
        if dtype != trained_in:  # from the folder again: casting a model would cast its rotary frequencies too
            del model
            model = _reload(stage, folder, trained_in)
    changed = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
    if changed:
        message = (
            f"tensors in the exported files differ from the saved ones, such as {changed[0]} ({len(changed)} in total)."
        )
        raise ModelError("model.export-differs", message, location="export", hint="Check the disk, then export again.")
    kl, limit = _mean_kl(expected, _logits(model, expected.sequences)), _max_kl(stage)
    if not kl <= limit:  # written so that NaN fails
        message = (
            "the exported model differs from the trained one; "
            f"found a mean KL of {kl:.2e} nats per token, expected at most {limit:.0e}."
        )
        raise ModelError("model.export-differs", message, location="export", hint=_difference_hint(stage))
    return kl


def _difference_hint(stage: ResolvedStage) -> str:
    """Return the settings that keep more of the trained model than those of the recipe."""
    if stage.section.format == "adapter":
        return f"Use the adapter in {stage.model_path('of')} with PEFT."
    higher = "" if stage.section.dtype == "float32" else "export.dtype: float32"
    whole = "" if stage.recipe.adapter is None else "export.format: adapter"
    settings = " or ".join(setting for setting in (higher, whole) if setting)
    return f"Set {settings}." if settings else f"Use the model in {stage.model_path('of')}."


def _describe(stage: ResolvedStage) -> str:
    """Return what is written, with the data type of training if it is not kept."""
    if stage.section.format == "adapter":
        return "LoRA adapter"
    trained_in = str(loading.compute_dtype(stage.recipe.base, loading.default_device())).removeprefix("torch.")
    dtype = stage.section.dtype
    note = "" if dtype == trained_in else f", trained in {trained_in}"
    return f"merged {dtype} model{note}"


def _logits(model: PreTrainedModel | PeftModel, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return a (T, V) float32 tensor on the CPU for each sequence, one at a time, so that padding cannot differ."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0].float().cpu()
            for row in sequences
        ]


def _write(stage: ResolvedStage, start: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Written:
    recipe, source = stage.recipe, stage.base_path
    if stage.section.format == "adapter":
        policy = adapters.load_policy(recipe.base, recipe.adapter, source, start, smoke=stage.smoke, trainable=False)
        adapters.write(policy, folder, revision=None if Path(source).is_dir() else recipe.base.revision)
        tensors = adapters.adapter_weights(policy, "default")
        written = Written(_digests(tensors), sum(tensor.numel() for tensor in tensors.values()))
    else:
        model = _merge(stage, start).to(getattr(torch, stage.section.dtype))
        _check_finite(model, stage.section.dtype)
        _set_special_tokens(model, tokenizer)
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        written = Written(_digests(model.state_dict()), sum(p.numel() for p in model.parameters()))
    return written


def _merge(stage: ResolvedStage, start: Path) -> PreTrainedModel:
    recipe = stage.recipe
    if recipe.adapter is None:
        return loading.load_causal_lm(recipe.base, str(start))
    model = loading.load_causal_lm(recipe.base, stage.base_path, smoke=stage.smoke)
    if recipe.base.quantize != "none":
        model = quantization.dequantize(model)
    policy = adapters.attach(model, recipe.adapter, task="CAUSAL_LM", start=start, trainable=False)
    try:
        return policy.merge_and_unload(safe_merge=True)
    except ValueError as error:  # weights that are not finite
        message = f"the adapter cannot be merged: {error}"
        raise ModelError("model.non-finite", message, location=str(start), hint="Train the adapter again.") from error


def _check_finite(model: PreTrainedModel, dtype: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            message = f"{name} has values outside the range of {dtype}."
            # bfloat16 has the range of float32.
            hint = "Set export.dtype to bfloat16 or float32." if dtype == "float16" else "Train the model again."
            raise ModelError("model.non-finite", message, location="export.dtype", hint=hint)


def _set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the same end tokens in every config: a model whose files disagree never stops in some servers."""
    stops = chat_template.stop_ids(tokenizer)
    for config in (model.config, model.generation_config):
        config.eos_token_id = stops[0] if len(stops) == 1 else list(stops)
        config.pad_token_id = tokenizer.pad_token_id
    repair_generation_config(model)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, *, keeps_template: bool) -> None:
    """Save the tokenizer with its chat template in both places: older readers only look into tokenizer_config.json.

    The plain-text template of a model that was trained on text is left out, because the model never saw it.
    """
    if not keeps_template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
        return
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    embedded = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    tokenizer.save_pretrained(folder)
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = embedded
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _reload(stage: ResolvedStage, folder: Path, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    attention = stage.recipe.base.attention
    options = {} if attention == "auto" else {"attn_implementation": attention}
    device = loading.default_device()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device}, **options).eval()


def _max_kl(stage: ResolvedStage) -> float:
    """Return the limit on the KL divergence: the exact one if neither base nor export rounds float32 weights."""
    base = stage.recipe.base
    keeps_weights = stage.section.format == "adapter" or stage.section.dtype == "float32"
    trained_exactly = loading.compute_dtype(base, loading.default_device()) == torch.float32 and base.quantize == "none"
    return MAX_KL_EXACT if keeps_weights and trained_exactly else MAX_KL


def _mean_kl(expected: Expected, logits: Sequence[Tensor]) -> float:
    """Return KL(trained ‖ exported) over the whole vocabulary in nats, averaged over all tokens of all sequences."""
    total, tokens = 0.0, 0
    for before, after in zip(expected.logits, logits, strict=True):
        # In double precision, because float32 sums err by 1e-6.
        p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)  # (T, V)
        total += float((p.exp() * (p - q)).sum())
        tokens += len(before)
    return total / tokens


def _digests(tensors: Mapping[str, Any]) -> Digests:
    """Return the SHA-256 of every tensor's dtype, shape and bytes: a comparison that needs one model in memory."""
    found = {}
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found
