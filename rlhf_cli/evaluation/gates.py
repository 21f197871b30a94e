"""Gates: one verdict, pass or fail, from a metric's point estimate and the bounds of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.schema import Gate

BOUNDS = (("min", "at least"), ("max", "at most"))


class Verdict(NamedTuple):
    """What a gate says of a metric's value."""

    gate: Gate
    value: float
    passed: bool

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{'pass' if self.passed else 'FAIL'}  {said(self.as_json())}"

    def as_json(self) -> dict[str, Any]:
        """As the manifest and report.json have it."""
        gate = self.gate
        return {"metric": gate.metric, "min": gate.min, "max": gate.max, "value": self.value, "passed": self.passed}


def said(verdict: Mapping[str, Any]) -> str:
    """A verdict, as `as_json` gives it, without whether it passed."""
    bounds = [f"{word} {verdict[key]:g}" for key, word in BOUNDS if verdict[key] is not None]
    return f"{verdict['metric']} = {verdict['value']:.4g}, wanted {' and '.join(bounds)}"


def check_names(gates: Sequence[Gate], names: Collection[str]) -> None:
    """Raise RecipeError, one issue a gate, where a gate names a metric that is not among `names`."""
    issues = [_unknown(index, gate, names) for index, gate in enumerate(gates) if gate.metric not in names]
    if issues:
        raise RecipeError(issues)


def judge(gates: Sequence[Gate], metrics: Mapping[str, float]) -> list[Verdict]:
    """A verdict for each gate, in their order. A value that is not a number passes no gate."""
    check_names(gates, metrics)
    return [_verdict(gate, metrics[gate.metric]) for gate in gates]


def _verdict(gate: Gate, value: float) -> Verdict:
    passed = (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
    return Verdict(gate, value, passed)


def _unknown(index: int, gate: Gate, names: Collection[str]) -> Issue:
    near = difflib.get_close_matches(gate.metric, names, n=3, cutoff=0.5)
    return Issue(
        f"{gate.metric} is not a metric that this recipe's evaluation gives.",
        location=f"eval.gates.{index}.metric",
        hint=f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(names)) or 'none'}.",
    )
