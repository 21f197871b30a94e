"""Score completions with the recipe's judge: how clearly it says that a completion follows each principle.

The score is the weighted mean over the principles of log(p(Yes) / p(No)), in nats. A completion is rated by itself: a
comparison with a reference completion would need a second one for every prompt, and both orders of each pair.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_cli.ai_feedback.judge import Judge
from rlhf_cli.data.rows import PromptRow
from rlhf_cli.recipe.schema import Base
from rlhf_cli.rewards.base import Completions, SourceScores, as_completion


class JudgeScorer:
    """Scores with a judge."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @property
    def name(self) -> str:
        """Always `judge`."""
        return "judge"

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Ask an endpoint about an empty completion of the first prompt, so that a wrong URL is found early.

        Raises:
            DivergedError: As `score`.
        """
        if not self.judge.has_weights:
            self.judge.rate([rows[0].prompt], [as_completion(rows[0].prompt, "")])

    def load(self, base: Base, *, smoke: bool) -> None:  # noqa: ARG002
        """Load the weights of a local model."""
        self.judge.answerer.load(smoke=smoke)

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:  # noqa: ARG002
        """Rate each completion. One whose question exceeds the judge's context is not scored.

        Raises:
            DivergedError: The endpoint cannot be reached, refuses, or does not answer as asked.
        """
        return SourceScores(self.judge.rate(completions.prompts, completions.completions))
