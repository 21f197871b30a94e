"""Tests that no secret is printed, logged or written into a run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf_cli.errors import Issue
from rlhf_cli.redaction import redact
from rlhf_cli.runs.run import Run, StageMetrics
from tests.support.command import CommandResult, Rlhf
from tests.support.stand_ins import SetStage

if TYPE_CHECKING:
    from rlhf_cli.pipeline.resolve import ResolvedStage

TOKEN = "hf_secretsecretsecretsecretsecret42"
PASSWORD = "pa55word"
URL = f"https://me:{PASSWORD}@127.0.0.1:9"  # the discard port, where no server listens
REDACTED_URL = "https://…@127.0.0.1:9"

logger = logging.getLogger("rlhf_cli.tests")


@pytest.fixture
def token_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def assert_no_secret(result: CommandResult, folder: Path) -> None:
    """Assert that neither the output nor any file below `folder` holds a secret."""
    written = [path for path in folder.rglob("*") if path.is_file()]
    for secret in (TOKEN, PASSWORD):
        assert secret not in result.out + result.err
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


@pytest.fixture
def one_step_recipe(recipe_file: Path, tiny_base: Path) -> Path:
    """Put the recipe on a real base, with one step per stage and the reward function judge.py:judge."""
    small = "{max_steps: 1, batch_size: 2, micro_batch_size: 2, max_length: 64}"
    ppo = "start: base, iterations: 1, rollout_batch_size: 2, minibatches: 1, max_new_tokens: 4, max_prompt_length: 32"
    rows = [
        {"prompt": f"Question {i}?", "completion": " Yes.", "chosen": " Yes.", "rejected": " No."} for i in range(8)
    ]
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ", ".join(f"{kind}: {{path: rows.jsonl}}" for kind in ("sft", "preferences", "prompts"))
    recipe_file.write_text(
        f"name: bot\nbase: {{model: {tiny_base}}}\nadapter: {{rank: 2}}\ndata: {{{data}}}\nsft: {small}\n"
        f"ppo: {{{ppo}, reward: [{{python: judge.py:judge}}]}}\n"
    )
    return recipe_file


@pytest.mark.usefixtures("token_in_environment")
def test_real_run_and_failing_reward_write_no_secret(rlhf: Rlhf, one_step_recipe: Path) -> None:
    """The reward fails with a library's message that holds a token and a password."""
    (one_step_recipe.parent / "judge.py").write_text(
        "import os\n\n"
        "def judge(prompts, completions, **columns):\n"
        f"    raise OSError(os.environ['HF_TOKEN'] + ' is refused by ' + '{URL[:12]}' + 'pa55' + 'word@127.0.0.1:9')\n"
    )
    runs = one_step_recipe.parent / "runs"
    result = rlhf("sft", "-r", one_step_recipe)
    assert result.code == 0, result.err
    assert (runs / "bot" / "sft" / "v0001" / "manifest.json").is_file()
    assert_no_secret(result, runs)
    result = rlhf("ppo", "-r", one_step_recipe, "--json")
    assert result.code == 7
    assert f"… is refused by {REDACTED_URL}" in result.json["issues"][0]["message"]
    assert f"… is refused by {REDACTED_URL}" in (runs / "bot" / "ppo" / "v0001" / "log.txt").read_text()
    assert_no_secret(result, runs)


@pytest.mark.usefixtures("token_in_environment")
@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize(
    ("error", "exit_code"), [(ZeroDivisionError(TOKEN), 1), (OSError(28, f"full {URL}", f"/x/{TOKEN}"), 6)]
)
def test_messages_and_errors_of_a_stage_are_redacted(
    rlhf: Rlhf,
    recipe_file: Path,
    set_stage: SetStage,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    exit_code: int,
    debug: str,
) -> None:
    monkeypatch.setenv("RLHF_DEBUG", debug)

    def run(_stage: ResolvedStage, run: Run) -> StageMetrics:
        run.begin(1, "step")
        logger.info(f"asked {URL}")
        logger.warning(f"{TOKEN} is old")
        raise error

    set_stage("sft", run)
    result = rlhf("sft", "-r", recipe_file)
    assert result.code == exit_code
    assert result.err
    log = (recipe_file.parent / "runs" / "bot" / "sft" / "v0001" / "log.txt").read_text()
    assert f"asked {REDACTED_URL}" in log
    assert_no_secret(result, recipe_file.parent / "runs")


@pytest.mark.usefixtures("token_in_environment")
def test_warnings_in_manifest_are_redacted(rlhf: Rlhf, recipe_file: Path, set_stage: SetStage) -> None:
    def run(_stage: ResolvedStage, run: Run) -> StageMetrics:
        logger.warning(f"{URL} took long, with {TOKEN}")
        run.model_dir.joinpath("weights").touch()
        return StageMetrics({"loss": 1.0})

    set_stage("sft", run)
    result = rlhf("sft", "-r", recipe_file, "--json")
    assert result.code == 0
    manifest = json.loads((Path(result.json["path"]) / "manifest.json").read_text())
    assert manifest["warnings"] == [f"{REDACTED_URL} took long, with …"]
    assert_no_secret(result, recipe_file.parent / "runs")


@pytest.mark.usefixtures("token_in_environment", "stand_ins")
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
def test_secret_in_recipe_or_override_is_refused_and_not_repeated(rlhf: Rlhf, recipe_file: Path, override: str) -> None:
    for stage in ("ppo", "run"):
        result = rlhf(stage, "-r", recipe_file, "--set", override, "--json")
        assert 2 <= result.code <= 6
        assert result.json["issues"]
        assert_no_secret(result, recipe_file.parent / "runs")
    key, _, value = override.partition("=")
    nested = value
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested if nested[0] in '{[' else json.dumps(nested)}}}"
    text = nested if key == "extends" else f"extends: r.yaml\n{nested[1:-1]}\n"
    (recipe_file.parent / "over.yaml").write_text(text)
    result = rlhf("check", "-r", "over.yaml")
    assert 2 <= result.code <= 6
    assert_no_secret(result, recipe_file.parent / "runs")


@pytest.mark.parametrize(
    ("override", "exit_code", "code"),
    [("base.model=org/none", 4, "model.not-cached"), ("data.sft={hub: org/none}", 3, "data.not-cached")],
)
def test_password_of_the_hub_endpoint_is_not_printed_if_it_fails(
    tmp_path: Path, recipe_file: Path, override: str, exit_code: int, code: str
) -> None:
    """Mirrors of companies have a password in HF_ENDPOINT, which is read when huggingface_hub is imported."""
    changed = {"HF_ENDPOINT": URL, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    environment = {**os.environ, **changed, "RLHF_DEBUG": "1"}
    command = [sys.executable, "-m", "rlhf_cli", "sft", "-r", str(recipe_file), "--set", override, "--json"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    result = CommandResult(ended.returncode, ended.stdout, ended.stderr)
    assert (result.code, result.issue["code"]) == (exit_code, code)
    assert_no_secret(result, tmp_path)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("see https://me:pw@host/x and http://host/y", "see https://…@host/x and http://host/y"),
        ("/folder/https:/me:p@w@host/x", "/folder/https:/…@host/x"),
        ("https://host/x?id=1&access_token=abc&b=2", "https://host/x?id=1&access_token=…&b=2"),
        (f"token {'hf_' + 'A1b2' * 8}.", "token hf_…."),
        (f"key sk-proj-{'A1b2' * 8}.", "key sk-…."),
        (f"gh {'ghp_' + 'A1b2' * 9}", "gh ghp_…"),
        ("id AKIAABCDEFGHIJKLMNOP.", "id AKIA…."),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-nature!", "jwt eyJ…!"),
        ("Authorization: Bearer abc.def-ghi/jkl=", "Authorization: Bearer …"),
        ("a bearer of news, and sk-learn", "a bearer of news, and sk-learn"),
        ("transformers/hf_argparser.py", "transformers/hf_argparser.py"),
        ("write to me@host or see https://host/@me", "write to me@host or see https://host/@me"),
    ],
)
def test_redact_removes_secrets_and_nothing_else(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert str(Issue("recipe.usage", text, "here", text)) == f"here  {redacted} {redacted}"


def test_redact_knows_environment_secrets_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.17")  # a path
    assert redact("no /tmp/agent.17") == "no /tmp/agent.17"
    monkeypatch.setenv("MAX_TOKENS", "16777216")  # a number
    assert redact("16777216 bytes") == "16777216 bytes"
    monkeypatch.setenv("KEYBOARD", "value-of-KEYBOARD")
    assert redact("value-of-KEYBOARD") == "value-of-KEYBOARD"
    monkeypatch.setenv("SHORT_TOKEN", "no")  # shorter than any secret, and part of many texts
    assert redact("no such thing") == "no such thing"


@pytest.mark.parametrize(
    "name",
    [
        *("RLHF_REWARD_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "DB_PASS", "MYSQL_PWD", "GITHUB_PAT", "SSH_PASSPHRASE"),
        *("GOOGLE_CREDENTIALS", "MY_JWT", "HF_TOKEN_READ", "DB_PASSWORD_PROD", "API_KEY_2", "api_key", "SLACK_WEBHOOK"),
        *("SENTRY_DSN", "SQL_CONNECTION_STRING", "PROXY_AUTH", "AWS_SECRET_ACCESS_KEY", "PRIVATE_KEY"),
    ],
)
def test_redact_removes_the_value_of_a_secret_variable_however_it_is_quoted(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    secret = "va\"lue\n'with quotes\\"
    monkeypatch.setenv(name, secret)
    forms = (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe=""))
    assert [redact(f"401: {form} is wrong") for form in forms] == ["401: … is wrong"] * 4


def test_issue_escapes_what_controls_a_terminal() -> None:
    issue = Issue("recipe.usage", "\x1b]0;title\x07 \x9b2J \u202egnp.exe \ud800 é 你 \u200d", "a\rb", "tab\t, line\n")
    assert issue.message == r"\x1b]0;title\x07 \x9b2J \u202egnp.exe \ud800 é 你 " + "\u200d"
    assert (issue.location, issue.hint) == (r"a\rb", "tab\t, line\n")
