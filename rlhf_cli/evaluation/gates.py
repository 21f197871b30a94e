"""Gates: one verdict, pass or fail, from a metric's point estimate and the bounds of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from rlhf_cli.errors import Fault, RecipeError
from rlhf_cli.recipe.schema import Gate


class Verdict(NamedTuple):
    """What a gate says of a metric's value; `text` is one line for people."""

    gate: Gate
    value: float
    passed: bool
    text: str


def check_names(gates: Sequence[Gate], names: Collection[str]) -> None:
    """Raise RecipeError, one fault a gate, where a gate names a metric that is not among `names`."""
    faults = [_unknown(index, gate, names) for index, gate in enumerate(gates) if gate.metric not in names]
    if faults:
        raise RecipeError(faults)


def judge(gates: Sequence[Gate], metrics: Mapping[str, float]) -> list[Verdict]:
    """A verdict for each gate, in their order. A value that is not a number passes no gate."""
    check_names(gates, metrics)
    return [_verdict(gate, metrics[gate.metric]) for gate in gates]


def _verdict(gate: Gate, value: float) -> Verdict:
    passed = (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
    bounds = [
        f"{word} {bound:g}" for word, bound in (("at least", gate.min), ("at most", gate.max)) if bound is not None
    ]
    text = f"{'pass' if passed else 'FAIL'}  {gate.metric} = {value:.4g}, wanted {' and '.join(bounds)}"
    return Verdict(gate, value, passed, text)


def _unknown(index: int, gate: Gate, names: Collection[str]) -> Fault:
    near = difflib.get_close_matches(gate.metric, names, n=3, cutoff=0.5)
    return Fault(
        f"{gate.metric} is not a metric that this recipe's evaluation gives.",
        where=f"eval.gates.{index}.metric",
        mend=f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(names)) or 'none'}.",
    )
