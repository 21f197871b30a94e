"""Refuse the words that the glossary in CONTRIBUTING.md retires, in all text that users read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MESSAGE_CALLS = re.compile(
    r"(\w*error|\w*_?issues?|field|option|argument|flag|typer|checkresult|stagespec|metric)$", re.IGNORECASE
)
LOG_CALLS = re.compile(r"logger\.(info|warning|error)$")
TEXT_METHODS = {"info", "warning", "print", "echo", "add"}

RETIRED = {  # pattern: what to write instead
    r"mend(s|ed)?\b": "hint, fix",
    r"faults?\b": "issue",
    r"figures?\b": "metric",
    r"go(es)? on\b": "resume, continue",
    r"taken up\b": "resume",
    r"passed over\b": "skip",
    r"left out\b": "skip",
    r"under way\b": "incomplete, running",
    r"held? against\b": "compare with",
    r"(is|are) no (stage|run|url|number|file|folder|model|regular expression)\b": "unknown, invalid",
    r"names? no\b": "unknown",
    r"trunk\b": "base model",
    r"judges?d? none\b": "returned None for",
    r"(an?|the|each|every|all) answers?\b": "completion",
    r"it goes\b": "continues",
    r"begun\b": "incomplete, started",
    r"is told\b": "is reported",
    r"as it stands\b": "unchanged",
    r"what (is|was|it|they|a|the) (told|said|taken|kept|left)\b": "name the noun",
}
RETIRED_IN_MESSAGES = {  # fine in prose
    r"there (is|are) no\b": "not found",
    r"neither .{1,40} nor\b": "expected … or …",
}
RETIRED_NAMES = {  # in recipes, code and documentation
    r"\bmend\b": "hint",
    r"\beval\.(of|against)\b": "eval.candidate, eval.baseline",
    r"\.against\b": ".baseline",
    r"\bexport\.form\b": "export.format",
    r"\badapter\.targets\b": "adapter.target_modules",
    r"\blam\b": "gae_lambda",
}
# Text about these: a model's answer is a completion, but a person's or a server's answer is one.
ALLOWED = re.compile(r"(an answer of the server|question and answer|the answer to)", re.IGNORECASE)


def documents() -> list[Path]:
    patterns = ("*.md", "docs/**/*.md", "recipes/**/*.md", "rlhf_cli/starter/*.md", "rlhf_cli/starter/recipe.yaml")
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    # CONTRIBUTING lists the retired words.
    return sorted(found - {ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"})


def sources() -> list[Path]:
    return sorted((ROOT / "rlhf_cli").rglob("*.py"))


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and text of the strings in calls and variables that make text for users."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            is_message = MESSAGE_CALLS.search(name) or LOG_CALLS.search(name) or name.rpartition(".")[2] in TEXT_METHODS
            if is_message:
                yield from _strings(node)
        elif isinstance(node, ast.Assign) and any(
            ast.unparse(target).lower().endswith(("message", "hint", "text", "problem", "fix"))
            for target in node.targets
        ):
            yield from _strings(node.value)


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.lineno, inner.value


def retired_words(text: str, retired: Mapping[str, str] = RETIRED) -> list[str]:
    """Return each retired word in `text`, with what to write instead."""
    text = ALLOWED.sub("", text)
    return [
        f"{match[0]!r}: write {instead}"
        for pattern, instead in retired.items()
        for match in re.finditer(rf"\b{pattern}", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("path", sources(), ids=ids)
def test_messages_of_module_use_no_retired_word(path: Path) -> None:
    tree, retired = ast.parse(path.read_text(encoding="utf-8")), {**RETIRED, **RETIRED_IN_MESSAGES}
    found = [f"line {line}: {word}" for line, text in messages(tree) for word in retired_words(text, retired)]
    assert found == []


@pytest.mark.parametrize("path", documents(), ids=ids)
def test_document_uses_no_retired_word(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"line {number}: {word}" for number, line in enumerate(lines, 1) for word in retired_words(line)]
    assert found == []


def files_with_names() -> list[Path]:
    found = {*sources(), *documents(), *ROOT.glob("recipes/**/*.yaml")}
    # These two list the names that other tools use, such as TRL's `lam`.
    return sorted(found - {ROOT / "rlhf_cli/recipe/foreign_keys.py", ROOT / "docs/coming-from.md"})


@pytest.mark.parametrize("path", files_with_names(), ids=ids)
def test_file_uses_no_retired_name(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [
        f"{match[0]}: use {instead}" for name, instead in RETIRED_NAMES.items() for match in re.finditer(name, text)
    ]
    assert found == []


@pytest.mark.parametrize("text", ["the run goes on after step 3", "data faults", "an answer of 9 tokens", "mend it"])
def test_retired_words_in_text_are_found(text: str) -> None:
    assert retired_words(text)
