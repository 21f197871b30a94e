"""`--smoke`: the user's own recipe made tiny. Every setting that is not a size stays as it is."""

from __future__ import annotations

from typing import Any

from rlhf_cli.recipe.schema import STAGES, Launch, Recipe, is_run_reference

STEPS = 2  # optimizer steps, or PPO iterations
ROWS = 16  # of each data set
TOKENS = 512  # a sequence, at most


def shrink(recipe: Recipe) -> Recipe:
    """The recipe with 2 steps or iterations, small batches and short sequences.

    Runs are taken from the recipe's own smoke runs: a reference to a version, or to another recipe's run, becomes one
    to the stage of this recipe. The base is shrunken where it is loaded, the rows where they are read.
    """
    changed: dict[str, Any] = {}
    for stage in ("pretrain", "sft", "reward"):
        section = getattr(recipe, stage)
        update = {"epochs": None, "max_steps": STEPS, "batch_size": 2, "micro_batch_size": 1, "save_every": 1}
        length = min(section.max_length, TOKENS)
        changed[stage] = section.model_copy(
            update={**update, "max_length": length, "start": _start(section.start, stage)}
        )
    changed["data"] = recipe.data.model_copy(update={"max_overlong": 1.0})  # the lengths are no longer the recipe's
    changed["launch"] = Launch()  # one process: there is no work for more
    shape = recipe.pretrain.architecture
    changed["pretrain"] = changed["pretrain"].model_copy(
        update={
            "architecture": shape.model_copy(
                update={"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "kv_heads": 2}
            )
        }
    )
    ppo = recipe.ppo
    minibatches = min(ppo.minibatches, 2)
    changed["ppo"] = ppo.model_copy(
        update={
            "start": _start(ppo.start, "ppo"),
            "reward": [t.model_copy(update={"run": _own(t.run, "reward") if t.run else None}) for t in ppo.reward],
            "iterations": STEPS,
            "rollout_batch_size": 4,
            "minibatches": minibatches,
            "max_prompt_length": min(ppo.max_prompt_length, TOKENS),
            "max_new_tokens": min(ppo.max_new_tokens, 8),
            "critic": ppo.critic.model_copy(update={"warmup_iterations": min(ppo.critic.warmup_iterations, STEPS - 1)}),
            "kl": ppo.kl.model_copy(update={"abort": None}),
            "save_every": 1,
        }
    )
    evaluation = recipe.eval
    changed["eval"] = evaluation.model_copy(
        update={
            "candidate": _own(evaluation.candidate),
            "baseline": _own(evaluation.baseline) if evaluation.baseline else None,
            "reward": _own(evaluation.reward, "reward") if evaluation.reward else None,
            "samples": min(evaluation.samples, 8),
            "max_new_tokens": 8,
            "gates": [],  # random weights pass none
        }
    )
    policy = "ppo" if "ppo" in recipe.model_fields_set else "sft"
    changed["export"] = recipe.export.model_copy(update={"of": _own(recipe.export.of, policy)})
    shrunk = recipe.model_copy(update=changed)
    shrunk.__pydantic_fields_set__ = set(recipe.model_fields_set)
    return shrunk


def _start(ref: str, stage: str) -> str:
    """Where `stage` starts. One that goes on from a run of its own, or of a later stage, would wait for itself."""
    own = _own(ref)
    if own in STAGES and STAGES.index(own) >= STAGES.index(stage):
        return "scratch" if stage == "pretrain" else "base"
    return own


def _own(ref: str, folder: str = "base") -> str:
    """This recipe's own stage in place of a run; `folder` in place of a folder, whose weights fit no shrunken base."""
    if is_run_reference(ref):
        return ref.partition("@")[0].rpartition("/")[2]
    return folder if ref.startswith("/") else ref
