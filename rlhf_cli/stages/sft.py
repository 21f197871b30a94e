"""Supervised fine-tuning with trl.SFTTrainer. We tokenise, so that the loss mask and the end token are ours to show."""

from __future__ import annotations

import logging

from trl import SFTConfig, SFTTrainer

from rlhf_cli import distributed
from rlhf_cli.data import chat_template, sources, tokenization
from rlhf_cli.models import adapters, fsdp, loading
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import checkpointing, held_out_metrics, length_checks, memory_check, trl

logger = logging.getLogger(__name__)


def run(recipe: Recipe, run: Run) -> StageMetrics:
    """Train an adapter (or all weights) on the demonstrations; the loss is on completions alone."""
    section = recipe.sft
    tokenizer = loading.load_tokenizer(run.base_source(), recipe.base.revision)
    chat_template.prepare(tokenizer, recipe.base.chat_template)
    assert recipe.data.sft is not None  # the recipe was checked for this stage
    rows = sources.load(
        recipe.data.sft, "sft", seed=recipe.seed, find=run.find, limit=smoke.ROWS if run.smoke else None
    )
    columns = tokenization.sft_columns(tokenizer, rows.train, section.max_length)
    trl.log_row_counts(run, "demonstrations", rows, columns.counts)
    held_out = tokenization.sft_columns(tokenizer, rows.held_out, section.max_length)
    for warning in length_checks.check_all("sft", recipe, run.base_source(), tokenizer, columns, held_out):
        logger.warning(warning)
    memory_check.check(run, recipe, columns.lengths(), held_out.lengths())

    start = None if section.start == "base" else run.model_of(section.start)
    sharded = recipe.launch.strategy == "fsdp"
    model = adapters.load_policy(
        recipe.base, recipe.adapter, run.base_source(), start, smoke=run.smoke, sharded=sharded
    )
    dtype = loading.compute_dtype(recipe.base, loading.default_device())
    if sharded:
        fsdp.ignore_in_ddp(model)
    journal = trl.MetricsCallback(run)
    trainer = SFTTrainer(
        model=model,
        args=trl.config(
            SFTConfig,
            "sft",
            {
                **trl.arguments(section, run, recipe.seed, dtype=dtype),
                "max_length": section.max_length,
                "dataset_kwargs": {"skip_prepare_dataset": True},
            },
        ),
        train_dataset=trl.dataset(columns.parts),
        processing_class=tokenizer,
        callbacks=[journal],
    )
    metrics = checkpointing.train(trainer, journal, run, section.save_every)
    trl.save(trainer, tokenizer, run)
    if distributed.is_main() or sharded:  # a split base is called by all or none
        metrics |= held_out_metrics.loss(trainer, held_out, section.micro_batch_size * max(columns.lengths()))
    return StageMetrics(metrics)
