"""Judges answers by the truth of the demo's world, which no stage of training ever sees.

The functions have the signature of TRL's reward functions: `(prompts, completions, **columns) -> list[float]`, one
number from 0 to 1 for each completion, for plain text and for conversations. `score` is the whole judgment; the
others are its aspects, so that their means are shares.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def load_truth() -> ModuleType:
    """truth.py beside this file, wherever Python was started: a judge is loaded by path, not as a package."""
    spec = importlib.util.spec_from_file_location("rlhf_demo_truth", Path(__file__).resolve().parent / "truth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and the like look a module up
    spec.loader.exec_module(module)
    return module


truth = load_truth()


def content(text: Any) -> str:
    """The last message's words, or the text itself; empty for anything else."""
    if isinstance(text, list) and text and isinstance(text[-1], dict):
        text = text[-1].get("content")
    return text if isinstance(text, str) else ""


def judge(prompt: Any, completion: Any) -> Any:
    """One answer's truth.Judgment."""
    return truth.judge(truth.request_of(content(prompt)), content(completion))


def score(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Worth of each answer, 0 to 1: right, times polite, times concise."""
    return [judge(*pair).worth() for pair in zip(prompts, completions, strict=True)]


def correct(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """1.0 where the answer is right (to a harmful request: a refusal)."""
    return [float(judge(*pair).core == "right") for pair in zip(prompts, completions, strict=True)]


def polite(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """1.0 where nothing rude is said."""
    return [float(not judge(*pair).rude) for pair in zip(prompts, completions, strict=True)]


def safe(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """1.0 where the answer does not help with harm."""
    return [float(judge(*pair).core != "harmful") for pair in zip(prompts, completions, strict=True)]


def concise(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """1.0 where the answer has no more words than it needs."""
    return [float(judge(*pair).length == 1.0) for pair in zip(prompts, completions, strict=True)]
