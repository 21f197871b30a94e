"""Built-in rules score 1 for a completion that satisfies the rule and 0 for one that does not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from rlhf_cli.data.rows import Message, PromptRow
from rlhf_cli.recipe.schema import RewardSource, Rule
from rlhf_cli.rewards.base import Completions
from rlhf_cli.rewards.build import build_reward_functions
from rlhf_cli.rewards.rules import RuleScorer


def scores(rule: Mapping[str, object], *texts: str, tokens: list[int] | None = None) -> list[float | None]:
    """Return the scores of completions with these numbers of tokens."""
    responses = [[5] * count for count in tokens or [3] * len(texts)]
    completions = Completions([PromptRow("p", {})] * len(texts), [[4]] * len(texts), responses, texts)
    return list(RuleScorer(Rule.model_validate(rule)).score(completions, max_tokens=0).values)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"min": 2, "max": 3}, [0, 1, 1, 0]),
        ({"min": 3}, [0, 0, 1, 1]),
        ({"max": 2}, [1, 1, 0, 0]),
    ],
)
def test_length_is_in_tokens_and_includes_both_bounds(bounds: dict[str, int], expected: list[int]) -> None:
    assert scores({"length": bounds}, "x", "x", "x", "x", tokens=[1, 2, 3, 4]) == expected


def test_pattern_is_searched_anywhere() -> None:
    assert scores({"pattern": r"\bthank"}, "No, thank you.", "unthankful", "Thank you") == [1, 0, 0]
    assert scores({"pattern": r"(?i)^thank"}, "Thank you", "No, thank you.") == [1, 0]


def test_forbidden_words_are_whole_words_in_any_case() -> None:
    texts = ("Damn it", "DAMNED", "a dam", "goddamn", "", "damn")
    assert scores({"forbidden": ["damn", "dam"]}, *texts) == [0, 1, 0, 1, 1, 0]


def test_forbidden_phrase_matches_across_line_breaks_and_with_signs() -> None:
    rule = {"forbidden": ["as an AI", "C++", "(x)"]}
    assert scores(rule, "As  an\nai, I", "I use C++.", "f(x)", "f (x)", "as an AIM", "C+") == [0, 0, 1, 0, 1, 1]


def test_message_is_scored_by_its_text() -> None:
    rows = [PromptRow([Message(role="user", content="bad")], {})]
    completions = Completions(rows, [[4]], [[5]], [[Message(role="assistant", content="fine")]])
    assert RuleScorer(Rule(forbidden=["bad"])).score(completions, max_tokens=0).values == [1.0]


def test_rules_are_named_by_their_kind() -> None:
    rules = [{"length": {"min": 1}}, {"pattern": "x"}, {"forbidden": ["x"]}, {"pattern": "y"}]
    functions = build_reward_functions([RewardSource.model_validate({"rule": rule}) for rule in rules])
    assert [function.name for function in functions] == ["length", "pattern", "forbidden", "pattern_2"]
