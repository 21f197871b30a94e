"""A PPO run that was killed anywhere and resumed leaves what an unbroken one leaves, to the last bit: CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_cli.inference import generation
from rlhf_cli.pipeline.runner import StageResult
from rlhf_cli.ppo import trainer, update

from .test_exact_resume import WORDS, Stage, die

TIMED = ("time", "seconds.", "tokens_per_second", "memory_peak_bytes")
RECIPE = """
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    made = tmp_path_factory.mktemp("ppo-resume")
    rows = [{"prompt": f"{a} {b} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "judge.py").write_text("def length(completions, **_):\n    return [float(len(c)) for c in completions]\n")
    (made / "recipe.yaml").write_text(RECIPE.format(base=tiny_base))
    return made


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> StageResult:
    return Stage(folder, "ppo").run("unbroken")


def at_call(number: int, module: ModuleType, name: str) -> Callable[[], None]:
    """Die when `name` is called for the `number`-th time."""

    def trap() -> None:
        real, seen = getattr(module, name), 0

        def call(*args: object, **options: object) -> object:
            nonlocal seen
            seen += 1
            if seen == number:
                die()
            return real(*args, **options)

        setattr(module, name, call)

    return trap


def left(outcome: StageResult) -> dict[str, object]:
    """Every file of the run by its bytes, less what a clock says."""
    rows = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, object] = {"metrics": [{k: v for k, v in r.items() if not k.startswith(TIMED)} for r in rows]}
    for path in sorted(outcome.path.rglob("*")):
        name = str(path.relative_to(outcome.path))
        if path.is_file() and path.name not in ("metrics.jsonl", "manifest.json", "log.txt", "README.md"):
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize(
    ("trap", "saved"),
    [
        (at_call(5, generation, "generate"), ["step-000002"]),  # a sample comes before the first and after the second
        (at_call(4 * 2 + 3, update, "step"), ["step-000002"]),
        (at_call(2, trainer, "save_state"), ["step-000002"]),
        (at_call(3 * 4 + 1, update, "imitate"), ["step-000002"]),
    ],
    ids=["in a rollout", "between two minibatches", "in a save", "in a minibatch"],
)
def test_killed_and_resumed(
    folder: Path, unbroken: StageResult, trap: Callable[[], None], saved: list[str], request: pytest.FixtureRequest
) -> None:
    stage, runs = Stage(folder, "ppo"), request.node.name
    stage.killed(runs, trap)
    assert [name for name in stage.saved(runs) if not name.startswith(".tmp-")] == saved
    found, expected = left(stage.run(runs, resume=True)), left(unbroken)
    assert found.keys() == expected.keys()
    assert "checkpoints/step-000004/state/state.safetensors" in found  # optimizer, generators and all
    for name, content in expected.items():
        assert found[name] == content, name
