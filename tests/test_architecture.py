"""The rooms and who may import whom, held against the code; and that what must be quick loads nothing heavy."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_cli"
ML = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "trl", "huggingface_hub"}
TENSORS = {"torch", "numpy", "safetensors"}
WITH_TENSORS = "runs/state.py"  # of the runs alone: `rlhf runs list` must not load torch
MAX_LINES = 400  # a file; about 300 is a good size

# Room: what it may import beside the standard library and itself. `x` allows x and all below it.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "distributed": {"torch", "accelerate"},
    "recipe": {"pydantic", "yaml", "rlhf_cli.errors"},
    "runs": {"rlhf_cli.errors", *TENSORS},
    "data": {
        *("rlhf_cli.recipe.schema", "rlhf_cli.errors", "transformers", "datasets", "pyarrow", "jinja2"),
        *("numpy", "orjson"),
    },
    "models": {
        *(
            "rlhf_cli.recipe.schema",
            "rlhf_cli.errors",
            "rlhf_cli.distributed",
            *(ML - {"trl"}),
            "safetensors",
            "psutil",
        ),
    },
    "ppo": {
        *("torch", "transformers", "peft", "accelerate", "rlhf_cli.errors", "rlhf_cli.recipe.schema", "rlhf_cli.runs"),
        "rlhf_cli.distributed",
        *("rlhf_cli.data", "rlhf_cli.models", "safetensors"),
        "rlhf_cli.recipe.user_functions",  # how a Python reward is named, looked at and loaded
        "rlhf_cli.evaluation.text",  # how much an answer repeats itself: the same figure in training and in eval
    },
    "evaluation": {"numpy", "scipy", "rlhf_cli.recipe.schema", "rlhf_cli.errors"},
    "stages": {
        *(f"rlhf_cli.{room}" for room in ("errors", "recipe", "runs", "data", "models", "ppo", "evaluation")),
        *ML,
        *("rlhf_cli.__version__", "rlhf_cli.distributed"),
    },
    # At the top of a module; inside functions the command line may import anything.
    "cli": {
        *("typer", "rich", "rlhf_cli.recipe", "rlhf_cli.runs", "rlhf_cli.errors", "rlhf_cli.stages"),
        *("rlhf_cli.__version__", "rlhf_cli.distributed"),
    },
    "__main__": {"rlhf_cli.cli"},
    "__init__": set(),
}
# Rooms whose modules must be importable without their heavy libraries: these are imported inside functions.
QUICK_AT_THE_TOP = {"data": {"transformers", "datasets", "pyarrow"}}
ONLY_TORCH = ("ppo/algorithm.py",)


class Import(NamedTuple):
    """One imported name, and where it stands."""

    module: str
    name: str
    line: int
    at_top: bool
    for_types: bool

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}".strip(".")


def imports(path: Path) -> list[Import]:
    return [*_imports(ast.parse(path.read_text(encoding="utf-8")), at_top=True, for_types=False)]


def _imports(node: ast.AST, *, at_top: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(a.name, "", child.lineno, at_top, for_types) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (Import(child.module or "", a.name, child.lineno, at_top, for_types) for a in child.names)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guard = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from _imports(child, at_top=at_top and not inside, for_types=for_types or guard)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def ids(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def is_within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def strangers(found: list[Import], room: str) -> list[str]:
    """Imports that the room's row does not allow."""
    allowed = {*ALLOWED[room], f"rlhf_cli.{room}", *sys.stdlib_module_names}
    return [f"line {i.line}: {i.dotted}" for i in found if not any(is_within(i.dotted, a) for a in allowed)]


def test_every_room_has_a_row() -> None:
    assert {room_of(path) for path in files()} == set(ALLOWED)


@pytest.mark.parametrize("path", files(), ids=ids)
def test_a_room_imports_what_its_row_allows(path: Path) -> None:
    room = room_of(path)
    found = [i for i in imports(path) if room != "cli" or (i.at_top and not i.for_types)]
    if room == "runs" and ids(path) != WITH_TENSORS:
        assert {i.module.partition(".")[0] for i in found} & TENSORS == set()
        assert "rlhf_cli.runs.training_state" not in {i.dotted for i in found}
    if ids(path) == "stages/__init__.py":
        assert strangers(found, "errors") == []  # the table loads no stage
    assert strangers(found, room) == []


@pytest.mark.parametrize("path", [PACKAGE / name for name in ONLY_TORCH], ids=ids)
def test_the_arithmetic_of_ppo_needs_torch_alone(path: Path) -> None:
    outside = {i.module.partition(".")[0] for i in imports(path)} - set(sys.stdlib_module_names)
    assert outside == {"torch"}


@pytest.mark.parametrize("path", [p for p in files() if room_of(p) in QUICK_AT_THE_TOP], ids=ids)
def test_what_check_needs_loads_no_heavy_library_at_the_top(path: Path) -> None:
    heavy = {*ML, *QUICK_AT_THE_TOP[room_of(path)]}
    found = {i.module.partition(".")[0] for i in imports(path) if i.at_top and not i.for_types}
    assert found & heavy == set()


@pytest.mark.parametrize("path", [p for p in files() if room_of(p) == "cli"], ids=ids)
def test_the_command_line_imports_the_rest_inside_functions(path: Path) -> None:
    top = [i for i in imports(path) if i.at_top and not i.for_types]
    heavy = [i.dotted for i in top if i.module.partition(".")[0] in {*ML, "rich", "scipy", "numpy", "yaml", "pydantic"}]
    heavy += [i.dotted for i in top if is_within(i.module, "rlhf_cli.stages") and i.module != "rlhf_cli.stages"]
    assert heavy == []


@pytest.mark.parametrize("path", files(), ids=ids)
def test_no_private_name_of_a_library_is_used(path: Path) -> None:
    private = [
        f"line {i.line}: {i.dotted}"
        for i in imports(path)
        if i.module.partition(".")[0] in ML | {"typer", "pydantic", "yaml", "scipy"}
        and any(part.startswith("_") and not part.startswith("__") for part in i.dotted.split("."))
    ]
    assert private == []


@pytest.mark.parametrize("path", files(), ids=ids)
def test_from_trl_come_top_level_names_and_none_of_its_trainers_is_subclassed(path: Path) -> None:
    modules = {i.module for i in imports(path) if i.module.partition(".")[0] == "trl"}
    assert modules <= {"trl"}
    bases = [b for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef) for b in n.bases]
    assert not [ast.unparse(base) for base in bases if ast.unparse(base).endswith("Trainer")]


@pytest.mark.parametrize("path", files(), ids=ids)
def test_a_file_has_one_reason_and_says_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
    if text:
        assert ast.get_docstring(ast.parse(text)), "the first line says what the module is for"


def test_stages_do_not_call_each_other() -> None:
    """They meet in run folders alone; what two of them share has a module that is no stage."""
    from rlhf_cli.stages import STAGES

    modules = {stage.function.partition(":")[0] for stage in STAGES.values()}
    for module in modules:
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        assert path.is_file()
        assert {i.dotted for i in imports(path)} & modules == set()
