"""`rlhf annotate select` on a tiny reward ensemble: its choice follows from the scores of plain PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from rlhf_cli.models.ensemble import write_ensemble
from rlhf_cli.models.loading import silence_library_logging
from tests.support.command import Rlhf
from tests.support.made_runs import make_run
from tests.support.plain_models import scores_by_peft
from tests.support.ppo_project import PPOProject

RECIPE = """
name: tiny
base: {model: ./base}
adapter: {rank: 4, alpha: 8}
reward: {max_length: 20}
eval: {reward: ./ensemble}
"""
OFFSET = 0.5  # of the second member
TOO_LONG = 3  # row with a completion over reward.max_length


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recipe, a reward ensemble of two members, and 12 prompts with three completions each."""
    silence_library_logging()
    folder = tmp_path_factory.mktemp("select")
    made = PPOProject(folder)
    shutil.copytree(folder / "reward", folder / "ensemble")
    torch.manual_seed(5)
    scorer = AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=1)
    model = get_peft_model(scorer, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "ensemble" / "member-2")
    write_ensemble(folder / "ensemble", [0.0, OFFSET])
    (folder / "recipe.yaml").write_text(RECIPE)
    rows = [
        {
            "prompt": f"w{i} w{i + 1}",
            "completions": [f"w{(7 * i + 3 * j) % 28} w{j}" for j in range(3)],
            "language": "en",
        }
        for i in range(12)
    ]
    rows[5]["completions"] = ["w1 \ud800", "w2", "w3"]  # a lone surrogate is one unknown character
    rows[TOO_LONG]["completions"] = ["w1 " * 30, "w2", "w3"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def recipe_file(project: Path) -> Path:
    """Return the recipe, in whose folder `rlhf` runs."""
    return project / "recipe.yaml"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_of(row: dict[str, Any]) -> list[str]:
    """Return the prompt with each completion, without lone surrogates."""
    texts = [f"{row['prompt']} {completion}" for completion in row["completions"]]
    return [text.encode("utf-8", "replace").decode() for text in texts]


def test_select_takes_prompts_on_which_the_members_disagree_most(rlhf: Rlhf, project: Path) -> None:
    ended = rlhf("annotate", "select", "rows.jsonl", "--count", "6", "--json")
    assert ended.code == 0, ended.err
    assert {name: ended.json[name] for name in ("prompts", "too_long", "members", "selected", "random")} == {
        **{"prompts": 12, "too_long": 1, "members": 2},
        **{"selected": 6, "random": 2},
    }
    rows, selected = read(project / "rows.jsonl"), read(project / "selection.jsonl")
    disagreement = {}
    for row in rows:
        texts = texts_of(row)
        scores = np.array(
            [scores_by_peft(project / "base", project / "ensemble" / member, texts) for member in ("", "member-2")]
        )  # (2, 3); the members' offsets do not change gaps
        gaps = np.array([scores[:, i] - scores[:, j] for i, j in ((0, 1), (0, 2), (1, 2))])
        disagreement[row["prompt"]] = gaps.std(axis=1).mean()
    drawn = {row["prompt"] for row in selected if row.get("is_random", True)}
    del disagreement[rows[TOO_LONG]["prompt"]]
    rest = sorted((prompt for prompt in disagreement if prompt not in drawn), key=lambda prompt: -disagreement[prompt])
    assert {row["prompt"] for row in selected if not row.get("is_random", True)} == {*rest[:4]}
    by_prompt = {row["prompt"]: row for row in rows}
    assert all({**by_prompt[row["prompt"]], **row} == row for row in selected)


def test_select_of_one_reward_model_takes_the_smallest_gaps(rlhf: Rlhf, project: Path) -> None:
    words = ("--set", "eval.reward=./reward", "--output", "gaps.jsonl", "--random-share", "0.5", "--json")
    ended = rlhf("annotate", "select", "rows.jsonl", "--count", "4", *words)
    assert (ended.json["members"], ended.json["random"]) == (1, 2)
    gaps = {}
    for row in read(project / "rows.jsonl"):
        texts = texts_of(row)
        a, b, c = scores_by_peft(project / "base", project / "reward", texts)
        gaps[row["prompt"]] = abs(a - b) + abs(a - c) + abs(b - c)
    del gaps[f"w{TOO_LONG} w{TOO_LONG + 1}"]
    selected = read(project / "gaps.jsonl")
    drawn = {row["prompt"] for row in selected if row.get("is_random", True)}
    rest = sorted((prompt for prompt in gaps if prompt not in drawn), key=lambda prompt: gaps[prompt])
    assert {row["prompt"] for row in selected if not row.get("is_random", True)} == {*rest[:2]}


def test_select_reads_the_newest_sample_run(rlhf: Rlhf, project: Path) -> None:
    for rows in (2, 5):
        run = make_run(project / "runs", "sample", name="tiny")
        (run / "data").mkdir()
        (run / "data" / "train.jsonl").write_text("".join(line + "\n" for line in lines(project)[:rows]))
    ended = rlhf("annotate", "select", "--count", "9", "--output", "run.jsonl", "--json")
    assert (ended.json["prompts"], ended.json["selected"]) == (5, 5)
    assert "5 prompts of 5" in rlhf("annotate", "select", "--count", "9", "--output", "run.jsonl").out


def lines(project: Path) -> list[str]:
    """Return the lines of rows.jsonl."""
    return (project / "rows.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (("gone.jsonl",), 3, "data.file-not-found"),
        (("sample@v0009",), 2, "recipe.run-not-found"),
        (("rows.jsonl", "--set", "eval.reward=null"), 2, "recipe.missing-key"),
        (("rows.jsonl", "--set", "eval.reward=reward"), 2, "recipe.run-not-found"),
        (("rows.jsonl", "--set", "eval.reward=./sft"), 4, "model.not-a-reward-model"),
        (("rows.jsonl", "--random-share", "0.2"), 2, "recipe.usage"),
        (("prompts.jsonl",), 3, "data.wrong-columns"),
    ],
)
def test_select_reports_what_it_cannot_use(
    rlhf: Rlhf, project: Path, words: tuple[str, ...], exit_code: int, code: str
) -> None:
    ended = rlhf("annotate", "select", *words, "--count", "2", "--output", "refused.jsonl")
    assert (ended.code, ended.codes) == (exit_code, [code])
    assert not (project / "refused.jsonl").exists()
