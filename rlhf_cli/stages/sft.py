"""Fine-tune on demonstrations with trl.SFTTrainer. The loss is on completions only.

Rows reach TRL tokenized, so that `--dry-run` shows the loss mask and end token that training uses.
"""

from __future__ import annotations

from functools import partial

from rlhf_cli.data import chat_template, tokenization
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData, prepare_rows


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize the demonstrations."""
    data = prepare_rows(stage, tokenization.sft_columns, tokenization.first_example)
    ends = data.example.completion_ids[-1] in chat_template.stop_ids(data.tokenizer)
    data.facts["EOS token included in loss"] = "yes" if ends else "no, truncated"
    return data


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Train an adapter (or all weights) on the demonstrations."""
    from trl import SFTConfig, SFTTrainer

    from rlhf_cli.models import adapters, loading
    from rlhf_cli.training import held_out_metrics, memory_check, supervised, trl

    recipe = stage.recipe
    data = prepare(stage)
    data.log("demonstrations")
    memory_check.check(stage, data.train.lengths(), data.held_out.lengths())
    model = adapters.load_policy(
        recipe.base,
        recipe.adapter,
        stage.base_path,
        stage.model_path("start"),
        smoke=stage.smoke,
        sharded=stage.sharded,
    )
    max_tokens = stage.section.micro_batch_size * max(data.train.lengths())
    return supervised.train_with_trl(
        stage,
        run,
        data,
        trl_trainer=supervised.TrlTrainer(SFTTrainer, SFTConfig, trl.sft_arguments(model, stage.max_length)),
        model=model,
        dtype=loading.compute_dtype(recipe.base, loading.default_device()),
        evaluate=partial(held_out_metrics.loss, stage=stage.name, columns=data.held_out, max_tokens=max_tokens),
    )
