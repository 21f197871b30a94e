"""What a reference in a recipe is resolved to: runs, their checkpoints, folders; and which references are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_cli.errors import ModelError, RecipeError, RlhfError
from rlhf_cli.pipeline.references import Reference, ResolvedReference, entry_of_model, resolve_reference
from rlhf_cli.runs.checkpoint import checkpoint_path, write_checkpoint
from rlhf_cli.runs.manifest import MANIFEST_FILE
from tests.support.issues import raises_issue
from tests.support.made_runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return the runs directory."""
    return tmp_path / "runs"


@pytest.fixture
def checkpoint(runs: Path) -> Path:
    """Write a complete ppo run with a checkpoint of step 2. Return the checkpoint."""
    path = checkpoint_path(make_run(runs, "ppo") / "checkpoints", 2)
    with write_checkpoint(path, {"step": 2}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "adapter_config.json").write_text("{}")
    return path


def resolve_candidate(
    runs: Path, ref: object, stages: tuple[str, ...] = ("sft", "ppo"), *, smoke: bool = False
) -> ResolvedReference:
    """Resolve `eval.candidate: <ref>`."""
    return resolve_reference(candidate(ref, stages), "bot", runs, smoke=smoke)


def candidate(ref: object, stages: tuple[str, ...] = ("sft", "ppo")) -> Reference:
    """Return the reference `eval.candidate: <ref>`."""
    return Reference("candidate", ("eval", "candidate"), str(ref), stages)


def test_entry_of_model_of_run_or_checkpoint_is_the_run(checkpoint: Path) -> None:
    run = checkpoint.parents[1]
    assert [entry_of_model(folder).path for folder in (run / "model", checkpoint / "model")] == [run, run]
    (run.parent / "latest").unlink(missing_ok=True)
    (run.parent / "latest").symlink_to(run.name)
    assert entry_of_model(run.parent / "latest" / "model").version == run.name


@pytest.mark.parametrize("folder", ["/", "/no-such-model", "/no/such-model"])
def test_entry_of_model_of_any_other_folder_has_no_manifest(folder: str) -> None:
    assert entry_of_model(Path(folder)).manifest is None


def test_checkpoint_resolves_to_its_model_folder(runs: Path, checkpoint: Path) -> None:
    model = str(checkpoint / "model")
    for ref in (checkpoint, checkpoint / "model"):
        assert resolve_candidate(runs, ref) == ResolvedReference(candidate(ref), "folder", model)


def test_checkpoint_of_incomplete_run_is_resolved(runs: Path, checkpoint: Path) -> None:
    (checkpoint.parents[1] / MANIFEST_FILE).unlink()
    assert resolve_candidate(runs, checkpoint).path == str(checkpoint / "model")


def test_model_folder_of_run_resolves_to_the_run(runs: Path) -> None:
    run = make_run(runs, "sft")
    (run / "model").mkdir()
    found = resolve_candidate(runs, run / "model")
    assert (found.kind, found.path) == ("run", str(run))


def test_model_folder_of_run_of_wrong_stage_is_refused(runs: Path) -> None:
    run = make_run(runs, "sft")
    (run / "model").mkdir()
    with raises_issue("recipe.wrong-stage", error=RecipeError, location="eval.candidate") as issues:
        resolve_candidate(runs, run / "model", ("reward",))
    (issue,) = issues
    assert issue.message == f"wrong kind of run; found {run / 'model'}, a run of sft, expected a run of reward."
    assert issue.hint == "Use another run."


@pytest.mark.parametrize(
    ("place", "error", "code", "message", "hint"),
    [
        (
            "bot/ppo/v0001/checkpoints/step-000002",
            RecipeError,
            "recipe.wrong-stage",
            "a run of ppo",
            "Use another run.",
        ),
        (
            "bot/ppo/v0002",
            RecipeError,
            "recipe.incomplete-run",
            "bot/ppo/v0002 is incomplete.",
            "Use another run, or its checkpoint {runs}/bot/ppo/v0002/checkpoints/step-000001.",
        ),
        ("bot/ppo/v0003", RecipeError, "recipe.incomplete-run", "bot/ppo/v0003 is incomplete.", "Use another run."),
        (
            "bot/ppo",
            RecipeError,
            "recipe.ambiguous-run",
            "contains several runs; expected the directory of one run.",
            "Use {runs}/bot/ppo/latest, or the directory of another version.",
        ),
        (
            "bot",
            ModelError,
            "model.not-found",
            "expected config.json or adapter_config.json.",
            "Use a transformers model, an adapter, or a run.",
        ),
    ],
)
@pytest.mark.usefixtures("checkpoint")
def test_folder_without_a_fitting_model_is_refused(
    runs: Path, place: str, error: type[RlhfError], code: str, message: str, hint: str
) -> None:
    (runs / "bot/ppo/v0002/checkpoints/step-000001").mkdir(parents=True)
    (runs / "bot/ppo/v0003").mkdir()
    with raises_issue(code, error=error, location="eval.candidate") as issues:
        resolve_candidate(runs, runs / place, ("reward",))
    (issue,) = issues
    assert str(runs / place) in issue.message
    assert message in issue.message
    assert issue.hint == hint.format(runs=runs)


def test_checkpoint_of_smoke_run_is_only_for_smoke_runs(runs: Path, checkpoint: Path) -> None:
    manifest = checkpoint.parents[1] / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "smoke": True}))
    with raises_issue("recipe.smoke-run", error=RecipeError, location="eval.candidate") as issues:
        resolve_candidate(runs, checkpoint)
    assert issues[0].message == f"{checkpoint} is a smoke run with random weights; expected a real run."
    assert resolve_candidate(runs, checkpoint, smoke=True).kind == "folder"


def test_folder_beside_another_tools_manifest_is_a_plain_folder(tmp_path: Path, runs: Path) -> None:
    folder = tmp_path / "theirs" / "model"
    folder.mkdir(parents=True)
    (folder.parent / MANIFEST_FILE).write_text('{"theirs": 1}')
    (folder / "config.json").touch()
    assert resolve_candidate(runs, folder) == ResolvedReference(candidate(folder), "folder", str(folder))
