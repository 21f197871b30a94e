"""Run a stage that is killed and resumed, and compare what it leaves with an unbroken run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rlhf_cli.pipeline.runner import StageResult, run_stage
from tests.support.recipe_files import load_recipe
from tests.support.reporters import RecordingReporter

WORDS = ["red", "blue", "cat", "dog", "sun", "tree"]
PASSES_PER_STEP = 3  # forward passes per optimizer step in every stage of TRAINING_RECIPE; 5 steps are an epoch
TRAINING_RECIPE = """
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
PPO_RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8}}
data: {{prompts: {{path: prompts.jsonl}}, sft: {{path: prompts.jsonl}}}}
ppo:
  start: base
  reward: [{{python: judge.py:length}}]
  iterations: 4
  rollout_batch_size: 6
  max_new_tokens: 8
  epochs: 2
  minibatches: 2
  learning_rate: 1.0e-2
  kl: {{coef: 0.1, target: 0.5, horizon: 20}}
  normalize_reward: true
  ptx_coef: 0.1
  save_every: 2
  trainer: {{lr_scheduler_type: cosine}}
"""
TIMED_PPO_METRICS = ("time", "seconds.", "tokens_per_second", "memory_peak_bytes")  # prefixes


class StageHarness:
    """One stage with its settings, run in several runs directories of a project: unbroken, killed, resumed."""

    def __init__(self, project: Path, stage: str, *overrides: str) -> None:
        self.project, self.stage, self.overrides = project, stage, overrides

    def run(self, runs: str, *, resume: bool = False) -> StageResult:
        """Run the stage in this process."""
        recipe = load_recipe(self.project / "recipe.yaml", self.overrides, [self.stage])
        reporter = RecordingReporter()
        return run_stage(self.stage, recipe, self.project / runs, smoke=False, reporter=reporter, resume=resume)

    def run_killed(self, runs: str, set_trap: Callable[[], None], *, resume: bool = False) -> None:
        """Run the stage in a forked child, which must die of SIGKILL in the trap that `set_trap` sets there."""
        child = os.fork()
        if child == 0:
            try:
                set_trap()
                self.run(runs, resume=resume)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def stage_dir(self, runs: str) -> Path:
        """Return the folder of the stage's versions."""
        return self.project / runs / "t" / self.stage

    def checkpoint_names(self, runs: str) -> list[str]:
        """Return the names of everything below `checkpoints` of the first version."""
        return sorted(path.name for path in (self.stage_dir(runs) / "v0001/checkpoints").iterdir())


def write_training_project(folder: Path, base: Path) -> Path:
    """Write a recipe for sft, reward and pretrain, and their data. Return `folder`."""
    rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    pairs = [{"prompt": row["prompt"], "chosen": " tree", "rejected": " dog dog"} for row in rows]
    for name, content in (("sft", rows), ("preferences", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "text.txt").write_text("\n\n".join(f"the cat sat on the red tree {i % 5}" for i in range(200)))
    (folder / "recipe.yaml").write_text(TRAINING_RECIPE.format(base=base))
    return folder


def write_ppo_project(folder: Path, base: Path) -> Path:
    """Write a recipe for ppo with a Python reward and demonstrations, and their data. Return `folder`."""
    rows = [{"prompt": f"{a} {b} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text("def length(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    (folder / "recipe.yaml").write_text(PPO_RECIPE.format(base=base))
    return folder


def kill_this_process(*_: object, **__: object) -> NoReturn:
    """Send this process a SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def logged_steps(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def model_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's model files with their hashes, without README.md, which has the seconds that it took."""
    return {name: file for name, file in manifest["files"].items() if name != "README.md"}


def assert_bit_identical(found: StageResult, expected: StageResult) -> None:
    """Assert that two runs of a TRL trainer left the same, except for times."""
    steps = [
        [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in logged_steps(result.path)]
        for result in (found, expected)
    ]
    assert steps[0] == steps[1]
    assert model_files(found.manifest) == model_files(expected.manifest)
    metrics = [
        {name: value for name, value in result.manifest["metrics"].items() if "second" not in name}
        for result in (found, expected)
    ]
    assert metrics[0] == metrics[1]
    names = [{path.name for path in result.path.iterdir()} for result in (found, expected)]
    assert names[0] == names[1]


def ppo_artifacts(result: StageResult) -> dict[str, object]:
    """Return a PPO run's logged metrics without times, and the bytes of every file that holds no times."""
    rows = logged_steps(result.path)
    found: dict[str, object] = {
        "metrics": [{k: v for k, v in row.items() if not k.startswith(TIMED_PPO_METRICS)} for row in rows]
    }
    for path in sorted(result.path.rglob("*")):
        if path.is_file() and path.name not in ("metrics.jsonl", "manifest.json", "log.txt", "README.md"):
            found[str(path.relative_to(result.path))] = path.read_bytes()
    return found
