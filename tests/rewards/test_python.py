"""Python rewards: arguments by signature, TRL's return values, and errors with file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_cli.data.rows import Message, PromptRow, Text
from rlhf_cli.errors import DivergedError, RecipeError
from rlhf_cli.recipe.user_functions import load_function
from rlhf_cli.rewards.base import Completions
from rlhf_cli.rewards.python import PythonScorer, call_function
from tests.support.issues import raises_issue
from tests.support.reward_functions import write_function


def call(
    folder: Path, body: str, columns: dict[str, list[Any]] | None = None, name: str = "scores.py"
) -> list[float | None]:
    """Load the function and call it with two completions."""
    function = load_function(write_function(folder, body, name))
    return call_function(function, ["a", "b"], ["one", "three"], columns or {})


def test_function_gets_the_arguments_of_its_signature(tmp_path: Path) -> None:
    assert call(tmp_path, "def score(completions): return [len(c) for c in completions]", {"x": [1, 2]}) == [3.0, 5.0]
    body = "def score(prompts, completions, level, scale=2.0): return [scale * n for n in level]"
    assert call(tmp_path, body, {"level": [1, 2], "other": [0, 0]}, "b.py") == [2.0, 4.0]
    body = "def score(completions, **columns): assert set(columns) == {'prompts', 'x'}; return columns['x']"
    assert call(tmp_path, body, {"x": [1, 2]}, "c.py") == [1.0, 2.0]


@pytest.mark.parametrize(
    "values", [[1, 2.0], np.array([1.0, 2.0]), [np.float32(1), np.int64(2)], torch.tensor([1.0, 2.0]), [True, 2]]
)
def test_numbers_of_other_libraries_are_accepted(values: Any) -> None:
    assert call_function(lambda completions: values, ["a", "b"], ["one", "three"], {}) == [1.0, 2.0]  # noqa: ARG005


def test_integer_too_large_for_a_float_is_infinite(tmp_path: Path) -> None:
    assert call(tmp_path, "def score(completions): return [10**400, 1]") == [float("inf"), 1.0]


def test_function_may_import_a_module_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_scores.py").write_text("WORTH = 4")
    body = "from neighbour_of_scores import WORTH\ndef score(completions): return [WORTH] * 2"
    assert call(tmp_path, body) == [4, 4]


def test_scorer_passes_columns_and_token_ids(tmp_path: Path) -> None:
    body = (
        "def score(completions, key, prompt_ids, completion_ids):\n"
        "    assert (prompt_ids, completion_ids) == ([[4], [4]], [[5, 2], [6]])\n"
        "    return [1.0 if k == c else 0.0 for k, c in zip(key, completions)]"
    )
    rows = [PromptRow("p", {"key": "x"}), PromptRow("q", {"key": "y"})]
    scorer = PythonScorer(write_function(tmp_path, body))
    completions = Completions(rows, [[4], [4]], [[5, 2], [6]], ["x", "x"])
    assert scorer.score(completions, max_tokens=9) == ([1.0, 0.0], {})
    assert scorer.name == "score"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def score(completions): return [1.0]", "wrong number of scores; found 1, expected 2."),
        ("def score(completions): return None", "wrong number of scores; found None, expected 2."),
        ("def score(completions): return 'good'", "wrong number of scores; found 'good', expected 2."),
        (
            "def score(completions): return [1.0, 'good']",
            "the score of completion 1 is not a number; found 'good' for 'three'.",
        ),
        (
            "def score(completions): return [None, 1.0]",
            "the score of completion 0 is not a number; found None for 'one'.",
        ),
    ],
)
def test_invalid_return_value_raises_with_file_and_function(tmp_path: Path, body: str, message: str) -> None:
    scorer = PythonScorer(write_function(tmp_path, body), allow_none=False)
    completions = Completions([PromptRow("p", {})] * 2, [[4]] * 2, [[5]] * 2, ["one", "three"])
    with raises_issue("training.invalid-reward", error=DivergedError, location="scores.py:score") as issues:
        scorer.score(completions, max_tokens=9)
    assert issues[0].message == message
    assert DivergedError.exit_code == 7


@pytest.mark.parametrize(
    ("body", "line", "raised"),
    [
        ("def score(completions):\n    raise KeyError('tone')", 2, "KeyError: 'tone'"),
        ("import sys\ndef score(completions): sys.exit()", 2, "SystemExit"),
        ("import json\n\ndef score(completions):\n    return json.loads('{')", 4, "JSONDecodeError: "),
        ("def score(completions):\n    yield 1.0\n    yield 1 / 0", 3, "ZeroDivisionError: "),
    ],
)
def test_exception_raises_with_the_line_that_led_to_it(tmp_path: Path, body: str, line: int, raised: str) -> None:
    location = f"{tmp_path}/scores.py:{line}"
    with pytest.raises(DivergedError) as caught:
        call(tmp_path, body)
    (issue,) = caught.value.issues
    assert (issue.code, issue.location) == ("training.reward-raised", location)
    assert issue.message.startswith(f"score raised {raised}")
    assert issue.message.endswith("; the first completion is 'one'.")
    assert caught.value.__cause__ is not None  # its traceback goes into the log


def test_missing_column_raises(tmp_path: Path) -> None:
    body = "def score(completions, answer): return [0.0, 0.0]"
    with raises_issue("recipe.function-signature", error=RecipeError, location="scores.py:score"):
        call(tmp_path, body, {"level": [1, 2]})


def test_check_finds_missing_column_without_calling_the_function(tmp_path: Path) -> None:
    scorer = PythonScorer(write_function(tmp_path, "def score(prompts, answer, prompt_ids): 1 / 0"))
    scorer.check([PromptRow("p", {"answer": 3})])
    with raises_issue("recipe.function-signature", error=RecipeError, location="scores.py:score") as issues:
        scorer.check([PromptRow("p", {"level": 3})])
    available = "level, prompt_ids, completion_ids, prompts, completions"
    assert issues[0].message == f"unknown argument answer; available: {available}."


def test_function_with_unknown_parameters_raises(tmp_path: Path) -> None:
    with raises_issue("recipe.function-signature", error=RecipeError) as issues:
        call(tmp_path, "score = max")
    assert issues[0].message == "the parameters of this function are unknown."


def test_file_or_function_that_cannot_be_loaded_raises(tmp_path: Path) -> None:
    with raises_issue("recipe.path-not-found", error=RecipeError):
        PythonScorer(f"{tmp_path}/absent.py:score")
    with raises_issue("recipe.function-failed", error=RecipeError):
        PythonScorer(write_function(tmp_path, "1 / 0"))
    with raises_issue("recipe.function-failed", error=RecipeError):
        PythonScorer(write_function(tmp_path, "raise SystemExit(0)", "script.py"))
    with raises_issue("recipe.function-not-found", error=RecipeError):
        PythonScorer(write_function(tmp_path, "x = 1", "b.py"))


@pytest.mark.parametrize("page", ["README.md", "docs/rewards.md"])
def test_documented_example_tells_lengths_apart_in_both_forms(tmp_path: Path, page: str) -> None:
    """The length of a message list is always 1: a reward of it would be constant on conversations."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# rewards\.py\n.*?)```", text, re.DOTALL)
    (tmp_path / "rewards.py").write_text(code, encoding="utf-8")
    function = load_function(f"{tmp_path}/rewards.py:brevity")
    texts: list[Text] = ["", "a" * 250, "a" * 900]
    messages: list[Text] = [[Message(role="assistant", content=str(text))] for text in texts]
    for completions in (texts, messages):
        assert call_function(function, ["p"] * 3, completions, {}) == [0.0, -0.5, -1.0]
