"""A base of one's own: a BPE tokenizer and a small Llama from the recipe's text, or a given base trained on.

Documents are packed end to end into sequences of `max_length` tokens, with an end token between them and no mask
at the borders: the plainest recipe that works for a small base.
"""

from __future__ import annotations

import logging
from itertools import chain

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

from rlhf_cli.data import sources
from rlhf_cli.errors import DataError
from rlhf_cli.models import loading
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Architecture, Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import checkpointing, length_checks, trl

logger = logging.getLogger(__name__)

END, PAD = "<|end|>", "<|pad|>"


def run(recipe: Recipe, run: Run) -> StageMetrics:
    """Train all weights to predict the text's next token."""
    section = recipe.pretrain
    assert recipe.data.pretrain is not None  # the recipe was checked for this stage
    rows = sources.load(
        recipe.data.pretrain, "pretrain", seed=recipe.seed, find=run.find, limit=smoke.ROWS * 16 if run.smoke else None
    )
    trl.log_row_counts(run, "text", rows, {})
    texts = [row.text for row in rows.train]
    if section.start == "scratch":
        tokenizer = make_tokenizer(texts, section.architecture.vocab_size)
        model = make_model(section.architecture, tokenizer)
    else:
        start = recipe.base.model_copy(update={"model": section.start, "quantize": "none"})
        tokenizer = loading.load_tokenizer(run.base_source(), start.revision)
        positions, length = loading.sizes(run.base_source(), start.revision).positions, section.max_length
        for warning in length_checks.check_positions(
            positions, length, length, "pretrain.max_length", what="a sequence"
        ):
            logger.warning(warning)
        model = loading.load_causal_lm(start, run.base_source(), smoke=run.smoke)
    logger.info(f"base: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens in the vocabulary")

    journal = trl.MetricsCallback(run)
    trainer = SFTTrainer(
        model=model,
        args=trl.config(
            SFTConfig,
            "pretrain",
            {
                **trl.arguments(section, run, recipe.seed, dtype=model.dtype),
                "max_length": section.max_length,
                "dataset_kwargs": {"skip_prepare_dataset": True},
            },
        ),
        train_dataset=pack(tokenizer, texts, section.max_length),
        processing_class=tokenizer,
        callbacks=[journal],
    )
    metrics = checkpointing.train(trainer, journal, run, section.save_every)
    if rows.held_out:
        held_out = pack(tokenizer, [row.text for row in rows.held_out], section.max_length)
        metrics["pretrain.nll"] = trainer.evaluate(held_out)["eval_loss"]
    trl.save(trainer, tokenizer, run)
    return StageMetrics(metrics)


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer (Radford et al. 2019, section 2.2); one token a digit, so that sums can be learned."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def make_model(shape: Architecture, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama of the recipe's shape with random weights and tied embeddings, in float32."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pack(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> Dataset:
    """Documents end to end, an end token after each, cut into sequences of `length` tokens; the last may be shorter."""
    end = tokenizer.eos_token_id
    ids = [*chain.from_iterable([*row, end] for row in tokenizer(texts, add_special_tokens=False)["input_ids"])]
    if len(ids) < 2:
        raise DataError("the text is too short to train on.", location="data.pretrain", hint="Give it more text.")
    blocks = [ids[i : i + length] for i in range(0, len(ids), length)]
    blocks = [block for block in blocks if len(block) > 1]
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks})
