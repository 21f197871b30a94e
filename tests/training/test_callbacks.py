"""A diverged run: the error, the rows of the step, and what is left."""

from __future__ import annotations

import json
import re

from rlhf_cli.errors import DivergedError
from rlhf_cli.runs.manifest import read_manifest
from tests.support.issues import raises_issue
from tests.support.training_project import TrainingProject


def test_non_finite_loss_ends_the_run_and_names_step_and_rows(training_project: TrainingProject) -> None:
    overrides = ("sft.learning_rate=1e38", "sft.max_steps=5", "sft.trainer={max_grad_norm: 0.0}")
    with raises_issue("training.non-finite", error=DivergedError, location="sft") as issues:
        training_project.train("sft", *overrides)
    (issue,) = issues
    assert re.match(r"training diverged: (loss|grad_norm) is (nan|inf) at step \d, on “", issue.message)
    folder = training_project.runs_dir / "t/sft/v0001"
    assert read_manifest(folder) is None
    shown = re.findall("“(.+?)”", issue.message)
    log = (folder / "log.txt").read_text()
    logged = log.partition("rows of the step that diverged:\n")[2].splitlines()[:4]
    assert shown == logged[:3]
    assert "and 1 more (see log.txt)" in issue.message
    assert len(logged) == 4  # the batch
    rows = map(json.loads, (training_project.folder / "sft.jsonl").read_text().splitlines())
    assert set(logged) <= {f"{row['prompt']}{row['completion']}" for row in rows}
