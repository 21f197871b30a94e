"""Optimize the policy with PPO: it learns from its own completions, scored by the recipe's reward sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_cli import distributed
from rlhf_cli.data import tokenization
from rlhf_cli.errors import RecipeError
from rlhf_cli.evaluation.training_metrics import SUMMARIZED_ITERATION_METRICS
from rlhf_cli.pipeline.judge import judge_of_stage
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.length_checks import LengthLimit, check_all
from rlhf_cli.training.prepared_data import PreparedData, load_rows, log_rows, prepare_rows

if TYPE_CHECKING:
    from rlhf_cli.ppo.actor_critic import ActorCritic
    from rlhf_cli.ppo.types import Demonstrations

SAMPLE_PROMPTS = 4  # held-out prompts whose completions are kept as training goes
SUMMARIZED_METRICS = [metric.name for metric in SUMMARIZED_ITERATION_METRICS]  # in the manifest


def prepare(stage: ResolvedStage) -> PreparedData:
    """Load and tokenize the prompts."""
    # A few more held-out prompts than are sampled, because some may be too long.
    return prepare_rows(stage, tokenization.fitting_prompts, held_out=4 * SAMPLE_PROMPTS)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    """Train the policy for `ppo.iterations`. The final policy is the run's model; the critic is saved beside it."""
    from rlhf_cli.ppo import actor_critic, optimization
    from rlhf_cli.ppo.trainer import PPOTrainer
    from rlhf_cli.ppo.types import PPOData, Prompts
    from rlhf_cli.rewards import build
    from rlhf_cli.training import memory_check

    settings = stage.section
    _check_division_among_processes(stage)
    arguments = optimization.training_arguments(settings.trainer, run.path)
    reward_functions = build.build_reward_functions(
        settings.reward,
        lambda index: stage.model_path(f"{stage.spec.section}.reward.{index}"),
        lambda: judge_of_stage(stage).judge,
    )
    trackers = optimization.Trackers(arguments, settings.model_dump(mode="json"))
    data = prepare(stage)
    data.log("prompts")
    plan = memory_check.check(stage, data.train.lengths(), ())
    demonstrations = _demonstrations(stage, data) if settings.ptx_coef else None
    _check_reward_tokenizers(stage, data)
    build.prepare_reward_functions(reward_functions, data.train.rows, stage.recipe.base, smoke=stage.smoke)
    models = _load_models(stage, reward_functions)
    if arguments.activation_checkpointing if plan is None else plan.recompute:
        models.model.recompute_activations()
    parts = optimization.build_optimization(
        settings,
        arguments,
        models.model.parameters(actor_critic.POLICY),
        models.model.parameters(actor_critic.VALUE),
    )
    sampled = data.held_out if data.held_out.rows else data.train
    trainer = PPOTrainer(
        settings,
        models,
        reward_functions,
        PPOData(
            tokenizer=data.tokenizer,
            prompts=Prompts(data.train.rows, data.train.ids),
            sample_prompts=Prompts(sampled.rows[:SAMPLE_PROMPTS], sampled.ids[:SAMPLE_PROMPTS]),
            demonstrations=demonstrations,
        ),
        parts,
        trackers,
        run,
        stage.recipe.seed,
    )
    if plan is not None:
        trainer.rollout_tokens = plan.rollout_tokens
    history = trainer.train()
    trainer.save(run.model_dir, run.path / "critic")
    return StageMetrics(_summary(history), conversational=data.conversational)


def _check_division_among_processes(stage: ResolvedStage) -> None:
    """Check that the processes of a user's own launcher get equally many completions.

    Raises:
        RecipeError: They cannot split the completions, or the minibatches of a sharded base.
    """
    settings, processes = stage.section, distributed.world_size()
    completions = settings.rollout_batch_size * settings.samples_per_prompt
    if completions % processes:
        message = f"not divisible; found {completions} completions, expected a multiple of {processes} processes."
        hint = f"Set it to a multiple of {processes}, or start another number of processes."
        location = "ppo.rollout_batch_size"
        raise RecipeError("recipe.not-divisible", message, location=location, hint=hint)
    rows = settings.rollout_batch_size * settings.samples_per_prompt // settings.minibatches
    if stage.sharded and rows % processes:
        message = (
            f"with fsdp, the size of a minibatch must be a multiple of the number of processes; "
            f"found {rows} rows, expected a multiple of {processes}."
        )
        raise RecipeError("recipe.not-divisible", message, location="ppo.minibatches", hint="Change ppo.minibatches.")


def _check_reward_tokenizers(stage: ResolvedStage, data: PreparedData) -> None:
    from rlhf_cli.rewards.tokenizer_check import check_tokenizer

    for index, source in enumerate(stage.section.reward):
        if source.run is not None:
            key = f"ppo.reward.{index}"
            folder = stage.model_path(key)
            assert folder is not None
            check_tokenizer(data.tokenizer, folder, (row.prompt for row in data.train.rows), location=key)


def _load_models(stage: ResolvedStage, reward_functions: list[Any]) -> ActorCritic:
    from rlhf_cli.models.multi_adapter import MultiAdapterModel
    from rlhf_cli.ppo import actor_critic

    recipe = stage.recipe
    model = MultiAdapterModel.load(
        recipe.base,
        recipe.adapter,
        stage.base_path,
        actor_critic.role_folders(stage.model_path("start"), reward_functions),
        smoke=stage.smoke,
        sharded=stage.sharded,
    )
    return actor_critic.build_actor_critic(model, stage.section, reward_functions)


def _demonstrations(stage: ResolvedStage, data: PreparedData) -> Demonstrations:
    """Load the demonstrations of the pretraining loss (PPO-ptx), truncated as in sft."""
    from rlhf_cli.ppo.types import Demonstrations

    limit = LengthLimit("sft.max_length", stage.recipe.sft.max_length)
    split = load_rows(stage, "sft")
    train = tokenization.sft_columns(data.tokenizer, split.train, limit.tokens)
    none = tokenization.sft_columns(data.tokenizer, [], limit.tokens)
    log_rows("demonstrations", split, train, check_all(stage, limit, data.tokenizer, train, none))
    found = Demonstrations([], [])
    for part in train.parts:
        for ids, labels in zip(part["input_ids"], part["labels"], strict=True):
            start = next(at for at, label in enumerate(labels) if label != tokenization.IGNORE_INDEX)
            found.prompts.append(ids[:start])
            found.completions.append(ids[start:])
    return found


def _summary(history: list[dict[str, float]]) -> dict[str, float]:
    """Return means over the last tenth of the iterations, and the speed over all of them."""
    last = history[-max(1, len(history) // 10) :]
    found: dict[str, list[float]] = {}  # a reward source has no value in an iteration that it did not score
    for name, value in (item for metrics in last for item in metrics.items()):
        if name in SUMMARIZED_METRICS or name.startswith("score."):
            found.setdefault(name, []).append(value)
    metrics = {f"ppo.{name}": sum(values) / len(values) for name, values in found.items()}
    seconds = [sum(m[f"seconds.{part}"] for part in ("rollout", "scoring", "update")) for m in history]
    tokens = sum(m["tokens_per_second"] * s for m, s in zip(history, seconds, strict=True))
    return metrics | {
        "ppo.episodes": history[-1]["episodes"],
        "ppo.iterations": float(len(history)),
        "ppo.tokens_per_second": tokens / sum(seconds),
        "ppo.train_seconds": sum(seconds),
        "ppo.memory_peak_bytes": history[-1]["memory_peak_bytes"],
    }
