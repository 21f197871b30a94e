"""Train a reward model on pairwise preferences with trl.RewardTrainer; its score head is trained and saved with it.

With `reward.members`, several are trained one after another on the same base model. See `models.ensemble`.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.data import tokenization
from rlhf_cli.errors import RecipeError
from rlhf_cli.pipeline.inputs import find_ceiling
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData, prepare_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from rlhf_cli.training.callbacks import TrainingMetrics
    from rlhf_cli.training.members import FinishedMembers

MAX_OFFSET_PAIRS = 256  # whose scores decide the members' offsets if no pairs are held out


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize the preference pairs."""
    data = prepare_rows(stage, tokenization.preference_columns, tokenization.first_example)
    if stage.section.members > 1:
        data.facts["members"] = str(stage.section.members)
    return data


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Train sequence classifiers with one label to score the chosen completion above the rejected one."""
    from rlhf_cli.models import ensemble
    from rlhf_cli.rewards.ensemble import member_offsets
    from rlhf_cli.training import held_out_metrics, memory_check, supervised
    from rlhf_cli.training.callbacks import TrainingMetrics
    from rlhf_cli.training.members import FinishedMembers

    data = prepare(stage)
    data.log("preferences")
    memory_check.check(stage, data.train.lengths(), data.held_out.lengths())
    count = stage.section.members
    members, metrics = FinishedMembers(run, count), TrainingMetrics(run)
    if members.metrics_state is not None:
        metrics.restore(members.metrics_state)
    steps = 0
    source = members.resume_from
    for index in range(len(members.scores), count):
        steps = (index + 1) * _train_member(stage, run, data, metrics, members, source)
        source = None
        if index + 1 < count:
            members.save_between(steps, metrics.state())
    found = metrics.summary(run.stage, steps)
    if supervised.evaluates(stage):
        if count > 1:
            ensemble.write_ensemble(run.model_dir, member_offsets(members.scores))
        combined = [sum(scores) / count for scores in zip(*members.scores, strict=True)]
        ceiling = find_ceiling(stage.inputs)
        found |= held_out_metrics.ranking(combined, data.held_out, data.split.held_out, ceiling)
    return StageMetrics(found)


def _train_member(
    stage: ResolvedStage,
    run: Run,
    data: PreparedData,
    metrics: TrainingMetrics,
    members: FinishedMembers,
    source: Path | None,
) -> int:
    """Train the next member, from the checkpoint `source` if it is not None. Return its optimizer steps."""
    import transformers
    from trl import RewardConfig, RewardTrainer

    from rlhf_cli.models import loading
    from rlhf_cli.models.ensemble import member_folder
    from rlhf_cli.training import supervised, trl
    from rlhf_cli.training.callbacks import Position
    from rlhf_cli.training.checkpointing import TrainerCheckpoints
    from rlhf_cli.training.members import member_rows, member_seed

    index = len(members.scores)
    seed = member_seed(stage.recipe.seed, index)
    transformers.set_seed(seed)
    config = {
        "max_length": None,  # pairs that are too long are already dropped
        # TRL's default, True, would also turn off `adapter.dropout`.
        "disable_dropout": stage.section.trainer.get("disable_dropout", False),
    }
    trainer = supervised.build_trainer(
        stage,
        run,
        data,
        trl_trainer=supervised.TrlTrainer(RewardTrainer, RewardConfig, config),
        model=load_model(stage, data.tokenizer, index),
        dtype=loading.compute_dtype(stage.recipe.base, loading.default_device()),
        rows=member_rows(trl.dataset(data.train.parts), seed, index),
        seed=seed,
    )
    checkpoints = TrainerCheckpoints(run, trainer, stage.section.save_every, source, members.save)
    supervised.train(trainer, run, metrics, checkpoints, Position(index, stage.section.members))
    if index == 0:
        trl.save(trainer, data.tokenizer, run)
    else:
        folder = member_folder(run.model_dir, index)
        trainer.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's; the run has its own
    members.scores.append(_scores(stage, data, trainer) if supervised.evaluates(stage) else [])
    steps = trainer.state.global_step
    trainer.accelerator.free_memory()  # before the next member's base model is loaded
    del trainer, checkpoints
    gc.collect()
    return steps


def _scores(stage: ResolvedStage, data: PreparedData, trainer: Trainer) -> list[float]:
    """Return a member's scores of the held-out pairs, or of training pairs if the members need some for offsets."""
    from rlhf_cli.training import held_out_metrics

    max_tokens = 2 * stage.section.micro_batch_size * max(data.train.lengths())
    if data.held_out.kept or stage.section.members == 1:
        return held_out_metrics.pair_scores(trainer, data.held_out, max_tokens)
    return held_out_metrics.pair_scores(trainer, data.train, max_tokens, MAX_OFFSET_PAIRS)


def load_model(stage: ResolvedStage, tokenizer: PreTrainedTokenizerBase, index: int = 0) -> Any:
    """Load the base with a score head, and attach a new adapter or that of `reward.start`.

    With `adapter: null`, load the whole model of `reward.start`.

    Args:
        stage: The resolved stage.
        tokenizer: The tokenizer.
        index: Index of the member, which starts from the same member of an ensemble.

    Raises:
        RecipeError: `reward.start` is an adapter although the recipe trains whole models.
    """
    from rlhf_cli.models import adapter_config, adapters, loading
    from rlhf_cli.models.ensemble import read_members

    recipe, start = stage.recipe, stage.model_path("start")
    if recipe.adapter is not None:
        if start is not None:
            members = read_members(start)
            start = members[index % len(members)].folder
        model = loading.load_scorer(recipe.base, stage.base_path, smoke=stage.smoke, sharded=stage.sharded)
        model.config.pad_token_id = tokenizer.pad_token_id
        return adapters.attach(model, recipe.adapter, task="SEQ_CLS", start=start)
    if start is not None and adapter_config.is_adapter(start):
        message = "must be a full model, because the recipe has `adapter: null`; found an adapter."
        hint = "Set an adapter in the recipe, or start from base."
        raise RecipeError("recipe.conflicting-keys", message, location="reward.start", hint=hint)
    source = stage.base_path if start is None else str(start)
    model = loading.load_scorer(recipe.base, source, smoke=stage.smoke and start is None)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model
