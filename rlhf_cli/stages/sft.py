"""Supervised fine-tuning with trl.SFTTrainer. We tokenise, so that the loss mask and the end token are ours to show."""

from __future__ import annotations

from trl import SFTConfig, SFTTrainer

from rlhf_cli import distributed
from rlhf_cli.data import sources, template
from rlhf_cli.models import adapters, base, splitting
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.runs.run import Result, Run
from rlhf_cli.stages import encoding, limits, memory, quality, saving, training


def run(recipe: Recipe, run: Run) -> Result:
    """Train an adapter (or all weights) on the demonstrations; the loss is on completions alone."""
    section = recipe.sft
    tokenizer = base.load_tokenizer(run.base_source(), recipe.base.revision)
    template.prepare(tokenizer, recipe.base.chat_template)
    assert recipe.data.sft is not None  # the recipe was checked for this stage
    rows = sources.load(
        recipe.data.sft, "sft", seed=recipe.seed, find=run.find, limit=smoke.ROWS if run.smoke else None
    )
    columns = encoding.sft_columns(tokenizer, rows.train, section.max_length)
    training.tell_counts(run, "demonstrations", rows, columns.counts)
    held_out = encoding.sft_columns(tokenizer, rows.held_out, section.max_length)
    limits.check_all("sft", recipe, run.base_source(), tokenizer, columns, held_out, tell=run.warn)
    memory.check(run, recipe, columns.lengths(), held_out.lengths())

    start = None if section.start == "base" else run.model_of(section.start)
    is_split = recipe.launch.strategy == "fsdp"
    model = adapters.load_policy(
        recipe.base, recipe.adapter, run.base_source(), start, smoke=run.smoke, is_split=is_split
    )
    dtype = base.compute_dtype(recipe.base, base.default_device())
    if is_split:
        splitting.keep_from_ddp(model)
    journal = training.Journal(run)
    trainer = SFTTrainer(
        model=model,
        args=training.config(
            SFTConfig,
            "sft",
            {
                **training.arguments(section, run, recipe.seed, dtype=dtype),
                "max_length": section.max_length,
                "dataset_kwargs": {"skip_prepare_dataset": True},
            },
        ),
        train_dataset=training.dataset(columns.parts),
        processing_class=tokenizer,
        callbacks=[journal],
    )
    metrics = saving.train(trainer, journal, run, section.save_every)
    training.save(trainer, tokenizer, run)
    if distributed.is_main() or is_split:  # a split base is called by all or none
        metrics |= quality.loss(trainer, held_out, section.micro_batch_size * max(columns.lengths()))
    return Result(metrics)
