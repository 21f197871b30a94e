"""Rules built in: 1.0 for an answer that keeps the rule, 0.0 for one that does not. The weight does the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_cli.data.rows import PromptRow
from rlhf_cli.recipe.schema import Rule
from rlhf_cli.rewards.base import Completions, content


class RuleScorer(NamedTuple):
    """Judges by the recipe's rule."""

    rule: Rule

    @property
    def name(self) -> str:
        return next(name for name in Rule.model_fields if getattr(self.rule, name) is not None)

    def check(self, rows: Sequence[PromptRow]) -> None:
        """The recipe was checked: nothing is left to fail."""

    def score(self, answered: Completions, *, max_tokens: int) -> list[float]:
        texts = map(content, answered.completions)
        return [float(keeps(self.rule, t, len(r))) for t, r in zip(texts, answered.responses, strict=True)]


def keeps(rule: Rule, text: str, tokens: int) -> bool:
    """Whether an answer of so many tokens, its end token included, keeps the rule."""
    if rule.length is not None:
        return rule.length.min <= tokens and (rule.length.max is None or tokens <= rule.length.max)
    if rule.pattern is not None:
        return re.search(rule.pattern, text) is not None
    assert rule.forbidden is not None
    # Whole words, not \b: a forbidden word may begin or end with a character that is no letter, such as "C++".
    phrases = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in rule.forbidden)
    return re.search(rf"(?<!\w)(?:{phrases})(?!\w)", text, re.IGNORECASE) is None
