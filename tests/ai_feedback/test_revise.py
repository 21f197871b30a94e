"""Critique and revision with a scripted model: what it is asked, and what its revisions become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlhf_cli.ai_feedback.revise import Round, draw_principle, revise
from rlhf_cli.data.rows import Message, Text
from rlhf_cli.recipe.constitution import Constitution, Principle

KIND = Principle(id="kind", text="Be kind.", critique="Is it kind?", revise="Make it kind.")
BRIEF = Principle(id="brief", text="Be brief.")


class ScriptedWriter:
    """Continues prompts with the next texts of a script, and keeps the prompts."""

    def __init__(self, *texts: str | None) -> None:
        self.texts = list(texts)
        self.prompts: list[Text] = []

    def __call__(self, prompts: Sequence[Text]) -> list[str | None]:
        """Return one text per prompt."""
        self.prompts += prompts
        return [self.texts.pop(0) for _ in prompts]


def test_conversation_continues_with_critique_and_revision_as_turns() -> None:
    prompt = [Message(role="user", content="Hi")]
    write = ScriptedWriter(" Not kind. ", " Hello, friend!\n")
    (found,) = revise([prompt], ["go away"], [[KIND]], write)
    assert found.rounds == [Round("kind", "Not kind.", "Hello, friend!")]
    assert found.completion == "Hello, friend!"
    asked = [*prompt, Message(role="assistant", content="go away"), Message(role="user", content="Is it kind?")]
    assert write.prompts[0] == asked
    revision = [Message(role="assistant", content="Not kind."), Message(role="user", content="Make it kind.")]
    assert write.prompts[1] == [*asked, *revision]


def test_text_is_asked_as_in_constitutional_ai_and_keeps_its_leading_space() -> None:
    write = ScriptedWriter(" Rude.\n\nRevision request: x", " Hello.\n\nCritique request: y")
    (found,) = revise(["Hi."], [" Go."], [[KIND]], write)
    assert write.prompts == [
        "Hi. Go.\n\nCritique request: Is it kind?\n\nCritique:",
        "Hi. Go.\n\nCritique request: Is it kind?\n\nCritique: Rude.\n\nRevision request: Make it kind.\n\nRevision:",
    ]
    assert found.completion == " Hello."


def test_second_round_revises_the_first_revision_by_its_own_principle() -> None:
    write = ScriptedWriter("c1", "r1", "c2", "r2")
    (found,) = revise(["p"], ["d"], [[KIND, BRIEF]], write)
    assert [(one.principle, one.revision) for one in found.rounds] == [("kind", "r1"), ("brief", "r2")]
    assert str(write.prompts[2]).startswith("pr1\n\nCritique request: Point out")


def test_request_beyond_the_context_ends_the_rounds_of_its_prompt_only() -> None:
    write = ScriptedWriter("c1", None, "c3", "r1", None)
    found = revise(["p", "q", "r"], ["a", "b", "c"], [[KIND]] * 3, write)
    assert [one.is_too_long for one in found] == [False, True, True]
    assert [len(one.rounds) for one in found] == [1, 0, 0]


def test_principles_are_drawn_by_weight_and_the_same_for_the_same_seeds() -> None:
    constitution = Constitution(principles=[KIND.replace(weight=3.0), BRIEF])
    drawn = Counter(draw_principle(constitution, 0, row, 0).id for row in range(4000))
    assert abs(drawn["kind"] / 4000 - 0.75) < 0.03  # four standard deviations of a share of 0.75 in 4,000
    assert [draw_principle(constitution, 1, row, 2).id for row in range(20)] == [
        draw_principle(constitution, 1, row, 2).id for row in range(20)
    ]
