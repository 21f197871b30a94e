"""Python functions of a recipe, loaded in this process and in a subprocess."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.user_functions import check_loads_in_subprocess, load_function
from tests.support.issues import raises_issue


def write_function(folder: Path, text: str) -> str:
    """Write a Python file and return the spec of its function `score`."""
    (folder / "judge.py").write_text(text)
    return f"{folder / 'judge.py'}:score"


@pytest.mark.parametrize(
    ("text", "line", "code", "words"),
    [
        (
            "\nfrom json import no_such_name\n",
            ":2",
            "function-failed",
            "cannot load judge.py: ImportError: cannot import name",
        ),
        (
            "import failing_neighbor\n",
            ":1",
            "function-failed",
            "cannot load judge.py: ZeroDivisionError: division by zero.",
        ),
        ("raise SystemExit(3)\n", ":1", "function-failed", "cannot load judge.py: SystemExit: 3."),
        ("def (:\n", ":1", "function-failed", "cannot load judge.py: SyntaxError: invalid syntax"),
        ("score = 3\n", ":score", "function-not-found", "judge.py: function score not found."),
    ],
)
def test_loading_of_failing_file_raises_with_its_line_and_leaves_no_modules(
    tmp_path: Path, text: str, line: str, code: str, words: str
) -> None:
    (tmp_path / "failing_neighbor.py").write_text("\n1 / 0\n")
    spec = write_function(tmp_path, text)
    for load in (check_loads_in_subprocess, load_function):
        location = f"{tmp_path}/judge.py{line}"
        with raises_issue(f"recipe.{code}", error=RecipeError, location=location) as issues:
            load(spec)
        assert issues[0].message.startswith(words)
        assert "failing_neighbor" not in sys.modules


def test_load_function_of_missing_file_raises(tmp_path: Path) -> None:
    spec = f"{tmp_path}/gone.py:score"
    with raises_issue("recipe.path-not-found", error=RecipeError, location=spec) as issues:
        load_function(spec)
    assert issues[0].message == f"file not found: {tmp_path}/gone.py."


def test_check_loads_in_subprocess_loads_nothing_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_loads_in_subprocess(write_function(tmp_path, "print('here I am')\ndef score(): ...\n"))
    assert not [name for name in sys.modules if str(tmp_path) in name]
    assert capfd.readouterr().out == ""


def test_check_loads_in_subprocess_of_file_that_ends_the_process_raises(tmp_path: Path) -> None:
    spec = write_function(tmp_path, "import os\nos._exit(0)\n")
    with raises_issue("recipe.function-failed", error=RecipeError, location=spec) as issues:
        check_loads_in_subprocess(spec)
    assert issues[0].message == "the process that loaded the file crashed."
