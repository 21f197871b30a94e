"""Describe the metrics that training stages and the export log. They are computed where they are logged."""

from __future__ import annotations

import dataclasses

from rlhf_cli.evaluation.metric_types import SOURCE, STAGE, Direction, Metric


def _iteration(name: str, unit: str, direction: Direction, description: str) -> Metric:
    return Metric(name, unit, direction, description, "ppo_iterations")


def _step(name: str, unit: str, direction: Direction, description: str) -> Metric:
    return Metric(name, unit, direction, description, "trainer_steps")


def _feedback(name: str, unit: str, description: str) -> Metric:
    return Metric(name, unit, "none", description, "feedback")


TRAINER_METRICS = (
    Metric(
        f"{STAGE}.train_loss",
        "nats",
        "lower",
        "Mean training loss over all steps: per token for pretrain and sft, per pair for reward.",
        "training",
    ),
    Metric(f"{STAGE}.steps", "optimizer steps", "none", "Number of optimizer steps in the run.", "training"),
    Metric(f"{STAGE}.tokens_per_second", "tokens per second", "higher", "Training speed.", "training"),
    Metric(
        f"{STAGE}.train_seconds", "seconds", "lower", "Time spent training, excluding loading and saving.", "training"
    ),
    Metric(
        "pretrain.nll",
        "nats per token",
        "lower",
        "Negative log-likelihood of the tokens of the held-out text, if any text is held out.",
        "training",
    ),
)

# Logged by the trainer, or by TRL's version of it. A trainer may log more in a later version of TRL.
STEP_METRICS = (
    _step("loss", "nats", "lower", "Training loss since the last logged step."),
    _step("grad_norm", "", "none", "Norm of the gradients before clipping."),
    _step("learning_rate", "", "none", "Learning rate."),
    _step("epoch", "epochs", "none", "Passes over the training rows so far."),
    _step("num_tokens", "tokens", "none", "Tokens trained on so far."),
    _step("tokens_per_second", "tokens per second", "higher", "Training speed since the last logged step."),
    _step("entropy", "nats per token", "none", "Mean entropy of the predicted distributions (pretrain and sft)."),
    _step("mean_token_accuracy", "fraction of tokens", "higher", "Tokens predicted correctly (pretrain and sft)."),
    _step("member", "", "none", "Number of the reward model in training, with reward.members (reward)."),
    _step("accuracy", "fraction of pairs", "higher", "Pairs in which the chosen completion scores higher (reward)."),
    _step("margin", "score", "none", "Mean difference of the scores, chosen minus rejected (reward)."),
    _step("min_reward", "score", "none", "Lowest score (reward)."),
    _step("mean_reward", "score", "none", "Mean score (reward)."),
    _step("max_reward", "score", "none", "Highest score (reward)."),
)

SUMMARIZED_ITERATION_METRICS = (
    _iteration("reward", "score", "higher", "Mean weighted sum of the reward sources, without KL."),
    _iteration("reward.std", "score", "none", "Standard deviation of the weighted sum."),
    _iteration(f"score.{SOURCE}", "score", "higher", "Mean unweighted score of one reward source."),
    _iteration(
        f"score.{SOURCE}.too_long",
        "fraction of completions",
        "lower",
        "Completions that, together with their prompt, exceed the reward model's context, so only their end is scored.",
    ),
    _iteration(
        f"score.{SOURCE}.disagreement",
        "score",
        "none",
        "Standard deviation of a completion's score over the members of a reward run with several (reward.members).",
    ),
    _iteration("kl", "nats per completion", "none", "KL(policy ‖ reference), estimated from samples (k1)."),
    _iteration("kl.token", "nats per token", "none", "The same estimate divided by the number of tokens."),
    _iteration("entropy", "nats per token", "none", "Mean entropy of the policy."),
    _iteration(
        "explained_variance", "fraction", "higher", "Fraction of the variance of the returns that the critic explains."
    ),
    _iteration("response_length", "tokens", "none", "Mean length of a completion, including its end token."),
    _iteration("truncation_rate", "fraction of completions", "lower", "Completions that reached max_new_tokens."),
    _iteration(
        "repeated_4gram_rate",
        "fraction of 4-grams",
        "lower",
        "Token 4-grams that already occurred in their completion.",
    ),
    _iteration(
        "distinct_2", "fraction of 2-grams", "higher", "Distinct token 2-grams divided by all 2-grams of the rollout."
    ),
)

ITERATION_METRICS = (
    *SUMMARIZED_ITERATION_METRICS,
    _iteration(
        "kl.k3", "nats per token", "none", "KL(policy ‖ reference) with the k3 estimator, which is never negative."
    ),
    _iteration("kl.coef", "score per nat", "none", "Coefficient of the KL penalty."),
    _iteration("advantage.mean", "score", "none", "Mean advantage before whitening."),
    _iteration("return.mean", "score", "none", "Mean return."),
    _iteration("policy_loss", "", "none", "Mean clipped surrogate loss of the iteration's minibatches."),
    _iteration("value_loss", "squared score", "lower", "Mean clipped value loss of the iteration's minibatches."),
    _iteration("ptx_loss", "nats per token", "lower", "Loss on demonstrations; logged if ppo.ptx_coef is set."),
    _iteration("clip_fraction", "fraction of tokens", "none", "Tokens whose probability ratio was clipped."),
    _iteration("value_clip_fraction", "fraction of tokens", "none", "Tokens whose value change was clipped."),
    _iteration("approx_kl", "nats per token", "none", "KL between the policies before and during the update (k3)."),
    _iteration("ratio.mean", "", "none", "Mean probability ratio of the update."),
    _iteration("ratio.min", "", "none", "Smallest probability ratio."),
    _iteration("ratio.max", "", "none", "Largest probability ratio."),
    _iteration("grad_norm.policy", "", "none", "Mean gradient norm of the policy before clipping."),
    _iteration("grad_norm.critic", "", "none", "Mean gradient norm of the critic before clipping."),
    _iteration("learning_rate", "", "none", "Learning rate of the policy; 0 while only the critic is trained."),
    _iteration("learning_rate.critic", "", "none", "Learning rate of the critic."),
    _iteration(
        "optimizer_steps", "optimizer steps", "none", "Optimizer steps in the iteration; fewer if target_kl is reached."
    ),
    _iteration("episodes", "completions", "none", "Completions sampled so far."),
    _iteration("seconds.rollout", "seconds", "lower", "Time spent sampling completions."),
    _iteration("seconds.scoring", "seconds", "lower", "Time spent on rewards, log-probabilities and values."),
    _iteration("seconds.update", "seconds", "lower", "Time spent on optimizer steps."),
    _iteration("tokens_per_second", "tokens per second", "higher", "Completion tokens per second of the iteration."),
    _iteration("memory_peak_bytes", "bytes", "lower", "Peak memory so far: of the GPU, or of the process on a CPU."),
)

PPO_METRICS = (
    *(
        dataclasses.replace(
            metric,
            name=f"ppo.{metric.name}",
            group="ppo",
            description=f"{metric.description} Mean over the last tenth of the iterations.",
        )
        for metric in SUMMARIZED_ITERATION_METRICS
    ),
    Metric("ppo.episodes", "completions", "none", "Completions sampled in the run.", "ppo"),
    Metric("ppo.iterations", "iterations", "none", "Number of iterations in the run.", "ppo"),
    Metric("ppo.tokens_per_second", "tokens per second", "higher", "Completion tokens per second of training.", "ppo"),
    Metric("ppo.train_seconds", "seconds", "lower", "Time spent training, excluding loading and saving.", "ppo"),
    Metric("ppo.memory_peak_bytes", "bytes", "lower", "Peak memory: of the GPU, or of the process on a CPU.", "ppo"),
)

EXPORT_METRICS = (
    Metric(
        "export.kl",
        "nats per token",
        "lower",
        "Mean KL divergence between the reloaded exported model and the trained model, on held-out prompts.",
        "export",
    ),
    Metric("export.bytes", "bytes", "lower", "Size of the exported directory.", "export"),
    Metric(
        "export.parameters", "parameters", "none", "Number of parameters of the exported model or adapter.", "export"
    ),
)

SAMPLE_METRICS = (
    Metric("sample.prompts", "prompts", "none", "Prompts with at least two distinct completions.", "sample"),
    Metric("sample.prompts_dropped", "prompts", "lower", "Prompts with fewer than two distinct completions.", "sample"),
    Metric("sample.completions", "completions", "none", "Distinct completions of all prompts that are kept.", "sample"),
    Metric(
        "sample.duplicates",
        "completions",
        "lower",
        "Completions dropped because another one of the same prompt is equal or similar (sample.max_similarity).",
        "sample",
    ),
    Metric("sample.empty", "completions", "lower", "Completions dropped because they are empty.", "sample"),
    Metric(
        "sample.response_length",
        "tokens",
        "none",
        "Mean length of all sampled completions, including the end token.",
        "sample",
    ),
    Metric(
        "sample.truncation_rate",
        "fraction of completions",
        "lower",
        "Sampled completions that reached sample.max_new_tokens.",
        "sample",
    ),
)

SAMPLE_BATCH_METRICS = (
    Metric(
        "response_length", "tokens", "none", "Mean length of a completion, including its end token.", "sample_batches"
    ),
    Metric(
        "truncation_rate",
        "fraction of completions",
        "lower",
        "Completions that reached sample.max_new_tokens.",
        "sample_batches",
    ),
    Metric("tokens_per_second", "tokens per second", "higher", "Completion tokens per second.", "sample_batches"),
)

FEEDBACK_METRICS = (
    _feedback("feedback.pairs", "pairs", "Exported pairs, over all splits."),
    _feedback("feedback.ties", "pairs", "Judged pairs that are tied or undecided, and are therefore not exported."),
    Metric(
        "feedback.label_agreement",
        "fraction of votes",
        "higher",
        "How often a person's vote on a pair agrees with the majority of the other people's votes; a tied vote is half "
        "right. Bootstrap interval over items.",
        "feedback",
        has_interval=True,
        has_count=True,
    ),
)

REVISE_METRICS = (
    Metric("revise.rows", "rows", "none", "Demonstrations that are written.", "revise"),
    Metric("revise.empty", "rows", "lower", "Completions dropped because their revision is empty.", "revise"),
    Metric("revise.too_long", "rows", "lower", "Completions dropped because a request exceeds the context.", "revise"),
    Metric("revise.unchanged", "rows", "none", "Demonstrations that equal the draft.", "revise"),
    Metric("revise.length", "characters", "none", "Mean length of a demonstration's completion.", "revise"),
)

REVISE_STEP_METRICS = (
    Metric("rows", "rows", "none", "Completions of the step.", "revise_steps"),
    Metric("too_long", "rows", "lower", "Those of which a request exceeds the context.", "revise_steps"),
)

TRAINING_METRICS = (
    *TRAINER_METRICS,
    *PPO_METRICS,
    *EXPORT_METRICS,
    *SAMPLE_METRICS,
    *FEEDBACK_METRICS,
    *REVISE_METRICS,
    *STEP_METRICS,
    *ITERATION_METRICS,
    *SAMPLE_BATCH_METRICS,
    *REVISE_STEP_METRICS,
)
