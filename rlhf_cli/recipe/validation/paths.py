"""Validate the paths in a recipe: folders of models, references to runs, templates and Python functions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from rlhf_cli.errors import Issue
from rlhf_cli.formatting import did_you_mean, format_path
from rlhf_cli.recipe.schema import Key, PathKind, Recipe, is_run_reference
from rlhf_cli.recipe.user_functions import function_issues
from rlhf_cli.recipe.validation.keyed_issue import KeyedIssue, keyed_issue, with_key
from rlhf_cli.stages import STAGES

RELATIVE_HINT = "Relative paths are resolved against the recipe's directory or, in --set, the working directory."
RUN_HINT = "Use a run such as sft, sft@v0002 or name/sft@v0002, or the path of a directory."


def path_issues(recipe: Recipe) -> Iterator[KeyedIssue]:
    """Yield issues of all paths but those of data files. Each issue of a Python file is reported once."""
    reported: set[Issue] = set()
    for key, kind, text in recipe.iter_paths():
        if kind.kind == "function":
            for issue in _function_issues(text):
                if issue not in reported:
                    reported.add(issue)
                    yield with_key(key, issue)
        elif kind.kind == "template":
            if text != "auto" and not Path(text).is_file():
                problem = f"file not found: {format_path(Path(text))}."
                hint = "Write auto, or the path of a .jinja file."
                yield keyed_issue("recipe.path-not-found", key, problem, hint)
        elif kind.kind in ("model", "run"):
            yield from _model_issues(key, kind, text)


def not_found_issue(kind: str, path: Path, key: Key) -> KeyedIssue:
    """Return an issue for a path at which there is no `kind`, "file" or "directory"."""
    return with_key(key, _not_found(kind, path))


def _not_found(kind: str, path: Path) -> Issue:
    return Issue("recipe.path-not-found", f"{kind} not found: {format_path(path)}.", hint=_similar_path_hint(path))


def _similar_path_hint(path: Path) -> str:
    """Suggest an existing path that differs from `path` only in the first part that does not exist."""
    missing = next((p for p in [*reversed(path.parents), path] if not p.exists()), path)
    siblings = [p.name for p in missing.parent.iterdir()] if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, siblings, n=1)
    if not close:
        return RELATIVE_HINT
    return f"Did you mean {close[0] if missing == path else format_path(missing.with_name(close[0]))}?"


def _function_issues(spec: str) -> Iterator[Issue]:
    """Yield issues of a `file.py:function`. The file is not run."""
    file, colon, _ = spec.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py":
        message = f"invalid value; found {spec}, expected file.py:function."
        yield Issue("recipe.invalid-value", message, hint="Use, for example, rewards.py:brevity.")
    elif not path.is_file():
        yield _not_found("file", path)
    else:
        yield from function_issues(spec)


def _model_issues(key: Key, kind: PathKind, text: str) -> Iterator[KeyedIssue]:
    """Yield an issue unless `text` is an existing folder or may be a run, a special word, or a Hub id if allowed."""
    if is_run_reference(text):
        return
    if text.startswith("/"):
        if Path(text).is_file():
            problem = f"found a file, expected the directory of a model: {format_path(Path(text))}."
            hint = f"Use the directory {format_path(Path(text).parent)} if it holds a model in transformers' format."
            yield keyed_issue("recipe.invalid-value", key, problem, hint)
        elif not Path(text).is_dir():
            yield not_found_issue("directory", Path(text), key)
    elif kind.kind == "run" and text not in kind.words:
        hint = did_you_mean(text.partition("@")[0], (*STAGES, *kind.words), otherwise=RUN_HINT)
        problem = f"not a run reference and not a directory; found {text}."
        yield keyed_issue("recipe.invalid-run-reference", key, problem, hint)
