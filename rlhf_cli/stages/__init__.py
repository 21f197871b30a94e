"""Declare the stages: one record each, in the order of the chain. Importing this loads neither torch nor trl.

Everything that differs between stages and concerns more than the stage's own file is a field here. No other module
compares a stage's name with a literal. CONTRIBUTING.md lists the steps to add a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DatasetKind = Literal["pretrain", "sft", "preferences", "prompts"]
ModelClass = Literal["causal_lm", "scorer"]

POLICY_STAGES = ("sft", "ppo")  # stages whose model generates completions


@dataclass(frozen=True)
class StageSpec:
    """What the rest of the package needs to know about a stage.

    Attributes:
        entry_point: `module:function` of `run(stage: ResolvedStage, run: Run) -> StageMetrics`.
        section: Name of the recipe's section.
        command: The command that runs it, without `rlhf`; empty: the name of the stage.
        help: One line for `--help`.
        prepare: `module:function` of `prepare(stage: ResolvedStage) -> PreparedData`, which loads, tokenizes and
            counts the data without loading weights. The stage and `--dry-run` share it. Empty if the stage does not
            train.
        preview: `module:function` of `preview(stage: ResolvedStage) -> dict`, which returns what `--dry-run` shows of a
            stage that does not train: `facts` and, optionally, `example`.
        dataset: The dataset that the stage trains on and cannot do without, or None.
        datasets: Further datasets that it reads if the recipe has them.
        dataset_switches: Datasets that it reads only if a field of its section is not zero: dataset to field.
        accepts: Fields of its section that name a run or a list of runs, each with the stages whose runs it accepts.
        base_key: The recipe key of the base model; empty if the stage reads none.
        adapts_base: Whether the base and adapter settings decide the result.
        reads_store: Whether it reads the judgments of the feedback store.
        result_fields: The fields of its section that decide the result; empty: all.
        reads_settings: Keys of other sections that decide the result.
        fallbacks: Fields of its section that are null by default, each with the key whose value then counts.
        trl_config: Name of TRL's config class, or None if the stage does not train with a TRL trainer.
        model_class: What `model/` holds: a causal language model, a scorer, or None if it is not for later stages.
        max_length_key: Field of its section that limits a row's tokens.
        sequences_per_row: Token sequences per row of its dataset; 2 for preference pairs.
        generates: Whether it samples completions, so that a sequence is a prompt plus new tokens.
        memory_model: How its peak memory is estimated: as a TRL trainer's, as PPO's, or not.
        memory_key: Key of the setting that lowers its peak memory, or "" if there is none.
        headline_metrics: The metrics that represent it in tables.
        evaluates: Whether it compares models and has gates.
        exports: Whether it writes the final model.
        single_process: Whether only the main process runs it.
        keep_checkpoints: Whether its checkpoints stay after completion.
    """

    entry_point: str
    section: str
    help: str
    command: str = ""
    prepare: str = ""
    preview: str = ""
    dataset: DatasetKind | None = None
    datasets: tuple[DatasetKind, ...] = ()
    dataset_switches: Mapping[DatasetKind, str] = field(default_factory=dict)
    accepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    base_key: str = "base.model"
    adapts_base: bool = True
    reads_store: bool = False
    result_fields: tuple[str, ...] = ()
    reads_settings: tuple[str, ...] = ()
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    trl_config: str | None = None
    model_class: ModelClass | None = None
    max_length_key: str = "max_length"
    sequences_per_row: int = 1
    generates: bool = False
    memory_model: Literal["trl", "ppo"] | None = None
    memory_key: str = ""
    headline_metrics: tuple[str, ...] = ()
    evaluates: bool = False
    exports: bool = False
    single_process: bool = False
    keep_checkpoints: bool = False


STAGES: dict[str, StageSpec] = {
    "pretrain": StageSpec(
        entry_point="rlhf_cli.stages.pretrain:run",
        prepare="rlhf_cli.stages.pretrain:prepare",
        section="pretrain",
        help="Train a small base model and tokenizer on text, or continue pretraining an existing base model.",
        dataset="pretrain",
        accepts={"start": ("pretrain",)},
        base_key="pretrain.start",
        adapts_base=False,
        trl_config="SFTConfig",
        model_class="causal_lm",
        memory_key="pretrain.micro_batch_size",
        headline_metrics=("pretrain.nll",),
    ),
    "sft": StageSpec(
        entry_point="rlhf_cli.stages.sft:run",
        prepare="rlhf_cli.stages.sft:prepare",
        section="sft",
        help="Fine-tune the base model on demonstrations.",
        dataset="sft",
        accepts={"start": POLICY_STAGES},
        trl_config="SFTConfig",
        model_class="causal_lm",
        memory_model="trl",
        memory_key="sft.micro_batch_size",
        headline_metrics=("sft.train_loss", "sft.nll"),
    ),
    "sample": StageSpec(
        entry_point="rlhf_cli.stages.sample:run",
        prepare="rlhf_cli.stages.sample:prepare",
        section="sample",
        help="Sample several completions per prompt, for people or a judge to compare.",
        dataset="prompts",
        accepts={"of": POLICY_STAGES},
        reads_settings=("ppo.stop",),
        max_length_key="max_prompt_length",
        generates=True,
        memory_key="sample.batch_size",
        headline_metrics=("sample.completions", "sample.duplicates"),
        single_process=True,
    ),
    "revise": StageSpec(
        entry_point="rlhf_cli.stages.revise:run",
        prepare="rlhf_cli.stages.revise:prepare",
        section="revise",
        help="Let a model critique and revise its completions by a constitution, to train on the revisions.",
        dataset="prompts",
        accepts={"of": POLICY_STAGES},
        reads_settings=("ppo.stop",),
        max_length_key="max_prompt_length",
        generates=True,
        memory_key="revise.batch_size",
        headline_metrics=("revise.rows",),
        single_process=True,
    ),
    "feedback": StageSpec(
        entry_point="rlhf_cli.stages.feedback:run",
        preview="rlhf_cli.stages.feedback:preview",
        section="feedback",
        command="annotate export",
        help="Export the judgments in the store as a version of preference data.",
        base_key="",
        adapts_base=False,
        reads_store=True,
        result_fields=("aggregate", "pairs", "sources", "min_votes", "eval_fraction", "held_out_annotators"),
        headline_metrics=("feedback.pairs", "feedback.agreement"),
        single_process=True,
    ),
    "reward": StageSpec(
        entry_point="rlhf_cli.stages.reward:run",
        prepare="rlhf_cli.stages.reward:prepare",
        section="reward",
        help="Train a reward model on pairwise preferences.",
        dataset="preferences",
        accepts={"start": ("sft", "reward")},
        trl_config="RewardConfig",
        model_class="scorer",
        sequences_per_row=2,
        memory_model="trl",
        memory_key="reward.micro_batch_size",
        headline_metrics=("reward.train_loss", "reward.accuracy", "reward.ceiling"),
    ),
    "ppo": StageSpec(
        entry_point="rlhf_cli.stages.ppo:run",
        prepare="rlhf_cli.stages.ppo:prepare",
        section="ppo",
        help="Optimize the policy against the reward with PPO.",
        dataset="prompts",
        dataset_switches={"sft": "ptx_coef"},
        accepts={"start": POLICY_STAGES},
        model_class="causal_lm",
        max_length_key="max_prompt_length",
        generates=True,
        memory_model="ppo",
        memory_key="ppo.micro_batch_tokens",
        headline_metrics=("ppo.reward", "ppo.kl"),
        keep_checkpoints=True,  # an earlier policy may be the better one
    ),
    "eval": StageSpec(
        entry_point="rlhf_cli.stages.eval:run",
        section="eval",
        help="Compare a run with a baseline; exit with code 8 if a gate fails.",
        datasets=("sft", "preferences", "prompts"),
        accepts={"candidate": POLICY_STAGES, "baseline": POLICY_STAGES, "reward": ("reward",)},
        reads_settings=("sft.max_length", "reward.max_length", "ppo.max_prompt_length", "ppo.stop"),
        fallbacks={"max_new_tokens": "ppo.max_new_tokens"},
        memory_key="eval.batch_size",
        headline_metrics=("win_rate", "reward.accuracy", "reward.ceiling"),
        evaluates=True,
        single_process=True,
    ),
    "export": StageSpec(
        entry_point="rlhf_cli.stages.export:run",
        section="export",
        help="Export the model and verify it by reloading it.",
        datasets=("prompts", "sft"),  # the exported model is compared on their prompts
        accepts={"of": POLICY_STAGES},
        headline_metrics=("export.kl",),
        exports=True,
        single_process=True,
    ),
}

BASE_STAGES = tuple(  # write base models
    name for name, spec in STAGES.items() if spec.model_class == "causal_lm" and not spec.adapts_base
)
REWARD_STAGES = tuple(name for name, spec in STAGES.items() if spec.model_class == "scorer")  # write reward models


def command_of(stage: str) -> str:
    """Return the command that runs `stage`, with `rlhf`. A run may be of a stage that this version does not know."""
    return f"rlhf {STAGES[stage].command or stage if stage in STAGES else stage}"
