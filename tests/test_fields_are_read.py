"""No dead option: every field of the recipe is read outside the recipe package.

In a copy of the package, every field of the schema is renamed and replaced by a deprecated property. mypy then reports
every place that reads a field, with types. A field that only the recipe package reads has no effect on a stage and
does not count.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from rlhf_cli.recipe.schema import Recipe, Section
from rlhf_cli.recipe.schema.lookup import iter_section_classes, section_class
from rlhf_cli.stages import STAGES

ROOT = Path(__file__).parents[1]
SCHEMA = Path("rlhf_cli") / "recipe" / "schema"


class Field(NamedTuple):
    """A field, and the class that declares it first."""

    section: str
    name: str


# Fields that are read by getattr with a name from the stage table, which mypy cannot see: the file and the expression.
# A test checks that the file still does so.
TABLE_READS: Mapping[str, tuple[str, str]] = {
    "section": ("rlhf_cli/pipeline/references.py", "getattr(recipe, spec.section)"),
    "dataset": ("rlhf_cli/pipeline/inputs.py", "getattr(recipe.data, kind)"),
    "accepts": ("rlhf_cli/pipeline/references.py", "getattr(section, field)"),
    "max_length_key": ("rlhf_cli/pipeline/resolve.py", "getattr(self.section, self.spec.max_length_key)"),
}

# Fields that are read in a way that mypy does not report, in the same form.
UNREPORTED_READS: Mapping[Field, tuple[str, str]] = {
    # An argument of an overloaded function is not reported as deprecated.
    Field("Eval", "samples"): ("rlhf_cli/data/held_out.py", "min(recipe.eval.samples, len(part))"),
    # The section of any stage with a trainer of TRL has the type Any there.
    Field("TrainerSection", "save_every"): ("rlhf_cli/training/supervised.py", "section.save_every"),
    # So has the section of a stage that samples or revises.
    Field("Sample", "prompts"): ("rlhf_cli/training/prepared_data.py", "stage.section.prompts"),
    Field("Revise", "prompts"): ("rlhf_cli/training/prepared_data.py", "stage.section.prompts"),
}


def fields_in_table() -> Iterator[Field]:
    """Yield the fields that the stage table names."""
    for spec in STAGES.values():
        yield Field("Recipe", spec.section)
        for kind in (spec.dataset, *spec.datasets):
            if kind is not None:
                yield Field("Data", kind)
        section = section_class((spec.section,))
        assert section is not None
        has_limit = spec.max_length_key in section.model_fields
        for name in (*spec.accepts, *([spec.max_length_key] if has_limit else [])):
            yield Field(first_declaration(section, name).__name__, name)


def first_declaration(section: type[Section], name: str) -> type[Section]:
    """Return the base-most class that declares a field."""
    classes = [cls for cls in section.__mro__ if issubclass(cls, Section) and name in cls.model_fields]
    return classes[-1]


def schema_fields() -> set[Field]:
    """Return all fields of the schema."""
    sections: list[type[Section]] = [Recipe, *(section for _, section in iter_section_classes())]
    return {Field(first_declaration(cls, name).__name__, name) for cls in sections for name in cls.model_fields}


def add_tripwires(text: str, fields: set[Field]) -> tuple[str, set[Field]]:
    """Replace the fields of a schema file by deprecated properties. A field that a subclass redeclares is removed.

    Returns:
        The text, and the fields that were replaced.
    """
    lines = text.splitlines()
    replaced = set()
    for section, node in reversed(list(_declarations(text))):
        field = Field(section, ast.unparse(node.target))
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        if field not in fields:  # a subclass redeclares it
            lines[first:last] = []
            continue
        lines[first] = lines[first].replace(f"{field.name}:", f"{field.name}_renamed:", 1)
        lines[last:last] = [
            "    @property",
            f'    @deprecated("{field.section}.{field.name}")',
            f"    def {field.name}(self) -> {ast.unparse(node.annotation)}: ...",
        ]
        replaced.add(field)
    future = "from __future__ import annotations"
    return "\n".join(lines).replace(future, f"{future}\nfrom typing_extensions import deprecated", 1), replaced


def _declarations(text: str) -> Iterator[tuple[str, ast.AnnAssign]]:
    """Yield the annotated attributes of the section classes in a file, each with its class."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Section") for base in node.bases):
            yield from ((node.name, item) for item in node.body if isinstance(item, ast.AnnAssign))


class Tripwires(NamedTuple):
    """The fields that were replaced by properties, and those of them that are read outside the recipe package."""

    replaced: set[Field]
    read: set[Field]


@pytest.fixture(scope="module")
def tripwires(tmp_path_factory: pytest.TempPathFactory) -> Tripwires:
    """Run mypy over a copy of the package with tripwires."""
    folder = tmp_path_factory.mktemp("tripwires")
    shutil.copytree(ROOT / "rlhf_cli", folder / "rlhf_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (ROOT / ".mypy_cache").is_dir():  # with the results for the libraries, mypy needs a minute less
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    replaced: set[Field] = set()
    for path in (folder / SCHEMA).glob("*.py"):
        text, found = add_tripwires(path.read_text(encoding="utf-8"), schema_fields())
        path.write_text(text, encoding="utf-8")
        replaced |= found
    for spec in STAGES.values():  # in the file of a stage, `stage.section` is its own section, which mypy cannot know
        path = folder / f"{spec.entry_point.partition(':')[0].replace('.', '/')}.py"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("stage.section", f"stage.recipe.{spec.section}"), encoding="utf-8")
    for path in (folder / "rlhf_cli").rglob("*.py"):
        if not path.is_relative_to(folder / SCHEMA.parent):  # set in the files, as an option would void the cache
            text = path.read_text(encoding="utf-8")
            path.write_text(f'{text}# mypy: enable-error-code="deprecated"\n', encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "rlhf_cli"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not ended.stderr, ended.stderr
    return Tripwires(replaced, {Field(*match) for match in re.findall(r" is deprecated: (\w+)\.(\w+)  ", ended.stdout)})


@pytest.mark.slow
def test_tripwires_replace_every_field_of_the_schema(tripwires: Tripwires) -> None:
    assert tripwires.replaced == schema_fields()
    assert len(tripwires.replaced) > 80


@pytest.mark.slow
def test_every_field_is_read_outside_the_recipe_package(tripwires: Tripwires) -> None:
    unread = schema_fields() - tripwires.read - set(fields_in_table()) - set(UNREPORTED_READS)
    assert not unread, sorted(unread)


@pytest.mark.parametrize(("file", "expression"), [*TABLE_READS.values(), *UNREPORTED_READS.values()])
def test_reads_that_mypy_cannot_see_exist(file: str, expression: str) -> None:
    assert expression in (ROOT / file).read_text(encoding="utf-8")


def test_fields_in_the_stage_table_exist() -> None:
    assert {*fields_in_table(), *UNREPORTED_READS} <= schema_fields()
