"""Runs are verified, traced to their inputs and evaluations, compared and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import DiskError, RecipeError
from rlhf_cli.runs import layout, lineage
from rlhf_cli.runs.layout import RunEntry
from rlhf_cli.runs.run import Run
from tests.support.issues import raises_issue
from tests.support.runs import NewRun


def make_run(new_run: NewRun, stage: str, *parents: Run, role: str = "start", complete: bool = True) -> Run:
    """Open a run with a model, with `parents` as inputs in `role`, and complete it if `complete`."""
    run = new_run(stage)
    inputs: list[dict[str, Any]] = [
        {
            "role": role,
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


def entry(run: Run) -> RunEntry:
    return next(e for e in layout.versions(run.runs_dir, run.name, run.stage) if e.version == run.version)


def test_verify_intact_run_counts_files_and_bytes(new_run: NewRun) -> None:
    run = new_run("ppo")
    (run.model_dir / "weights").write_bytes(b"w" * 1000)
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s" * 10)
    run.complete({}, {})
    assert lineage.verify(entry(run)) == (2, 1010, [])


@pytest.mark.parametrize("part", ["model/weights", "checkpoints/step-000005/state"])
def test_verify_changed_byte_names_the_file(new_run: NewRun, part: str) -> None:
    run = new_run("ppo")
    (run.model_dir / "weights").write_bytes(b"w" * 1000)
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s" * 10)
    run.complete({}, {})
    (run.path / part).write_bytes(b"x" + (run.path / part).read_bytes()[1:])
    (issue,) = lineage.verify(entry(run)).issues
    assert (issue.code, issue.location) == ("model.damaged-file", str(run.path / part))


def test_verify_changed_row_names_the_file(new_run: NewRun) -> None:
    run = new_run("feedback")
    rows = run.data_dir / "train.jsonl"
    rows.write_text('{"prompt": "a"}\n')
    run.complete({}, {"inputs": []})
    run.close()
    assert lineage.verify(entry(run)) == (1, 16, [])
    rows.write_text('{"prompt": "b"}\n')
    (issue,) = lineage.verify(entry(run)).issues
    assert (issue.code, issue.location) == ("model.damaged-file", str(rows))


@pytest.mark.parametrize("part", ["model", "checkpoints/step-000005"])
def test_verify_added_file_names_the_file(new_run: NewRun, part: str) -> None:
    """A chat template that is added to a model would be used by every later stage."""
    run = new_run("ppo")
    (run.model_dir / "weights").write_bytes(b"w")
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s")
    run.complete({}, {})
    added = run.path / part / "templates" / "chat_template.jinja"
    added.parent.mkdir()
    added.touch()
    issues = lineage.verify(entry(run)).issues
    assert [(issue.code, issue.location) for issue in issues] == [("model.unlisted-file", str(added))]


def test_verify_skips_checkpoints_of_a_run_in_use(new_run: NewRun) -> None:
    run = new_run()
    with run.checkpoint(5) as folder:
        (folder / "state").write_bytes(b"s" * 10)
    (run.checkpoint_path(5) / "state").unlink()
    assert lineage.verify(entry(run)).issues == []
    run.close()
    assert len(lineage.verify(entry(run)).issues) == 1


def test_ancestors_go_back_to_the_base_model(new_run: NewRun) -> None:
    sft = make_run(new_run, "sft")
    reward = make_run(new_run, "reward", sft)
    ppo = make_run(new_run, "ppo", sft, reward)
    found = [(a.depth, a.name) for a in lineage.ancestors(entry(ppo))]
    assert found == [
        (0, "bot/sft@v0001"), (1, "org/m"),
        (0, "bot/reward@v0001"), (1, "bot/sft@v0001"), (2, "org/m"), (1, "org/m"),
        (0, "org/m"),
    ]  # fmt: skip


def test_ancestor_runs_are_listed_once_after_their_inputs(new_run: NewRun) -> None:
    sft = make_run(new_run, "sft")
    reward = make_run(new_run, "reward", sft)
    ppo = make_run(new_run, "ppo", sft, reward)
    found = lineage.ancestor_runs(entry(ppo))
    assert [lineage.name_of(run) for run in found] == ["bot/sft@v0001", "bot/reward@v0001", "bot/ppo@v0001"]
    assert all(run.manifest is not None for run in found)
    (sft.path / "manifest.json").unlink()
    assert [run.stage for run in lineage.ancestor_runs(entry(ppo))] == ["reward", "ppo"]


def test_ancestor_runs_of_incomplete_run_is_empty(new_run: NewRun) -> None:
    assert lineage.ancestor_runs(entry(make_run(new_run, "sft", complete=False))) == []


def test_newest_evaluation_is_the_last_complete_one_of_the_candidate(new_run: NewRun, tmp_path: Path) -> None:
    sft, ppo = make_run(new_run, "sft"), make_run(new_run, "ppo")

    def found(run: Path, *, smoke: bool = False) -> str | None:
        evaluation = lineage.newest_evaluation(tmp_path, "bot", run, smoke=smoke)
        return None if evaluation is None else evaluation.version

    assert found(ppo.path) is None
    make_run(new_run, "eval", ppo, role="candidate")
    make_run(new_run, "eval", ppo, role="candidate")
    make_run(new_run, "eval", ppo, role="baseline")
    make_run(new_run, "eval", ppo, role="candidate", complete=False)
    make_run(new_run, "eval", sft, role="candidate")
    assert found(ppo.path) == "v0002"
    assert found(ppo.path.parent / "latest") == found(ppo.path / "model") == "v0002"
    assert found(sft.path) == "v0005"
    assert found(ppo.path, smoke=True) is None
    assert found(ppo.path / "checkpoints" / "step-000002") is None


def test_remove_run_outside_runs_dir_raises(new_run: NewRun, tmp_path: Path) -> None:
    run = make_run(new_run, "sft")
    with raises_issue("disk.outside-runs-dir", error=DiskError, location=str(run.path)) as issues:
        lineage.remove(tmp_path / "other", entry(run), force=True)
    assert str(tmp_path) in issues[0].hint


def test_remove_run_with_dependents_needs_force(new_run: NewRun, tmp_path: Path) -> None:
    sft = make_run(new_run, "sft")
    reward = make_run(new_run, "reward", sft)
    with raises_issue("recipe.run-in-use", error=RecipeError, location=str(sft.path)) as issues:
        lineage.remove(tmp_path, entry(sft), force=False)
    assert issues[0].message == "bot/sft@v0001 is an input of bot/reward@v0001."
    assert "--force" in issues[0].hint
    lineage.remove(tmp_path, entry(sft), force=True)
    assert not sft.path.exists()
    assert [a.missing for a in lineage.ancestors(entry(reward))] == [True, False]
    lineage.remove(tmp_path, entry(reward), force=False)
    assert [*layout.all_runs(tmp_path)] == []


def test_remove_latest_run_moves_link_to_the_one_before(new_run: NewRun, tmp_path: Path) -> None:
    first, second = make_run(new_run, "sft"), make_run(new_run, "sft")
    lineage.remove(tmp_path, entry(second), force=False)
    assert (first.path.parent / "latest").resolve() == first.path
    lineage.remove(tmp_path, entry(first), force=False)
    assert [*first.path.parent.glob("[!.]*")] == []


def test_remove_run_in_use_raises_even_with_force(new_run: NewRun, tmp_path: Path) -> None:
    run = make_run(new_run, "sft", complete=False)
    with raises_issue("disk.locked", error=DiskError, location=str(run.path)):
        lineage.remove(tmp_path, entry(run), force=True)
    assert run.path.is_dir()
    run.close()
    lineage.remove(tmp_path, entry(run), force=False)
    assert not run.path.exists()


def test_differences_hold_only_values_that_differ() -> None:
    a = {"sft.lr": 1.0, "seed": 0, "only a": [1]}
    b = {"sft.lr": 2.0, "seed": 0, "only b": "x"}
    assert lineage.differences(a, b) == {"sft.lr": [1.0, 2.0], "only a": [[1], None], "only b": [None, "x"]}
