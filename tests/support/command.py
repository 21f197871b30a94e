"""The command line as its entry point runs it: `main()` with arguments, in this process, on stand-in stages."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlhf_cli.cli.app import main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Rlhf = Callable[..., Ended]


@pytest.fixture
def rlhf(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recipe_file: Path) -> Rlhf:
    """Run one command in the recipe's folder; `--runs-dir` is its folder `runs`."""
    monkeypatch.chdir(recipe_file.parent)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*words: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        told = capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return Ended(stopped.value.code, told.out, told.err)

    return run
