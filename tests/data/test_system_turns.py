"""System turns that the base model's chat template refuses: reported with file and line before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import sources
from rlhf_cli.data.row_policy import RowPolicy
from rlhf_cli.data.system_turns import refuses_system_turns
from rlhf_cli.errors import DataError
from rlhf_cli.recipe.schema import Base, Source
from tests.support.datasets import find_no_run, load_sources
from tests.support.issues import raises_issue
from tests.support.tokenizers import CHATML

Jsonl = Callable[..., Path]

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim }}{% endfor %}"
)
SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}
CHOSEN, REJECTED = [{"role": "assistant", "content": "Yes."}], [{"role": "assistant", "content": "No."}]


def write_base(folder: Path, template: str | None = None, config: dict[str, Any] | None = None) -> Base:
    """Write the files of a model that hold its chat template."""
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return Base(model=str(folder))


@pytest.mark.parametrize(
    ("template", "config", "refuses"),
    [
        (GEMMA, None, True),
        (None, {"chat_template": GEMMA}, True),
        (
            None,
            {"chat_template": [{"name": "tool_use", "template": CHATML}, {"name": "default", "template": GEMMA}]},
            True,
        ),
        (CHATML, {"chat_template": GEMMA}, False),
        (CHATML, None, False),
        (None, None, False),  # a plain-text template is used
        ("{% if %}", None, False),  # reported when the tokenizer is loaded
    ],
)
def test_refuses_system_turns_follows_the_template(
    tmp_path: Path, template: str | None, config: dict[str, Any] | None, refuses: bool
) -> None:
    assert refuses_system_turns(write_base(tmp_path, template, config)) is refuses


def test_refuses_system_turns_uses_the_template_of_the_recipe(tmp_path: Path) -> None:
    base = write_base(tmp_path, CHATML)
    (tmp_path / "own.jinja").write_text(GEMMA)
    assert refuses_system_turns(base.replace(chat_template=str(tmp_path / "own.jinja")))


def test_count_and_load_system_turn_that_is_refused_raise_issue_with_line(jsonl: Jsonl, tmp_path: Path) -> None:
    rows = [{"prompt": [USER], "chosen": CHOSEN, "rejected": REJECTED} for _ in range(8)]
    rows[6] = {**rows[6], "prompt": [SYSTEM, USER]}
    path = jsonl(*rows)
    source = Source(path=str(path), eval_fraction=0)
    policy = RowPolicy(base=write_base(tmp_path, GEMMA))
    with raises_issue("data.unsupported-role", error=DataError, location=f"{path}:7"):
        sources.count([source], "preferences", find=find_no_run, policy=policy)
    with raises_issue("data.unsupported-role", error=DataError, location=f"{path}:7"):
        load_sources([source], "preferences", policy=policy)
    assert load_sources([source], "preferences", policy=policy._replace(skip_invalid=True)).counts["train"] == 7
    assert load_sources([source], "preferences").counts["train"] == 8
