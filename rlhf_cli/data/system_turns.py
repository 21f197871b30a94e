"""Whether the base model's chat template renders system turns: read from its files, before any model is loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_cli.data.rows import Message
from rlhf_cli.models import hub
from rlhf_cli.recipe.schema import Base

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"


def refuses_system_turns(base: Base) -> bool:
    """Return whether the chat template raises an error for a system turn. False if it cannot be found or rendered."""
    template = _find_template(base)
    return template is not None and _refuses(template)


def _find_template(base: Base) -> str | None:
    """Return the chat template, or None if the base model has none or is not on this machine."""
    if base.chat_template != "auto":
        return _read(Path(base.chat_template))
    template = _read(_find_file(base, TEMPLATE_FILE))
    if template is not None:
        return template
    try:
        found: Any = json.loads(_read(_find_file(base, CONFIG_FILE)) or "{}").get("chat_template")
    except (ValueError, AttributeError):  # reported when the tokenizer is loaded
        return None
    if isinstance(found, list):  # templates by name
        found = next((item.get("template") for item in found if item.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _find_file(base: Base, name: str) -> Path | None:
    """Return a file of the base model: of a directory, or of a Hub model in the cache."""
    folder = Path(base.model)
    if folder.is_dir():
        return folder / name
    return hub.cached_file(base.model, name, base.revision)


def _read(path: Path | None) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError):  # reported when the tokenizer is loaded
        return None


@lru_cache
def _refuses(template: str) -> bool:
    user = Message(role="user", content="u")
    return _renders(template, [user]) and not _renders(template, [Message(role="system", content="s"), user])


def _renders(template: str, messages: list[Message]) -> bool:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")
    try:
        render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
    except Exception:  # a template is a program and may raise anything
        return False
    return True
