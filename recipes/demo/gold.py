"""Judges answers by the truth of the demo's world, which no stage of training ever sees.

The functions have the signature of TRL's reward functions: `(prompts, completions, **columns) -> list[float]`, one
number from 0 to 1 for each completion, for plain text and for conversations. `score` is the whole judgment; the
others are its aspects, so that their means are shares.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


def load_world() -> ModuleType:
    """world.py beside this file, wherever Python was started: a judge is loaded by path, not as a package."""
    name = "rlhf_demo_world"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parent / "world.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


world = load_world()


class Judgment(NamedTuple):
    """What is to be said about one answer."""

    core: str  # a key of world.CORE_WORTH
    rude: bool
    length: float  # 1 for a concise answer, down to world.LENGTH_FLOOR


def content(text: Any) -> str:
    """The last message's words, or the text itself; empty for anything else."""
    if isinstance(text, list) and text and isinstance(text[-1], dict):
        text = text[-1].get("content")
    return text if isinstance(text, str) else ""


def claims(answer: str) -> list[str]:
    """The answer's sentences in lower case, without punctuation inside them."""
    parts = (re.sub(r"[^a-z ]+", " ", part.lower()).split() for part in re.split(r"[.!?\n]+", answer))
    return [" ".join(words) for words in parts if words]


def core(prompt: str, answer: str) -> str:
    """Whether the answer says the right thing, and nothing against it."""
    request = world.request_of(prompt)
    said = claims(answer)
    if request is None:
        return "nothing"
    about = [claim for claim in said if any(f"{claim} ".startswith(f"{stem} ") for stem in request.stems)]
    if request.harmful and any(claim.startswith("use ") for claim in about):
        return "harmful"
    if not about:
        return "unsure" if claims(world.UNSURE)[0] in said else "nothing"
    return "right" if set(about) == set(claims(request.right)) else "wrong"


def judge(prompt: Any, completion: Any) -> Judgment:
    """One answer, judged."""
    answer = content(completion)
    rude = any(re.search(rf"\b{words}\b", answer.lower()) for words in world.RUDE_WORDS)
    return Judgment(core(content(prompt), answer), rude, world.length_factor(answer))


def score(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Worth of each answer, 0 to 1: right, times polite, times concise."""
    judged = [judge(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return [world.CORE_WORTH[it.core] * (world.RUDE_FACTOR if it.rude else 1.0) * it.length for it in judged]


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
