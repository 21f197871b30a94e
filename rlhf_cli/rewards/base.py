"""Define what a reward scorer gets, prompts with completions, and what it returns, one score per completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.recipe.schema import Base


class Completions(NamedTuple):
    """Prompts with completions. Each list has one item per prompt.

    Attributes:
        rows: The prompts with the dataset's other columns.
        prompt_ids: Token ids of the prompts.
        responses: Token ids of the completions, with the end token.
        completions: The completions: text for a text prompt, else a list with the assistant's message.
    """

    rows: Sequence[PromptRow]
    prompt_ids: Sequence[list[int]]
    responses: Sequence[list[int]]
    completions: Sequence[Text]

    @property
    def prompts(self) -> list[Text]:
        """The prompts without other columns."""
        return [row.prompt for row in self.rows]

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The dataset's other columns, each with one value per prompt; None if a row does not have it."""
        names = dict.fromkeys(name for row in self.rows for name in row.extra)
        return {name: [row.extra.get(name) for row in self.rows] for name in names}


class SourceScores(NamedTuple):
    """The scores of one reward source.

    Attributes:
        values: One score per completion; None if the source does not score that completion.
        details: Further values per completion, which are logged as `score.<source>.<name>`.
    """

    values: Sequence[float | None]
    details: Mapping[str, Sequence[float]] = MappingProxyType({})


class RewardScorer(Protocol):
    """A reward source other than a reward run, which is a role of the policy's model."""

    @property
    def name(self) -> str:
        """The name that its score is logged under."""

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Raise an error if completions of these prompts could not be scored. Called before weights are loaded."""

    def load(self, base: Base, *, smoke: bool) -> None:
        """Load weights, if it has any.

        Args:
            base: The recipe's base model, for the dtype.
            smoke: Whether to use a tiny model with random weights.
        """

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:
        """Score completions.

        Args:
            completions: The completions.
            max_tokens: Tokens of a forward pass, padding included.
        """


def as_completion(prompt: Text, text: str) -> Text:
    """Return a completion in the form of its prompt: the text, or a list with the assistant's message."""
    return text if isinstance(prompt, str) else [Message(role="assistant", content=text.strip())]


def completion_text(completion: Text) -> str:
    """Return the text of a completion, or of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def quote(text: str, limit: int = 80) -> str:
    """Return `text` for an error message: quoted, with control characters escaped, and cut after `limit` characters."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
