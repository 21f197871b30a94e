"""Local imports of a reward file. Which files count is tested through the fingerprint."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.recipe.local_imports import find_local_imports


def test_local_imports_of_invalid_python_are_empty(tmp_path: Path) -> None:
    """The syntax error is reported when the file is loaded."""
    (tmp_path / "f.py").write_text("def (:")
    assert find_local_imports(tmp_path / "f.py") == []
