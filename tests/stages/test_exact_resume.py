"""A run that was killed or stopped, and resumed, ends bit-equal to one that never was: CPU, with dropout.

Each kill is a SIGKILL of a forked child, which shares with this process only what is on the disk.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import Trainer

from rlhf_cli.cli import progress
from rlhf_cli.errors import StoppedError
from rlhf_cli.pipeline.runner import StageResult, run_stage
from rlhf_cli.runs.training_state import load_state
from rlhf_cli.training import checkpointing, trl
from tests.support.equality import bit_equal
from tests.support.recipe_files import load_recipe

WORDS = ["red", "blue", "cat", "dog", "sun", "tree"]
ACCUMULATED = 3  # forward passes a step, in every stage below; 5 steps are an epoch
RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8, dropout: 0.1}}
data:
  pretrain: {{path: text.txt}}
  sft: {{path: sft.jsonl}}
  preferences: {{path: preferences.jsonl}}
sft: {{epochs: 2.4, batch_size: 6, micro_batch_size: 2, max_length: 64, save_every: 4}}
reward: {{start: base, epochs: 2.4, batch_size: 6, micro_batch_size: 2, max_length: 64, save_every: 4}}
pretrain:
  architecture: {{vocab_size: 280, hidden_size: 64, intermediate_size: 128, layers: 2, heads: 4, context: 32}}
  max_steps: 12
  batch_size: 12
  micro_batch_size: 4
  max_length: 32
  save_every: 4
"""


class Stage:
    """One stage with its settings, in folders of runs: one never killed, the others as often as one likes."""

    def __init__(self, folder: Path, stage: str, *overrides: str) -> None:
        self.folder, self.stage, self.overrides = folder, stage, overrides

    def run(self, runs: str, *, resume: bool = False) -> StageResult:
        recipe = load_recipe(self.folder / "recipe.yaml", self.overrides, [self.stage])
        with progress.reporter(json=True, quiet=True) as reporter:
            return run_stage(self.stage, recipe, self.folder / runs, smoke=False, reporter=reporter, resume=resume)

    def killed(self, runs: str, set_trap: Callable[[], None], *, resume: bool = False) -> None:
        """Run in a child that dies in the trap."""
        child = os.fork()
        if child == 0:
            try:
                set_trap()
                self.run(runs, resume=resume)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def saved(self, runs: str) -> list[str]:
        return sorted(path.name for path in (self.folder / runs / "t" / self.stage / "v0001/checkpoints").iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    made = tmp_path_factory.mktemp("resume")
    rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    pairs = [{"prompt": r["prompt"], "chosen": " tree", "rejected": " dog dog"} for r in rows]
    for name, content in (("sft", rows), ("preferences", pairs)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (made / "text.txt").write_text("\n\n".join(f"the cat sat on the red tree {i % 5}" for i in range(200)))
    (made / "recipe.yaml").write_text(RECIPE.format(base=tiny_base))
    return made


SETTINGS = {
    "sft": ("sft",),
    "reward": ("reward",),
    "pretrain": ("pretrain",),
    "sft, order from the global generator": ("sft", "sft.trainer={train_sampling_strategy: group_by_length}"),
    "sft, 4 bits": ("sft", "base.quantize=nf4", "adapter.dora=true"),
    "reward, whole model": ("reward", "adapter=null"),
    "sft, with a worker": ("sft", "sft.trainer={dataloader_num_workers: 1}"),
}


@pytest.fixture(scope="module", params=SETTINGS)
def unbroken(request: pytest.FixtureRequest, folder: Path) -> tuple[Stage, StageResult]:
    stage = Stage(folder, *SETTINGS[request.param])
    return stage, stage.run(f"unbroken {request.param}")


def die(*args: Any, **kwargs: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def at_pass(number: int, act: Callable[[], object], patch: Callable[[object, str, object], None] = setattr) -> None:
    """Have `act` called before a trainer's `number`-th forward pass."""
    real, seen = Trainer.training_step, 0

    def step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == number:
            act()
        return real(self, *args, **kwargs)

    patch(Trainer, "training_step", step)


def in_save_of(step: int) -> None:
    """Die when the weights of `step`'s checkpoint are written, and its state is not."""
    real = checkpointing.save_state

    def save(path: Path, tree: Any) -> None:
        if json.loads((path.parent / "model" / "trainer_state.json").read_text())["global_step"] == step:
            die()
        real(path, tree)

    checkpointing.save_state = save  # type: ignore[assignment]  # in a child


def in_last_save() -> None:
    """Die when the model is half written."""

    def save(trainer: Trainer, tokenizer: object, run: Any) -> None:
        (run.model_dir / "adapter_model.safetensors").write_bytes(b"half")
        die()

    trl.save = save  # type: ignore[assignment]


def lines(outcome: StageResult) -> list[dict[str, Any]]:
    """What was logged, but for what a clock says."""
    rows = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows]


def equal(found: StageResult, expected: StageResult) -> None:
    """Everything that a run leaves behind, but for times, is the same to the last bit."""
    assert lines(found) == lines(expected)
    files = [
        {name: file for name, file in outcome.manifest["files"].items() if name != "README.md"}  # it has the seconds
        for outcome in (found, expected)
    ]
    assert files[0] == files[1]
    metrics = [
        {name: value for name, value in outcome.manifest["metrics"].items() if "second" not in name}
        for outcome in (found, expected)
    ]
    assert metrics[0] == metrics[1]
    left = [{path.name for path in outcome.path.iterdir()} for outcome in (found, expected)]
    assert left[0] == left[1]


def test_killed_in_the_middle_of_an_accumulation_and_of_an_epoch(unbroken: tuple[Stage, StageResult]) -> None:
    stage, expected = unbroken
    runs = f"killed {expected.path.parents[2].name}"
    stage.killed(runs, lambda: at_pass(9 * ACCUMULATED + 2, die))  # in the second epoch, as is what was saved
    assert stage.saved(runs) == ["step-000004", "step-000008"]
    equal(stage.run(runs, resume=True), expected)


@pytest.fixture(scope="module")
def sft(folder: Path) -> tuple[Stage, StageResult]:
    stage = Stage(folder, "sft")
    return stage, stage.run("unbroken")


def test_killed_after_an_epoch_that_ended_with_a_checkpoint(folder: Path, sft: tuple[Stage, StageResult]) -> None:
    stage = Stage(folder, "sft", "sft.save_every=5")
    stage.killed("epoch", lambda: at_pass(6 * ACCUMULATED, die))
    assert stage.saved("epoch") == ["step-000005"]
    equal(stage.run("epoch", resume=True), sft[1])


def test_killed_in_a_save_and_again_after_it_was_resumed(sft: tuple[Stage, StageResult]) -> None:
    stage, expected = sft
    stage.killed("save", lambda: in_save_of(8))
    assert [name for name in stage.saved("save") if not name.startswith(".tmp-")] == ["step-000004"]
    stage.killed("save", lambda: at_pass(7 * ACCUMULATED, die), resume=True)
    assert stage.saved("save") == ["step-000004", "step-000008"]
    equal(stage.run("save", resume=True), expected)


def test_killed_when_all_is_trained_and_the_model_half_written(sft: tuple[Stage, StageResult]) -> None:
    stage, expected = sft
    stage.killed("last", in_last_save)
    assert stage.saved("last") == ["step-000004", "step-000008"]
    equal(stage.run("last", resume=True), expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_what_is_saved_is_as_of_a_run_never_killed(
    sft: tuple[Stage, StageResult], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stage, expected = sft
    unkilled, runs = f"never killed {number}", f"stopped {number}"
    stage.killed(runs, lambda: at_pass(6 * ACCUMULATED - 1, die))
    for name, resume, passes in ((unkilled, False, 7), (runs, True, 3)):  # both within the 7th step
        with monkeypatch.context() as patch, pytest.raises(StoppedError) as raised:  # noqa: PT012
            at_pass(passes * ACCUMULATED - 1, lambda: os.kill(os.getpid(), number), patch.setattr)
            stage.run(name, resume=resume)
        assert raised.value.exit_code == 75
        (issue,) = raised.value.issues
        assert "stopped by a signal after step 7" in issue.message
        assert str(stage.folder / name / "t/sft/v0001/checkpoints/step-000007") in issue.message
        assert "--resume" in issue.hint
    sides = [stage.folder / name / "t/sft/v0001/checkpoints/step-000007" for name in (unkilled, runs)]
    states = [load_state(side / "state") for side in sides]
    for state in states:
        del state["journal"]["seconds"]
    assert bit_equal(*states)
    for file in ("adapter_model.safetensors", "trainer_state.json"):
        assert len({(side / "model" / file).read_bytes() for side in sides}) == 1
    assert {path.suffix for path in sides[0].rglob("*") if path.is_file()} == {".json", ".safetensors", ".md"}
    equal(stage.run(runs, resume=True), expected)


def test_a_signal_in_the_last_step_lets_the_run_end(
    sft: tuple[Stage, StageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, expected = sft
    with monkeypatch.context() as patch:
        at_pass(12 * ACCUMULATED, lambda: os.kill(os.getpid(), signal.SIGTERM), patch.setattr)
        outcome = stage.run("end")
    assert outcome.stopping
    equal(outcome, expected)
