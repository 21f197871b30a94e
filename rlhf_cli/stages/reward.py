"""Train a reward model on pairwise preferences with trl.RewardTrainer; its score head is trained and saved with it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from rlhf_cli.data import tokenization
from rlhf_cli.errors import RecipeError
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData, prepare_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize the preference pairs."""
    return prepare_rows(stage, tokenization.preference_columns, tokenization.first_example)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Train a sequence classifier with one label to score the chosen completion above the rejected one."""
    from trl import RewardConfig, RewardTrainer

    from rlhf_cli.models import loading
    from rlhf_cli.training import held_out_metrics, memory_check, supervised

    data = prepare(stage)
    data.log("preferences")
    memory_check.check(stage, data.train.lengths(), data.held_out.lengths())
    max_tokens = 2 * stage.section.micro_batch_size * max(data.train.lengths())
    config = {
        "max_length": None,  # pairs that are too long are already dropped
        # TRL's default, True, would also turn off `adapter.dropout`.
        "disable_dropout": stage.section.trainer.get("disable_dropout", False),
    }
    return supervised.train_with_trl(
        stage,
        run,
        data,
        trl_trainer=supervised.TrlTrainer(RewardTrainer, RewardConfig, config),
        model=load_model(stage, data.tokenizer),
        dtype=loading.compute_dtype(stage.recipe.base, loading.default_device()),
        evaluate=partial(held_out_metrics.ranking, columns=data.held_out, max_tokens=max_tokens),
    )


def load_model(stage: ResolvedStage, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Load the base with a score head, and attach a new adapter or that of `reward.start`.

    With `adapter: null`, load the whole model of `reward.start`.

    Raises:
        RecipeError: `reward.start` is an adapter although the recipe trains whole models.
    """
    from rlhf_cli.models import adapter_config, adapters, loading

    recipe, start = stage.recipe, stage.model_path("start")
    if recipe.adapter is not None:
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
