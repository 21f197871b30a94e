"""What the error catalogues share: a small recipe on a base that a test may damage, and edits of its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROWS = [
    {"prompt": "Once upon", "completion": " a time.", "chosen": " a time.", "rejected": " the sea."},
    {"prompt": "The cat", "completion": " said good night.", "chosen": " said please.", "rejected": " who."},
]
SMALL_STAGES = (
    "adapter: {rank: 4, alpha: 8}\nsft: {max_steps: 1, batch_size: 1, micro_batch_size: 1, max_length: 64}\n"
    "reward: {start: base, max_steps: 1, batch_size: 1, micro_batch_size: 1, max_length: 64}\n"
    "ppo: {start: base, iterations: 1, rollout_batch_size: 1, minibatches: 1, max_new_tokens: 4, "
    "max_prompt_length: 64, reward: [{rule: {length: {max: 9}}}]}\nexport: {of: sft}\n"
)


@pytest.fixture
def base(recipe_file: Path, tiny_base: Path) -> Path:
    """Return a copy of the tiny base, which a test may damage, below a recipe with small settings for every stage."""
    folder = recipe_file.parent / "model"
    shutil.copytree(tiny_base, folder)
    kinds = "".join(f"  {kind}: {{path: rows.jsonl, eval_fraction: 0}}\n" for kind in ("sft", "preferences", "prompts"))
    recipe_file.write_text(f"name: bot\nbase: {{model: ./model}}\ndata:\n{kinds}{SMALL_STAGES}")
    (recipe_file.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def list_files(folder: Path) -> set[str]:
    """Return the relative paths of all files and folders below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file, creating it if it is missing. None removes a key."""
    content = {**json.loads(path.read_text()), **values} if path.exists() else values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


class LightCheck(NamedTuple):
    """Exit codes of `rlhf check`, and the heavy libraries that it loaded."""

    exit_codes: list[int]
    heavy_modules: list[str]


CHECK_SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from rlhf_cli.cli.app import main
exit_codes = []
for folder, stages in json.loads(sys.argv[2]):
    os.chdir(folder)
    sys.argv = ["rlhf", "check", "-r", "bad.yaml", *stages]
    try:
        main()
    except SystemExit as stopped:
        exit_codes.append(stopped.code)
heavy = {"torch", "trl", "transformers", "peft", "datasets", "accelerate", "bitsandbytes"} & set(sys.modules)
print(json.dumps([exit_codes, sorted(heavy)]))
"""


def make_check_folder(folder: Path) -> None:
    """Make a folder for `bad.yaml`: a stand-in for a base model, and `rows.jsonl` with rows for every stage but
    pretrain."""
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").touch()
    rows = ({"prompt": prompt, "completion": "b", "chosen": "b", "rejected": "c"} for prompt in ("a", "d"))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_in_fresh_interpreter(checks: Sequence[tuple[Path, Sequence[str]]]) -> LightCheck:
    """Run `rlhf check -r bad.yaml <stages>` in each folder, all in one new interpreter.

    Args:
        checks: Folders with a `bad.yaml`, each with the stages to check.
    """
    arguments = json.dumps([[str(folder), list(stages)] for folder, stages in checks])
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", CHECK_SCRIPT, root, arguments], capture_output=True, text=True, check=True
    )
    return LightCheck(*json.loads(ended.stdout.splitlines()[-1]))
