"""The finished model as one folder that others load: written, loaded again, compared, and only then called done.

A quantized base is dequantized before the merge: merging into 4-bit weights rounds the adapter away (mean KL 2e-2
against 2e-4), and merging into the original weights gives a model that was never trained. One model is in memory at a
time. Left out: pushing to a hub, and other formats than transformers' own.
"""

from __future__ import annotations

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

from rlhf_cli.data import chat_template, sources
from rlhf_cli.data.rows import Text
from rlhf_cli.errors import ModelError
from rlhf_cli.models import adapters, loading
from rlhf_cli.pipeline import model_card
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Base, Recipe
from rlhf_cli.runs.run import Run, StageMetrics

logger = logging.getLogger(__name__)

PROMPTS = 16  # compared on, at most
PROMPT_TOKENS = 96  # the last of each prompt; all logits of the comparison are held in memory at once
NEW_TOKENS = 32  # continued greedily by the model before the export
MAX_KL = 1e-3  # nats a token, where weights are rounded to 16 bits or were quantized
MAX_KL_EXACT = 1e-6  # nats a token, float32 all the way
SHARD = "5GB"
TEXTS = (  # where the recipe has no prompts
    "Once upon a time",
    "Question: What is water made of?\nAnswer:",
    "The most important thing about",
    "Dear Sir or Madam,\n",
)
Digests = dict[str, str]


class Expected(NamedTuple):
    """What the exported model has to say: token ids, and the logits (T, V) before the export, on the CPU."""

    sequences: list[list[int]]
    logits: list[Tensor]


class Written(NamedTuple):
    """What lies in the folder: a digest of every tensor, and how many numbers they hold."""

    digests: Digests
    parameters: int


def run(recipe: Recipe, run: Run) -> StageMetrics:
    """Write `export.of` to the run's model folder in the form that the recipe asks for, verified."""
    start = run.model_of(recipe.export.of)
    adapters.check_form(start, recipe.adapter)
    if recipe.adapter is None and recipe.export.format == "adapter":
        raise ModelError(
            "there is no adapter to export: the recipe says `adapter: null`",
            location="export.format",
            hint="Set `export.format: merged`.",
        )
    tokenizer = loading.load_tokenizer(run.base_source(), recipe.base.revision)
    own_template = tokenizer.chat_template is not None
    chat_template.prepare(tokenizer, recipe.base.chat_template)
    prompts = _prompts(recipe, run)
    expected = _expected(recipe, run, start, tokenizer, prompts)
    conversational = isinstance(prompts[0], list) if prompts else own_template
    folder = run.path / ".unverified"  # beside the model folder, so that the last step is one rename
    folder.mkdir()
    try:
        logger.info(f"writing {recipe.export.of}, {_form(recipe)}")
        written = _write(recipe, run, start, folder, tokenizer)
        kl = _verify(recipe, run, folder, written.digests, expected)
        model_card.write(recipe, run, folder, tokenizer, kl=kl, conversational=conversational)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        run.model_dir.rmdir()
        folder.replace(run.path / "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info(f"verified: all tensors as saved, KL {kl:.1e} nats a token")
    logger.info(f"the model, {_form(recipe)}, lies in {run.model_dir}")
    return StageMetrics({"export.kl": kl, "export.bytes": float(size), "export.parameters": float(written.parameters)})


def _form(recipe: Recipe) -> str:
    """What is written, in words; the dtype of training where it is not kept."""
    if recipe.export.format == "adapter":
        return "the adapter alone"
    trained_in = str(loading.compute_dtype(recipe.base, loading.default_device())).removeprefix("torch.")
    dtype = recipe.export.dtype
    return f"merged, {dtype}" + (f" (export.dtype; it was trained in {trained_in})" if dtype != trained_in else "")


def _prompts(recipe: Recipe, run: Run) -> list[Text]:
    """Held-out prompts of the recipe; none where it has no data for them."""
    limit = smoke.ROWS if run.smoke else None
    if recipe.data.prompts is not None:
        rows = sources.load(recipe.data.prompts, "prompts", seed=recipe.seed, find=run.find, limit=limit)
        return [row.prompt for row in (rows.held_out or rows.train)[:PROMPTS]]
    if recipe.data.sft is not None:
        pairs = sources.load(recipe.data.sft, "sft", seed=recipe.seed, find=run.find, limit=limit)
        return [row.prompt for row in (pairs.held_out or pairs.train)[:PROMPTS]]
    return []


def _expected(
    recipe: Recipe, run: Run, start: Path, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text]
) -> Expected:
    """The model as it was trained: the adapter on its (quantized) base, on prompts and its own continuations."""
    ids = [row[-PROMPT_TOKENS:] for row in chat_template.encode_prompts(tokenizer, prompts)]
    ids = [row for row in ids if row] or chat_template.encode_prompts(tokenizer, TEXTS)
    model = adapters.load_policy(
        recipe.base, recipe.adapter, run.base_source(), start, smoke=run.smoke, trainable=False
    ).eval()
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


def _logits(model: PreTrainedModel | PeftModel, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """One row at a time, so that no padding can differ: a (T, V) float32 tensor on the CPU for each."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0].float().cpu()
            for row in sequences
        ]


def _write(recipe: Recipe, run: Run, start: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Written:
    source = run.base_source()
    if recipe.export.format == "adapter":
        policy = adapters.load_policy(recipe.base, recipe.adapter, source, start, smoke=run.smoke, trainable=False)
        adapters.write(policy, folder, revision=None if Path(source).is_dir() else recipe.base.revision)
        tensors = adapters.adapter_weights(policy, "default")
        written = Written(_digests(tensors), sum(tensor.numel() for tensor in tensors.values()))
    else:
        model = _merged(recipe, source, start, smoke=run.smoke).to(getattr(torch, recipe.export.dtype))
        _check_finite(model, recipe.export.dtype)
        _set_special_tokens(model, tokenizer)
        model.save_pretrained(folder, max_shard_size=SHARD)
        written = Written(_digests(model.state_dict()), sum(p.numel() for p in model.parameters()))
    _save_tokenizer(tokenizer, folder)
    return written


def _merged(recipe: Recipe, source: str, start: Path, *, smoke: bool) -> PreTrainedModel:
    if recipe.adapter is None:
        return loading.load_causal_lm(recipe.base, str(start))
    model = loading.load_causal_lm(recipe.base, source, smoke=smoke)
    if recipe.base.quantize != "none":
        model = model.dequantize()
    policy = adapters.attach(model, recipe.adapter, task="CAUSAL_LM", start=start, trainable=False)
    try:
        return policy.merge_and_unload(safe_merge=True)
    except ValueError as error:  # not finite
        raise ModelError(
            f"the adapter cannot be merged: {error}", location=str(start), hint="Train it again."
        ) from error


def _check_finite(model: PreTrainedModel, dtype: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"{name} holds numbers that {dtype} cannot", location="export.dtype", hint="Take bfloat16 or float32."
            )


def _set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """One end of an answer everywhere: a model whose files disagree about it never stops in some servers."""
    stops = chat_template.stop_ids(tokenizer)
    for config in (model.config, model.generation_config):
        config.eos_token_id = stops[0] if len(stops) == 1 else list(stops)
        config.pad_token_id = tokenizer.pad_token_id
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # such as a temperature without sampling, which save_pretrained refuses
        model.generation_config = GenerationConfig(
            bos_token_id=model.config.bos_token_id,
            eos_token_id=model.config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """With the chat template in both places: older readers look into tokenizer_config.json alone."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    embedded = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    tokenizer.save_pretrained(folder)
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = embedded
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _verify(recipe: Recipe, run: Run, folder: Path, digests: Digests, expected: Expected) -> float:
    """Load what was written as anyone would, and hold it against what was saved and what was trained: mean KL.

    Logits are computed in the dtype of training, on both sides: bfloat16 arithmetic alone is worth 4e-4 nats a token
    on a small model, and says nothing about the weights.
    """
    trained_in = loading.compute_dtype(recipe.base, loading.default_device())
    if recipe.export.format == "adapter":
        plain = loading.load_causal_lm(recipe.base, run.base_source(), smoke=run.smoke)
        model = PeftModel.from_pretrained(plain, folder).eval()
        found = _digests(adapters.adapter_weights(model, "default"))
    else:
        model = _reload(folder, "auto", recipe.base)
        dtype = getattr(torch, recipe.export.dtype)
        # transformers loads a few layers of some architectures in float32, whatever they are stored in
        found = _digests({name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()})
        if dtype != trained_in:  # again from the folder: casting a model would cast its rotary frequencies too
            del model
            model = _reload(folder, trained_in, recipe.base)
    changed = sorted(name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name))
    if changed:
        raise ModelError(
            f"{len(changed)} tensors read back otherwise than they were saved, such as {changed[0]}",
            location="export",
            hint="Look at the disk, then export again.",
        )
    kl, bound = _mean_kl(expected, _logits(model, expected.sequences)), _bound(recipe)
    if not kl <= bound:  # written so that NaN fails
        raise ModelError(
            f"the exported model differs from the trained one: mean KL {kl:.2e} nats a token, at most {bound:.0e}",
            location="export",
            hint="Set `export.dtype: float32`, or `export.format: adapter`.",
        )
    return kl


def _reload(folder: Path, dtype: torch.dtype | Literal["auto"], base_section: Base) -> PreTrainedModel:
    kwargs = {} if base_section.attention == "auto" else {"attn_implementation": base_section.attention}
    device = loading.default_device()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device}, **kwargs).eval()


def _bound(recipe: Recipe) -> float:
    """Exact where nothing is rounded: a float32 base that is not quantized, and float32 weights written."""
    dtype = loading.compute_dtype(recipe.base, loading.default_device())
    keeps = recipe.export.format == "adapter" or recipe.export.dtype == "float32"
    exact = dtype == torch.float32 and recipe.base.quantize == "none" and keeps
    return MAX_KL_EXACT if exact else MAX_KL


def _mean_kl(expected: Expected, logits: Sequence[Tensor]) -> float:
    """KL(trained ‖ exported) over the whole vocabulary, in nats, a mean over all tokens of all sequences."""
    total, tokens = 0.0, 0
    for before, after in zip(expected.logits, logits, strict=True):
        p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)  # (T, V); float32 sums err by 1e-6
        total += float((p.exp() * (p - q)).sum())
        tokens += len(before)
    return total / tokens


def _digests(tensors: Mapping[str, Any]) -> Digests:
    """SHA-256 of every tensor's dtype, shape and bytes: they are compared without holding two models in memory."""
    found = {}
    for name, tensor in tensors.items():
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found
