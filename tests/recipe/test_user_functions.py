"""Functions that a recipe names, loaded: in this process, and in one of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_cli.errors import RecipeError
from rlhf_cli.recipe.user_functions import check_loads_in_subprocess, load_function


def write(folder: Path, text: str, name: str = "judge.py") -> str:
    (folder / name).write_text(text)
    return f"{folder / name}:score"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("\nfrom json import no_such_name\n", ":2", "it fails as it is loaded: ImportError: cannot import name"),
        ("import neighbour_that_fails\n", ":1", "it fails as it is loaded: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", ":1", "it fails as it is loaded: SystemExit: 3"),
        ("def (:\n", ":1", "it fails as it is loaded: SyntaxError: invalid syntax"),
        ("score = 3\n", ":score", "judge.py has no function score"),
    ],
)
def test_what_fails_as_it_is_loaded_is_told_with_its_line_and_leaves_this_process_alone(
    tmp_path: Path, text: str, line: str, says: str
) -> None:
    (tmp_path / "neighbour_that_fails.py").write_text("\n1 / 0\n")
    spec = write(tmp_path, text)
    for load in (check_loads_in_subprocess, load_function):
        with pytest.raises(RecipeError) as raised:
            load(spec)
        (issue,) = raised.value.issues
        assert issue.location == f"{tmp_path}/judge.py{line}"
        assert issue.message.startswith(says)
        assert "neighbour_that_fails" not in sys.modules


def test_what_is_tried_is_not_loaded_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_loads_in_subprocess(write(tmp_path, "print('here I am')\ndef score(): ...\n"))
    assert not [name for name in sys.modules if str(tmp_path) in name]
    assert capfd.readouterr().out == ""


def test_a_file_that_takes_its_process_down_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a process that loaded it died"):
        check_loads_in_subprocess(write(tmp_path, "import os\nos._exit(0)\n"))
