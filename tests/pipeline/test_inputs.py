"""What counts as an input of a stage, with which hash, and which inputs are refused."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.errors import ModelError
from rlhf_cli.pipeline.inputs import Input, verify_inputs
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.checkpoint import write_checkpoint
from rlhf_cli.runs.manifest import sha256
from tests.support.full_project import FullProject
from tests.support.issues import raises_issue
from tests.support.made_runs import make_run


def by_role(stage: ResolvedStage) -> dict[str, Input]:
    """Return the inputs by role, which must be unique."""
    found = {item.role: item for item in stage.inputs}
    assert len(found) == len(stage.inputs)
    return found


def test_inputs_of_ppo_and_eval_all_have_a_hash(project: FullProject) -> None:
    ppo = by_role(project.resolve("ppo"))
    assert set(ppo) == {"base", "base.chat_template", "start", "ppo.reward.0", "ppo.reward.1", "data.prompts"}
    assert (ppo["start"].kind, ppo["start"].ref, ppo["start"].version) == ("run", "sft", "v0001")
    assert Path(ppo["start"].path) == project.runs_dir / "bot" / "sft" / "v0001"
    assert (ppo["base"].kind, ppo["ppo.reward.1"].kind, ppo["data.prompts"].kind) == ("folder", "file", "file")
    evaluated = by_role(project.resolve("eval"))
    assert {"candidate", "baseline", "reward", "eval.python.0", "data.sft", "data.preferences"} <= set(evaluated)
    assert all(item.sha256 for item in [*ppo.values(), *evaluated.values()])


def test_inputs_name_each_file_of_reward_function(project: FullProject) -> None:
    folder = project.folder
    (folder / "f.py").write_text("import tone\ndef score(): ...\n")
    (folder / "tone.py").write_text("1")
    found = by_role(project.resolve("ppo"))
    assert found["ppo.reward.1"].ref == f"{folder}/f.py:score"
    assert found["ppo.reward.1/tone.py"].sha256 == sha256(folder / "tone.py")


def test_folder_below_git_and_linked_subfolder_are_hashed(new_project: FullProject, tmp_path: Path) -> None:
    """Only the files of Git inside of the folder itself are left out."""
    folder = tmp_path / "x.git" / ".git" / "rows"
    shared = tmp_path / "shared"
    for path in (folder / ".git", shared):
        path.mkdir(parents=True)
    (folder / "linked").symlink_to(shared)
    project = new_project
    hashes = []
    for path in (folder / "a.jsonl", shared / "b.jsonl", folder / ".git" / "index"):
        path.write_text('{"prompt": "Q?", "completion": " A."}\n')
        hashes.append(by_role(project.resolve("sft", f"data.sft.path={folder}"))["data.sft"].sha256)
    assert hashes[0] != hashes[1]
    assert hashes[1] == hashes[2]


def test_run_on_other_base_is_refused(new_project: FullProject) -> None:
    project = new_project
    base = by_role(project.resolve("sft"))["base"].sha256
    make_run(project.runs_dir, "sft", base=base)
    project.resolve("reward")
    make_run(project.runs_dir, "sft", base="0" * 64)
    with raises_issue("model.adapter-of-other-base", error=ModelError, location="reward.start") as issues:
        project.resolve("reward")
    (issue,) = issues
    expected = f"sft (v0002): trained on another base model; found its-base, expected {project.folder}/base."
    assert issue.message == expected
    assert "rlhf sft" in issue.hint


def test_verify_inputs_refuses_changed_rows_of_run(project: FullProject) -> None:
    run = make_run(project.runs_dir, "feedback", folder="data", files={"train.jsonl": {"size": 3, "sha256": "0" * 64}})
    (run / "data").mkdir()
    (run / "data" / "train.jsonl").write_text("{}\n")
    inputs = project.resolve("export", "data.prompts={run: feedback}").inputs
    with raises_issue("model.damaged-file", error=ModelError, location=str(run / "data" / "train.jsonl")):
        verify_inputs([item for item in inputs if item.role == "data.prompts"])


def test_verify_inputs_refuses_damaged_checkpoint(project: FullProject) -> None:
    with write_checkpoint(project.runs_dir / "bot/ppo/v0001/checkpoints/step-000002", {"step": 2}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "adapter_config.json").write_text("{}")
    checkpoint = project.runs_dir / "bot/ppo/v0001/checkpoints/step-000002"
    inputs = project.resolve("export", f"export.of={checkpoint}").inputs
    verify_inputs(inputs)
    damaged = checkpoint / "model" / "adapter_config.json"
    damaged.write_text("{ !")
    with raises_issue("model.damaged-file", error=ModelError, location=str(damaged)) as issues:
        verify_inputs(inputs)
    (issue,) = issues
    assert issue.hint == "Use another checkpoint, or restore the file."
