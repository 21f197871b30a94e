"""Rewards from a Python function with TRL's signature, `(prompts, completions, **columns) -> list[float]`.

It is called by keyword with what it asks for, so one file serves both. A text prompt comes with a text completion, a
conversation with `[{"role": "assistant", "content": …}]`.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.data.rows import PromptRow, Text
from rlhf_cli.errors import DivergedError, RecipeError
from rlhf_cli.formatting import format_exception
from rlhf_cli.recipe.user_functions import Function, error_location, load_function
from rlhf_cli.rewards.base import Completions, content, short

TOKENS = ("prompt_ids", "completion_ids")  # offered beside prompts, completions and the data's columns


class PythonScorer:
    """The function that `file.py:function` names."""

    def __init__(self, spec: str) -> None:
        self.function = load_function(spec)

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Raise RecipeError where the function asks for what there is not. It is not called."""
        columns = Completions(rows[:1], [], [], []).columns
        _accepted(self.function, [*columns, *TOKENS, "prompts", "completions"])

    def score(self, answered: Completions, *, max_tokens: int) -> list[float | None]:
        """What the function gives; None says, as in TRL, that it does not judge this response."""
        ids = dict(zip(TOKENS, (answered.prompt_ids, answered.responses), strict=True))
        return _judge(self.function, answered.prompts, answered.completions, {**answered.columns, **ids})


def call(
    function: Function, prompts: list[Text], completions: list[Text], columns: Mapping[str, Sequence[Any]]
) -> list[float]:
    """Call a reward function as TRL does, by keyword, with what its signature takes; a number a completion.

    Raises:
        RecipeError: it asks for a column that the data does not have.
        DivergedError: it raises, or gives something other than one number a completion.
    """
    values = _judge(function, prompts, completions, columns)
    given = [value for value in values if value is not None]
    if len(given) < len(values):
        raise _not_a_number(function, values.index(None), None, completions)
    return given


def _judge(
    function: Function, prompts: list[Text], completions: list[Text], columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """`call`, with None for the completions that the function does not judge."""
    location = _where(function)
    offered = {**columns, "prompts": prompts, "completions": completions}
    given = _accepted(function, offered)
    try:
        result = function(**{name: offered[name] for name in given})
        values = result.tolist() if hasattr(result, "tolist") else result
        values = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else values
    except (Exception, SystemExit) as error:
        first = short(content(completions[0]))
        message = f"{_name(function)} raised {format_exception(error)} (first completion: {first})."
        raise DivergedError(
            message, location=error_location(error, _file(function)), hint="Mend the function."
        ) from error
    if not isinstance(values, list) or len(values) != len(completions):
        gave = f"{len(values)} numbers" if isinstance(values, list) else repr(values)[:40]
        raise DivergedError(
            f"it gave {gave} for {len(completions)} completions.", location=location, hint="Give one for each."
        )
    for index, value in enumerate(values):
        if hasattr(value, "item"):
            values[index] = value = value.item()
        if value is not None and not isinstance(value, numbers.Real):
            raise _not_a_number(function, index, value, completions)
    return [None if value is None else _float(value) for value in values]


def _float(value: numbers.Real) -> float:
    """As float() has it, but infinite where float() overflows: what is not finite is told where it is summed."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _not_a_number(function: Function, index: int, value: object, completions: Sequence[Text]) -> DivergedError:
    message = f"completion {index} got {value!r}, which is not a number: {short(content(completions[index]))}."
    return DivergedError(message, location=_where(function), hint="Return a float for every completion.")


def _accepted(function: Function, offered: Iterable[str]) -> list[str]:
    """The names of `offered` that the function takes; all of them where it has **kwargs.

    Raises:
        RecipeError: it asks for another one.
    """
    names = list(offered)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in ones
        hint = "Write a function of your own around it."
        raise RecipeError("its parameters cannot be told.", location=_where(function), hint=hint) from None
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        wanted = {p.name for p in parameters}
        names = [name for name in names if name in wanted]
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in required if name not in names]
    if missing:
        raise RecipeError(
            f"it asks for {', '.join(missing)}, and there is {', '.join(offered)}.",
            location=_where(function),
            hint="A parameter is prompts, completions or a column of the prompts' data; give others a default.",
        )
    return names


def _where(function: Function) -> str:
    return f"{_file(function).name}:{_name(function)}"


def _file(function: Function) -> Path:
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(function)) or "?")
    except TypeError:  # built in, or an object that can be called
        return Path("?")


def _name(function: Function) -> str:
    code = inspect.unwrap(function)
    return getattr(code, "__name__", type(code).__name__)
