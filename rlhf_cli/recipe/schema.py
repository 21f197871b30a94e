"""The recipe's fields, each with its unit. Frozen; unknown keys are refused.

What a stage hands to TRL or transformers beyond these goes through its `trainer:` mapping as it is; the fields here
are the ones that most people set. A rule that spans several fields stands in `check.py`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

SCHEMA = 1  # of recipes: what a file may say of itself in a key `schema`
STAGES = ("pretrain", "sft", "reward", "ppo", "eval", "export")  # in the order of the chain
RUN_REFERENCE = re.compile(
    rf"(?:(?P<name>[A-Za-z0-9][\w.-]*)/)?(?P<stage>{'|'.join(STAGES)})(?:@(?P<version>latest|v\d{{4,}}))?"
)


@dataclass(frozen=True)
class PathKind:
    """Marks a field whose text is a path, resolved against the folder of the file that wrote it."""

    kind: Literal["file", "model", "function", "template"]

    def resolve(self, text: str, folder: Path) -> str:
        """`text` with its path absolute; run references, hub ids and the words base and scratch stay."""
        if self.kind == "function":
            path, colon, name = text.rpartition(":")
            return f"{_under(folder, path)}:{name}" if colon else text
        if self.kind == "template" and text == "auto":
            return text
        if self.kind in ("file", "template"):
            return _under(folder, text)
        if is_run_reference(text) or text in ("base", "scratch"):
            return text
        path = _under(folder, text)
        is_path = text.startswith((".", "/", "~")) or text.count("/") > 1  # a hub id is owner/name
        return path if is_path or os.path.isdir(path) else text


def _under(folder: Path, text: str) -> str:
    return os.path.normpath(folder / os.path.expanduser(text))


UnitFloat = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]


def is_run_reference(text: str) -> bool:
    """Whether `text` names a run (`sft`, `sft@v0002`, `name/sft@latest`) rather than a folder or a hub id."""
    match = RUN_REFERENCE.fullmatch(text)
    return match is not None and (match["name"] is None or match["version"] is not None)


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Base(Section):
    """The one model that every stage adapts."""

    model: Annotated[str, PathKind("model")] = Field(
        description="hub id, folder, or a pretrain run (`pretrain`, `pretrain@v0002`)"
    )
    revision: str = Field("main", description="branch, tag or commit of a hub model")
    quantize: Literal["none", "int8", "nf4"] = Field("none", description="bits of the frozen base's linear weights")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and computation; auto: bfloat16 on a GPU that has it, else float32"
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field("auto", description="attention kernel")
    chat_template: Annotated[str, PathKind("template")] = Field(
        "auto", description="auto: the tokenizer's, else a plain-text one; or a .jinja file"
    )


class Adapter(Section):
    """The LoRA adapter that a stage trains on the base. `adapter: null` trains whole models instead."""

    rank: PositiveInt = Field(16, description="rank of the update, in dimensions")
    alpha: PositiveFloat = Field(32, description="scale: the update is multiplied by alpha / rank")
    dropout: UnitFloat = Field(0.0, description="share of the adapter's inputs dropped in sft and reward training")
    target_modules: str | list[str] = Field("all-linear", description="module names to adapt, or all-linear")
    dora: bool = Field(False, description="learn magnitude and direction apart (DoRA)")


class Source(Section):
    """Where rows come from: exactly one of `path`, `hub` and `run`."""

    path: Annotated[str | None, PathKind("file")] = Field(
        None, description="a .jsonl, .json, .csv, .parquet or .txt file, or a folder of them"
    )
    hub: str | None = Field(None, description="data set id on the Hugging Face hub")
    run: str | None = Field(None, description="a run that wrote rows, such as feedback@latest")
    config: str | None = Field(None, description="configuration name of a hub data set")
    revision: str | None = Field(None, description="branch, tag or commit of a hub data set")
    split: str = Field("train", description="split of a hub data set or folder; slices as in train[:1000]")
    eval_split: str | None = Field(None, description="split that is held out, in place of eval_fraction")
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of the prompts held out, whatever the seed; 0.05 where eval_split is not set",
    )
    columns: dict[str, str] = Field({}, description="our column name: the data's column name")
    weight: PositiveFloat | None = Field(
        None, description="relative share in a mixture; where no source has one, all rows of all sources are used"
    )


def _one_is_a_list_of_one(value: object) -> object:
    if not isinstance(value, dict | list):
        raise ValueError("a mapping such as {path: rows.jsonl}, or a list of them")
    return [value] if isinstance(value, dict) else value


Sources = Annotated[list[Source], BeforeValidator(_one_is_a_list_of_one), Field(min_length=1)]


class Data(Section):
    """The data of each stage: one source, or a list of them with weights."""

    pretrain: Sources | None = Field(None, description="rows with `text`")
    sft: Sources | None = Field(None, description="rows with prompt/completion, messages, or text")
    preferences: Sources | None = Field(None, description="rows with prompt/chosen/rejected")
    prompts: Sources | None = Field(None, description="rows with prompt; further columns go to reward functions")
    max_overlong: UnitFloat = Field(
        1.0, description="share of a data set's rows that may be over their stage's limit in tokens; more are refused"
    )


class Architecture(Section):
    """The shape of a small Llama that `pretrain` makes."""

    vocab_size: Annotated[int, Field(ge=260)] = Field(512, description="tokens in the BPE vocabulary")
    hidden_size: PositiveInt = Field(128, description="width of the residual stream; a multiple of 64 for 4-bit on CPU")
    intermediate_size: PositiveInt = Field(384, description="width of the feed-forward layer")
    layers: PositiveInt = Field(4, description="transformer blocks")
    heads: PositiveInt = Field(4, description="attention heads")
    kv_heads: PositiveInt = Field(4, description="key/value heads, a divisor of heads")
    context: PositiveInt = Field(512, description="positions, in tokens")


class Pretrain(Section):
    """Train a base: from nothing (model and tokenizer), or on from a given one."""

    start: Annotated[str, PathKind("model")] = Field(
        "scratch", description="scratch, or the hub id or folder of a model to train on"
    )
    architecture: Architecture = Field(Architecture(), description="of a model from scratch")
    epochs: PositiveFloat | None = Field(None, description="passes over the text; not with max_steps. Default 1")
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; not with epochs")
    batch_size: PositiveInt = Field(32, description="sequences an optimizer step")
    micro_batch_size: PositiveInt = Field(32, description="sequences a forward pass")
    learning_rate: PositiveFloat = Field(1e-3, description="peak, AdamW")
    max_length: PositiveInt = Field(256, description="tokens of a packed sequence")
    save_every: PositiveInt = Field(500, description="optimizer steps between checkpoints, for --resume")
    trainer: dict[str, Any] = Field({}, description="handed to trl.SFTConfig as it is")


class Sft(Section):
    """Supervised fine-tuning on demonstrations; the loss is on the completion alone."""

    start: Annotated[str, PathKind("model")] = Field(
        "base", description="base, an sft run, or the folder of an adapter"
    )
    epochs: PositiveFloat | None = Field(
        None, description="passes over the demonstrations; not with max_steps. Default 1"
    )
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; not with epochs")
    batch_size: PositiveInt = Field(32, description="sequences an optimizer step")
    micro_batch_size: PositiveInt = Field(8, description="sequences a forward pass")
    learning_rate: PositiveFloat = Field(2e-4, description="peak, AdamW")
    max_length: PositiveInt = Field(1024, description="tokens; longer rows lose the completion's end")
    save_every: PositiveInt = Field(500, description="optimizer steps between checkpoints, for --resume")
    trainer: dict[str, Any] = Field({}, description="handed to trl.SFTConfig as it is")


class Reward(Section):
    """A reward model from pairwise preferences (Bradley-Terry)."""

    start: Annotated[str, PathKind("model")] = Field(
        "sft", description="base, an sft or reward run, or the folder of an adapter"
    )
    epochs: PositiveFloat | None = Field(None, description="passes over the pairs; not with max_steps. Default 1")
    max_steps: PositiveInt | None = Field(None, description="optimizer steps; not with epochs")
    batch_size: PositiveInt = Field(32, description="pairs an optimizer step")
    micro_batch_size: PositiveInt = Field(8, description="pairs a forward pass")
    learning_rate: PositiveFloat = Field(1e-4, description="peak, AdamW")
    max_length: PositiveInt = Field(1024, description="tokens; pairs with a longer answer are dropped")
    save_every: PositiveInt = Field(500, description="optimizer steps between checkpoints, for --resume")
    trainer: dict[str, Any] = Field({}, description="handed to trl.RewardConfig as it is")


class Length(Section):
    """Bounds of an answer's length; one may be left out."""

    min: Annotated[int, Field(ge=0)] = Field(0, description="tokens at least, the end token included")
    max: PositiveInt | None = Field(None, description="tokens at most, the end token included")


class Rule(Section):
    """A rule on the answer: 1 where it keeps it, 0 where it does not. Exactly one of the fields."""

    length: Length | None = Field(None, description="bounds in tokens")
    pattern: str | None = Field(None, description="regular expression that is found in the answer (re.search)")
    forbidden: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="words of which the answer has none, in small or capital letters"
    )


class RewardSource(Section):
    """One term of the PPO reward: exactly one of `run`, `model`, `python`, `http` and `rule`."""

    run: Annotated[str | None, PathKind("model")] = Field(None, description="a reward run on the recipe's base")
    model: Annotated[str | None, PathKind("model")] = Field(
        None, description="hub id or folder of a whole reward model, with its own tokenizer and chat template"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub `model`; null: main")
    python: Annotated[str | None, PathKind("function")] = Field(
        None, description="file.py:function of (prompts, completions, **columns) -> list[float]"
    )
    http: str | None = Field(
        None, description="URL that takes {prompts, completions, …columns} as JSON and answers a list of numbers"
    )
    timeout: PositiveFloat | None = Field(None, description="seconds for one answer of `http`; null: 60")
    batch_size: PositiveInt | None = Field(None, description="answers in one request to `http`; null: 64")
    retries: Annotated[int, Field(ge=0)] | None = Field(
        None, description="further tries where `http` fails, after 1, 2, 4, … seconds; null: 4"
    )
    rule: Rule | None = Field(None, description="a built-in rule: {length: {min, max}}, {pattern} or {forbidden}")
    weight: float = Field(1.0, description="factor of this term in the sum")


class Critic(Section):
    """The value function."""

    kind: Literal["adapter", "shared"] = Field(
        "adapter", description="adapter: its own, a copy of the reward run's; shared: a head on the policy's trunk"
    )
    learning_rate: PositiveFloat = Field(1e-5, description="of the value adapter and head, AdamW")
    warmup_iterations: Annotated[int, Field(ge=0)] = Field(0, description="iterations that train the critic alone")


class Kl(Section):
    """How far the policy may go from the reference."""

    coef: Annotated[float, Field(ge=0)] = Field(0.05, description="reward per nat; with a target, its first value")
    target: PositiveFloat | None = Field(None, description="nats a sequence that an adaptive coefficient aims at")
    horizon: PositiveInt = Field(10_000, description="episodes over which the adaptive coefficient acts")
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="per-token estimator")
    apply_to: Literal["reward", "loss"] = Field(
        "reward", description="where KL is charged: in each token's reward, or as a term of the policy's loss"
    )
    abort: PositiveFloat | None = Field(None, description="nats a sequence at which the run ends with exit code 7")


class Ppo(Section):
    """Proximal policy optimization against the reward."""

    start: Annotated[str, PathKind("model")] = Field(
        "sft", description="base, an sft or ppo run, or the folder of an adapter; also the reference"
    )
    reward: list[RewardSource] = Field([RewardSource(run="reward")], min_length=1, description="summed with weights")
    iterations: PositiveInt = Field(200, description="rollouts, each followed by its updates")
    rollout_batch_size: PositiveInt = Field(128, description="prompts an iteration")
    samples_per_prompt: PositiveInt = Field(1, description="answers to each prompt of an iteration")
    max_prompt_length: PositiveInt = Field(512, description="tokens; longer prompts are dropped")
    max_new_tokens: PositiveInt = Field(256, description="tokens an answer at most")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="strings that end an answer, as the tokenizer's end tokens do; cut from its text"
    )
    temperature: PositiveFloat = Field(1.0, description="of sampling and of every log-probability")
    epochs: PositiveInt = Field(4, description="passes over one rollout")
    minibatches: PositiveInt = Field(4, description="optimizer steps a pass")
    micro_batch_tokens: PositiveInt = Field(8192, description="tokens a forward pass")
    learning_rate: PositiveFloat = Field(1e-5, description="of the policy, AdamW")
    critic: Critic = Field(Critic(), description="the value function")
    kl: Kl = Field(Kl(), description="distance from the reference")
    clip: PositiveFloat = Field(0.2, description="of the probability ratio, on both sides of 1")
    clip_high: PositiveFloat | None = Field(None, description="of the ratio above 1, where it is not `clip`")
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        None, description="ratio at which the loss of a token with a negative advantage stops growing"
    )
    entropy_coef: Annotated[float, Field(ge=0)] = Field(0.0, description="bonus for entropy, loss per nat a token")
    value_clip: PositiveFloat = Field(0.2, description="of the value's change since the rollout")
    target_kl: PositiveFloat | None = Field(
        None, description="approx. KL (nats a token) that ends an iteration's updates"
    )
    gamma: UnitFloat = Field(1.0, description="discount a token")
    gae_lambda: UnitFloat = Field(0.95, description="GAE's lambda")
    normalize_reward: bool = Field(
        False, description="bring rewards to mean 0 and deviation 1, by all rewards of the run so far"
    )
    reward_clip: PositiveFloat | None = Field(None, description="bound on a reward's size, after it was normalized")
    missing_eos_penalty: Annotated[float, Field(ge=0)] | None = Field(
        None, description="reward taken from an answer without end, after normalizing and clipping"
    )
    ptx_coef: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the loss on demonstrations from data.sft, mixed into every minibatch (PPO-ptx)"
    )
    save_every: PositiveInt = Field(20, description="iterations between checkpoints of the policy")
    trainer: dict[str, Any] = Field(
        {}, description="optimizer, schedule and trackers, in the words of transformers.TrainingArguments"
    )


class Gate(Section):
    """A bound that a metric must keep; `rlhf eval` exits 8 where it does not."""

    metric: str = Field(description="one of eval's, see Figures in README.md")
    min: float | None = Field(None, description="least value that passes, in the metric's unit")
    max: float | None = Field(None, description="greatest value that passes, in the metric's unit")


class Eval(Section):
    """Is the result better? The same held-out prompts and decoding for `of` and `against`."""

    candidate: Annotated[str, PathKind("model")] = Field("ppo", description="an sft or ppo run, or base")
    baseline: Annotated[str | None, PathKind("model")] = Field(
        "sft", description="an sft or ppo run, or base; null: no comparison"
    )
    reward: Annotated[str | None, PathKind("model")] = Field(
        "reward", description="the reward run that judges; null: none"
    )
    samples: PositiveInt = Field(256, description="held-out rows of each data set that are used, at most")
    temperature: PositiveFloat = Field(1.0, description="of sampling")
    max_new_tokens: PositiveInt | None = Field(None, description="tokens an answer at most; null: ppo.max_new_tokens")
    batch_size: PositiveInt = Field(32, description="sequences a forward pass")
    python: Annotated[list[str], PathKind("function")] = Field(
        [], description="file.py:function to judge by; training never sees them"
    )
    gates: list[Gate] = Field([], description="bounds that the metrics must keep")


class Export(Section):
    """What leaves the project: one folder that others load."""

    of: Annotated[str, PathKind("model")] = Field("ppo", description="an sft or ppo run")
    format: Literal["merged", "adapter"] = Field("merged", description="a whole model, or the adapter alone")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of the merged weights")


class Launch(Section):
    """The processes that work on a stage together, each with a GPU of this machine (or cores of it)."""

    processes: PositiveInt = Field(1, description="each takes its share of every batch")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: each process holds the base whole; fsdp: a part of its every layer"
    )


class Recipe(Section):
    """One YAML file for every stage."""

    name: str = Field(description="of the runs' folder")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of every random draw")
    base: Base = Field(description="the one model that every stage adapts")
    adapter: Adapter | None = Field(Adapter(), description="what a stage trains on it; null: all weights")
    data: Data = Field(Data(), description="rows of each stage")
    launch: Launch = Field(Launch(), description="several processes on one machine")
    pretrain: Pretrain = Field(Pretrain(), description="a base of one's own")
    sft: Sft = Field(Sft(), description="demonstrations")
    reward: Reward = Field(Reward(), description="preferences to reward model")
    ppo: Ppo = Field(Ppo(), description="reward to policy")
    eval: Eval = Field(Eval(), description="judgment and gates")
    export: Export = Field(Export(), description="the finished model")

    @field_validator("name")
    @classmethod
    def _name_is_one_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
            raise ValueError("letters, digits, '.', '_' and '-', beginning with a letter or digit")
        return name
