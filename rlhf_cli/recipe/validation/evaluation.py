"""Validate the gates. Whether their metrics exist is checked when the evaluation is resolved."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.recipe.schema import Eval, Recipe
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue
from rlhf_cli.stages import STAGES


def gate_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield an issue for each gate without a limit, or with limits that nothing can meet."""
    for spec in STAGES.values():
        section = getattr(recipe, spec.section)
        for index, gate in enumerate(section.gates if isinstance(section, Eval) else ()):
            key = (spec.section, "gates", index)
            if gate.min is None and gate.max is None:
                problem = "missing key; expected min, max or both."
                yield keyed_issue("recipe.missing-key", key, problem, "Add `min:` or `max:`.")
            elif gate.min is not None and gate.max is not None and gate.min > gate.max:
                problem = f"above max; found {gate.min}, expected at most {gate.max}."
                yield keyed_issue(
                    "recipe.invalid-value", (*key, "min"), problem, "Swap min and max, or remove one of them."
                )
