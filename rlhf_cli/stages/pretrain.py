"""Pretrain a base model: a BPE tokenizer and a small Llama from text, or an existing base model.

Documents are packed end to end into sequences of `max_length` tokens, with an end token after each and no attention
mask at the boundaries: the simplest recipe that works for a small base model.
"""

from __future__ import annotations

import logging
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from rlhf_cli.data.chat_template import Encoded
from rlhf_cli.data.tokenization import TokenColumns
from rlhf_cli.errors import DataError
from rlhf_cli.formatting import format_count
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.recipe.schema import Architecture
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import length_checks
from rlhf_cli.training.prepared_data import PreparedData, load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

END, PAD = "<|end|>", "<|pad|>"
DOCUMENTS_PER_ROW = 16  # documents are shorter than the rows of other datasets, and a smoke run needs a few sequences


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load the text, train or load the tokenizer, and pack the documents into sequences."""
    from rlhf_cli.models import loading

    limit = None if stage.row_limit is None else DOCUMENTS_PER_ROW * stage.row_limit
    split = load_rows(stage, "pretrain", limit)
    texts = [row.text for row in split.train]
    if _is_from_scratch(stage):
        tokenizer, warnings = train_tokenizer(texts, stage.section.architecture.vocab_size), []
    else:
        revision, length = stage.recipe.base.revision, stage.max_length
        tokenizer = loading.load_tokenizer(stage.base_path, revision)
        positions = loading.read_model_sizes(stage.base_path, revision).positions
        key = "pretrain.max_length"
        warnings = length_checks.check_positions(positions, length, length, key, noun="a sequence")
    train = pack(tokenizer, texts, stage.max_length)
    held_out = pack(tokenizer, [row.text for row in split.held_out], stage.max_length)
    if not train.kept:
        message, hint = "not enough text to train on; expected at least 2 tokens.", "Add more text."
        raise DataError("data.no-rows", message, location="data.pretrain", hint=hint)
    example = Encoded([], train.parts[0]["input_ids"][0])
    facts = {"packed sequences": f"{train.kept:,}"}
    return PreparedData(tokenizer, split, train, held_out, example, warnings, facts)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Train all weights to predict the next token of the text."""
    from trl import SFTConfig, SFTTrainer

    from rlhf_cli.models import loading
    from rlhf_cli.training import held_out_metrics, supervised, trl

    data = prepare(stage)
    documents, aside = len(data.split.train), len(data.split.held_out)
    sequences = format_count(data.train.kept, "sequence")
    logger.info(f"text: {format_count(documents, 'document')} to train on, in {sequences}; {aside:,} held out")
    for warning in data.warnings:
        logger.warning(warning)
    if _is_from_scratch(stage):
        model = make_model(stage.section.architecture, data.tokenizer)
    else:
        start = stage.recipe.base.model_copy(update={"model": stage.section.start, "quantize": "none"})
        model = loading.load_causal_lm(start, stage.base_path, smoke=stage.smoke)
    logger.info(f"base: {model.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary")

    return supervised.train_with_trl(
        stage,
        run,
        data,
        trl_trainer=supervised.TrlTrainer(SFTTrainer, SFTConfig, trl.sft_arguments(model, stage.max_length)),
        model=model,
        dtype=loading.compute_dtype(stage.recipe.base, loading.default_device()),
        evaluate=partial(
            held_out_metrics.loss,
            stage=stage.name,
            columns=data.held_out,
            max_tokens=stage.section.micro_batch_size * stage.max_length,
        ),
    )


def _is_from_scratch(stage: ResolvedStage) -> bool:
    return bool(stage.section.start == "scratch")


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer (Radford et al. 2019, section 2.2) with one token per digit.

    Single digits let a small model learn sums.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
    """Create a Llama of the recipe's shape with random float32 weights and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

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


def pack(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> TokenColumns:
    """Concatenate documents, each followed by an end token, and cut them into sequences of `length` tokens.

    The last sequence may be shorter; one of a single token is dropped, because it predicts nothing.
    """
    end = tokenizer.eos_token_id
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    ids = [*chain.from_iterable([*row, end] for row in encoded)]
    blocks: list[Any] = [ids[i : i + length] for i in range(0, len(ids), length)]
    blocks = [block for block in blocks if len(block) > 1]
    return TokenColumns([{"input_ids": blocks, "labels": blocks}], {})
