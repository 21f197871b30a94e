"""A new stage needs one file, one section of the recipe and one row in the stage table, and then every command works.

The package is copied, the stage `toy` is added to the copy, and the commands run in subprocesses on the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rlhf_cli
from rlhf_cli.runs.manifest import MANIFEST_FILE
from tests.support.processes import count_lines, wait_for
from tests.support.stage_harness import WORDS, logged_steps

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

STAGE = '''"""Fine-tune on demonstrations, as an example of a new stage."""

from rlhf_cli.data import tokenization
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs.run import Run, StageMetrics
from rlhf_cli.training.prepared_data import PreparedData, prepare_rows


def prepare(stage: ResolvedStage) -> PreparedData:
    return prepare_rows(stage, tokenization.sft_columns, tokenization.first_example)


def run(stage: ResolvedStage, run: Run) -> StageMetrics:
    from trl import SFTConfig, SFTTrainer

    from rlhf_cli.models import adapters, loading
    from rlhf_cli.training import memory_check, supervised

    data = prepare(stage)
    data.log("demonstrations")
    memory_check.check(stage, data.train.lengths(), data.held_out.lengths())
    base, adapter = stage.recipe.base, stage.recipe.adapter
    return supervised.train_with_trl(
        stage,
        run,
        data,
        trl_trainer=supervised.TrlTrainer(
            SFTTrainer,
            SFTConfig,
            {"max_length": stage.max_length, "dataset_kwargs": {"skip_prepare_dataset": True}},
        ),
        model=adapters.load_policy(base, adapter, stage.base_path, stage.model_path("start"), smoke=stage.smoke),
        dtype=loading.compute_dtype(base, loading.default_device()),
        evaluate=lambda trainer: {"toy.rows": float(data.train.kept)},
    )
'''
SECTION = '''

class Toy(TrainerSection):
    """An example of a new section."""

    start: Annotated[str, PathKind("run", ("base",))] = Field("sft", description="base, or an sft or toy run")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate of AdamW")
'''
FIELD = '    toy: Toy = Field(Toy(), description="an example of a new stage")\n'
ROW = """    "toy": StageSpec(
        entry_point="rlhf_cli.stages.toy:run",
        prepare="rlhf_cli.stages.toy:prepare",
        section="toy",
        help="Run an example of a new stage.",
        dataset="sft",
        accepts={"start": ("sft", "toy")},
        trl_config="SFTConfig",
        model_class="causal_lm",
        memory_model="trl",
        memory_key="toy.micro_batch_size",
        headline_metrics=("toy.train_loss",),
    ),
"""
RECIPE = """
name: t
base: {{model: {base}}}
adapter: {{rank: 4, alpha: 8}}
data: {{sft: {{path: rows.jsonl}}}}
sft: {{max_steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64}}
toy: {{start: base, max_steps: 60, batch_size: 4, micro_batch_size: 4, max_length: 64, save_every: 5}}
"""


def insert(file: Path, before: str, text: str) -> None:
    """Insert `text` before the only occurrence of `before`."""
    content = file.read_text(encoding="utf-8")
    assert content.count(before) == 1, (file, before)
    file.write_text(content.replace(before, text + before), encoding="utf-8")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the package and add the stage. Return the folder that contains the copy."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "rlhf_cli"
    shutil.copytree(Path(rlhf_cli.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "stages" / "toy.py").write_text(STAGE, encoding="utf-8")
    with (copy / "recipe/schema/training.py").open("a", encoding="utf-8") as file:
        file.write(SECTION)
    recipe = copy / "recipe/schema/recipe.py"
    insert(recipe, "\nSCHEMA = ", "from rlhf_cli.recipe.schema.training import Toy\n")
    insert(recipe, "    eval: Eval", FIELD)
    insert(copy / "stages/__init__.py", '    "reward": StageSpec(', ROW)
    return folder


class ToyProject:
    """A recipe with the section `toy`, whose commands run on the copied package."""

    def __init__(self, folder: Path, package: Path, base: Path) -> None:
        self.folder, self.package = folder, package
        rows = [{"prompt": f"{a} and", "completion": f" {b} {a}"} for a in WORDS for b in WORDS]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "recipe.yaml").write_text(RECIPE.format(base=base))

    @property
    def first_run(self) -> Path:
        """The first version of toy."""
        return self.folder / "runs/t/toy/v0001"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `rlhf <words>`."""
        return subprocess.Popen(
            [sys.executable, "-m", "rlhf_cli", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.package)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *words: str, code: int = 0) -> str:
        """Run `rlhf <words>`, which must end with `code`. Return its stdout."""
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, err
        return out

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Run `rlhf <words> --json`. Return the JSON object."""
        found = json.loads(self.finish(*words, "--json", code=code))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def project(tmp_path: Path, package: Path, tiny_base: Path) -> ToyProject:
    """Write a recipe with the section `toy`, and its data."""
    return ToyProject(tmp_path, package, tiny_base)


def test_new_stage_is_listed_in_help_and_schema(project: ToyProject) -> None:
    assert "Run an example of a new stage." in project.finish("--help")
    assert "toy" in json.loads(project.finish("schema"))["properties"]


def test_new_stage_has_a_dry_run(project: ToyProject) -> None:
    (preview,) = project.json("toy", "--dry-run")["dry_run"]
    assert preview["stage"] == "toy"
    assert "⟦" in preview["example"]
    assert preview["facts"]["rows train"] > 20
    assert preview["memory"]["total"] > 0
    assert sum(preview["trainable"].values()) > 0
    assert not (project.folder / "runs").exists()


def test_new_stage_has_a_smoke_run_that_makes_its_input(project: ToyProject) -> None:
    result = project.json("toy", "--smoke", "--set", "toy.start=sft")
    assert (result["status"], result["stage"], result["run"], result["smoke"]) == ("ok", "toy", "t/toy@v0001", True)
    assert result["metrics"]["toy.steps"] == 2
    assert result["metrics"]["toy.rows"] > 0
    assert (project.folder / "runs/t/sft/v0001" / MANIFEST_FILE).exists()


def test_new_stage_resumes_after_kill_and_signal(project: ToyProject) -> None:
    run = project.first_run
    killed = project.start("toy", "--json")
    wait_for(lambda: any((run / "checkpoints").glob("step-*")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (run / MANIFEST_FILE).exists()

    stopped = project.start("toy", "--resume", "--json")
    wait_for(lambda: (run / ".lock").exists() and "resuming" in (run / "log.txt").read_text())
    logged = count_lines(run / "metrics.jsonl")
    wait_for(lambda: count_lines(run / "metrics.jsonl") > logged)
    stopped.send_signal(signal.SIGTERM)
    out, err = stopped.communicate(timeout=300)
    assert stopped.returncode == 75, err
    assert [issue["code"] for issue in json.loads(out)["issues"]] == ["run.stopped"]

    result = project.json("toy", "--resume")
    assert result["run"] == "t/toy@v0001"
    assert result["metrics"]["toy.steps"] == 60
    assert [step["step"] for step in logged_steps(run)] == list(range(1, 61))
    assert project.json("toy", "--skip-if-done")["skipped"]
    (listed,) = project.json("runs", "list")["runs"]
    assert (listed["stage"], listed["version"], listed["state"]) == ("toy", "v0001", "complete")
    assert "toy" in project.finish("runs", "list")
    assert "AutoPeftModelForCausalLM" in (run / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("setting", "hint"),
    [("toy.learnig_rate=1.0", "learning_rate"), ("toy.trainer={warmup_step: 3}", "warmup_steps")],
)
def test_check_reports_unknown_key_of_new_stage(project: ToyProject, setting: str, hint: str) -> None:
    (issue,) = project.json("check", "--set", setting, code=2)["issues"]
    assert issue["code"] == "recipe.unknown-key"
    assert hint in issue["hint"]


def test_check_reports_bad_rows_of_new_stage(project: ToyProject) -> None:
    with (project.folder / "rows.jsonl").open("a") as file:
        file.write('{"prompt": "red and", "completion": ""}\n')
    (issue,) = project.json("check", "toy", code=3)["issues"]
    assert issue["code"] == "data.empty-completion"
    assert issue["location"].endswith("rows.jsonl:37")


def test_check_reports_missing_run_of_new_stage(project: ToyProject) -> None:
    (issue,) = project.json("check", "toy", "--set", "toy.start=toy@v0009", code=2)["issues"]
    assert issue["code"] == "recipe.run-not-found"
