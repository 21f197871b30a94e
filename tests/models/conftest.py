"""Fixtures of models that plain transformers and PEFT made."""

from __future__ import annotations

from tests.support.families import make_family
from tests.support.plain_models import adapter, base_folder, make_adapter, padded, silence_libraries

__all__ = ["adapter", "base_folder", "make_adapter", "make_family", "padded", "silence_libraries"]  # fixtures
