"""What a recipe may name, and where it lies: runs, their checkpoints, folders; and what is said of all else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_cli.errors import ModelError, RlhfError
from rlhf_cli.pipeline.inputs import collect_inputs, verify_inputs
from rlhf_cli.pipeline.references import Found, Reference, find
from rlhf_cli.runs.checkpoint import checkpoint_path, write_checkpoint
from rlhf_cli.runs.manifest import MANIFEST_FILE
from tests.pipeline.test_inputs import make_run
from tests.support.recipe_files import load_recipe


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def checkpoint(runs: Path) -> Path:
    """The second checkpoint of a complete ppo run."""
    target = checkpoint_path(make_run(runs, "ppo") / "checkpoints", 2)
    with write_checkpoint(target, {"step": 2}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "adapter_config.json").write_text("{}")
    return target


def found(runs: Path, ref: object, *stages: str, smoke: bool = False) -> Found:
    reference = Reference("candidate", "eval.candidate", str(ref), stages or ("sft", "ppo"))
    return find(reference, "bot", runs, smoke=smoke)


def test_of_a_checkpoint_the_model_is_taken(runs: Path, checkpoint: Path) -> None:
    expected = Found("folder", str(checkpoint / "model"))
    assert found(runs, checkpoint) == found(runs, checkpoint / "model") == expected


def test_a_checkpoint_of_a_run_that_is_incomplete_is_taken_too(runs: Path, checkpoint: Path) -> None:
    (checkpoint.parents[1] / MANIFEST_FILE).unlink()
    assert found(runs, checkpoint).path == str(checkpoint / "model")


def test_the_model_folder_of_a_run_is_that_run(runs: Path) -> None:
    run = make_run(runs, "sft")
    (run / "model").mkdir()
    told = found(runs, run / "model")
    assert (told.kind, told.path) == ("run", str(run))
    with pytest.raises(RlhfError, match="is a sft run, expected reward"):
        found(runs, run / "model", "reward")


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        ("bot/ppo/v0001/checkpoints/step-000002", 2, "is a ppo run, expected reward. Name another run."),
        ("bot/ppo/v0002", 2, "bot/ppo/v0002 is incomplete. Name another run, or its checkpoint"),
        ("bot/ppo/v0003", 2, "bot/ppo/v0003 is incomplete. Name another run."),
        ("bot/ppo", 2, "bot/ppo holds runs, each in a folder. Write"),
        ("bot", 4, "bot holds no model: there is neither config.json nor adapter_config.json."),
    ],
)
def test_a_folder_that_is_no_model_is_told_for_what_it_is(
    runs: Path, checkpoint: Path, place: str, code: int, says: str
) -> None:
    (runs / "bot/ppo/v0002/checkpoints/step-000001").mkdir(parents=True)
    (runs / "bot/ppo/v0003").mkdir()
    with pytest.raises(RlhfError) as raised:
        found(runs, runs / place, "reward")
    assert raised.value.exit_code == code
    assert raised.value.issues[0].location == "eval.candidate"
    assert says in str(raised.value.issues[0])


def test_a_checkpoint_of_a_smoke_run_is_for_smoke_runs(runs: Path, checkpoint: Path) -> None:
    manifest = checkpoint.parents[1] / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "smoke": True}))
    with pytest.raises(RlhfError, match="is a smoke run"):
        found(runs, checkpoint)
    assert found(runs, checkpoint, smoke=True).kind == "folder"


def test_a_damaged_checkpoint_is_told_before_it_is_loaded(recipe_file: Path, runs: Path, checkpoint: Path) -> None:
    recipe = load_recipe(recipe_file, [f"export.of={checkpoint}"], ["export"])
    inputs = collect_inputs("export", recipe, runs, smoke=False)
    verify_inputs(inputs)
    (checkpoint / "model" / "adapter_config.json").write_text("{ !")
    with pytest.raises(ModelError, match="has 3 bytes, and had 2"):
        verify_inputs(inputs)


def test_a_plain_folder_beside_a_manifest_of_others_is_none_of_ours(tmp_path: Path, runs: Path) -> None:
    folder = tmp_path / "theirs" / "model"
    folder.mkdir(parents=True)
    (folder.parent / MANIFEST_FILE).write_text('{"theirs": 1}')
    (folder / "config.json").touch()
    assert found(runs, folder) == Found("folder", str(folder))
