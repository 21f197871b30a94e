"""The first afternoon of docs/annotation.md: two people rank fifty items each, by its commands alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from rlhf_cli.feedback.types import Answer
from tests.support.browser import Person

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "annotation.md"
RANKINGS = 50  # per person
MAX_COMMANDS = 8
# The whole sample project takes a minute or two; its models need not be good to show that everything fits together.
SHORT = ("pretrain.epochs=1", "sft.epochs=1", "reward.epochs=1", "ppo.iterations=2", "eval.samples=16")
GATE_FAILED = 8


def section() -> str:
    text = PAGE.read_text(encoding="utf-8")
    return text.partition("## A team's first afternoon")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    """Return the code blocks of the section in one language."""
    return re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)


def commands() -> list[list[str]]:
    """Return the commands of the section, in their order."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def rlhf(folder: Path, words: list[str], *, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run a command of the documentation and return its JSON object."""
    assert words[0] == "rlhf"
    options = [option for pair in SHORT for option in ("--set", pair)] if words[1] == "run" else []
    command = [sys.executable, "-m", "rlhf_cli", *words[1:], *options, "--json"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment())
    assert ended.returncode in codes, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def rank_fifty(browser: Browser, address: str, token: str) -> None:
    """Rank fifty items by keyboard: the shortest completion first."""
    person = Person(browser, address)
    person.page.goto(f"{address}/login#{token}")
    person.page.get_by_role("button", name="Begin").press("Enter")
    person.page.wait_for_url("**/annotate")
    person.read_guideline()
    for _ in range(RANKINGS):
        texts = person.page.locator(".answer .body").all_inner_texts()
        order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
        with person.until_next():
            person.press(*(str(index + 1) for index in order), "Enter")
    expect(person.page.locator("#progress")).to_contain_text(f"{RANKINGS} of")
    person.context.close()
    assert person.problems == []


@pytest.mark.slow
@pytest.mark.subprocess
def test_first_afternoon_by_the_commands_of_the_documentation(tmp_path: Path, chromium: Browser) -> None:
    folder = tmp_path
    counted = [words for words in commands() if words[0] == "rlhf"]
    assert len(counted) <= MAX_COMMANDS
    tokens: list[str] = []
    for words in commands():
        if words[0] == "cd":
            folder /= words[1]
            (folder / "guideline.md").write_text(blocks("markdown")[0], encoding="utf-8")
            (folder / "team.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
        elif words[1:3] == ["annotate", "serve"]:
            command = [sys.executable, "-m", "rlhf_cli", *words[1:], "--port", "0", "--json"]
            with subprocess.Popen(
                command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
            ) as server:
                assert server.stdout is not None
                address = json.loads(server.stdout.readline())["address"]
                for token in tokens:
                    rank_fifty(chromium, address, token)
                server.send_signal(signal.SIGINT)
                assert server.wait(timeout=60) == 0
        else:
            result = rlhf(folder, words, codes=(0, GATE_FAILED) if words[1:] == ["run", "-r", "team.yaml"] else (0,))
            if words[1:4] == ["annotate", "user", "add"]:
                tokens.append(result["link"].partition("#")[2])
    assert len(tokens) == 2
    run = folder / "runs" / "team" / "eval" / "v0001"
    assert (run / "report.md").exists()
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert [gate["metric"] for gate in manifest["gates"]] == ["win_rate"]
    exported = json.loads((folder / "runs/team/feedback/v0001/manifest.json").read_text(encoding="utf-8"))
    judgments = stored_answers(folder)
    assert len(judgments) == 2 * RANKINGS
    assert all(len(answer.tiers) > 1 for answer in judgments)
    assert exported["metrics"]


def stored_answers(folder: Path) -> list[Answer]:
    """Return the answers of people in the store of the project."""
    from rlhf_cli.feedback.store import Store
    from rlhf_cli.recipe.schema import Feedback

    with Store(str(folder / "feedback.db"), "team", Feedback()) as store:
        return [judgment.answer for judgment in store.snapshot().judgments]
