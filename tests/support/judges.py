"""Judges without a model: scripted answers, and a server that speaks OpenAI's chat completions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_cli.ai_feedback.judge import Judge
from rlhf_cli.ai_feedback.questions import Answers
from rlhf_cli.recipe.constitution import Constitution
from tests.support.reward_server import Reply, Server, ok

CONSTITUTION = """
principles:
  - {id: helpful, text: The response answers the question., weight: 3}
  - {id: brief, text: The response is short.}
"""
Choose = Callable[[str], float | None]


class ScriptedAnswerer:
    """Answers each question with the log-odds that a function returns, and counts the questions."""

    has_weights = False

    def __init__(self, choose: Choose) -> None:
        self.choose, self.asked = choose, 0

    def load(self, *, smoke: bool) -> None:
        """Do nothing."""

    def log_odds(self, asked: Sequence[str], answers: Answers) -> list[float | None]:  # noqa: ARG002
        """Return the answers of the script."""
        self.asked += len(asked)
        return [self.choose(question) for question in asked]


def scripted_judge(choose: Choose, **principles: float) -> Judge:
    """Return a judge that answers as scripted; `principles`: weight by id, or else one principle of weight 1."""
    given = [{"id": name, "text": f"By {name}.", "weight": weight} for name, weight in principles.items()]
    constitution = Constitution.model_validate({"principles": given or [{"id": "good", "text": "By good."}]})
    return Judge(ScriptedAnswerer(choose), constitution, label="scripted", identity="x")


def shown(question: str) -> tuple[str, str]:
    """Return the responses that a question shows as A and B."""
    found = [re.search(rf"\[Response {name}\]\n(.*?)\n\[End", question, re.DOTALL) for name in "AB"]
    assert found[0] is not None
    assert found[1] is not None
    return found[0][1], found[1][1]


def prefer_longer(question: str) -> float:
    """Prefer the longer response, by the difference of the lengths."""
    first, second = shown(question)
    return float(len(first) - len(second))


def chat_reply(text: str | None) -> Reply:
    """Return a chat completion as OpenAI's API reference gives it."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 19, "completion_tokens": 1, "total_tokens": 20}
    return ok(
        {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]} | usage
    )


def chat_server(choose: Choose) -> Server:
    """Return a server whose model replies with A or B to a comparison, and with Yes or No to a rating."""

    def respond(body: dict[str, Any]) -> Reply:
        question = body["messages"][-1]["content"]
        first, second = ("A", "B") if "[Response A]" in question else ("Yes", "No")
        return chat_reply(first if (choose(question) or 0.0) > 0 else second)

    return Server(respond)
