"""Workers of `launch`: they follow their launcher on any system."""

from __future__ import annotations

import ctypes
import os

import pytest

from rlhf_cli.cli import workers


def test_follow_launcher_without_prctl_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library of macOS has no prctl."""
    monkeypatch.setenv(workers.LAUNCHER, str(os.getppid()))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    workers.follow_launcher()
