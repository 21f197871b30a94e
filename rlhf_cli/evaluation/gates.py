"""Evaluate gates: compare a metric with the bounds of the recipe."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.formatting import format_count
from rlhf_cli.recipe.schema import Gate


class GateVerdict(NamedTuple):
    """The result of one gate.

    Attributes:
        gate: The gate.
        value: The metric's value.
        passed: Whether the value is within the bounds.
    """

    gate: Gate
    value: float
    passed: bool

    @property
    def text(self) -> str:
        """The verdict as one line of text."""
        return f"{'pass' if self.passed else 'FAIL'}  {format_verdict(self.as_json())}"

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as the manifest and report.json hold it."""
        gate = self.gate
        return {
            "metric": gate.metric,
            "min": gate.min,
            "max": gate.max,
            "value": None if math.isnan(self.value) else self.value,
            "passed": self.passed,
        }


def format_verdict(verdict: Mapping[str, Any]) -> str:
    """Return the value and the bounds of a verdict, given as `as_json` returns it."""
    bounds = []
    if verdict["min"] is not None:
        bounds.append(f"at least {verdict['min']:g}")
    if verdict["max"] is not None:
        bounds.append(f"at most {verdict['max']:g}")
    value = "not measured" if verdict["value"] is None else f"{verdict['value']:.4g}"
    return f"{verdict['metric']} = {value}, expected {' and '.join(bounds)}"


def summarize(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts of a manifest as one line: how many passed, and each that failed; "" without gates."""
    failed = [format_verdict(verdict) for verdict in verdicts if not verdict["passed"]]
    if failed:
        return f"{format_count(len(failed), 'gate')} of {len(verdicts)} failed: {'; '.join(failed)}"
    return f"{format_count(len(verdicts), 'gate')} passed" if verdicts else ""


def check_gate_metrics(gates: Sequence[Gate], names: Collection[str]) -> None:
    """Raise RecipeError, with one issue per gate, if a gate's metric is not among `names`."""
    issues = [_unknown_metric(index, gate, names) for index, gate in enumerate(gates) if gate.metric not in names]
    if issues:
        raise RecipeError(issues)


def evaluate_gates(gates: Sequence[Gate], metrics: Mapping[str, float]) -> list[GateVerdict]:
    """Evaluate the gates in order. NaN fails every gate.

    Raises:
        RecipeError: A gate's metric is not among `metrics`.
    """
    check_gate_metrics(gates, metrics)
    return [_evaluate(gate, metrics[gate.metric]) for gate in gates]


def _evaluate(gate: Gate, value: float) -> GateVerdict:
    within_bounds = (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
    return GateVerdict(gate, value, within_bounds)


def _unknown_metric(index: int, gate: Gate, names: Collection[str]) -> Issue:
    similar = difflib.get_close_matches(gate.metric, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(similar)}?" if similar else f"Metrics: {', '.join(sorted(names)) or 'none'}."
    message = f"unknown metric {gate.metric}; this recipe's evaluation does not compute it."
    return Issue("eval.unknown-metric", message, f"eval.gates.{index}.metric", hint)
