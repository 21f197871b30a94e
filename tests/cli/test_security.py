"""What a stranger's model, recipe or reference cannot do, and what no file and no line that we write may hold."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.errors import Issue
from rlhf_cli.recipe.schema import Base, Recipe
from rlhf_cli.redaction import redact
from rlhf_cli.runs.run import Run, StageMetrics
from tests.support.command import CommandResult, Rlhf
from tests.support.stand_ins import SetStage

TOKEN = "hf_secretsecretsecretsecretsecret42"
PASSWORD = "pa55word"
URL = f"https://me:{PASSWORD}@127.0.0.1:9"  # the discard port, where nothing listens
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN, PASSWORD


def check_clean(ended: CommandResult, folder: Path) -> None:
    """Neither what was printed nor what was written below `folder` holds a secret."""
    written = [path for path in folder.rglob("*") if path.is_file()]
    for secret in (TOKEN, PASSWORD):
        assert secret not in ended.out + ended.err
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


# --- secrets


def on_tiny_base(recipe_file: Path, tiny_base: Path) -> None:
    """The stand-in recipe on a real base, each stage in one step."""
    small = "{max_steps: 1, batch_size: 2, micro_batch_size: 2, max_length: 64"
    ppo = "start: base, iterations: 1, rollout_batch_size: 2, minibatches: 1, max_new_tokens: 4, max_prompt_length: 32"
    (recipe_file.parent / "judge.py").write_text("def judge(prompts, completions): ...\n")
    rows = [
        {"prompt": f"Question {i}?", "completion": " Yes.", "chosen": " Yes.", "rejected": " No."} for i in range(8)
    ]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ", ".join(f"{kind}: {{path: rows.jsonl}}" for kind in ("sft", "preferences", "prompts"))
    recipe_file.write_text(
        f"name: bot\nbase: {{model: {tiny_base}}}\nadapter: {{rank: 2}}\ndata: {{{data}}}\nsft: {small}}}\n"
        f"ppo: {{{ppo}, reward: [{{python: judge.py:judge}}]}}\n"
    )


@pytest.mark.usefixtures("secrets")
def test_a_real_run_writes_and_shows_no_secret(rlhf: Rlhf, recipe_file: Path, tiny_base: Path) -> None:
    """Nor does one whose reward fails with a library's message that holds both."""
    on_tiny_base(recipe_file, tiny_base)
    (recipe_file.parent / "judge.py").write_text(
        "import os\n\n"
        "def judge(prompts, completions, **columns):\n"
        f"    raise OSError(os.environ['HF_TOKEN'] + ' is refused by ' + '{URL[:12]}' + 'pa55' + 'word@127.0.0.1:9')\n"
    )
    runs = recipe_file.parent / "runs"
    ended = rlhf("sft", "-r", recipe_file)
    assert ended.code == 0, ended.err
    assert (runs / "bot" / "sft" / "v0001" / "manifest.json").is_file()
    check_clean(ended, runs)
    ended = rlhf("ppo", "-r", recipe_file, "--json")
    assert ended.code == 7
    assert "… is refused by https://…@127.0.0.1:9" in ended.json["issues"][0]["message"]
    assert "… is refused by https://…@127.0.0.1:9" in (runs / "bot" / "ppo" / "v0001" / "log.txt").read_text()
    check_clean(ended, runs)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize("bug", [True, False])
def test_what_a_stage_says_and_what_it_fails_with_is_told_without_secrets(
    rlhf: Rlhf, recipe_file: Path, set_stage: SetStage, monkeypatch: pytest.MonkeyPatch, bug: bool, debug: str
) -> None:
    monkeypatch.setenv("RLHF_DEBUG", debug)

    def run(recipe: Recipe, run: Run) -> StageMetrics:
        run.begin(1, "steps")
        run.say(f"asked {URL}")
        run.warn(f"{TOKEN} is old")
        raise ZeroDivisionError(TOKEN) if bug else OSError(28, f"full {URL}", f"/x/{TOKEN}")

    set_stage("sft", run)
    ended = rlhf("sft", "-r", recipe_file)
    assert ended.code == (1 if bug else 6)
    assert ended.err
    log = (recipe_file.parent / "runs" / "bot" / "sft" / "v0001" / "log.txt").read_text()
    assert "asked https://…@127.0.0.1:9" in log
    check_clean(ended, recipe_file.parent / "runs")


@pytest.mark.usefixtures("secrets", "stand_ins")
def test_warnings_in_a_manifest_hold_no_secret(rlhf: Rlhf, recipe_file: Path, set_stage: SetStage) -> None:
    def run(recipe: Recipe, run: Run) -> StageMetrics:
        run.warn(f"{URL} took long, with {TOKEN}")
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({"loss": 1.0})

    set_stage("sft", run)
    ended = rlhf("sft", "-r", recipe_file, "--json")
    assert ended.code == 0
    check_clean(ended, recipe_file.parent / "runs")


@pytest.mark.usefixtures("secrets", "stand_ins")
@pytest.mark.parametrize(
    "override",
    [
        f"ppo.reward=[{{http: '{URL}/score'}}]",
        f"ppo.reward=[{{http: 'https://host/score?api_key={PASSWORD}'}}]",
        f"ppo.reward=[{{python: '{URL}/a.py:f'}}]",
        f"ppo.reward=[{{model: '{URL}/scorer'}}]",
        f"data.prompts.path={URL}/rows.jsonl",
        f"data.prompts={{hub: '{URL}/rows'}}",
        f"data.prompts={{run: '{URL}/feedback@latest'}}",
        f"base.model={URL}/model",
        f"base.chat_template={URL}/x.jinja",
        f"ppo.start={URL}/x",
        f"extends={URL}/r.yaml",
        f"ppo.trainer={{hub_token: {TOKEN}}}",
        f"name={TOKEN}{{",
        f"seed={TOKEN}",
        f"base.revision={TOKEN}",
        f"sft.trainer={{project: '{URL}'}}",
    ],
)
def test_a_password_in_a_recipe_is_refused_and_not_repeated(rlhf: Rlhf, recipe_file: Path, override: str) -> None:
    """In a file, and on the command line."""
    for stage in ("ppo", "run"):
        ended = rlhf(stage, "-r", recipe_file, "--set", override, "--json")
        assert 2 <= ended.code <= 6
        assert ended.json["issues"]
        check_clean(ended, recipe_file.parent / "runs")
    key, _, value = override.partition("=")
    nested = value
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested if nested[0] in '{[' else json.dumps(nested)}}}"
    (recipe_file.parent / "over.yaml").write_text(nested)
    if key != "extends":
        (recipe_file.parent / "over.yaml").write_text(f"extends: r.yaml\n{nested[1:-1]}\n")
    ended = rlhf("check", "-r", "over.yaml")
    assert 2 <= ended.code <= 6
    check_clean(ended, recipe_file.parent / "runs")


@pytest.mark.parametrize("override", ["base.model=org/none", "data.sft={hub: org/none}"])
def test_a_hub_that_fails_does_not_tell_its_password(tmp_path: Path, recipe_file: Path, override: str) -> None:
    """HF_ENDPOINT with a password, as companies' mirrors have it. In a process of its own, which reads it anew."""
    changed = {"HF_ENDPOINT": URL, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "rlhf_cli", "sft", "-r", str(recipe_file), "--set", override, "--json"]
    told = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **changed, "RLHF_DEBUG": "1"}, capture_output=True, text=True
    )
    ended = CommandResult(told.returncode, told.stdout, told.stderr)
    assert ended.code in (3, 4)
    assert "the hub cannot be reached (ConnectError)" in ended.json["issues"][0]["message"]
    check_clean(ended, tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see https://me:pw@host/x and http://host/y", "see https://…@host/x and http://host/y"),
        ("/folder/https:/me:p@w@host/x", "/folder/https:/…@host/x"),
        ("https://host/x?id=1&access_token=abc&b=2", "https://host/x?id=1&access_token=…&b=2"),
        (f"token {'hf_' + 'A1b2' * 8}.", "token hf_…."),
        ("transformers/hf_argparser.py", "transformers/hf_argparser.py"),
        ("write to me@host or see https://host/@me", "write to me@host or see https://host/@me"),
    ],
)
def test_what_is_a_secret_is_taken_out_and_nothing_else(text: str, told: str) -> None:
    assert redact(text) == told
    assert str(Issue(text, "here", text)) == f"here  {told} {told}"


def test_secrets_of_the_environment_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RLHF_REWARD_TOKEN", "WANDB_API_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"value-of-{name}")
        assert redact(f"401: value-of-{name} is wrong") == "401: … is wrong"
    monkeypatch.setenv("SHORT_TOKEN", "no")  # would be found in any text
    assert redact("no such thing") == "no such thing"


# --- code and pickles of strangers


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def with_pickled_weights(folder: Path, safe: str, pickled: str, mark: Path) -> None:
    (folder / safe).unlink()
    (folder / pickled).write_bytes(pickle.dumps({"weight": Touches(mark)}))


@pytest.fixture
def stranger(tiny_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base, tmp_path / "stranger")


def test_pickled_weights_are_refused_unread(rlhf: Rlhf, recipe_file: Path, stranger: Path, tmp_path: Path) -> None:
    with_pickled_weights(stranger, "model.safetensors", "pytorch_model.bin", tmp_path / "mark")
    ended = rlhf("sft", "-r", recipe_file, "--set", f"base.model={stranger}", "--json")
    assert ended.code == 4
    assert "*.safetensors" in ended.json["issues"][0]["hint"]
    assert not (tmp_path / "mark").exists()
    assert "Traceback" not in ended.err
    assert list((recipe_file.parent / "runs").rglob("v0001")) == []


def test_a_pickled_reward_model_is_refused_unread(stranger: Path, tmp_path: Path) -> None:
    from rlhf_cli.errors import ModelError
    from rlhf_cli.models.loading import load_reward_model

    with_pickled_weights(stranger, "model.safetensors", "pytorch_model.bin", tmp_path / "mark")
    with pytest.raises(ModelError, match="pickles alone"):
        load_reward_model(Base(model=str(stranger)), str(stranger))
    assert not (tmp_path / "mark").exists()


def test_a_pickled_adapter_is_refused_unread(tiny_base: Path, tmp_path: Path) -> None:
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
    with_pickled_weights(tmp_path / "adapter", "adapter_model.safetensors", "adapter_model.bin", mark)
    with pytest.raises(ModelError):
        load_policy(base, adapter, str(tiny_base), tmp_path / "adapter", smoke=False)
    assert not mark.exists()


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_never_run(
    rlhf: Rlhf, recipe_file: Path, stranger: Path, tmp_path: Path, part: str
) -> None:
    """Of a kind that transformers knows it takes its own class; of another kind it refuses."""
    mark = tmp_path / "mark"
    (stranger / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (stranger / "modeling_x.py").write_text(f"open({str(mark)!r}, 'w')\n")
    content = json.loads((stranger / part).read_text())
    kinds = {
        "AutoConfig": "modeling_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoTokenizer": ["modeling_x.T"] * 2,
    }
    unknown = {"model_type": "never_heard_of"} if part == "config.json" else {"tokenizer_class": "NeverHeardOf"}
    (stranger / part).write_text(json.dumps({**content, **unknown, "auto_map": kinds}))
    ended = rlhf("sft", "-r", recipe_file, "--set", f"base.model={stranger}", "--json")
    assert not mark.exists()
    assert ended.code == 4, ended.err
    assert "Traceback" not in ended.err


def test_a_recipe_cannot_ask_for_remote_code(rlhf: Rlhf, recipe_file: Path) -> None:
    for stage in ("sft", "reward", "ppo"):
        ended = rlhf("check", "-r", recipe_file, "--set", f"{stage}.trainer={{trust_remote_code: true}}")
        assert ended.code == 2
        assert f"{stage}.trainer.trust_remote_code" in ended.err


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
def test_a_chat_template_is_rendered_in_the_sandbox(
    rlhf: Rlhf, recipe_file: Path, tiny_base: Path, template: str
) -> None:
    on_tiny_base(recipe_file, tiny_base)
    (recipe_file.parent / "x.jinja").write_text(template)
    conversation = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (recipe_file.parent / "rows.jsonl").write_text(json.dumps(conversation) + "\n")
    overrides = ["--set", "base.chat_template=x.jinja"]
    ended = rlhf("sft", "-r", recipe_file, *overrides, "--dry-run")
    assert ended.code == 4
    assert "the chat template does not take this conversation (user): " in ended.err
    assert "Set base.chat_template to a .jinja file that does" in ended.err
    assert "Traceback" not in ended.err
    assert "<class" not in ended.out + ended.err


# --- what was used is recorded


@pytest.mark.usefixtures("stand_ins")
def test_a_reward_files_hash_is_in_the_manifest(rlhf: Rlhf, recipe_file: Path) -> None:
    file = recipe_file.parent / "judge.py"
    file.write_text("def judge(prompts, completions): ...\n")
    ended = rlhf("run", "sft", "reward", "ppo", "-r", recipe_file, "--set", "ppo.reward=[{python: judge.py:judge}]")
    assert ended.code == 0, ended.err
    manifest = json.loads((recipe_file.parent / "runs" / "bot" / "ppo" / "v0001" / "manifest.json").read_text())
    (found,) = (item for item in manifest["inputs"] if item["role"] == "ppo.reward.0")
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.usefixtures("stand_ins")
def test_a_hub_model_is_loaded_and_recorded_by_its_commit(
    rlhf: Rlhf, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_stage: SetStage
) -> None:
    from huggingface_hub import constants

    refs = tmp_path / "hub" / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    seen: list[tuple[str, str]] = []

    def run(recipe: Recipe, run: Run) -> StageMetrics:
        seen.append((run.base_source(), recipe.base.revision))
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({})

    set_stage("sft", run)
    ended = rlhf("sft", "-r", recipe_file, "--set", "base.model=org/model")
    assert ended.code == 0, ended.err
    assert seen == [("org/model", COMMIT)]  # what the stage loads, whatever `main` is by then
    manifest = json.loads((recipe_file.parent / "runs" / "bot" / "sft" / "v0001" / "manifest.json").read_text())
    (base,) = (item for item in manifest["inputs"] if item["role"] == "base")
    assert (base["kind"], base["ref"], base["version"]) == ("hub", "org/model", COMMIT)


def test_no_library_sends_telemetry() -> None:
    """By the environment, set before any of them is imported; what the caller has set stays."""
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
    told = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


# --- names and references


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", ["../other", "..", "a/b", "/tmp/x", ".hidden", "a\\0b", "a\\nb", ""])
def test_a_name_is_one_folder_in_the_runs_folder(rlhf: Rlhf, recipe_file: Path, name: str) -> None:
    ended = rlhf("sft", "-r", recipe_file, "--set", f'name="{name}"')
    assert ended.code == 2
    assert "letters, digits" in ended.err
    assert not (recipe_file.parent / "runs").exists()


@pytest.fixture
def outside(rlhf: Rlhf, recipe_file: Path) -> Path:
    """A run beside the runs folder, where `../sft@v0001` would find it."""
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
def test_a_reference_cannot_leave_the_runs_folder(rlhf: Rlhf, recipe_file: Path, override: str) -> None:
    stage = "eval" if override.startswith("eval") else "ppo"
    ended = rlhf(stage, "-r", recipe_file, "--set", override, "--json")
    assert ended.code == 2, ended.err
    wanted = override.partition("=")[0]
    assert any(wanted in error["location"] or wanted in error["message"] for error in ended.json["issues"])


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("command", ["show", "verify", "lineage", "rm"])
def test_runs_are_looked_for_in_the_runs_folder_alone(rlhf: Rlhf, outside: Path, command: str) -> None:
    for text in ("../sft@v0001", "bot/../../sft@v0001", "../sft", "bot/sft@v0001/../../../../sft/v9999"):
        ended = rlhf("runs", command, text)
        assert ended.code == 2, text
        assert "names no run" in ended.err
    assert outside.is_dir()


@pytest.mark.usefixtures("stand_ins")
def test_rm_takes_away_nothing_outside_of_the_runs_folder(rlhf: Rlhf, outside: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "summer" / "v0001"
    photos.mkdir(parents=True)
    (photos / "sea.jpg").touch()
    inside = tmp_path / "runs" / "bot" / "sft" / "v0001"
    for folder in (photos, outside, tmp_path / "elsewhere" / "bot" / "sft" / "v0001"):
        ended = rlhf("runs", "rm", folder, "--force")
        assert ended.code == 6
        assert "is not in the runs folder" in ended.err
        assert folder.is_dir()
    assert (photos / "sea.jpg").exists()
    assert rlhf("runs", "rm", inside).code == 0
    assert not inside.exists()
