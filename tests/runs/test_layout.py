"""Where runs lie: numbers that nobody shares, `latest`, and what a reference names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_cli.errors import DiskError, ModelError, RecipeError
from rlhf_cli.runs import layout
from rlhf_cli.runs.run import Run
from tests.support.runs import NewRun

Complete = Callable[..., Run]


def test_versions_count_from_one_and_go_on_after_a_gap(tmp_path: Path) -> None:
    assert layout.claim(tmp_path, "bot", "sft") == tmp_path / "bot" / "sft" / "v0001"
    (tmp_path / "bot" / "sft" / "v0041").mkdir()
    (tmp_path / "bot" / "sft" / "v9").mkdir()  # not a version
    assert layout.claim(tmp_path, "bot", "sft").name == "v0042"
    assert layout.claim(tmp_path, "bot", "ppo").name == "v0001"


def test_versions_go_on_past_four_digits(tmp_path: Path) -> None:
    (tmp_path / "bot" / "sft" / "v9999").mkdir(parents=True)
    assert layout.claim(tmp_path, "bot", "sft").name == "v10000"
    assert [entry.version for entry in layout.versions(tmp_path, "bot", "sft")] == ["v9999", "v10000"]


def test_writers_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = [*pool.map(lambda _: layout.claim(tmp_path, "bot", "sft"), range(64))]
    assert sorted(path.name for path in paths) == [f"v{i:04d}" for i in range(1, 65)]


def test_a_number_taken_since_the_listing_was_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        (tmp_path / "bot" / "sft" / f"v{number:04d}").mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))
    assert layout.claim(tmp_path, "bot", "sft").name == "v0003"


def test_two_processes_get_two_numbers(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from rlhf_cli.runs import layout\n"
    code += "for _ in range(20): print(layout.claim(Path(sys.argv[1]), 'bot', 'sft').name)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = [name for process in started for name in process.communicate()[0].split()]
    assert sorted(names) == [f"v{i:04d}" for i in range(1, 41)]


def test_a_place_where_nothing_can_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="--runs-dir"):
        layout.claim(tmp_path / "file", "bot", "sft")


def test_latest_moves_when_a_run_completes_and_not_before(tmp_path: Path, complete: Complete, new_run: NewRun) -> None:
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
    assert {path.name for path in latest.parent.iterdir()} == {"latest", "v0001", "v0002", "v0003", "v0004"}


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
def test_a_reference_is_taken_apart(text: str, name: str, stage: str, version: str | None) -> None:
    assert layout.parse(text, "bot") == (name, stage, version)


def test_a_reference_finds_the_newest_complete_run_or_the_one_it_names(
    tmp_path: Path, complete: Complete, new_run: NewRun
) -> None:
    complete(), complete(), new_run(), complete(smoke=True), complete(name="other")

    def found(text: str, *, smoke: bool = False) -> str:
        entry = layout.find(tmp_path, text, "bot", smoke=smoke)
        assert entry.path == tmp_path / entry.name / entry.stage / entry.version
        return f"{entry.name}/{entry.version}"

    assert found("sft") == found("sft@latest") == found("bot/sft@latest") == "bot/v0002"
    assert found("sft@v0001") == "bot/v0001"
    assert found("other/sft@v0001") == "other/v0001"
    assert found("sft", smoke=True) == "bot/v0004"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ppo", "there is no ppo run of bot"),
        ("sft", "only incomplete ones. Run `rlhf sft` first."),
        ("sft@v0001", "is incomplete. Run `rlhf sft` first."),
        ("sft@v0007", "does not exist. Run `rlhf sft` first."),
        ("reward@v0009", "does not exist. Run `rlhf reward` first."),  # a smoke run is no way out
        ("reward", "only smoke runs. Run `rlhf reward` first."),
        ("reward@v0001", "is a smoke run, of random weights. Name a real run."),
        ("pretrain@v0002", "does not exist. Complete are: v0001."),
        ("other/sft@v0001", "does not exist"),
    ],
)
def test_a_run_that_cannot_be_taken_is_refused_with_the_way_out(
    tmp_path: Path, complete: Complete, new_run: NewRun, text: str, says: str
) -> None:
    new_run("sft")
    complete("reward", smoke=True)
    complete("pretrain")
    with pytest.raises(RecipeError) as raised:
        layout.find(tmp_path, text, "bot", smoke=False, location="ppo.start")
    (issue,) = raised.value.issues
    assert issue.location == "ppo.start"
    assert says in str(issue)


def test_a_listing_has_every_run_in_order(tmp_path: Path, complete: Complete, new_run: NewRun) -> None:
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
    assert [*layout.all_runs(tmp_path / "absent")] == []


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"schema": 99}', b"{}"])
def test_a_damaged_manifest_is_told_with_its_path(tmp_path: Path, content: bytes) -> None:
    folder = layout.claim(tmp_path, "bot", "sft")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ModelError, match="manifest"):
        layout.find(tmp_path, "sft", "bot", smoke=False)


def test_latest_never_goes_back_to_an_older_run(new_run: NewRun) -> None:
    first, second = new_run("sft"), new_run("sft")
    second.complete({}, {})
    first.complete({}, {})
    assert (first.path.parent / "latest").resolve().name == "v0002"


def test_a_damaged_manifest_hides_no_other_run(new_run: NewRun, tmp_path: Path) -> None:
    good, bad = new_run("sft"), new_run("sft")
    for run in (good, bad):
        run.complete({}, {})
    (bad.path / "manifest.json").write_text("{")
    assert [bool(entry.damage) for entry in layout.all_runs(tmp_path)] == [False, True]
    assert layout.find(tmp_path, "sft", good.name, smoke=False).version == "v0001"
