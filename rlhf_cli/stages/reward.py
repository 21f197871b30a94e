"""A reward model from pairwise preferences, with trl.RewardTrainer; the score head is trained and saved with it."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from rlhf_cli import distributed
from rlhf_cli.data import chat_template, sources, tokenization
from rlhf_cli.errors import RecipeError
from rlhf_cli.models import adapters, fsdp, loading
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import checkpointing, held_out_metrics, length_checks, memory_check, trl

logger = logging.getLogger(__name__)


def run(recipe: Recipe, run: Run) -> StageMetrics:
    """Train a sequence classifier of one label to score the chosen answer above the rejected one."""
    section = recipe.reward
    tokenizer = loading.load_tokenizer(run.base_source(), recipe.base.revision)
    chat_template.prepare(tokenizer, recipe.base.chat_template)
    assert recipe.data.preferences is not None  # the recipe was checked for this stage
    rows = sources.load(
        recipe.data.preferences, "preferences", seed=recipe.seed, find=run.find, limit=smoke.ROWS if run.smoke else None
    )
    columns = tokenization.preference_columns(tokenizer, rows.train, section.max_length)
    trl.log_row_counts(run, "preferences", rows, columns.counts)
    held_out = tokenization.preference_columns(tokenizer, rows.held_out, section.max_length)
    for warning in length_checks.check_all("reward", recipe, run.base_source(), tokenizer, columns, held_out):
        logger.warning(warning)
    memory_check.check(run, recipe, columns.lengths(), held_out.lengths())

    model = load(recipe, run, tokenizer)
    dtype = loading.compute_dtype(recipe.base, loading.default_device())
    sharded = recipe.launch.strategy == "fsdp"
    if sharded:
        fsdp.ignore_in_ddp(model)
    journal = trl.MetricsCallback(run)
    trainer = RewardTrainer(
        model=model,
        args=trl.config(
            RewardConfig,
            "reward",
            {
                **trl.arguments(section, run, recipe.seed, dtype=dtype),
                "max_length": None,  # what is too long is already out
            },
        ),
        train_dataset=trl.dataset(columns.parts),
        processing_class=tokenizer,
        callbacks=[journal],
    )
    metrics = checkpointing.train(trainer, journal, run, section.save_every)
    trl.save(trainer, tokenizer, run)
    if distributed.is_main() or sharded:  # a split base is called by all or none
        metrics |= held_out_metrics.ranking(trainer, held_out, 2 * section.micro_batch_size * max(columns.lengths()))
    return StageMetrics(metrics)


def load(recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The scorer on the base: a new adapter and head, or the start's weights; whole where `adapter` is null."""
    start = None if recipe.reward.start == "base" else run.model_of(recipe.reward.start)
    if recipe.adapter is None:
        source = run.base_source() if start is None else str(start)
        if start is not None and adapters.is_adapter(start):
            hint = "Give the recipe an adapter, or start from base."
            raise RecipeError("reward.start is an adapter, and adapter is null.", location="reward.start", hint=hint)
        model = loading.load_scorer(recipe.base, source, smoke=run.smoke and start is None)
    else:
        sharded = recipe.launch.strategy == "fsdp"
        model = loading.load_scorer(recipe.base, run.base_source(), smoke=run.smoke, sharded=sharded)
    model.config.pad_token_id = tokenizer.pad_token_id
    if recipe.adapter is None:
        return model
    return adapters.attach(model, recipe.adapter, task="SEQ_CLS", start=start)
