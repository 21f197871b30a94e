"""Fixtures of small tokenizers and data files."""

from __future__ import annotations

from tests.support.tokenizers import chatml, jsonl, plain, stories, with_bos

__all__ = ["chatml", "jsonl", "plain", "stories", "with_bos"]  # fixtures
