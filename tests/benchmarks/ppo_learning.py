"""The learning case: what reward, at what distance from the start, both tools reach with the same episodes."""

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
from tests.benchmarks.ppo_job import ROOT, Job, measured, work

MODEL = Path(os.environ.get("RLHF_STORIES", ROOT.parent / "shared" / "models" / "stories260k"))
LEARNING_RATES = (3e-4, 1e-3, 3e-3)  # of policy and critic; searched with the first seed
SEEDS = (0, 1, 2)
JOB = Job(world="", tuning="lora", prompts=64, prompt_tokens=48, response_tokens=48, iterations=60)


@dataclass(frozen=True)
class Judged:
    """Of a trained policy's answers to held-out prompts, by `ppo_judge`."""

    reward: float
    kl: float  # k1, nats an answer
    tokens: float

    @property
    def objective(self) -> float:
        """What PPO maximises."""
        return self.reward - JOB.kl_coef * self.kl


def run() -> None:
    """Train with both, over learning rates and then seeds; print what a judge apart from both says of the policies."""
    print(f"\n### learn\n\n{JOB.prompts} episodes an iteration, {JOB.iterations} iterations, kl.coef {JOB.kl_coef}\n")
    if not (MODEL / "config.json").is_file():
        print(f"Skipped: there is no model in {MODEL}; RLHF_STORIES names the folder of stories260k.")
        return
    tools = {"rlhf": (Path(sys.executable), "ppo_rlhf"), "TRL 1.12": (trl_environment.python(), "ppo_trl")}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        world = Path(name)
        work(Path(sys.executable), "ppo_stories", [str(MODEL), name], world)

        def trained(tool: str, rate: float, seed: int) -> Judged:
            folder = world / f"{tool}-{rate}-{seed}"
            job = Job(**{**vars(JOB), "world": name, "learning_rate": rate, "seed": seed, "policy": f"{folder}/policy"})
            measured(*tools[tool], job, folder, OMP_NUM_THREADS="1")
            return judged(f"{folder}/policy", folder)

        def judged(policy: str, folder: Path) -> Judged:
            result = folder / "judged.json"
            arguments = [name, policy, str(JOB.response_tokens), str(result)]
            work(Path(sys.executable), "ppo_judge", arguments, folder, OMP_NUM_THREADS="1")
            return Judged(**json.loads(result.read_text()))

        searches = {tool: [pool.submit(trained, tool, rate, SEEDS[0]) for rate in LEARNING_RATES] for tool in tools}
        print("| | learning rate | seeds | reward | KL, nats an answer | reward − coef·KL | tokens an answer |")
        print("|---|---|---|---|---|---|---|")
        _print("start", "", [judged("base", world)])
        best = {}
        for tool, search in searches.items():
            found = [future.result() for future in search]
            for rate, one in zip(LEARNING_RATES, found, strict=True):
                _print(tool, f"{rate:g}", [one])
            best[tool] = max(zip(found, LEARNING_RATES, strict=True), key=lambda pair: pair[0].objective)
        more = {
            tool: [pool.submit(trained, tool, rate, seed) for seed in SEEDS[1:]] for tool, (_, rate) in best.items()
        }
        for tool, (first, rate) in best.items():
            _print(f"**{tool}**", f"{rate:g}", [first, *(future.result() for future in more[tool])])


def _print(tool: str, rate: str, found: Sequence[Judged]) -> None:
    """A row: means, and the range where there are several seeds."""
    cells = []
    for name in ("reward", "kl", "objective", "tokens"):
        values = [getattr(one, name) for one in found]
        values_range = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{values_range}")
    print(f"| {tool} | {rate} | {len(found)} | {' | '.join(cells)} |", flush=True)
