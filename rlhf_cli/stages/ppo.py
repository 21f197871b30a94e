"""PPO: the policy learns from its own answers, judged by the recipe's reward sources."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from rlhf_cli import distributed
from rlhf_cli.data import chat_template, sources, tokenization
from rlhf_cli.errors import RecipeError
from rlhf_cli.models import loading
from rlhf_cli.models.multi_adapter import MultiAdapterModel
from rlhf_cli.ppo import actor_critic, optimization
from rlhf_cli.ppo.trainer import PPOTrainer, Prompts
from rlhf_cli.ppo.update import Demonstrations
from rlhf_cli.recipe import smoke
from rlhf_cli.recipe.schema import Recipe
from rlhf_cli.rewards import build
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training import length_checks, memory_check, trl

logger = logging.getLogger(__name__)

WATCHED = 4  # held-out prompts whose answers are kept as training goes
REPORTED = (  # of the last iterations, in the result
    "reward",
    "reward.std",
    "kl",
    "kl.token",
    "entropy",
    "explained_variance",
    "response_length",
    "truncation_rate",
    "repeated_4gram_rate",
    "distinct_2",
)


def run(recipe: Recipe, run: Run) -> StageMetrics:
    """Train the policy for `ppo.iterations`; the final policy is the run's model, the critic lies beside it."""
    settings = recipe.ppo
    _check_shares(recipe)
    asked = optimization.arguments(settings.trainer, run.path)
    terms = build.terms(settings.reward, run.say)
    trackers = optimization.Trackers(asked, settings.model_dump(mode="json"))
    tokenizer = loading.load_tokenizer(run.base_source(), recipe.base.revision)
    chat_template.prepare(tokenizer, recipe.base.chat_template)
    train, watched = _prompts(recipe, run, tokenizer)
    demonstrations = _demonstrations(recipe, run, tokenizer) if settings.ptx_coef else None
    for index, source in enumerate(settings.reward):
        if source.run is not None:
            location = f"ppo.reward.{index}"
            prompts = (row.prompt for row in train.rows)
            build.check_tokenizer(tokenizer, run.model_of(source.run), prompts, location=location)
    build.prepare(terms, train.rows, recipe.base, smoke=run.smoke)
    cast = _cast(recipe, run, terms)
    if asked.activation_checkpointing:
        cast.bank.recompute_activations()
    parts = optimization.build(
        settings, asked, cast.bank.parameters(actor_critic.POLICY), cast.bank.parameters(actor_critic.VALUE)
    )
    trainer = PPOTrainer(
        settings, cast, terms, tokenizer, train, watched, demonstrations, parts, trackers, run, recipe.seed
    )
    history = trainer.train()
    trainer.save(run.model_dir, run.path / "critic")
    return StageMetrics(_summary(history))


def _check_shares(recipe: Recipe) -> None:
    """Raise RecipeError where processes of one's own launcher cannot share a split base's minibatches evenly."""
    settings, together = recipe.ppo, distributed.world_size()
    rows = settings.rollout_batch_size * settings.samples_per_prompt // settings.minibatches
    if recipe.launch.strategy == "fsdp" and rows % together:
        message = f"with fsdp, {rows} rows of a minibatch are not a multiple of {together} processes."
        raise RecipeError(message, location="ppo.minibatches", hint="Choose it so that they are.")


def _cast(recipe: Recipe, run: Run, terms: list[build.RewardFunction]) -> actor_critic.ActorCritic:
    start = None if recipe.ppo.start == "base" else run.model_of(recipe.ppo.start)
    judges = [run.model_of(source.run) for source in recipe.ppo.reward if source.run is not None]
    wanted = actor_critic.folders(start, terms, judges)
    bank = MultiAdapterModel.load(
        recipe.base,
        recipe.adapter,
        run.base_source(),
        wanted,
        smoke=run.smoke,
        sharded=recipe.launch.strategy == "fsdp",
    )
    return actor_critic.assign(bank, recipe.ppo.critic, terms)


def _prompts(recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts]:
    """Prompts to train on, and the few that are watched; what is too long is dropped, and told."""
    if recipe.data.prompts is None:
        hint = "Set data.prompts. The preferences' file does too: its prompts are taken, its answers left."
        raise RecipeError("PPO needs prompts to answer.", location="data.prompts", hint=hint)
    limit = smoke.ROWS if run.smoke else None
    rows = sources.load(recipe.data.prompts, "prompts", seed=recipe.seed, find=run.find, limit=limit)
    longest = recipe.ppo.max_prompt_length
    train = tokenization.fitting_prompts(tokenizer, rows.train, longest)
    trl.log_row_counts(run, "prompts", rows, train.counts)
    held_out = tokenization.fitting_prompts(tokenizer, rows.held_out[: 4 * WATCHED], longest)
    source = held_out if held_out.rows else train
    for warning in length_checks.check_all("ppo", recipe, run.base_source(), tokenizer, train, held_out):
        logger.warning(warning)
    memory_check.check(run, recipe, train.lengths(), ())
    return Prompts(train.rows, train.ids), Prompts(source.rows[:WATCHED], source.ids[:WATCHED])


def _demonstrations(recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase) -> Demonstrations:
    """The rows that sft trains on, cut as there."""
    assert recipe.data.sft is not None  # the recipe was checked
    limit = smoke.ROWS if run.smoke else None
    rows = sources.load(recipe.data.sft, "sft", seed=recipe.seed, find=run.find, limit=limit)
    columns = tokenization.sft_columns(tokenizer, rows.train, recipe.sft.max_length)
    trl.log_row_counts(run, "demonstrations", rows, columns.counts)
    nothing = tokenization.sft_columns(tokenizer, [], recipe.sft.max_length)
    for warning in length_checks.check_all("sft", recipe, run.base_source(), tokenizer, columns, nothing):
        logger.warning(warning)
    found = Demonstrations([], [])
    for part in columns.parts:
        for ids, labels in zip(part["input_ids"], part["labels"], strict=True):
            start = next(at for at, label in enumerate(labels) if label != tokenization.IGNORED)
            found.prompts.append(ids[:start])
            found.completions.append(ids[start:])
    return found


def _summary(history: list[dict[str, float]]) -> dict[str, float]:
    """Means over the last tenth of the iterations, speed over all of them."""
    last = history[-max(1, len(history) // 10) :]
    found: dict[str, list[float]] = {}  # a reward source has no figure where it judged nothing
    for name, value in (item for m in last for item in m.items()):
        if name in REPORTED or name.startswith("reward."):
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
