"""Route the package's log records to an open run: log.txt, the manifest's warnings and the reporter."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from rlhf_cli.redaction import redact

LOGGER = logging.getLogger("rlhf_cli")  # the parent of every module's logger
LOGGER.addHandler(logging.NullHandler())  # outside a run, records are dropped unless the caller configured logging


class MessageSink(Protocol):
    """The part of a reporter that shows messages."""

    def info(self, text: str) -> None:
        """Show a message."""

    def warning(self, text: str) -> None:
        """Show a warning."""


class RunLogHandler(logging.Handler):
    """Append every record to log.txt, collect warnings, and show INFO and above to the reporter. Redacts secrets.

    A DEBUG record goes to log.txt only.
    """

    def __init__(self, path: Path, sink: MessageSink) -> None:
        super().__init__()
        self.path, self.sink = path, sink
        self.warnings: list[str] = []

    def attach(self) -> None:
        """Start to receive the package's records."""
        LOGGER.setLevel(logging.DEBUG)
        LOGGER.propagate = False  # a user's file may configure the root logger, which knows no redaction
        LOGGER.addHandler(self)

    def detach(self) -> None:
        """Stop receiving records. Safe to call twice."""
        LOGGER.removeHandler(self)
        if not any(isinstance(handler, RunLogHandler) for handler in LOGGER.handlers):
            LOGGER.setLevel(logging.NOTSET)
            LOGGER.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Unlike the handlers of `logging`, raise OSError if log.txt cannot be written."""
        text = redact(record.getMessage())
        is_warning = record.levelno >= logging.WARNING
        with self.path.open("a", encoding="utf-8") as out:
            out.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {'warning: ' if is_warning else ''}{text}\n")
        if is_warning:
            self.warnings.append(text)
            self.sink.warning(text)
        elif record.levelno >= logging.INFO:
            self.sink.info(text)
