"""The registry describes every metric that training logs."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf_cli.evaluation.metric_types import Metric
from rlhf_cli.evaluation.training_metrics import ITERATION_METRICS, PPO_METRICS
from rlhf_cli.ppo.types import Demonstrations
from tests.support.tiny_policy import EOS, MakeTrainer, small_settings


def undescribed(logged: set[str], metrics: tuple[Metric, ...]) -> list[str]:
    """Return the logged names that no metric describes; `<source>` stands for one part of a name."""
    patterns = [re.sub("<[a-z]+>", "[^.]+", re.escape(metric.name)) for metric in metrics]
    return sorted(name for name in logged if not any(re.fullmatch(pattern, name) for pattern in patterns))


def test_every_metric_of_an_iteration_is_described_and_every_description_is_used(
    make_trainer: MakeTrainer, sft_folder: Path, reward_folder: Path
) -> None:
    settings = small_settings(iterations=1, ptx_coef=0.1)
    demonstrations = Demonstrations([[5, 6], [7]], [[10, 11, EOS], [12, EOS]])
    (logged,) = make_trainer(settings, sft_folder, reward_folder, demonstrations=demonstrations).train()
    assert undescribed(set(logged), ITERATION_METRICS) == []
    described = {metric.name for metric in ITERATION_METRICS if "<" not in metric.name}
    assert described <= set(logged)


def test_summary_in_the_manifest_is_described() -> None:
    names = {metric.name for metric in PPO_METRICS}
    assert {"ppo.reward", "ppo.score.<source>", "ppo.kl", "ppo.kl.token", "ppo.episodes"} <= names
    assert "ppo.policy_loss" not in names
    assert {metric.group for metric in PPO_METRICS} == {"ppo"}
