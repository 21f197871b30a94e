"""Register the stable code of each error that a user can cause.

A code never changes its meaning. Messages may change, so scripts should match codes. `docs/errors.md` is generated from
this table.
"""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[str, str] = {  # prefix of a code: heading in docs/errors.md
    "recipe": "Recipe and command line",
    "data": "Data",
    "model": "Models and runs",
    "hardware": "Hardware",
    "disk": "Disk, permissions and locks",
    "training": "Training and rewards",
    "eval": "Evaluation",
    "run": "Interrupted runs",
    "internal": "Internal errors",
}

CODES: Mapping[str, str] = {  # code: what it means, in one sentence
    # recipe: the recipe, a command-line option, or a reference in the recipe
    "recipe.unknown-key": "The key does not exist in its section.",
    "recipe.usage": "The command line is invalid: an unknown command or option, or a missing argument.",
    # data: rows and files
    "data.empty-completion": "The completion of a row is empty.",
    # model: models, adapters, runs and their files
    "model.adapter-of-other-base": "The adapter was trained on another base model.",
    # hardware
    "hardware.out-of-memory": "The device ran out of memory.",
    # disk
    "disk.full": "The disk is full or cannot be written.",
    # training: divergence, and rewards that fail while training runs
    "training.non-finite": "A loss, a gradient or a reward is not a finite number.",
    # eval
    "eval.gate-failed": "A metric is outside the bounds of a gate.",
    # run
    "run.stopped": "A signal stopped the run; it can be resumed.",
    # internal
    "internal.error": "An internal error of rlhf.",
}
