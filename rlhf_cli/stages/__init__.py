"""The stages, as a literal table. A stage is one function, `run(recipe, run) -> Result`, in a module of its own.

Importing this loads none of them: torch and trl come with the stage that runs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Rows = Literal["pretrain", "sft", "preferences", "prompts"]


class Stage(NamedTuple):
    """One row: where the function is, what it reads, and a line for `--help`."""

    function: str  # module:function
    section: str  # of the recipe
    rows: tuple[Rows, ...]  # of the recipe's data, where they are given
    runs: tuple[str, ...]  # fields of the section that name runs or models
    adapts_base: bool  # whether the base and the adapter settings are inputs
    help: str


STAGES: dict[str, Stage] = {
    "pretrain": Stage(
        "rlhf_cli.stages.pretrain:run",
        section="pretrain",
        rows=("pretrain",),
        runs=("start",),
        adapts_base=False,
        help="Make a small base model and tokenizer from text, or train a given base on.",
    ),
    "sft": Stage(
        "rlhf_cli.stages.sft:run",
        section="sft",
        rows=("sft",),
        runs=("start",),
        adapts_base=True,
        help="Fine-tune the base on demonstrations.",
    ),
    "reward": Stage(
        "rlhf_cli.stages.reward:run",
        section="reward",
        rows=("preferences",),
        runs=("start",),
        adapts_base=True,
        help="Train a reward model on pairwise preferences.",
    ),
    "ppo": Stage(
        "rlhf_cli.stages.ppo:run",
        section="ppo",
        rows=("prompts",),
        runs=("start",),
        adapts_base=True,
        help="Optimize the policy against the reward with PPO.",
    ),
    "eval": Stage(
        "rlhf_cli.stages.eval:run",
        section="eval",
        rows=("sft", "preferences", "prompts"),
        runs=("of", "against", "reward"),
        adapts_base=True,
        help="Judge a run against another one; a failed gate exits 8.",
    ),
    "export": Stage(
        "rlhf_cli.stages.export:run",
        section="export",
        rows=(),
        runs=("of",),
        adapts_base=True,
        help="Write the finished model, reloaded and compared.",
    ),
}
