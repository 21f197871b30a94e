"""Score completions with a Python function that has the signature of TRL's reward functions.

That is `(prompts, completions, **columns) -> list[float]`. It is called by keyword with the arguments that it accepts,
so that one file works for TRL and for rlhf. A text prompt comes with a text completion, a conversation with
`[{"role": "assistant", "content": …}]`.
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
from rlhf_cli.recipe.schema import Base, RewardSource
from rlhf_cli.recipe.user_functions import TOKEN_ARGUMENTS, Function, error_location, load_function, split_spec
from rlhf_cli.rewards.base import Completions, SourceScores, completion_text, quote


class PythonScorer:
    """Scores with the function that `file.py:function` names.

    Args:
        spec: The file and the function.
        allow_none: Whether the function may return None for a completion that it does not score, as in TRL.
    """

    def __init__(self, spec: str, *, allow_none: bool = True) -> None:
        self.function = load_function(spec)
        self._spec, self._allow_none = spec, allow_none

    @classmethod
    def from_source(cls, source: RewardSource) -> PythonScorer:
        """Load the source's function."""
        assert source.python is not None
        return cls(source.python)

    @property
    def name(self) -> str:
        """The name of the function."""
        return split_spec(self._spec)[1]

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Raise RecipeError if the function requires arguments that are not available. It is not called."""
        columns = Completions(rows[:1], [], [], []).columns
        _accepted_arguments(self.function, [*columns, *TOKEN_ARGUMENTS, "prompts", "completions"])

    def load(self, base: Base, *, smoke: bool) -> None:
        """Do nothing: a function has no weights."""

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:  # noqa: ARG002
        """Call the function on all completions at once.

        Raises:
            RecipeError: As `call_function`.
            DivergedError: As `call_function`; or it returned None, and `allow_none` is False.
        """
        ids = dict(zip(TOKEN_ARGUMENTS, (completions.prompt_ids, completions.responses), strict=True))
        texts = list(completions.completions)
        values = call_function(self.function, completions.prompts, texts, {**completions.columns, **ids})
        if not self._allow_none and None in values:
            raise _not_a_number(self.function, values.index(None), None, texts)
        return SourceScores(values)


def call_function(
    function: Function, prompts: list[Text], completions: list[Text], columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """Call a reward function as TRL does, by keyword, and return a number or None for each completion.

    Args:
        function: The function.
        prompts: The prompts.
        completions: Their completions.
        columns: Further arguments, each with one value per prompt.

    Raises:
        RecipeError: It requires an argument that is not available.
        DivergedError: It raised an exception, or did not return one number or None per completion.
    """
    available = {**columns, "prompts": prompts, "completions": completions}
    arguments = {name: available[name] for name in _accepted_arguments(function, available)}
    try:
        result = function(**arguments)
        values = result.tolist() if hasattr(result, "tolist") else result
        values = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else values
    except (Exception, SystemExit) as error:
        raised = format_exception(error)
        message = (
            f"{_name(function)} raised {raised}; the first completion is {quote(completion_text(completions[0]))}."
        )
        location = error_location(error, _file(function))
        hint = "Fix the function."
        raise DivergedError("training.reward-raised", message, location=location, hint=hint) from error
    if not isinstance(values, list) or len(values) != len(completions):
        found = len(values) if isinstance(values, list) else repr(values)[:40]
        message = f"wrong number of scores; found {found}, expected {len(completions)}."
        hint = "Return one number per completion."
        raise DivergedError("training.invalid-reward", message, location=_location(function), hint=hint)
    return [_to_float(function, index, value, completions) for index, value in enumerate(values)]


def _to_float(function: Function, index: int, value: Any, completions: Sequence[Text]) -> float | None:
    """Return `value` as a float, infinite if it is too large for one. Non-finite scores are refused by the caller."""
    number = value.item() if hasattr(value, "item") else value
    if number is None:
        return None
    if not isinstance(number, numbers.Real):
        raise _not_a_number(function, index, number, completions)
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _not_a_number(function: Function, index: int, value: object, completions: Sequence[Text]) -> DivergedError:
    text = quote(completion_text(completions[index]))
    message = f"the score of completion {index} is not a number; found {value!r} for {text}."
    hint = "Return a float for every completion."
    return DivergedError("training.invalid-reward", message, location=_location(function), hint=hint)


def _accepted_arguments(function: Function, available: Iterable[str]) -> list[str]:
    """Return the names in `available` that the function accepts; all of them if it has **kwargs.

    Raises:
        RecipeError: It requires another argument.
    """
    names = list(available)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions
        hint = "Write your own function that calls it."
        message = "the parameters of this function are unknown."
        raise RecipeError("recipe.function-signature", message, location=_location(function), hint=hint) from None
    accepted = names
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        parameter_names = {parameter.name for parameter in parameters}
        accepted = [name for name in names if name in parameter_names]
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in accepted
    ]
    if missing:
        message = f"unknown argument {', '.join(missing)}; available: {', '.join(names)}."
        hint = "Use prompts, completions or a column of data.prompts, or give the parameter a default."
        raise RecipeError("recipe.function-signature", message, location=_location(function), hint=hint)
    return accepted


def _location(function: Function) -> str:
    return f"{_file(function).name}:{_name(function)}"


def _file(function: Function) -> Path:
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(function)) or "?")
    except TypeError:  # a built-in function, or a callable object
        return Path("?")


def _name(function: Function) -> str:
    unwrapped = inspect.unwrap(function)
    return getattr(unwrapped, "__name__", type(unwrapped).__name__)
