"""A project from nothing: complete, sound, in an empty folder alone, also from an installed package."""

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


def test_a_project_is_written_and_what_to_do_next_is_told(rlhf: Rlhf, tmp_path: Path) -> None:
    ended = rlhf("init", "new/place")
    assert ended.code == 0
    assert files_of(tmp_path / "new" / "place") == FILES
    assert "  cd new/place\n  rlhf run -r recipe.yaml" in ended.out


def test_it_is_told_in_one_object(rlhf: Rlhf, tmp_path: Path) -> None:
    found = rlhf("init", "new", "--json").json
    assert {*found.pop("files")} == FILES
    assert found == {"status": "ok", "stage": "init", "path": str(tmp_path / "new")}


def test_the_recipe_and_its_rows_are_sound(rlhf: Rlhf, project: Path) -> None:
    ended = rlhf("check", "-r", project / "recipe.yaml", "--json")
    assert ended.code == 0
    assert ended.json["stages"] == ["pretrain", "sft", "reward", "ppo", "eval", "export"]
    assert all(
        counts["held out"] and not any("drop" in name for name in counts) for counts in ended.json["data"].values()
    )


def test_what_the_recipe_says_to_change_makes_a_sound_one(rlhf: Rlhf, project: Path) -> None:
    """Without what is marked `sample only`, and with what stands behind `yours:`."""
    text = (project / "recipe.yaml").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    body = re.sub(r"(?m)^pretrain: +# sample only.*\n( .*\n)+", "", body)
    body = re.sub(r"(?m)^.*# sample only.*\n", "", body)
    body, changed = re.subn(r"(?m)^( *(?:-|[\w]+:) ?)(\S.*?) +# yours: (\{.*\}|[^,;\s]+).*$", r"\1\3", body)
    assert changed == text.count("# yours: ")
    (project / "recipe.yaml").write_text(body)
    ended = rlhf("check", "-r", project / "recipe.yaml", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["stages"] == ["sft", "reward", "ppo", "eval", "export"]
    assert "Qwen/Qwen2.5-0.5B-Instruct" in body


def test_the_makefiles_commands_run(project: Path) -> None:
    command = ["make", "--no-print-directory", f"RLHF={sys.executable} -m rlhf_cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([*command, "check", "list"], cwd=project, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "good for pretrain, sft" in told.stdout
    assert "no runs in runs" in told.stdout
    told = subprocess.run(
        ["make", "--no-print-directory", "-n"], cwd=project, capture_output=True, text=True, check=True
    )
    assert told.stdout == "rlhf run -r recipe.yaml\n"


def test_git_does_not_see_the_runs(project: Path) -> None:
    (project / "runs").mkdir()
    (project / "runs" / "x").touch()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    told = subprocess.run(["git", "status", "--short"], cwd=project, capture_output=True, text=True, check=True)
    assert "Makefile" in told.stdout
    assert "runs" not in told.stdout


@pytest.mark.parametrize("there", ["notes.txt", ".env"])
def test_a_folder_with_anything_in_it_is_refused_and_left_alone(rlhf: Rlhf, tmp_path: Path, there: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / there).write_text("mine")
    ended = rlhf("init", "mine")
    assert ended.code == 2
    assert ended.err.startswith(f"error  {tmp_path}/mine  the folder holds {there}. Name a new or an empty one.")
    assert files_of(tmp_path / "mine") == {there}


def test_a_file_is_refused(rlhf: Rlhf, recipe_file: Path) -> None:
    before = recipe_file.read_text()
    ended = rlhf("init", recipe_file)
    assert (ended.code, "Name a new folder." in ended.err) == (2, True)
    assert recipe_file.read_text() == before


def test_an_empty_repository_is_an_empty_folder(rlhf: Rlhf, tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    assert rlhf("init", "repo").code == 0
    assert files_of(tmp_path / "repo") == FILES


@pytest.mark.parametrize("place", ["r.yaml/below", "/proc/none/of/it", "a" * 300])
def test_a_place_where_nothing_can_be_written_exits_6(rlhf: Rlhf, place: str) -> None:
    ended = rlhf("init", place, "--json")
    assert ended.code == 6
    (error,) = ended.json["issues"]
    assert error["hint"] == "Choose another folder."
    assert "Traceback" not in ended.err


def test_a_disk_that_fills_up_leaves_nothing_behind(
    rlhf: Rlhf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        real(path, content[: len(content) // 2])
        if path.name == "prompts.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return len(content)

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(Path, "write_bytes", write)
    for place, left in (("empty", True), ("not/there", False)):
        ended = rlhf("init", place)
        assert ended.code == 6
        assert "No space left" in ended.err
        assert (tmp_path / place).exists() == left
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
    (made,) = folder.glob("*.whl")
    yield made
    shutil.rmtree(folder)


def test_an_installed_package_brings_the_files(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import sys; sys.argv = ['rlhf', 'init', 'new', '--json']\n"
        "import rlhf_cli.cli.app as app\n"
        "try: app.main()\n"
        "finally: print(app.__file__, {'torch', 'huggingface_hub'} & sys.modules.keys(), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["status"] == "ok"
    assert told.stderr.strip() == f"{tmp_path}/site/rlhf_cli/cli/app.py set()"  # quick: it needs none of them
    for name in FILES:
        assert (tmp_path / "new" / name).read_bytes() == (STARTER / name).read_bytes()
