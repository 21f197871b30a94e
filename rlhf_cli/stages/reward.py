"""A reward model from pairwise preferences, with trl.RewardTrainer; the score head is trained and saved with it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from rlhf_cli import distributed
from rlhf_cli.data import sources, template
from rlhf_cli.errors import RecipeError
from rlhf_cli.models import adapters, base, splitting
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Result, Run
from rlhf_cli.stages import encoding, limits, memory, quality, saving, training


def run(recipe: Recipe, run: Run) -> Result:
    """Train a sequence classifier of one label to score the chosen answer above the rejected one."""
    section = recipe.reward
    tokenizer = base.load_tokenizer(run.base_source(), recipe.base.revision)
    template.prepare(tokenizer, recipe.base.chat_template)
    assert recipe.data.preferences is not None  # the recipe was checked for this stage
    rows = sources.load(
        recipe.data.preferences, "preferences", seed=recipe.seed, find=run.find, limit=smoke.ROWS if run.smoke else None
    )
    columns = encoding.preference_columns(tokenizer, rows.train, section.max_length)
    training.tell_counts(run, "preferences", rows, columns.counts)
    held_out = encoding.preference_columns(tokenizer, rows.held_out, section.max_length)
    limits.check_all("reward", recipe, run.base_source(), tokenizer, columns, held_out, tell=run.warn)
    memory.check(run, recipe, columns.lengths(), held_out.lengths())

    model = load(recipe, run, tokenizer)
    dtype = base.compute_dtype(recipe.base, base.default_device())
    is_split = recipe.launch.strategy == "fsdp"
    if is_split:
        splitting.keep_from_ddp(model)
    journal = training.Journal(run)
    trainer = RewardTrainer(
        model=model,
        args=training.config(
            RewardConfig,
            "reward",
            {
                **training.arguments(section, run, recipe.seed, dtype=dtype),
                "max_length": None,  # what is too long is already out
            },
        ),
        train_dataset=training.dataset(columns.parts),
        processing_class=tokenizer,
        callbacks=[journal],
    )
    metrics = saving.train(trainer, journal, run, section.save_every)
    training.save(trainer, tokenizer, run)
    if distributed.is_main() or is_split:  # a split base is called by all or none
        metrics |= quality.ranking(trainer, held_out, 2 * section.micro_batch_size * max(columns.lengths()))
    return Result(metrics)


def load(recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The scorer on the base: a new adapter and head, or the start's weights; whole where `adapter` is null."""
    start = None if recipe.reward.start == "base" else run.model_of(recipe.reward.start)
    if recipe.adapter is None:
        source = run.base_source() if start is None else str(start)
        if start is not None and adapters.is_adapter(start):
            hint = "Give the recipe an adapter, or start from base."
            raise RecipeError("reward.start is an adapter, and adapter is null.", location="reward.start", hint=hint)
        model = base.load_scorer(recipe.base, source, smoke=run.smoke and start is None)
    else:
        is_split = recipe.launch.strategy == "fsdp"
        model = base.load_scorer(recipe.base, run.base_source(), smoke=run.smoke, is_split=is_split)
    model.config.pad_token_id = tokenizer.pad_token_id
    if recipe.adapter is None:
        return model
    return adapters.attach(model, recipe.adapter, task="SEQ_CLS", start=start)
