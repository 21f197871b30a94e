"""Versions are unique, `latest` is the newest complete run, and references resolve."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_cli.errors import DiskError, ModelError, RecipeError
from rlhf_cli.runs import layout
from rlhf_cli.runs.run import Run
from tests.support.issues import raises_issue
from tests.support.runs import NewRun

Complete = Callable[..., Run]


def test_claim_continues_after_largest_version(tmp_path: Path) -> None:
    assert layout.claim(tmp_path, "bot", "sft") == tmp_path / "bot" / "sft" / "v0001"
    (tmp_path / "bot" / "sft" / "v0041").mkdir()
    (tmp_path / "bot" / "sft" / "v9").mkdir()  # not a version
    assert layout.claim(tmp_path, "bot", "sft").name == "v0042"
    assert layout.claim(tmp_path, "bot", "ppo").name == "v0001"


def test_claim_after_v9999_uses_five_digits(tmp_path: Path) -> None:
    (tmp_path / "bot" / "sft" / "v9999").mkdir(parents=True)
    assert layout.claim(tmp_path, "bot", "sft").name == "v10000"
    assert [entry.version for entry in layout.versions(tmp_path, "bot", "sft")] == ["v9999", "v10000"]


def test_claim_from_threads_gives_unique_versions(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = [*pool.map(lambda _: layout.claim(tmp_path, "bot", "sft"), range(64))]
    assert sorted(path.name for path in paths) == [f"v{i:04d}" for i in range(1, 65)]


def test_claim_version_created_meanwhile_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        (tmp_path / "bot" / "sft" / f"v{number:04d}").mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", lambda _self: iter(()))
    assert layout.claim(tmp_path, "bot", "sft").name == "v0003"


def test_claim_from_processes_gives_unique_versions(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from rlhf_cli.runs import layout\n"
    code += "for _ in range(20): print(layout.claim(Path(sys.argv[1]), 'bot', 'sft').name)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = [name for process in started for name in process.communicate()[0].split()]
    assert sorted(names) == [f"v{i:04d}" for i in range(1, 41)]


def test_claim_below_a_file_raises_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    parent = tmp_path / "file" / "bot" / "sft"
    with raises_issue("disk.not-writable", error=DiskError, location=str(parent)) as issues:
        layout.claim(tmp_path / "file", "bot", "sft")
    assert issues[0].message == "the run's directory cannot be created: Not a directory."
    assert "--runs-dir" in issues[0].hint


def test_latest_link_moves_only_when_a_real_run_completes(tmp_path: Path, complete: Complete, new_run: NewRun) -> None:
    latest = tmp_path / "bot" / "sft" / "latest"
    first = new_run()
    assert not latest.exists()
    first.complete({}, {})
    assert latest.readlink() == Path("v0001")  # relative, so that the folder can be moved
    new_run()
    assert latest.readlink() == Path("v0001")
    complete()
    assert latest.readlink() == Path("v0003")
    complete(smoke=True)
    assert latest.readlink() == Path("v0003")
    assert {path.name for path in latest.parent.glob("[!.]*")} == {"latest", "v0001", "v0002", "v0003", "v0004"}


def test_claim_never_uses_the_number_of_a_removed_run(tmp_path: Path, complete: Complete) -> None:
    complete(), complete()
    layout.remove_version(tmp_path / "bot" / "sft" / "v0002")
    assert complete().version == "v0003"
    for version in ("v0001", "v0003"):
        layout.remove_version(tmp_path / "bot" / "sft" / version)
    assert complete().version == "v0004"


def test_claim_repairs_the_link_and_removes_what_a_kill_left(tmp_path: Path, complete: Complete) -> None:
    complete(), complete()
    stage_dir = tmp_path / "bot" / "sft"
    (stage_dir / "latest").unlink()
    (stage_dir / "latest").symlink_to("v0001")  # killed between the manifest and the link
    (stage_dir / ".latest-1").symlink_to("v0002")
    (stage_dir / ".removed-1" / "model").mkdir(parents=True)
    layout.claim(tmp_path, "bot", "sft")
    assert (stage_dir / "latest").readlink() == Path("v0002")
    assert sorted(path.name for path in stage_dir.iterdir()) == ["latest", "v0001", "v0002", "v0003"]


def test_latest_link_of_a_slower_writer_does_not_go_back(
    tmp_path: Path, complete: Complete, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writer completes its run while the first one is about to create its link."""
    complete()
    symlink_to = Path.symlink_to
    others: list[threading.Thread] = []

    def complete_other(link: Path, target: str) -> None:
        if not others:
            others.append(threading.Thread(target=second.complete, args=({}, {})))
            others[0].start()
            others[0].join(timeout=1)  # it waits for the lock; without one, it would be done by now
        symlink_to(link, target)

    first, second = new_run(), new_run()
    monkeypatch.setattr(Path, "symlink_to", complete_other)
    first.complete({}, {})
    others[0].join()
    assert (tmp_path / "bot" / "sft" / "latest").readlink() == Path("v0003")


def test_remove_version_moves_the_link_before_the_run_is_removed(
    tmp_path: Path, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(), complete()
    stage_dir = tmp_path / "bot" / "sft"

    def killed(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        layout.remove_version(stage_dir / "v0002")
    assert (stage_dir / "latest").readlink() == Path("v0001")


def test_unreadable_manifest_is_an_error_of_permission_and_hides_no_other_run(
    tmp_path: Path, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(), complete()
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.parent.name == "v0001":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    manifest = tmp_path / "bot" / "sft" / "v0001" / "manifest.json"
    with raises_issue("disk.not-readable", error=DiskError, location=str(manifest)):
        layout.find(tmp_path, "sft@v0001", "bot", smoke=False)
    entries = layout.versions(tmp_path, "bot", "sft")
    assert [bool(entry.manifest) for entry in entries] == [False, True]


@pytest.mark.parametrize(
    ("text", "name", "stage", "version"),
    [
        ("sft", "bot", "sft", None),
        ("sft@latest", "bot", "sft", None),
        ("sft@v0003", "bot", "sft", "v0003"),
        ("other/sft@v0003", "other", "sft", "v0003"),
        ("other/sft@latest", "other", "sft", None),
    ],
)
def test_parse_reference_gives_name_stage_and_version(text: str, name: str, stage: str, version: str | None) -> None:
    assert layout.parse(text, "bot") == (name, stage, version)


def test_find_returns_newest_complete_run_or_named_version(tmp_path: Path, complete: Complete, new_run: NewRun) -> None:
    complete(), complete(), new_run(), complete(smoke=True), complete(name="other")

    def found(text: str, *, smoke: bool = False) -> str:
        entry = layout.find(tmp_path, text, "bot", smoke=smoke)
        assert entry.path == tmp_path / entry.name / entry.stage / entry.version
        return f"{entry.name}/{entry.version}"

    assert found("sft") == found("sft@latest") == found("bot/sft@latest") == "bot/v0002"
    assert found("sft@v0001") == "bot/v0001"
    assert found("other/sft@v0001") == "other/v0001"
    assert found("sft", smoke=True) == "bot/v0004"


@pytest.mark.parametrize("text", ["../sft", "sft/", "sft@3", "sft@v3", "a/b/c", "", "sft@newest"])
def test_parse_text_that_is_no_reference_raises(text: str) -> None:
    with raises_issue("recipe.invalid-run-reference", error=RecipeError, location="ppo.start"):
        layout.parse(text, "bot", location="ppo.start")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("ppo", "run-not-found", "run not found: ppo of bot in {runs}. Run `rlhf ppo` first."),
        ("sft", "incomplete-run", "the sft runs of bot in {runs} are incomplete. Run `rlhf sft` first."),
        ("sft@v0001", "incomplete-run", "the run sft@v0001 is incomplete. Run `rlhf sft` first."),
        ("sft@v0007", "run-not-found", "run not found: sft@v0007 in {runs}. Run `rlhf sft` first."),
        # a smoke run does not count as an alternative
        ("reward@v0009", "run-not-found", "run not found: reward@v0009 in {runs}. Run `rlhf reward` first."),
        (
            "reward",
            "smoke-run",
            "the reward runs of bot in {runs} are smoke runs; expected a real run. Run `rlhf reward`",
        ),
        ("reward@v0001", "smoke-run", "is a smoke run with random weights; expected a real run. Use a real run."),
        ("pretrain@v0002", "run-not-found", "run not found: pretrain@v0002 in {runs}. Complete versions: v0001."),
        ("other/sft@v0001", "run-not-found", "run not found: other/sft@v0001 in {runs}."),
    ],
)
def test_find_run_that_cannot_be_used_raises_with_hint(
    tmp_path: Path, complete: Complete, new_run: NewRun, text: str, code: str, message: str
) -> None:
    new_run("sft")
    complete("reward", smoke=True)
    complete("pretrain")
    with raises_issue(f"recipe.{code}", error=RecipeError, location="ppo.start") as issues:
        layout.find(tmp_path, text, "bot", smoke=False, location="ppo.start")
    assert message.format(runs=tmp_path) in str(issues[0])


def test_all_runs_are_sorted_by_name_stage_and_version(tmp_path: Path, complete: Complete, new_run: NewRun) -> None:
    complete("sft"), complete("ppo"), new_run("ppo"), complete("sft", "another", smoke=True)
    (tmp_path / "bot" / "notes.txt").touch()
    (tmp_path / "bot" / "sft" / "scratch").mkdir()
    found = [(e.name, e.stage, e.version, e.manifest is not None) for e in layout.all_runs(tmp_path)]
    assert found == [
        ("another", "sft", "v0001", True),
        ("bot", "ppo", "v0001", True),
        ("bot", "ppo", "v0002", False),
        ("bot", "sft", "v0001", True),
    ]
    assert [(e.name, e.stage) for e in layout.all_runs(tmp_path, "another")] == [("another", "sft")]
    assert [*layout.all_runs(tmp_path / "absent")] == []


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "damaged-manifest"),
        (b"\xff", "damaged-manifest"),
        (b"[]", "damaged-manifest"),
        (b'{"schema": 99}', "manifest-schema"),
        (b"{}", "manifest-schema"),
    ],
)
def test_read_manifest_damaged_or_of_other_schema_raises(tmp_path: Path, content: bytes, code: str) -> None:
    path = layout.claim(tmp_path, "bot", "sft") / "manifest.json"
    path.write_bytes(content)
    with raises_issue(f"model.{code}", error=ModelError, location=str(path)):
        layout.find(tmp_path, "sft@v0001", "bot", smoke=False)


def test_find_latest_of_damaged_runs_raises_with_path(tmp_path: Path) -> None:
    path = layout.claim(tmp_path, "bot", "sft") / "manifest.json"
    path.write_text("{")
    with raises_issue("model.damaged-manifest", error=ModelError, location="ppo.start") as issues:
        layout.find(tmp_path, "sft", "bot", smoke=False, location="ppo.start")
    assert issues[0].message.startswith(f"{path}: the manifest cannot be read: ")


def test_latest_link_never_moves_to_an_older_run(new_run: NewRun) -> None:
    first, second = new_run("sft"), new_run("sft")
    second.complete({}, {})
    first.complete({}, {})
    assert (first.path.parent / "latest").resolve().name == "v0002"


def test_find_latest_skips_run_with_damaged_manifest(new_run: NewRun, tmp_path: Path) -> None:
    good, bad = new_run("sft"), new_run("sft")
    for run in (good, bad):
        run.complete({}, {})
    (bad.path / "manifest.json").write_text("{")
    assert [bool(entry.manifest_error) for entry in layout.all_runs(tmp_path)] == [False, True]
    assert layout.find(tmp_path, "sft", good.name, smoke=False).version == "v0001"
