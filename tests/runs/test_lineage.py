"""What runs are made of, whether they are whole, and how one is taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError, RecipeError
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.layout import Entry
from rlhf_cli.runs.run import Run
from tests.support.runs import NewRun


def made(new_run: NewRun, stage: str, *parents: Run, complete: bool = True) -> Run:
    run = new_run(stage)
    inputs: list[dict[str, Any]] = [
        {
            "role": "start",
            "ref": parent.stage,
            "kind": "run",
            "path": str(parent.path),
            "version": "",
            "sha256": "f" * 64,
        }
        for parent in parents
    ]
    inputs.append({"role": "base", "ref": "org/m", "kind": "hub", "path": "org/m", "version": "c0", "sha256": "c0"})
    (run.model_dir / "weights").write_bytes(b"w" * 1000)
    if complete:
        run.complete({}, {"inputs": inputs})
        run.close()
    return run


def entry(run: Run) -> Entry:
    return next(e for e in layout.versions(run.runs_dir, run.name, run.stage) if e.version == run.version)


def test_a_whole_run_is_counted(new_run: NewRun) -> None:
    run = new_run("ppo")
    (run.model_dir / "weights").write_bytes(b"w" * 1000)
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s" * 10)
    run.complete({}, {})
    assert lineage.verify(entry(run)) == (2, 1010, [])


@pytest.mark.parametrize("part", ["model/weights", "checkpoints/step-000005/state"])
def test_a_changed_byte_is_found_and_named(new_run: NewRun, part: str) -> None:
    run = new_run("ppo")
    (run.model_dir / "weights").write_bytes(b"w" * 1000)
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s" * 10)
    run.complete({}, {})
    (run.path / part).write_bytes(b"x" + (run.path / part).read_bytes()[1:])
    (issue,) = lineage.verify(entry(run)).issues
    assert issue.location == str(run.path / part)


def test_a_run_under_way_is_not_judged_by_what_it_is_just_writing(new_run: NewRun) -> None:
    run = new_run()
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s" * 10)
    (run.checkpoint_path(5) / "state").unlink()
    assert lineage.verify(entry(run)).issues == []
    run.close()
    assert len(lineage.verify(entry(run)).issues) == 1


def test_lineage_goes_back_to_the_base(new_run: NewRun) -> None:
    sft = made(new_run, "sft")
    reward = made(new_run, "reward", sft)
    ppo = made(new_run, "ppo", sft, reward)
    found = [(a.depth, a.what) for a in lineage.ancestors(entry(ppo))]
    assert found == [
        (0, "bot/sft@v0001"), (1, "org/m"),
        (0, "bot/reward@v0001"), (1, "bot/sft@v0001"), (2, "org/m"), (1, "org/m"),
        (0, "org/m"),
    ]  # fmt: skip


def test_a_run_that_others_are_made_of_stays_unless_forced(new_run: NewRun, tmp_path: Path) -> None:
    sft = made(new_run, "sft")
    reward = made(new_run, "reward", sft)
    with pytest.raises(RecipeError, match="bot/reward@v0001 is made of bot/sft@v0001") as raised:
        lineage.remove(tmp_path, entry(sft), force=False)
    assert "--force" in raised.value.issues[0].hint
    lineage.remove(tmp_path, entry(sft), force=True)
    assert not sft.path.exists()
    assert [a.missing for a in lineage.ancestors(entry(reward))] == [True, False]
    lineage.remove(tmp_path, entry(reward), force=False)
    assert [*layout.all_runs(tmp_path)] == []


def test_latest_moves_to_what_is_left(new_run: NewRun, tmp_path: Path) -> None:
    first, second = made(new_run, "sft"), made(new_run, "sft")
    lineage.remove(tmp_path, entry(second), force=False)
    assert (first.path.parent / "latest").resolve() == first.path
    lineage.remove(tmp_path, entry(first), force=False)
    assert [*first.path.parent.iterdir()] == []


def test_a_run_under_way_is_not_taken_away(new_run: NewRun, tmp_path: Path) -> None:
    run = made(new_run, "sft", complete=False)
    with pytest.raises(DiskError, match="under way"):
        lineage.remove(tmp_path, entry(run), force=True)
    assert run.path.is_dir()
    run.close()
    lineage.remove(tmp_path, entry(run), force=False)
    assert not run.path.exists()


def test_only_what_differs_is_told() -> None:
    a = {"sft.lr": 1.0, "seed": 0, "only a": [1]}
    b = {"sft.lr": 2.0, "seed": 0, "only b": "x"}
    assert lineage.differences(a, b) == {"sft.lr": [1.0, 2.0], "only a": [[1], None], "only b": [None, "x"]}
