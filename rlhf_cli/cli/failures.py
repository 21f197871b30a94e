"""Map exceptions to exit codes and report them. No other module decides an exit code."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback

import typer

from rlhf_cli import distributed
from rlhf_cli.cli.output import Output, discard_stdout
from rlhf_cli.errors import DiskError, Issue, RlhfError
from rlhf_cli.formatting import format_exception
from rlhf_cli.redaction import redact
from rlhf_cli.runs import disk
from rlhf_cli.runs.signals import STOP_SIGNALS

INTERNAL_ERROR = 1
USAGE_ERROR = 2
INTERRUPTED = 75
WAIT_FOR_MAIN = 8.0  # seconds in which a failing main process reports its error and ends the other processes
FREE_SPACE_HINT = "Free up space, or write to another disk."
BUG_HINT = "This is a bug in rlhf. Please report it with the lines above."


def report_failure(error: BaseException, output: Output) -> int:
    """Report what a command raised and return the exit code.

    Signals are ignored from here on: the exit code is decided, and an impatient Ctrl-C must not change it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if isinstance(error, BrokenPipeError):  # the reader of stdout has ended, as `head` does
        discard_stdout()
        return 0
    exit_code, issues = _classify(error)
    if not distributed.is_main():
        # The main process usually fails alike, reports it, and ends this process in the meantime.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(WAIT_FOR_MAIN)
    elif exit_code == INTERNAL_ERROR and distributed.world_size() > 1:
        time.sleep(WAIT_FOR_MAIN)  # another process may have failed first and be reporting the cause
    if exit_code == INTERNAL_ERROR or os.environ.get("RLHF_DEBUG") == "1":
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    if issues:
        output.error(exit_code, issues, error.result if isinstance(error, RlhfError) else {})
    return exit_code


def _classify(error: BaseException) -> tuple[int, list[Issue]]:
    """Return the exit code and the issues of an exception. No issues: the message has been printed."""
    if isinstance(error, RlhfError):
        return error.exit_code, list(error.issues)
    if isinstance(error, typer.TyperException):
        return USAGE_ERROR, _usage_issues(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, [Issue("run.stopped", "stopped by a signal before the run started.")]
    if isinstance(error, OSError) and (problem := disk.classify(error)) is not None:
        if error.filename is None:  # writing to stdout failed; what is still buffered must not fail again at exit
            discard_stdout()
        location = str(error.filename or "stdout")
        return DiskError.exit_code, [Issue(problem.code, f"{problem.description}.", location, FREE_SPACE_HINT)]
    return INTERNAL_ERROR, [Issue("internal.error", f"{format_exception(error)}.", hint=BUG_HINT)]


def _usage_issues(error: typer.TyperException) -> list[Issue]:
    """Return the issue of an invalid command line; none if Typer has shown the help instead (no arguments)."""
    message = error.format_message().strip()
    if not message:
        return []
    context = getattr(error, "ctx", None)
    hint = f"See `{context.command_path} --help`." if context is not None else ""
    return [Issue("recipe.usage", f"{message[0].lower()}{message[1:].rstrip('.')}.", hint=hint)]
