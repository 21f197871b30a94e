"""What a response is worth: reward runs and Python functions, each scored by itself, summed with weights.

A Python function has TRL's signature, `(prompts, completions, **columns) -> list[float]`: it is called by keyword with
what it asks for, so one file serves both. A text prompt comes with a text completion, a conversation with
`[{"role": "assistant", "content": …}]`. Model identifiers and HTTP endpoints are left out so far.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.errors import DivergedError, RecipeError
from rlhf_cli.models.bank import Bank
from rlhf_cli.ppo import experience
from rlhf_cli.recipe.schema import RewardSource

Function = Callable[..., Any]

TRAINERS_OWN = "std"  # `reward.std` is the spread of the weighted sum


class Term(NamedTuple):
    """One reward source: a role of the bank that has a score head, or a function."""

    name: str  # as logged, behind `reward.`
    weight: float
    role: str | None
    function: Function | None


class Answered(NamedTuple):
    """Prompts with their responses, as tokens and as text."""

    rows: Sequence[PromptRow]
    prompt_ids: list[list[int]]
    responses: list[list[int]]
    completions: list[Text]

    @property
    def prompts(self) -> list[Text]:
        return [row.prompt for row in self.rows]

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The data's further columns, a value a prompt; None where a row lacks one."""
        names = dict.fromkeys(name for row in self.rows for name in row.extra)
        return {name: [row.extra.get(name) for row in self.rows] for name in names}


def terms(sources: Sequence[RewardSource]) -> list[Term]:
    """The recipe's reward sources; functions are loaded, runs get a role's name (`reward`, `reward_2`, …)."""
    found: list[Term] = []
    for source in sources:
        if source.python is not None:
            function = load_function(source.python)
            found.append(Term(_free(_function_name(source.python), found), source.weight, None, function))
        else:
            assert source.run is not None
            number = 1 + sum(term.role is not None for term in found)
            role = "reward" if number == 1 else f"reward_{number}"
            found.append(Term(_free(Path(source.run).name.partition("@")[0], found), source.weight, role, None))
    return found


def score(terms: Sequence[Term], bank: Bank, answered: Answered, *, pad_id: int, max_tokens: int) -> dict[str, Tensor]:
    """Each term's unweighted scores by its name, (B,) float32 on the bank's device.

    A reward run sees the very tokens: prompt ids, then the response with its end token if it has one. NaN: the
    function gave None, which says, as in TRL, that it does not judge this response.
    """
    scores = {}
    sequences = [p + r for p, r in zip(answered.prompt_ids, answered.responses, strict=True)]
    for term in terms:
        unjudged: list[int] = []
        if term.role is not None:
            found = experience.final_scores(bank, term.role, sequences, pad_id=pad_id, max_tokens=max_tokens)
        else:
            assert term.function is not None
            ids = {"completion_ids": answered.responses, "prompt_ids": answered.prompt_ids}
            values = _judge(term.function, answered.prompts, answered.completions, {**answered.columns, **ids})
            numbers_alone = [0.0 if value is None else value for value in values]
            found = torch.tensor(numbers_alone, dtype=torch.float32, device=bank.device)
            unjudged = [index for index, value in enumerate(values) if value is None]
        bad = (~found.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise DivergedError(
                f"the reward of response {bad[0]} is {found[bad[0]].item()}: {_short(answered.completions[bad[0]])}",
                where=f"ppo.reward {term.name}",
                mend="A reward must be a finite number for every response, an empty one too.",
            )
        found[unjudged] = math.nan
        scores[term.name] = found
    return scores


def weighted(terms: Sequence[Term], scores: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms' scores with their weights, (B,). A term adds nothing where it did not judge."""
    return torch.stack([term.weight * scores[term.name] for term in terms]).nansum(dim=0)


def as_completion(prompt: Text, text: str) -> Text:
    """A response's text in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(prompt, str) else [Message(role="assistant", content=text.strip())]


def load_function(spec: str) -> Function:
    """The function that `file.py:function` names. Runs the file; a file is run once, however many functions it gives.

    Raises:
        RecipeError: no such file or function, or the file fails as it is run.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"there is no file {file}.", where=spec, mend="Write file.py:function.")
    module_name = f"rlhf_reward_{path.resolve()}"
    module = sys.modules.get(module_name)
    if module is None:
        loader = importlib.util.spec_from_file_location(module_name, path)
        assert loader is not None
        assert loader.loader is not None
        module = importlib.util.module_from_spec(loader)
        sys.modules[module_name] = module  # dataclasses look their module up while it is run
        sys.path.insert(0, str(path.parent))  # its own imports, as if it were run as a script
        try:
            loader.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # sys.exit() would end rlhf, and with 0
            del sys.modules[module_name]
            raise RecipeError(f"it fails as it is loaded: {_told(error)}.", where=spec) from error
        finally:
            sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        mend = "Name a function that the file defines."
        raise RecipeError(f"{path.name} has no function {name}.", where=spec, mend=mend)
    return function


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
    where = _where(function)
    offered = {**columns, "prompts": prompts, "completions": completions}
    given = _accepted(function, offered, where)
    try:
        result = function(**given)
        values = result.tolist() if hasattr(result, "tolist") else list(result)
    except (Exception, SystemExit) as error:
        told = f"it raised {_told(error)} (first completion: {_short(completions[0])})"
        raise DivergedError(f"{told}.", where=where, mend="Mend the function.") from error
    if not isinstance(values, list) or len(values) != len(completions):
        gave = f"{len(values)} numbers" if isinstance(values, list) else "one number"
        raise DivergedError(
            f"it gave {gave} for {len(completions)} completions.", where=where, mend="Give one for each."
        )
    for index, value in enumerate(values):
        if hasattr(value, "item"):
            values[index] = value = value.item()
        if value is not None and not isinstance(value, numbers.Real):
            raise _not_a_number(function, index, value, completions)
    return [None if value is None else float(value) for value in values]


def _not_a_number(function: Function, index: int, value: object, completions: Sequence[Text]) -> DivergedError:
    told = f"completion {index} got {value!r}, which is not a number: {_short(completions[index])}"
    return DivergedError(f"{told}.", where=_where(function), mend="Return a float for every completion.")


def _accepted(function: Function, offered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of `offered` the function takes; all of it where it has **kwargs."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        given = dict(offered)
    else:
        given = {p.name: offered[p.name] for p in parameters if p.name in offered}
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in required if name not in given]
    if missing:
        raise RecipeError(
            f"it asks for {', '.join(missing)}, and there is {', '.join(offered)}.",
            where=where,
            mend="A parameter is prompts, completions or a column of the prompts' data; give others a default.",
        )
    return given


def _where(function: Function) -> str:
    code = inspect.unwrap(function)
    try:
        file = Path(inspect.getsourcefile(code) or "?").name
    except TypeError:  # built in, or an object that can be called
        file = "?"
    return f"{file}:{getattr(code, '__name__', type(code).__name__)}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _short(completion: Text) -> str:
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _function_name(spec: str) -> str:
    return spec.rpartition(":")[2]


def _free(name: str, taken: Sequence[Term]) -> str:
    """`name`, or `name_2`, … where a term has it already, or the trainer itself logs `reward.name`."""
    names = {TRAINERS_OWN, *(term.name for term in taken)}
    number = 2
    free = name
    while free in names:
        free, number = f"{name}_{number}", number + 1
    return free
