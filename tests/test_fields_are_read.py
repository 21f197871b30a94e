"""No dead knob: every field of the recipe is read by a stage.

The package is copied, and in the copy's schema every field gets another name; under its own it becomes a property that
is deprecated. mypy, asked once, then tells every place that reads it, with types as they were. A field that is read in
recipe/ alone does nothing for a stage, and does not count.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "sft", "reward", "ppo", "eval", "export")
ROWS = ("pretrain", "sft", "preferences", "prompts")

# Read by getattr with a name from the literal table of stages, which mypy cannot see: the file, and the reading itself.
# A test holds that the file still reads so, and that the table names just these fields.
BY_TABLE = {
    **{("Data", name): ("rlhf_cli/pipeline/inputs.py", "getattr(recipe.data, kind)") for name in ROWS},
    **{("Recipe", name): ("rlhf_cli/pipeline/inputs.py", "getattr(recipe, row.section)") for name in STAGES},
}


class Field(NamedTuple):
    """A field of a section class."""

    section: str
    name: str


def fields_of(schema: str) -> dict[Field, ast.AnnAssign]:
    """Every field of every Section class."""
    found: dict[Field, ast.AnnAssign] = {}
    sections = {"Section"}
    for node in ast.parse(schema).body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in sections for base in node.bases):
            sections.add(node.name)
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    found[Field(node.name, item.target.id)] = item
    return found


def with_tripwires(schema: str) -> str:
    """The schema with a deprecated property in place of each field."""
    lines = schema.splitlines()
    for field, node in reversed(fields_of(schema).items()):
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        lines[first] = lines[first].replace(f"{field.name}:", f"{field.name}_renamed:", 1)
        lines[last:last] = [
            "    @property",
            f'    @deprecated("{field.section}.{field.name}")',
            f"    def {field.name}(self) -> {ast.unparse(node.annotation)}: ...",
        ]
    future = "from __future__ import annotations"
    return "\n".join(lines).replace(future, f"{future}\nfrom typing_extensions import deprecated", 1)


@pytest.fixture(scope="module")
def schema() -> str:
    return (ROOT / "rlhf_cli" / "recipe" / "schema.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(schema: str, tmp_path_factory: pytest.TempPathFactory) -> set[Field]:
    """The fields that some file outside of recipe/ reads."""
    folder = tmp_path_factory.mktemp("tripwires")
    shutil.copytree(ROOT / "rlhf_cli", folder / "rlhf_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (ROOT / ".mypy_cache").is_dir():  # what mypy knows of the libraries saves it a minute
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    (folder / "rlhf_cli" / "recipe" / "schema.py").write_text(with_tripwires(schema), encoding="utf-8")
    for path in (folder / "rlhf_cli").rglob("*.py"):
        if path.parent.name != "recipe":  # asked in the files, because an option would void the cache
            path.write_text(
                path.read_text(encoding="utf-8") + '# mypy: enable-error-code="deprecated"\n', encoding="utf-8"
            )
    command = [sys.executable, "-m", "mypy", "--no-error-summary"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not told.stderr, told.stderr
    return {Field(*match) for match in re.findall(r" is deprecated: (\w+)\.(\w+)  ", told.stdout)}


def test_every_field_of_the_recipe_has_its_tripwire(schema: str) -> None:
    """Else the next test would prove nothing."""
    from rlhf_cli.recipe import schema as module

    sections = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    expected = {
        Field(name, field)
        for name, section in sections.items()
        if issubclass(section, module.Section)
        for field in section.model_fields
    }
    assert set(fields_of(schema)) == expected
    assert with_tripwires(schema).count("@deprecated(") == len(expected) > 80


def test_every_field_is_read_by_a_stage(schema: str, read: set[Field]) -> None:
    assert [field for field in fields_of(schema) if field not in read and field not in BY_TABLE] == []


def test_what_is_read_by_the_table_is_read(schema: str) -> None:
    from rlhf_cli.stages import STAGES as TABLE

    assert {row.section for row in TABLE.values()} == {*STAGES}
    assert {name for row in TABLE.values() for name in row.rows} == {*ROWS}
    for field, (file, reading) in BY_TABLE.items():
        assert field in fields_of(schema)
        assert reading in (ROOT / file).read_text(encoding="utf-8")
