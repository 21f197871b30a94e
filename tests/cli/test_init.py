"""Tests of `rlhf init`: a complete and valid project, only in an empty directory, also from an installed package."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_cli.cli.init import STARTER
from tests.support.command import Rlhf

ROOT = Path(__file__).parents[2]
FILES = {
    *(".gitignore", "Makefile", "README.md", "recipe.yaml"),
    *(f"data/{name}" for name in ("demonstrations.jsonl", "preferences.jsonl", "prompts.jsonl", "text.txt")),
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(rlhf: Rlhf, tmp_path: Path) -> Path:
    assert rlhf("init", tmp_path / "project").code == 0
    return tmp_path / "project"


def test_init_writes_project_and_prints_next_steps(rlhf: Rlhf, tmp_path: Path) -> None:
    result = rlhf("init", "new/place")
    assert result.code == 0
    assert files_of(tmp_path / "new" / "place") == FILES
    assert "  cd new/place\n  rlhf run -r recipe.yaml" in result.out


def test_init_json_is_one_object(rlhf: Rlhf, tmp_path: Path) -> None:
    content = rlhf("init", "new", "--json").json
    assert {*content.pop("files")} == FILES
    assert content == {"status": "ok", "stage": "init", "path": str(tmp_path / "new")}


def test_starter_recipe_and_rows_are_valid(rlhf: Rlhf, project: Path) -> None:
    result = rlhf("check", "-r", project / "recipe.yaml", "--json")
    assert result.code == 0
    assert result.json["stages"] == ["pretrain", "sft", "reward", "ppo", "eval", "export"]
    for counts in result.json["data"].values():
        assert counts["held out"]
        assert not any("drop" in name for name in counts)


def test_starter_recipe_with_suggested_changes_is_valid(rlhf: Rlhf, project: Path) -> None:
    """Remove what is marked `sample only`, and put in the values behind `for a real model:`."""
    text = (project / "recipe.yaml").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    body = re.sub(r"(?m)^pretrain: +# sample only.*\n( .*\n)+", "", body)
    body = re.sub(r"(?m)^.*# sample only.*\n", "", body)
    body, changed = re.subn(r"(?m)^( *(?:-|[\w]+:) ?)(\S.*?) +# for a real model: (\{.*\}|[^,;\s]+).*$", r"\1\3", body)
    assert changed == text.count("# for a real model: ")
    (project / "recipe.yaml").write_text(body)
    result = rlhf("check", "-r", project / "recipe.yaml", "--json")
    assert result.code == 0, result.err
    assert result.json["stages"] == ["sft", "reward", "ppo", "eval", "export"]
    assert "Qwen/Qwen2.5-0.5B-Instruct" in body


def test_starter_makefile_commands_run(project: Path) -> None:
    make = ["make", "--no-print-directory"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*make, f"RLHF={sys.executable} -m rlhf_cli", "check", "list"]
    ended = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "recipe.yaml: OK (pretrain, sft" in ended.stdout
    assert "no runs in runs" in ended.stdout
    ended = subprocess.run([*make, "-n"], cwd=project, capture_output=True, text=True, check=True)
    assert ended.stdout == "rlhf run -r recipe.yaml\n"


def test_starter_gitignore_excludes_runs(project: Path) -> None:
    (project / "runs").mkdir()
    (project / "runs" / "x").touch()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    ended = subprocess.run(["git", "status", "--short"], cwd=project, capture_output=True, text=True, check=True)
    assert "Makefile" in ended.stdout
    assert "runs" not in ended.stdout


@pytest.mark.parametrize("existing", ["notes.txt", ".env"])
def test_init_in_directory_with_files_exits_2_and_changes_nothing(rlhf: Rlhf, tmp_path: Path, existing: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / existing).write_text("mine")
    result = rlhf("init", "mine", "--json")
    assert result.code == 2
    assert result.issue == {
        "code": "recipe.directory-not-empty",
        "message": f"directory is not empty: it contains {existing}.",
        "location": f"{tmp_path}/mine",
        "hint": "Choose a new or empty directory.",
    }
    assert files_of(tmp_path / "mine") == {existing}


def test_init_at_file_exits_2_and_leaves_it_unchanged(rlhf: Rlhf, recipe_file: Path) -> None:
    before = recipe_file.read_text()
    result = rlhf("init", recipe_file, "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.directory-not-empty")
    assert result.issue["location"] == str(recipe_file)
    assert result.issue["message"] == "is a file; expected a new or empty directory."
    assert recipe_file.read_text() == before


def test_init_in_new_git_repository_succeeds(rlhf: Rlhf, tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    assert rlhf("init", "repo").code == 0
    assert files_of(tmp_path / "repo") == FILES


@pytest.mark.parametrize("folder", ["r.yaml/below", "/proc/none/of/it", "a" * 300])
def test_init_where_nothing_can_be_written_exits_6(rlhf: Rlhf, folder: str) -> None:
    result = rlhf("init", folder, "--json")
    assert (result.code, result.issue["code"]) == (6, "disk.not-writable")
    assert result.issue["hint"] == "Choose another directory."
    assert "Traceback" not in result.err


def test_init_on_full_disk_removes_what_it_wrote(rlhf: Rlhf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        real(path, content[: len(content) // 2])
        if path.name == "prompts.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return len(content)

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(Path, "write_bytes", write)
    for folder, existed in (("empty", True), ("not/there", False)):
        result = rlhf("init", folder)
        assert result.code == 6
        assert "No space left" in result.err
        assert (tmp_path / folder).exists() == existed
        assert not (tmp_path / "not").exists()
        assert files_of(tmp_path / "empty") == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "rlhf_cli", folder / "rlhf_cli", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, folder], cwd=folder, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    yield built
    shutil.rmtree(folder)


def test_init_of_installed_package_writes_files_without_loading_torch(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import sys; sys.argv = ['rlhf', 'init', 'new', '--json']\n"
        "import rlhf_cli.cli.app as app\n"
        "try: app.main()\n"
        "finally: print(app.__file__, {'torch', 'huggingface_hub'} & sys.modules.keys(), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["status"] == "ok"
    assert ended.stderr.strip() == f"{tmp_path}/site/rlhf_cli/cli/app.py set()"
    for name in FILES:
        assert (tmp_path / "new" / name).read_bytes() == (STARTER / name).read_bytes()
