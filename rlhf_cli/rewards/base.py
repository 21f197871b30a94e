"""What a judge is handed, prompts with their answers, and what it gives back: a number for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from rlhf_cli.data.rows import Message, PromptRow, Text


class Completions(NamedTuple):
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


class RewardScorer(Protocol):
    """A reward source that is no reward run."""

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Tell, before any weights are loaded, what would fail on answers to these prompts."""

    def score(self, answered: Completions, *, max_tokens: int) -> Sequence[float | None]:
        """A number a response; None where it does not judge. A model holds `max_tokens` tokens at once, at most."""


def as_completion(prompt: Text, text: str) -> Text:
    """A response's text in the form of its prompt: text, or the assistant's message."""
    return text if isinstance(prompt, str) else [Message(role="assistant", content=text.strip())]


def content(completion: Text) -> str:
    """What a completion says."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def short(text: str, limit: int = 80) -> str:
    """A text as an error shows it: quoted, control characters escaped, cut at `limit`."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
