"""Score completions with built-in rules: 1.0 if a completion satisfies the rule, else 0.0."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.recipe.schema import Base, RewardSource, Rule
from rlhf_cli.rewards.base import Completions, SourceScores, completion_text


class RuleScorer:
    """Scores with one rule of the recipe."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    @classmethod
    def from_source(cls, source: RewardSource) -> RuleScorer:
        """Return the scorer of the source's rule."""
        assert source.rule is not None
        return cls(source.rule)

    @property
    def name(self) -> str:
        """The kind of rule: length, pattern or forbidden."""
        return next(name for name in Rule.model_fields if getattr(self.rule, name) is not None)

    def check(self, rows: Sequence[PromptRow]) -> None:
        """Do nothing: the recipe was validated."""

    def load(self, base: Base, *, smoke: bool) -> None:
        """Do nothing: a rule has no weights."""

    def score(self, completions: Completions, *, max_tokens: int) -> SourceScores:  # noqa: ARG002
        """Score each completion."""
        pairs = zip(completions.completions, completions.responses, strict=True)
        return SourceScores([float(satisfies(self.rule, completion_text(text), len(ids))) for text, ids in pairs])


def satisfies(rule: Rule, text: str, tokens: int) -> bool:
    """Return whether a completion satisfies the rule.

    Args:
        rule: The rule.
        text: The completion.
        tokens: Its number of tokens, with the end token.
    """
    if rule.length is not None:
        return rule.length.min <= tokens and (rule.length.max is None or tokens <= rule.length.max)
    if rule.pattern is not None:
        return re.search(rule.pattern, text) is not None
    assert rule.forbidden is not None
    # Not \b: a forbidden phrase may begin or end with a character that is not part of a word, such as "C++".
    phrases = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in rule.forbidden)
    return re.search(rf"(?<!\w)(?:{phrases})(?!\w)", text, re.IGNORECASE) is None
