"""Critique and revise completions by the principles of a constitution (Bai et al. 2022, section 3.1).

https://arxiv.org/abs/2212.08073
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlhf_cli.ai_feedback import questions
from rlhf_cli.data.rows import Text
from rlhf_cli.recipe.constitution import Constitution, Principle

TEXT_REQUESTS = ("\n\nCritique request:", "\n\nCritique:", "\n\nRevision request:", "\n\nRevision:")

Write = Callable[[Sequence[Text]], list[str | None]]  # continues each prompt; None if it exceeds the context


class Round(NamedTuple):
    """One critique and the revision after it."""

    principle: str
    critique: str
    revision: str


class Revised(NamedTuple):
    """A completion with its critiques and revisions.

    Attributes:
        draft: The completion before them.
        rounds: The critiques and revisions.
        is_too_long: Whether a request exceeds the model's context, so that no further round is possible.
    """

    draft: str
    rounds: list[Round]
    is_too_long: bool = False

    @property
    def completion(self) -> str:
        """The last revision, or the draft."""
        return self.rounds[-1].revision if self.rounds else self.draft

    def as_json(self) -> dict[str, Any]:
        """Return the draft and the rounds as JSON values."""
        return {"draft": self.draft, "rounds": [one._asdict() for one in self.rounds], "too_long": self.is_too_long}


def draw_principle(constitution: Constitution, *seeds: int) -> Principle:
    """Return a principle drawn by weight, the same one for the same seeds."""
    principles = constitution.principles
    draws = random.Random(" ".join(map(str, seeds)))
    return draws.choices(principles, [principle.weight for principle in principles])[0]


def revise(
    prompts: Sequence[Text], drafts: Sequence[str], principles: Sequence[Sequence[Principle]], write: Write
) -> list[Revised]:
    """Let a model critique and revise its completions.

    Args:
        prompts: The prompts.
        drafts: The completion of each prompt.
        principles: One principle per round, for each prompt.
        write: Continues prompts with the model.
    """
    found = [Revised(draft, []) for draft in drafts]
    for number in range(len(principles[0])):
        open_rows = [index for index, one in enumerate(found) if not one.is_too_long]
        asked = [(principles[index][number], prompts[index], found[index].completion) for index in open_rows]
        critiques = write([questions.critique_prompt(*request) for request in asked]) if asked else []
        with_critique = []
        for index, request, critique in zip(open_rows, asked, critiques, strict=True):
            if critique is None:
                found[index] = found[index]._replace(is_too_long=True)
            else:
                with_critique.append((index, request, _clean(prompts[index], critique)))
        given = [questions.revision_prompt(*request, critique) for _, request, critique in with_critique]
        revisions = write(given) if given else []
        for (index, (principle, prompt, before), critique), revision in zip(with_critique, revisions, strict=True):
            if revision is None:
                found[index] = found[index]._replace(is_too_long=True)
            else:
                space = before[: len(before) - len(before.lstrip())] if isinstance(prompt, str) else ""
                found[index].rounds.append(Round(principle.id, critique, space + _clean(prompt, revision)))
    return found


def _clean(prompt: Text, text: str) -> str:
    """Return a critique or revision without white space around it, and for a text prompt without a further request."""
    if isinstance(prompt, str):
        for request in TEXT_REQUESTS:
            text = text.partition(request)[0]
    return text.strip()
