"""The Python files that a reward file imports from its own folder: they judge as well, and are hashed with it.

Found in the source, by what `import` would find there; nothing is run. What is imported by a computed name, and what
the code reads otherwise, is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def find_local_imports(file: Path) -> list[Path]:
    """Every file beside or below `file` that it imports, by itself or through another of them, in order of name."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        new = {other for other in _imported(path, file.parent) if file.parent in other.parents} - found - {file}
        found |= new
        waiting += new
    return sorted(found)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """The files below `root`, from where modules are looked up, that the import statements of `path` name."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # told where it is loaded
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom) and node.level <= len(path.parents):
            start = path.parents[node.level - 1] if node.level else root  # `from . import x`: the package's own folder
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files(start, [*parts, alias.name])  # a name of the module, or a module itself


def _files(folder: Path, parts: list[str]) -> Iterator[Path]:
    """The module's file, and those of the packages that it lies in, as far as there are any."""
    for part in parts:
        for path in (folder / part / "__init__.py", folder / f"{part}.py"):
            if path.is_file():
                yield path
                break
        folder = folder / part
