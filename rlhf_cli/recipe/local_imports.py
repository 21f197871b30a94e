"""Find the Python files that a user's file imports from its own folder, so that they are hashed with it.

They are found in the source, without running it. Imports by a computed name, and other files that the code reads, are
not found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def find_local_imports(file: Path) -> list[Path]:
    """Return every file next to or below `file` that it imports, directly or through another one, sorted by name."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        new = {other for other in _imported(path, file.parent) if file.parent in other.parents} - found - {file}
        found |= new
        waiting += new
    return sorted(found)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files that the import statements of `path` name; modules are looked up in `root`."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # reported when the file is loaded
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom) and node.level <= len(path.parents):
            start = path.parents[node.level - 1] if node.level else root  # `from . import x`: the folder of the package
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files(start, [*parts, alias.name])  # a name in a module, or a module


def _files(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Yield the file of a module and of each package that contains it, if they exist."""
    for part in parts:
        for path in (folder / part / "__init__.py", folder / f"{part}.py"):
            if path.is_file():
                yield path
                break
        folder = folder / part
