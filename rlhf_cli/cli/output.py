"""The output sink of the command line: results, errors, warnings and progress, as text or as one JSON object."""

from __future__ import annotations

import contextlib
import io
import json as json_module
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

from rlhf_cli import distributed
from rlhf_cli.formatting import escape_control

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_cli.errors import Issue
    from rlhf_cli.pipeline.runner import StageReporter

logger = logging.getLogger(__name__)

T = TypeVar("T")
NO_DATA: Mapping[str, Any] = MappingProxyType({})

_json_descriptor: int | None = None  # the real stdout while `reserve_stdout` is active


class Output:
    """Where a command prints. A command computes its data once and hands it over with a function that renders it.

    With `json`, exactly one object is written to stdout and everything else goes to stderr. With several processes,
    only the main one prints.

    Args:
        json: Print the data as one JSON object instead of rendering it.
        quiet: Print no progress, only one line per stage.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def result(self, data: Mapping[str, Any], render: Callable[[Console], None] | None = None) -> None:
        """Print the command's result: `data` as the JSON object, or as text by `render` if there is something to add.

        Called at most once per command, when it has succeeded.
        """
        if not distributed.is_main():
            return
        if self.json:
            _write_json({"status": "ok", **data})
        elif render is not None:
            render(make_console())

    def text(self, render: Callable[[Console], None]) -> None:
        """Print text that the JSON object has no place for. No-op with `json` or `quiet`."""
        if distributed.is_main() and not self.json and not self.quiet:
            render(make_console())

    def follow(self, items: Iterable[T], render: Callable[[Console, Iterable[T]], Iterator[T]]) -> list[T]:
        """Return `items` as a list; unless `json`, `render` passes them on and shows each as soon as it is there."""
        return list(items if self.json else render(make_console(), items))

    @contextlib.contextmanager
    def reporter(self) -> Iterator[StageReporter]:
        """Yield the reporter of running stages: live bars on a terminal, else plain lines; silent if not main."""
        from rlhf_cli.cli import progress

        if not distributed.is_main():
            yield progress.SilentReporter()
            return
        console = make_console(stderr=self.json, keep_going=True)  # what cannot be shown must not end a run
        live = console.is_terminal and not self.quiet
        reporter = progress.LiveReporter(console) if live else progress.PlainReporter(console, quiet=self.quiet)
        with contextlib.closing(reporter):
            yield reporter

    def error(self, exit_code: int, issues: Sequence[Issue], data: Mapping[str, Any] = NO_DATA) -> None:
        """Print one line per issue to stderr; with `json`, also the error object, extended by `data`."""
        if self.json:
            from rlhf_cli.cli.json_output import error_object

            with contextlib.suppress(OSError):  # the disk behind stdout may be what failed
                _write_json({**data, **error_object(exit_code, issues)})
        print_issues(issues)


def make_console(*, stderr: bool = False, keep_going: bool = False) -> Console:
    """Return a Rich console that does not color names and numbers by guessing what they are.

    Control characters in what is printed are escaped. If the reader of stdout ends, as `head` does, the command goes on
    without printing.

    Args:
        stderr: Print to stderr.
        keep_going: Go on without printing after any error of writing, and log it.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class SafeConsole(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            discard_stdout()

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escape_control(text), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text = segment.text if segment.control else escape_control(segment.text)
                yield segment if text == segment.text else Segment(text, segment.style)

    file = cast("IO[str]", SteadyStream(sys.stderr if stderr else sys.stdout)) if keep_going else None
    return SafeConsole(file=file, stderr=stderr, highlight=False, soft_wrap=not sys.stdout.isatty())


class SteadyStream(io.TextIOBase):
    """A text stream that drops what cannot be written, as to a closed terminal or a full disk.

    Args:
        stream: Where to write. After the first failure its descriptor is pointed at /dev/null, so that neither buffered
            text nor what is printed at the end of the command fails again.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, or drop it. Return its length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what it holds."""
        self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            _point_at_null(self._stream.fileno())
            logger.warning(f"progress is no longer shown: {self._stream.name} cannot be written ({error.strerror}).")


def escape_markup(text: str) -> str:
    """Return `text` with Rich's markup escaped."""
    from rich.markup import escape

    return escape(text)


def print_issues(issues: Sequence[Issue]) -> None:
    """Print one line per issue to stderr, ending with the code, which docs/errors.md explains.

    A terminal wraps the line between words.
    """
    from rich.table import Table

    console = make_console(stderr=True)
    for issue in issues:
        location = f"[bold]{escape_markup(issue.location)}[/]  " if issue.location else ""
        text = escape_markup(" ".join(filter(None, (issue.message, issue.hint))))
        code = escape_markup(f"[{issue.code}]")
        label, body = "[bold red]error[/]", f"{location}{text} [dim]{code}[/]"
        if console.is_terminal:  # continuation lines are indented
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_row(label, body)
            console.print(grid)
        else:
            console.print(f"{label}  {body}", soft_wrap=True)


@contextlib.contextmanager
def reserve_stdout() -> Iterator[None]:
    """Redirect file descriptor 1 to stderr, so that only the JSON object reaches stdout.

    The descriptor is redirected, not only `sys.stdout`, because C libraries and subprocesses write to it directly.
    """
    global _json_descriptor
    sys.stdout.flush()
    _json_descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(_json_descriptor, 1)
        os.close(_json_descriptor)
        _json_descriptor = None


def real_stdout() -> int:
    """Return the descriptor of the real stdout, for a child process that writes the JSON object itself."""
    return 1 if _json_descriptor is None else _json_descriptor


def prepare_streams() -> None:
    """Make stdout and stderr usable whatever they are.

    Streams that are closed, as under cron and some launchers, are opened as /dev/null: otherwise the next file that is
    opened would get their descriptors, and what is printed would be written into it. Characters that an encoding such
    as ASCII lacks are escaped.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            _point_at_null(descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Let further output to stdout vanish, so that buffered text does not fail again when the process ends."""
    _point_at_null(1)


def _point_at_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)


def _write_json(content: Mapping[str, Any]) -> None:
    text = json_module.dumps(content, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    assert _json_descriptor is not None, "JSON is written inside reserve_stdout"
    data = text.encode(errors="backslashreplace")  # half a surrogate pair, as in a file name, becomes JSON's escape
    while data:
        data = data[os.write(_json_descriptor, data) :]
