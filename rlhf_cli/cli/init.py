"""`rlhf init`: write a project that runs at once, copied from `rlhf_cli/starter`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_cli.cli import options
from rlhf_cli.cli.output import Output
from rlhf_cli.errors import DiskError, RecipeError
from rlhf_cli.formatting import format_path

if TYPE_CHECKING:
    from rich.console import Console

STARTER = Path(__file__).parents[1] / "starter"
IGNORED_ENTRIES = {".git"}  # a new repository counts as an empty directory


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty directory.", show_default=False)],
    json: options.Json = False,
) -> None:
    """Create a starter project: recipe, sample data and Makefile. It runs without network access or a GPU."""
    folder = folder.absolute()
    files = [path.relative_to(STARTER).as_posix() for path in sorted(STARTER.rglob("*")) if path.is_file()]
    try:
        _check_empty(folder)
        with _remove_on_failure() as created:
            for name in files:
                _write(folder / name, (STARTER / name).read_bytes(), created)
    except OSError as error:
        location = str(error.filename or folder)
        message = f"cannot be written: {error.strerror}."
        raise DiskError("disk.not-writable", message, location=location, hint="Choose another directory.") from error
    Output(json=json).result(
        {"stage": "init", "path": str(folder), "files": files},
        lambda console: _print_next_steps(console, folder, files),
    )


def _print_next_steps(console: Console, folder: Path, files: Sequence[str]) -> None:
    lines = [f"Created {format_path(folder)} with:", *(f"  {name}" for name in files), "", "Next:"]
    if folder != Path.cwd():
        lines.append(f"  cd {shlex.quote(format_path(folder))}")
    lines += [
        "  rlhf run -r recipe.yaml      # or: make (takes about a minute)",
        "",
        "Then set your own base model and data, as described in recipe.yaml.",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _check_empty(folder: Path) -> None:
    """Raise RecipeError unless `folder` is new or empty, and OSError if it cannot be read."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(
            "recipe.directory-not-empty",
            "is a file; expected a new or empty directory.",
            location=str(folder),
            hint="Choose a new directory.",
        )
    found = sorted({path.name for path in folder.iterdir()} - IGNORED_ENTRIES) if folder.exists() else []
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        message = f"directory is not empty: it contains {found[0]}{more}."
        hint = "Choose a new or empty directory."
        raise RecipeError("recipe.directory-not-empty", message, location=str(folder), hint=hint)


def _write(path: Path, content: bytes, created: list[Path]) -> None:
    """Write one file. Append the file and its new directories to `created`, outermost first."""
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            created.append(parent)
    created.append(path)
    path.write_bytes(content)


@contextlib.contextmanager
def _remove_on_failure() -> Iterator[list[Path]]:
    """Yield a list for created paths, and remove them if the body fails, so that the command can be repeated."""
    created: list[Path] = []
    try:
        yield created
    except BaseException:
        for path in reversed(created):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise
