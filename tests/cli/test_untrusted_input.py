"""Tests of what a model, recipe or reference from someone else cannot do, and of what a run records about it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlhf_cli.recipe.schema import Base
from rlhf_cli.runs.run import Run, StageMetrics
from tests.support.command import Rlhf
from tests.support.issues import raises_issue
from tests.support.stand_ins import SetStage

if TYPE_CHECKING:
    from rlhf_cli.pipeline.resolve import ResolvedStage

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# --- pickles and code ----------------------------------------------------------------------------------------------


class CreatesFile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickle_weights(folder: Path, safe: str, pickled: str, mark: Path) -> None:
    """Replace the safetensors file `safe` with a pickle that creates `mark`."""
    (folder / safe).unlink()
    (folder / pickled).write_bytes(pickle.dumps({"weight": CreatesFile(mark)}))


@pytest.fixture
def foreign_base(tiny_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base, tmp_path / "foreign")


def test_pickled_base_is_refused_unread(rlhf: Rlhf, recipe_file: Path, foreign_base: Path, tmp_path: Path) -> None:
    pickle_weights(foreign_base, "model.safetensors", "pytorch_model.bin", tmp_path / "mark")
    result = rlhf("sft", "-r", recipe_file, "--set", f"base.model={foreign_base}", "--json")
    assert (result.code, result.issue["code"]) == (4, "model.pickled-weights")
    assert not (tmp_path / "mark").exists()
    assert "Traceback" not in result.err
    assert list((recipe_file.parent / "runs").rglob("v0001")) == []


def test_pickled_reward_model_is_refused_unread(foreign_base: Path, tmp_path: Path) -> None:
    from rlhf_cli.models.loading import load_reward_model

    pickle_weights(foreign_base, "model.safetensors", "pytorch_model.bin", tmp_path / "mark")
    with raises_issue("model.pickled-weights"):
        load_reward_model(Base(model=str(foreign_base)), str(foreign_base))
    assert not (tmp_path / "mark").exists()


def test_pickled_adapter_is_refused_unread(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from rlhf_cli.errors import ModelError
    from rlhf_cli.models.adapters import load_policy
    from rlhf_cli.models.loading import load_causal_lm
    from rlhf_cli.recipe.schema import Adapter

    base = Base(model=str(tiny_base))
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load_causal_lm(base, str(tiny_base)), config).save_pretrained(tmp_path / "adapter")
    adapter = Adapter(rank=2, alpha=4)
    load_policy(base, adapter, str(tiny_base), tmp_path / "adapter", smoke=False)
    mark = tmp_path / "mark"
    pickle_weights(tmp_path / "adapter", "adapter_model.safetensors", "adapter_model.bin", mark)
    with pytest.raises(ModelError):
        load_policy(base, adapter, str(tiny_base), tmp_path / "adapter", smoke=False)
    assert not mark.exists()


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_in_model_directory_is_never_run(
    rlhf: Rlhf, recipe_file: Path, foreign_base: Path, tmp_path: Path, part: str
) -> None:
    """transformers uses its own class for a known type, and refuses an unknown one."""
    mark = tmp_path / "mark"
    for name in ("code.py", "modeling_x.py"):
        (foreign_base / name).write_text(f"open({str(mark)!r}, 'w')\n")
    content = json.loads((foreign_base / part).read_text())
    auto_map = {
        "AutoConfig": "modeling_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoTokenizer": ["modeling_x.T"] * 2,
    }
    unknown = {"model_type": "never_heard_of"} if part == "config.json" else {"tokenizer_class": "NeverHeardOf"}
    (foreign_base / part).write_text(json.dumps({**content, **unknown, "auto_map": auto_map}))
    result = rlhf("sft", "-r", recipe_file, "--set", f"base.model={foreign_base}", "--json")
    assert not mark.exists()
    assert result.code == 4, result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_recipe_cannot_request_remote_code(rlhf: Rlhf, recipe_file: Path, stage: str) -> None:
    override = f"{stage}.trainer={{trust_remote_code: true}}"
    result = rlhf("check", "-r", recipe_file, "--set", override, "--json")
    assert result.code == 2
    assert any(f"{stage}.trainer" in issue["message"] for issue in result.json["issues"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{{ range(99999999) | list }}",
        "{{ undefined.attribute }}",
        "{{ messages",
    ],
)
def test_chat_template_is_rendered_in_the_sandbox(
    rlhf: Rlhf, recipe_file: Path, tiny_base: Path, template: str
) -> None:
    (recipe_file.parent / "x.jinja").write_text(template)
    conversation = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (recipe_file.parent / "rows.jsonl").write_text(json.dumps(conversation) + "\n")
    recipe_file.write_text(
        f"name: bot\nbase: {{model: {tiny_base}, chat_template: x.jinja}}\n"
        "data: {sft: {path: rows.jsonl, eval_fraction: 0}}\nsft: {max_length: 64}\n"
    )
    result = rlhf("sft", "-r", recipe_file, "--dry-run", "--json")
    assert (result.code, result.issue["code"]) == (4, "model.chat-template-failed")
    assert "base.chat_template" in result.issue["hint"]
    assert "Traceback" not in result.err
    assert "<class" not in result.out + result.err


# --- what was used is recorded -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_ins")
def test_manifest_has_the_hash_of_the_reward_file(rlhf: Rlhf, recipe_file: Path) -> None:
    file = recipe_file.parent / "judge.py"
    file.write_text("def judge(prompts, completions): ...\n")
    result = rlhf("run", "sft", "reward", "ppo", "-r", recipe_file, "--set", "ppo.reward=[{python: judge.py:judge}]")
    assert result.code == 0, result.err
    manifest = json.loads((recipe_file.parent / "runs" / "bot" / "ppo" / "v0001" / "manifest.json").read_text())
    (item,) = (item for item in manifest["inputs"] if item["role"] == "ppo.reward.0")
    assert item["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_hub_model_is_loaded_and_recorded_by_its_commit(
    rlhf: Rlhf, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_stage: SetStage
) -> None:
    from huggingface_hub import constants

    model = tmp_path / "hub" / "models--org--model"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded: list[tuple[str, str]] = []

    def run(stage: ResolvedStage, run: Run) -> StageMetrics:
        loaded.append((stage.base_path, stage.recipe.base.revision))
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    set_stage("sft", run)
    result = rlhf("sft", "-r", recipe_file, "--set", "base.model=org/model")
    assert result.code == 0, result.err
    assert loaded == [("org/model", COMMIT)]  # even if `main` moves meanwhile
    manifest = json.loads((recipe_file.parent / "runs" / "bot" / "sft" / "v0001" / "manifest.json").read_text())
    (base,) = (item for item in manifest["inputs"] if item["role"] == "base")
    assert (base["kind"], base["ref"], base["version"]) == ("hub", "org/model", COMMIT)


def test_no_library_sends_telemetry() -> None:
    """The environment is set before any library is imported, and values set by the user are kept."""
    script = (
        "import sys; sys.argv = ['rlhf', '--version']\n"
        "from rlhf_cli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY is (sys.argv[0] == 'rlhf')\n"
        "import huggingface_hub.utils as u, huggingface_hub.utils._telemetry as t\n"
        "started = []\n"
        "t.Thread = lambda *a, **k: started.append(a)\n"
        "u.send_telemetry('topic')\n"
        "assert not started\n"
    )
    clean = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "OFFLINE" not in name}
    ended = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


# --- names and references ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", ["../other", "..", "a/b", "/tmp/x", ".hidden", "a\\0b", "a\\nb", ""])
def test_name_that_is_not_one_folder_exits_2(rlhf: Rlhf, recipe_file: Path, name: str) -> None:
    result = rlhf("sft", "-r", recipe_file, "--set", f'name="{name}"', "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.invalid-value")
    assert result.issue["message"].startswith("name: ")
    assert not (recipe_file.parent / "runs").exists()


@pytest.fixture
def outside(rlhf: Rlhf, recipe_file: Path) -> Path:
    """Write a run beside the runs directory, where `../sft@v0001` would find it, and one inside."""
    assert rlhf("sft", "-r", recipe_file, "--runs-dir", recipe_file.parent / "elsewhere").code == 0
    shutil.copytree(recipe_file.parent / "elsewhere" / "bot" / "sft", recipe_file.parent / "sft")
    assert rlhf("sft", "-r", recipe_file).code == 0
    return recipe_file.parent / "sft" / "v0001"


@pytest.mark.usefixtures("stand_ins", "outside")
@pytest.mark.parametrize(
    "override",
    [
        "ppo.start=../sft@v0001",
        "ppo.start=../sft@latest",
        "ppo.start=bot/../../sft@latest",
        "eval.candidate=../sft@latest",
        "data.prompts={run: ../sft@latest}",
        "data.prompts={run: bot/../../sft@v0001}",
        "data.prompts={run: 'bot/sft@v0001/../../../../sft/v0001'}",
        "ppo.reward=[{run: ../sft@latest}]",
    ],
)
def test_reference_in_recipe_cannot_leave_the_runs_directory(rlhf: Rlhf, recipe_file: Path, override: str) -> None:
    stage = "eval" if override.startswith("eval") else "ppo"
    result = rlhf(stage, "-r", recipe_file, "--set", override, "--json")
    assert result.code == 2, result.err
    key = override.partition("=")[0]
    assert any(key in issue["location"] or key in issue["message"] for issue in result.json["issues"])


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("command", ["show", "verify", "lineage", "rm"])
@pytest.mark.parametrize(
    "text", ["../sft@v0001", "bot/../../sft@v0001", "../sft", "bot/sft@v0001/../../../../sft/v9999"]
)
def test_reference_on_command_line_cannot_leave_the_runs_directory(
    rlhf: Rlhf, outside: Path, command: str, text: str
) -> None:
    result = rlhf("runs", command, text, "--json")
    assert (result.code, result.issue["code"]) == (2, "recipe.invalid-run-reference")
    assert outside.is_dir()


@pytest.mark.usefixtures("stand_ins")
def test_rm_removes_nothing_outside_of_the_runs_directory(rlhf: Rlhf, outside: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "summer" / "v0001"
    photos.mkdir(parents=True)
    (photos / "sea.jpg").touch()
    inside = tmp_path / "runs" / "bot" / "sft" / "v0001"
    for folder in (photos, outside, tmp_path / "elsewhere" / "bot" / "sft" / "v0001"):
        result = rlhf("runs", "rm", folder, "--force", "--json")
        assert (result.code, result.issue["code"]) == (6, "disk.outside-runs-dir")
        assert folder.is_dir()
    assert (photos / "sea.jpg").exists()
    assert rlhf("runs", "rm", inside).code == 0
    assert not inside.exists()
