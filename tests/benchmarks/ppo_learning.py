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
LEARNING_RATES = (3e-4, 1e-3, 3e-3)  # of policy and critic; searched with the first seed
SEEDS = (0, 1, 2)
JOB = Job(world="", tuning="lora", prompts=64, prompt_tokens=48, response_tokens=48, iterations=60)
COLUMNS = "| | learning rate | seeds | reward | KL, nats per completion | reward − coef·KL | tokens per completion |"


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
    """Train with both tools over learning rates and then seeds; print what an independent script scores."""
    print(f"\n### learn\n\n{JOB.prompts} episodes per iteration, {JOB.iterations} iterations, kl.coef {JOB.kl_coef}\n")
    if not (MODEL / "config.json").is_file():
        print(f"Skipped: model not found in {MODEL}. Set RLHF_STORIES to the folder of stories260k.")
        return
    tools = {"rlhf": (Path(sys.executable), "ppo_rlhf"), "TRL 1.12": (trl_environment.python(), "ppo_trl")}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        world = Path(name)
        run_worker(Path(sys.executable), "ppo_stories", [str(MODEL), name], world)

        def train(tool: str, rate: float, seed: int) -> Judgment:
            folder = world / f"{tool}-{rate}-{seed}"
            job = Job(**{**vars(JOB), "world": name, "learning_rate": rate, "seed": seed, "policy": f"{folder}/policy"})
            measure_job(*tools[tool], job, folder, OMP_NUM_THREADS="1")
            return judge(f"{folder}/policy", folder)

        def judge(policy: str, folder: Path) -> Judgment:
            result = folder / "judgment.json"
            arguments = [name, policy, str(JOB.response_tokens), str(result)]
            run_worker(Path(sys.executable), "ppo_judge", arguments, folder, OMP_NUM_THREADS="1")
            return Judgment(**json.loads(result.read_text()))

        searches = {tool: [pool.submit(train, tool, rate, SEEDS[0]) for rate in LEARNING_RATES] for tool in tools}
        print(f"{COLUMNS}\n|---|---|---|---|---|---|---|")
        _print_row("start", "", [judge("base", world)])
        best = {}
        for tool, search in searches.items():
            found = [future.result() for future in search]
            for rate, judgment in zip(LEARNING_RATES, found, strict=True):
                _print_row(tool, f"{rate:g}", [judgment])
            best[tool] = max(zip(found, LEARNING_RATES, strict=True), key=lambda pair: pair[0].objective)
        further = {
            tool: [pool.submit(train, tool, rate, seed) for seed in SEEDS[1:]] for tool, (_, rate) in best.items()
        }
        for tool, (first, rate) in best.items():
            _print_row(f"**{tool}**", f"{rate:g}", [first, *(future.result() for future in further[tool])])


def _print_row(tool: str, rate: str, judgments: Sequence[Judgment]) -> None:
    """Print means, and the range if there are several seeds."""
    cells = []
    for name in ("reward", "kl", "objective", "tokens"):
        values = [getattr(judgment, name) for judgment in judgments]
        values_range = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{values_range}")
    print(f"| {tool} | {rate} | {len(judgments)} | {' | '.join(cells)} |", flush=True)
