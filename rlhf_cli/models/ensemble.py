"""Find and describe the members of a reward ensemble: several reward adapters of one run on one base model.

The first member is the model of the folder itself, which therefore loads as an ordinary reward model everywhere. The
others are in subfolders, and `ensemble.json` lists them all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlhf_cli.errors import ModelError

ENSEMBLE_FILE = "ensemble.json"


class RewardMember(NamedTuple):
    """One reward model of an ensemble.

    Attributes:
        folder: The folder of its adapter.
        offset: Added to its scores. Pairwise preferences leave the zero of a reward model's scores undetermined, so
            each member's zero is moved to that of the first.
    """

    folder: Path
    offset: float


def member_folder(folder: Path, index: int) -> Path:
    """Return the folder of a member's adapter: `folder` itself for index 0."""
    return folder if index == 0 else folder / f"member-{index + 1}"


def write_ensemble(folder: Path, offsets: Sequence[float]) -> None:
    """Write `ensemble.json` for the members in `folder`, one for each offset."""
    content = {"offsets": list(offsets)}
    (folder / ENSEMBLE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_members(folder: Path) -> list[RewardMember]:
    """Return the members of the reward model in `folder`; one without an offset if it is no ensemble.

    Raises:
        ModelError: `ensemble.json` is damaged.
    """
    path = folder / ENSEMBLE_FILE
    if not path.is_file():
        return [RewardMember(folder, 0.0)]
    try:
        offsets = [float(offset) for offset in json.loads(path.read_text(encoding="utf-8"))["offsets"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"{ENSEMBLE_FILE}: cannot be read; expected a number for each member."
        hint = "Run the reward stage again."
        raise ModelError("model.load-failed", message, location=str(path), hint=hint) from error
    return [RewardMember(member_folder(folder, index), offset) for index, offset in enumerate(offsets)]
