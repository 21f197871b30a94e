"""Check the rooms of the package against its imports, and that what must start fast loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rlhf_cli.stages import STAGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlhf_cli"
ML = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "trl", "huggingface_hub"}
TENSORS = {"torch", "numpy", "safetensors"}
MAX_LINES = 500  # per file; about 300 is a good size
SMALL = {f"rlhf_cli.{name}" for name in ("errors", "error_codes", "formatting", "redaction", "run_reference")}

# What a room may import beside the standard library and itself. `x` allows x and everything below it.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"rlhf_cli.cli"},
    "error_codes": set(),
    "errors": {"rlhf_cli.error_codes", "rlhf_cli.redaction", "rlhf_cli.formatting"},
    "formatting": set(),
    "redaction": set(),
    "run_reference": set(),
    "distributed": {"torch", "accelerate"},
    "http_client": {"rlhf_cli.errors", "rlhf_cli.formatting", "httpx2"},
    "recipe": {*SMALL, "pydantic", "yaml", "rlhf_cli.stages"},
    "runs": {*SMALL, *TENSORS},
    "data": {
        *(*SMALL, "rlhf_cli.recipe", "rlhf_cli.stages", "rlhf_cli.evaluation.metrics"),
        "rlhf_cli.evaluation.slices",  # held-out rows are sampled apart from the votes of held-out annotators
        "rlhf_cli.models.hub",  # whether a file of the base model is cached
        *("transformers", "datasets", "pyarrow", "jinja2", "numpy", "orjson", "huggingface_hub"),
    },
    "models": {*SMALL, "rlhf_cli.recipe.schema", "rlhf_cli.distributed", *(ML - {"trl"}), "safetensors", "psutil"},
    "inference": {*SMALL, "rlhf_cli.models", "rlhf_cli.data", "rlhf_cli.distributed", "torch", "transformers"},
    "rewards": {
        "rlhf_cli.distributed",  # a reward that fails in one process fails in all
        *(*SMALL, "rlhf_cli.models", "rlhf_cli.data", "rlhf_cli.inference", "rlhf_cli.recipe", "torch", "transformers"),
        *("rlhf_cli.http_client", "rlhf_cli.ai_feedback", "safetensors"),  # the judge is a reward source, too
    },
    "ai_feedback": {
        *(f"rlhf_cli.{room}" for room in ("recipe", "data", "models", "inference", "http_client")),
        *("rlhf_cli.feedback", *SMALL),
        "rlhf_cli.evaluation.statistics",  # agreement with people is a proportion with an interval
        *("torch", "transformers"),
    },
    "evaluation": {*SMALL, "rlhf_cli.recipe.schema", "rlhf_cli.stages", "numpy", "scipy"},
    "ppo": {
        *(*SMALL, "rlhf_cli.recipe.schema", "rlhf_cli.runs", "rlhf_cli.distributed", "rlhf_cli.data"),
        *("rlhf_cli.models", "rlhf_cli.inference", "rlhf_cli.rewards"),
        "rlhf_cli.evaluation.text",  # repetition of completions: the same metric in training and in eval
        *("torch", "transformers", "peft", "accelerate", "safetensors"),
    },
    "feedback": {
        *(*SMALL, "rlhf_cli.recipe", "rlhf_cli.data", "rlhf_cli.evaluation"),
        "sqlalchemy",  # the store
        *("starlette", "uvicorn", "jinja2", "markdown_it", "nh3", "itsdangerous"),  # the page
        *("numpy", "scipy"),  # quality
    },
    "training": {
        *(f"rlhf_cli.{room}" for room in ("recipe", "runs", "data", "models", "inference", "evaluation", "pipeline")),
        *(*SMALL, "rlhf_cli.distributed", "rlhf_cli.stages", "rlhf_cli.ppo.trainer", *ML),
    },
    "stages": {
        *(f"rlhf_cli.{room}" for room in ("recipe", "runs", "data", "models", "inference", "rewards", "evaluation")),
        *("rlhf_cli.feedback", "rlhf_cli.ai_feedback"),
        *(*SMALL, "rlhf_cli.ppo", "rlhf_cli.training", "rlhf_cli.pipeline", "rlhf_cli.distributed", *ML),
    },
    "pipeline": {
        *(f"rlhf_cli.{room}" for room in ("recipe", "runs", "data", "models", "evaluation", "training", "stages")),
        "rlhf_cli.feedback",  # the store is an input of a stage
        *(*SMALL, "rlhf_cli.distributed", "rlhf_cli.__version__", "torch", "transformers", "huggingface_hub"),
        *("rlhf_cli.ai_feedback", "rlhf_cli.feedback"),
    },
    # At the top of a module; inside functions the command line may import anything.
    "cli": {
        *(*SMALL, "typer", "rich", "rlhf_cli.recipe", "rlhf_cli.runs", "rlhf_cli.stages"),
        *("rlhf_cli.__version__", "rlhf_cli.distributed"),
    },
}
WITH_TENSORS = "runs/training_state.py"  # the only file of runs that does: `rlhf runs list` must not load torch
STAGE_TABLE = "stages/__init__.py"
FAST_ROOMS = ("data",)  # import heavy libraries only inside functions
ONLY_TORCH = ("ppo/algorithm.py",)
# Loaded by the fast commands below.
HEAVY = ("torch", "trl", "transformers", "datasets", "peft")


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

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]


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
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def ids(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def is_within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def disallowed(found: list[Import], allowed: set[str]) -> list[str]:
    allowed = {*allowed, *sys.stdlib_module_names}
    return [f"line {i.line}: {i.dotted}" for i in found if not any(is_within(i.dotted, a) for a in allowed)]


def test_rooms_each_have_a_row() -> None:
    assert {room_of(path) for path in files()} == set(ALLOWED)


@pytest.mark.parametrize("path", files(), ids=ids)
def test_imports_of_room_are_allowed(path: Path) -> None:
    room = room_of(path)
    found = [i for i in imports(path) if room != "cli" or (i.at_top and not i.for_types)]
    if room == "runs" and ids(path) != WITH_TENSORS:
        assert {i.root for i in found} & TENSORS == set()
        assert "rlhf_cli.runs.training_state" not in {i.dotted for i in found}
    assert disallowed(found, {*ALLOWED[room], f"rlhf_cli.{room}"}) == []


def test_documentation_of_rooms_matches_the_rules() -> None:
    rooms = {name for name, allowed in ALLOWED.items() if (PACKAGE / name).is_dir()}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## What comes from libraries")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", text, re.MULTILINE))
    assert rows.keys() == rooms
    for room, documented in rows.items():
        allowed = {name.removeprefix("rlhf_cli.") for name in ALLOWED[room] - SMALL if name.startswith("rlhf_cli.")}
        named = set(re.findall(r"`([\w.]+)`", documented))
        if documented.startswith("every package except"):
            assert {name.partition(".")[0] for name in allowed} & named == set(), room
        else:
            assert named == allowed - {"__version__"}, room


def test_imports_of_stage_table_are_standard_library_only() -> None:
    assert disallowed(imports(PACKAGE / STAGE_TABLE), set()) == []


@pytest.mark.parametrize("path", [PACKAGE / name for name in ONLY_TORCH], ids=ids)
def test_imports_of_ppo_algorithm_are_torch_only(path: Path) -> None:
    assert {i.root for i in imports(path)} - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("path", [p for p in files() if room_of(p) in FAST_ROOMS], ids=ids)
def test_imports_of_fast_room_at_top_are_light(path: Path) -> None:
    found = {i.root for i in imports(path) if i.at_top and not i.for_types}
    assert found & {*ML, "pyarrow"} == set()


@pytest.mark.parametrize("path", [p for p in files() if room_of(p) == "cli"], ids=ids)
def test_imports_of_cli_at_top_are_light(path: Path) -> None:
    top = [i for i in imports(path) if i.at_top and not i.for_types]
    heavy = [i.dotted for i in top if i.root in {*ML, "rich", "scipy", "numpy", "yaml", "pydantic"}]
    heavy += [i.dotted for i in top if is_within(i.module, "rlhf_cli.stages") and i.module != "rlhf_cli.stages"]
    assert heavy == []


@pytest.mark.parametrize("path", files(), ids=ids)
def test_imports_of_libraries_are_public_names(path: Path) -> None:
    private = [
        f"line {i.line}: {i.dotted}"
        for i in imports(path)
        if i.root in ML | {"typer", "pydantic", "yaml", "scipy"}
        and any(part.startswith("_") and not part.startswith("__") for part in i.dotted.split("."))
    ]
    assert private == []


@pytest.mark.parametrize("path", files(), ids=ids)
def test_imports_of_trl_are_top_level_and_its_trainers_not_subclassed(path: Path) -> None:
    assert {i.module for i in imports(path) if i.root == "trl"} <= {"trl"}
    bases = [b for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef) for b in n.bases]
    assert not [ast.unparse(base) for base in bases if ast.unparse(base).endswith("Trainer")]


@pytest.mark.parametrize("path", files(), ids=ids)
def test_file_has_one_subject_and_a_docstring(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in {"utils", "util", "common_utils", "helpers", "helper", "misc"}
    if text:
        assert ast.get_docstring(ast.parse(text)), "the first line says what the module is for"


def test_stages_do_not_import_each_other() -> None:
    modules = {spec.entry_point.partition(":")[0] for spec in STAGES.values()}
    for module in modules:
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        assert path.is_file()
        assert {i.dotted for i in imports(path)} & modules == set()


@pytest.mark.parametrize("path", [p for p in files() if ids(p) != STAGE_TABLE], ids=ids)
def test_stage_names_are_compared_only_in_the_stage_table(path: Path) -> None:
    """A fact that differs between stages is a field of StageSpec, so that adding a stage touches no other file."""
    assert stage_comparisons(ast.parse(path.read_text(encoding="utf-8"))) == []


def stage_comparisons(tree: ast.AST) -> list[str]:
    """Return the comparisons of something called a stage with a literal, and tables keyed by stage names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            is_stage = any(re.search(r"\bstage(_name)?$", ast.unparse(side)) for side in sides)
            has_name = any(_literals(side) & STAGES.keys() for side in sides)
            names_stages = any(re.fullmatch(r"(\w+\.)*stages", ast.unparse(side)) for side in sides)
            if has_name and (is_stage or names_stages):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
            if len(keys & STAGES.keys()) > 1 and keys <= STAGES.keys():
                found.append(f"line {node.lineno}: a table keyed by stages")
        elif isinstance(node, ast.Match) and "stage" in ast.unparse(node.subject):
            found.append(f"line {node.lineno}: a match on a stage")
    return found


def _literals(node: ast.AST) -> set[str]:
    constants = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize(
    "code",
    [
        'x = stage == "sft"',
        'if spec.stage in ("sft", "ppo"): ...',
        'found = "eval" in stages',
        'T = {"sft": 1, "ppo": 2}',
        'match stage:\n    case "sft": ...',
    ],
)
def test_stage_comparisons_in_code_are_found(code: str) -> None:
    assert len(stage_comparisons(ast.parse(code))) == 1


@pytest.mark.subprocess
@pytest.mark.parametrize("words", [("--help",), ("check", "-r", "bad.yaml"), ("runs", "list")], ids=" ".join)
def test_fast_command_loads_no_heavy_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nbase: {model: org/model}\nppo: {learnig_rate: 1}\n")
    code = (
        "import sys\nfrom rlhf_cli.cli.app import main\n"
        f"sys.argv = ['rlhf', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert "loaded: []" in ended.stderr, ended.stderr
