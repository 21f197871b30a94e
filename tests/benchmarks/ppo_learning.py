"""The learning case: which reward, at which KL from the start, both tools reach with the same episodes."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import trl_environment
from tests.benchmarks.ppo_job import ROOT, Job, measure_job, run_worker

MODEL = Path(os.environ.get("RLHF_STORIES", ROOT.parent / "shared" / "models" / "stories260k"))
UPDATES = (20, 60)  # rollouts with their updates
CRITIC_FACTORS = (1, 3, 10, 30)  # of the critic's learning rate to the policy's, with the first seed
SEEDS = (0, 1, 2)
JOB = Job(
    world="",
    tuning="lora",
    prompts=64,
    prompt_tokens=48,
    response_tokens=48,
    iterations=60,
    learning_rate=3e-4,
    trl_whole_critic=True,
)
COLUMNS = "| | updates | seeds | reward | KL, nats per completion | reward − coef·KL | tokens per completion |"


@dataclass(frozen=True)
class Judgment:
    """Means over a policy's completions of held-out prompts, by `ppo_judge`.

    Attributes:
        reward: Reward.
        kl: KL divergence (k1) in nats per completion.
        tokens: Tokens per completion.
    """

    reward: float
    kl: float
    tokens: float

    @property
    def objective(self) -> float:
        """What PPO maximizes."""
        return self.reward - JOB.kl_coef * self.kl


def run() -> None:
    """Train with both tools, and with several rates of our critic; print what an independent script scores."""
    print(f"\n### learn\n\n{JOB.prompts} episodes per update, kl.coef {JOB.kl_coef}, rate {JOB.learning_rate}\n")
    if not (MODEL / "config.json").is_file():
        print(f"Skipped: model not found in {MODEL}. Set RLHF_STORIES to the folder of stories260k.")
        return
    tools = {"rlhf": (Path(sys.executable), "ppo_rlhf"), "TRL 1.12": (trl_environment.python(), "ppo_trl")}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        world = Path(name)
        run_worker(Path(sys.executable), "ppo_stories", [str(MODEL), name], world)

        def train(tool: str, updates: int, seed: int, factor: float | None = None) -> Judgment:
            folder = world / f"{tool}-{updates}-{seed}-{factor}"
            fields = {"world": name, "iterations": updates, "seed": seed, "critic_factor": factor}
            job = Job(**{**vars(JOB), **fields, "policy": f"{folder}/policy"})
            measure_job(*tools[tool], job, folder, OMP_NUM_THREADS="1")
            return judge(f"{folder}/policy", folder)

        def judge(policy: str, folder: Path) -> Judgment:
            result = folder / "judgment.json"
            arguments = [name, policy, str(JOB.response_tokens), str(result)]
            run_worker(Path(sys.executable), "ppo_judge", arguments, folder, OMP_NUM_THREADS="1")
            return Judgment(**json.loads(result.read_text()))

        found = {
            f"critic × {factor}": (UPDATES[0], [pool.submit(train, "rlhf", UPDATES[0], SEEDS[0], factor)])
            for factor in CRITIC_FACTORS
        }
        for updates in UPDATES:
            for tool in tools:
                found[f"{tool}, {updates}"] = (updates, [pool.submit(train, tool, updates, seed) for seed in SEEDS])
        print(f"{COLUMNS}\n|---|---|---|---|---|---|---|")
        _print_row("start", 0, [judge("base", world)])
        for label, (updates, futures) in found.items():
            _print_row(label.partition(",")[0], updates, [future.result() for future in futures])


def _print_row(label: str, updates: int, judgments: Sequence[Judgment]) -> None:
    """Print means, and the range if there are several seeds."""
    cells = []
    for name in ("reward", "kl", "objective", "tokens"):
        values = [getattr(judgment, name) for judgment in judgments]
        values_range = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{values_range}")
    print(f"| {label} | {updates} | {len(judgments)} | {' | '.join(cells)} |", flush=True)
