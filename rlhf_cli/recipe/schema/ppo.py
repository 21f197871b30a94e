"""The section of PPO: reward sources, critic, KL penalty and the optimization."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from rlhf_cli.recipe.schema.section import (
    SMOKE_STEPS,
    SMOKE_TOKENS,
    NonNegativeFloat,
    NonNegativeInt,
    PathKind,
    PositiveFloat,
    PositiveInt,
    Section,
    UnitFloat,
)


class Length(Section):
    """Bounds on the length of a completion. Either may be omitted."""

    min: NonNegativeInt = Field(0, description="minimum length in tokens, including the end token")
    max: PositiveInt | None = Field(None, description="maximum length in tokens, including the end token; null: none")


class Rule(Section):
    """A built-in rule: the reward is 1 if the completion satisfies it, and 0 otherwise. Set exactly one field."""

    length: Length | None = Field(None, description="bounds on the completion's length in tokens")
    pattern: str | None = Field(
        None, description="regular expression that must match somewhere in the completion (Python's re.search)"
    )
    forbidden: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="words or phrases that the completion must not contain (case-insensitive)"
    )


class RewardSource(Section):
    """One reward source: exactly one of `run`, `model`, `python`, `http`, `rule` and `judge`."""

    run: Annotated[str | None, PathKind("run")] = Field(
        None, description="a reward run that was trained on the recipe's base model"
    )
    model: Annotated[str | None, PathKind("model")] = Field(
        None, description="Hub id or directory of a full reward model with its own tokenizer and chat template"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub `model`; null: main")
    python: Annotated[str | None, PathKind("function")] = Field(
        None, description="file.py:function with the signature (prompts, completions, **columns) -> list[float]"
    )
    http: str | None = Field(
        None, description="URL that receives {prompts, completions, …columns} as JSON and returns a list of numbers"
    )
    timeout: PositiveFloat | None = Field(None, description="timeout of one `http` request, in seconds; null: 60")
    batch_size: PositiveInt | None = Field(None, description="completions per `http` request; null: 64")
    retries: NonNegativeInt | None = Field(
        None, description="retries of a failed `http` request, after 1, 2, 4, … seconds; null: 4"
    )
    rule: Rule | None = Field(None, description="a built-in rule: {length: {min, max}}, {pattern} or {forbidden}")
    judge: Literal[True] | None = Field(
        None, description="true: the judge in feedback.judge, by how well it says a completion follows its principles"
    )
    combine: Literal["mean", "min", "uncertainty"] | None = Field(
        None,
        description="how the scores of the members of a `run` with several are combined: mean; min: the lowest; "
        "uncertainty: the mean minus a tenth of their variance; null: mean",
    )
    weight: float = Field(1.0, description="weight of this source in the sum")

    def smoke(self) -> Self:
        """Use this recipe's own reward run: a run on the full-size base model does not fit the tiny one."""
        return self if self.run is None else self.replace(run="reward")


class Critic(Section):
    """The value function."""

    kind: Literal["adapter", "shared"] = Field(
        "adapter",
        description="adapter: a separate adapter, copied from the reward run; shared: a head on top of the policy",
    )
    learning_rate: PositiveFloat | None = Field(
        None,
        description="peak learning rate of AdamW for the critic's adapter and head; null: ten times the policy's",
    )
    warmup_iterations: NonNegativeInt = Field(
        0, description="iterations at the start in which only the critic is trained"
    )


class Kl(Section):
    """The penalty on the KL divergence of the policy from the reference."""

    coef: NonNegativeFloat = Field(
        0.05, description="coefficient, in reward per nat; the initial value if target is set"
    )
    target: PositiveFloat | None = Field(
        None, description="target KL per completion, in nats, for an adaptive coefficient; null: fixed coefficient"
    )
    horizon: PositiveInt | None = Field(
        None,
        description="horizon of the adaptive coefficient, in episodes: a lower one adapts faster; null: three rollouts",
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1",
        description="estimator of the KL of each token: k1 with apply_to reward; k2 or k3 with apply_to loss",
    )
    apply_to: Literal["reward", "loss"] = Field(
        "reward", description="reward: subtract KL from the reward of each token; loss: add KL to the policy loss"
    )
    abort: PositiveFloat | None = Field(
        None, description="KL per completion, in nats, above which the run ends with exit code 7; null: no limit"
    )

    def smoke(self) -> Self:
        """Remove the limit: random weights diverge without bounds."""
        return self.replace(abort=None)


class Ppo(Section):
    """Optimize the policy against the reward with proximal policy optimization."""

    start: Annotated[str, PathKind("run", ("base",))] = Field(
        "sft",
        description="initial policy, and the reference: base, an sft or ppo run, or the directory of an adapter",
    )
    reward: list[RewardSource] = Field(
        [RewardSource(run="reward")], min_length=1, description="reward sources, summed with their weights"
    )
    iterations: PositiveInt = Field(200, description="number of rollouts; each is followed by updates")
    rollout_batch_size: PositiveInt = Field(128, description="prompts per iteration, over all devices")
    samples_per_prompt: PositiveInt = Field(1, description="completions per prompt")
    max_prompt_length: PositiveInt = Field(
        512, description="maximum length of a prompt, in tokens; longer prompts are dropped"
    )
    max_new_tokens: PositiveInt = Field(256, description="maximum length of a completion, in tokens")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="strings that end a completion, in addition to the end tokens; removed from its text"
    )
    temperature: PositiveFloat = Field(1.0, description="temperature for sampling and for all log-probabilities")
    epochs: PositiveInt = Field(4, description="passes over each rollout")
    minibatches: PositiveInt = Field(4, description="optimizer steps per pass")
    micro_batch_tokens: PositiveInt = Field(8192, description="tokens per forward pass, per device")
    learning_rate: PositiveFloat = Field(1e-5, description="peak learning rate of AdamW for the policy")
    critic: Critic = Field(Critic(), description="the value function")
    kl: Kl = Field(Kl(), description="the penalty on the KL divergence from the reference")
    clip: PositiveFloat = Field(0.2, description="clip range of the probability ratio, on both sides of 1")
    clip_high: PositiveFloat | None = Field(
        None, description="clip range of the probability ratio above 1; null: the same as clip"
    )
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        None, description="probability ratio above which the loss of a token with negative advantage is constant"
    )
    entropy_coef: NonNegativeFloat = Field(0.0, description="weight of the entropy bonus, in loss per nat per token")
    value_clip: PositiveFloat = Field(
        0.2, description="clip range for the change in value since the rollout, in units of reward"
    )
    target_kl: PositiveFloat | None = Field(
        None, description="approximate KL, in nats per token, at which the updates of an iteration stop; null: no limit"
    )
    gamma: UnitFloat = Field(1.0, description="discount per token")
    gae_lambda: UnitFloat = Field(0.95, description="lambda of generalized advantage estimation")
    normalize_reward: bool = Field(
        False, description="normalize rewards to mean 0 and standard deviation 1 over all rewards of the run so far"
    )
    reward_clip: PositiveFloat | None = Field(
        None, description="limit on the absolute value of the reward, after normalization; null: none"
    )
    missing_eos_penalty: NonNegativeFloat | None = Field(
        None,
        description="reward subtracted from a completion without an end token, after normalization and clipping",
    )
    ptx_coef: NonNegativeFloat = Field(
        0.0, description="weight of the loss on demonstrations from data.sft, added to every minibatch (PPO-ptx)"
    )
    save_every: PositiveInt = Field(20, description="iterations between two checkpoints of the policy")
    trainer: dict[str, Any] = Field(
        {}, description="optimizer, schedule and tracker options of transformers.TrainingArguments"
    )

    def smoke(self) -> Self:
        """Train two iterations on four short prompts each."""
        shrunk = super().smoke()
        critic = shrunk.critic
        return shrunk.replace(
            iterations=SMOKE_STEPS,
            rollout_batch_size=4,
            minibatches=min(self.minibatches, 2),
            max_prompt_length=min(self.max_prompt_length, SMOKE_TOKENS),
            max_new_tokens=min(self.max_new_tokens, 8),
            critic=critic.replace(warmup_iterations=min(critic.warmup_iterations, SMOKE_STEPS - 1)),
            save_every=1,
        )
