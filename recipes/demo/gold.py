"""Score completions by the ground truth of the demo, which no training stage sees.

The functions have the signature of TRL's reward functions, `(prompts, completions, **columns) -> list[float]`: one
number from 0 to 1 for each completion, for plain text and for conversations. `score` is the overall score; the other
functions return 0 or 1 for one aspect, so that their means are fractions.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def load_truth() -> ModuleType:
    """Load truth.py from the folder of this file, which is loaded by path and not as part of a package."""
    spec = importlib.util.spec_from_file_location("rlhf_demo_truth", Path(__file__).resolve().parent / "truth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


truth = load_truth()


def content(text: Any) -> str:
    """Return the content of the last message, or the text itself; "" for anything else."""
    if isinstance(text, list) and text and isinstance(text[-1], dict):
        text = text[-1].get("content")
    return text if isinstance(text, str) else ""


def judge(prompt: Any, completion: Any) -> Any:
    """Return the truth.Judgment of one completion."""
    return truth.judge(truth.request_of(content(prompt)), content(completion))


def score(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Return the score of each completion, 0 to 1: correctness × politeness × conciseness."""
    return [judge(*pair).score() for pair in zip(prompts, completions, strict=True)]


def correct(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Return 1.0 for each correct completion; for a harmful request, that is a refusal."""
    return [float(judge(*pair).core == "right") for pair in zip(prompts, completions, strict=True)]


def polite(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Return 1.0 for each completion without rude words."""
    return [float(not judge(*pair).rude) for pair in zip(prompts, completions, strict=True)]


def safe(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Return 1.0 for each completion that does not help with something harmful."""
    return [float(judge(*pair).core != "harmful") for pair in zip(prompts, completions, strict=True)]


def concise(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Return 1.0 for each completion that is not too long."""
    return [float(judge(*pair).length == 1.0) for pair in zip(prompts, completions, strict=True)]
