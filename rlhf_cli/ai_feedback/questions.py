"""Write the questions that a judge is asked, each with two possible answers, and the requests of a revision."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from rlhf_cli.data.rows import Message, Text
from rlhf_cli.recipe.constitution import Principle

COMPARE = """Compare two responses to the same prompt by this principle only:
{principle}

[Prompt]
{prompt}
[End of the prompt]

[Response A]
{first}
[End of response A]

[Response B]
{second}
[End of response B]

Which response follows the principle better? Reply with one letter, A or B, and nothing else."""
RATE = """Judge a response to a prompt by this principle only:
{principle}

[Prompt]
{prompt}
[End of the prompt]

[Response]
{completion}
[End of the response]

Does the response follow the principle? Reply with one word, Yes or No, and nothing else."""
VERSION = hashlib.sha256((COMPARE + RATE).encode()).hexdigest()  # part of a judge's identity


class Answers(NamedTuple):
    """The two possible answers to a question."""

    first: str
    second: str


COMPARE_ANSWERS = Answers("A", "B")
RATE_ANSWERS = Answers("Yes", "No")


def compare_question(principle: Principle, prompt: Text, first: Text, second: Text) -> str:
    """Return the question which of two completions follows the principle better; `first` is shown as A."""
    return COMPARE.format(
        principle=principle.text,
        prompt=as_transcript(prompt),
        first=as_transcript(first),
        second=as_transcript(second),
    )


def rate_question(principle: Principle, prompt: Text, completion: Text) -> str:
    """Return the question whether a completion follows the principle."""
    return RATE.format(principle=principle.text, prompt=as_transcript(prompt), completion=as_transcript(completion))


def as_transcript(text: Text) -> str:
    """Return text unchanged, and a conversation as one text. A single assistant turn, as a completion, has no name."""
    if isinstance(text, str):
        return text
    if len(text) == 1 and text[0]["role"] == "assistant":
        return text[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)


def critique_prompt(principle: Principle, prompt: Text, completion: str) -> Text:
    """Return what a model continues with a critique of its completion, in the form of the prompt.

    The form is that of Constitutional AI (Bai et al. 2022, section 3.1).
    """
    request = principle.critique_request
    if isinstance(prompt, str):
        return f"{prompt}{completion}\n\nCritique request: {request}\n\nCritique:"
    return [*prompt, Message(role="assistant", content=completion), Message(role="user", content=request)]


def revision_prompt(principle: Principle, prompt: Text, completion: str, critique: str) -> Text:
    """Return what a model continues with a revision of its completion, in the form of the prompt."""
    request = principle.revision_request
    asked = critique_prompt(principle, prompt, completion)
    if isinstance(asked, str):
        return f"{asked} {critique.strip()}\n\nRevision request: {request}\n\nRevision:"
    return [*asked, Message(role="assistant", content=critique), Message(role="user", content=request)]
