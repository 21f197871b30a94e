"""Run the command line as its entry point does: `main()` with arguments, in this process."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from rlhf_cli.cli.app import main


class CommandResult(NamedTuple):
    """How a command ended.

    Attributes:
        code: The exit code.
        out: Text on stdout.
        err: Text on stderr.
    """

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object on stdout, which holds nothing else."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content

    @property
    def issue(self) -> dict[str, str]:
        """The only issue of the JSON object."""
        (issue,) = self.json["issues"]
        assert isinstance(issue, dict)
        return issue

    @property
    def codes(self) -> list[str]:
        """The codes at the end of the lines on stderr."""
        lines = [line for line in self.err.splitlines() if line.startswith("error  ")]
        return [line.rpartition("[")[2].removesuffix("]") for line in lines]


class Rlhf(Protocol):
    """Runs one command."""

    def __call__(self, *words: str | Path) -> CommandResult:
        """Run `rlhf <words>`."""


@pytest.fixture
def rlhf(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recipe_file: Path) -> Rlhf:
    """Return a function that runs a command in the recipe's folder, where the runs directory is `runs`."""
    monkeypatch.chdir(recipe_file.parent)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*words: str | Path) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        captured = capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return CommandResult(stopped.value.code, captured.out, captured.err)

    return run
