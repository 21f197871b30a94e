"""`rlhf init`: a project that runs at once, copied from `rlhf_cli/starter`, which holds its files as they are."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rlhf_cli.cli import options, output
from rlhf_cli.errors import DiskError, RecipeError
from rlhf_cli.runs.layout import place

STARTER = Path(__file__).parents[1] / "starter"
NO_CONTENT = {".git"}  # a repository that was just made is still an empty folder


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    json: options.Json = False,
) -> None:
    """Write a starter project: recipe, sample data, Makefile; it runs at once, without network or GPU."""
    folder = folder.absolute()
    files = [path.relative_to(STARTER).as_posix() for path in sorted(STARTER.rglob("*")) if path.is_file()]
    try:
        _check_free(folder)
        with _all_or_nothing() as made:
            for name in files:
                _write(folder / name, (STARTER / name).read_bytes(), made)
    except OSError as error:
        location = str(error.filename or folder)
        raise DiskError(f"{error.strerror}.", location=location, hint="Choose another folder.") from error
    if json:
        output.write_json({"status": "ok", "stage": "init", "path": str(folder), "files": files})
        return
    typer.echo(f"wrote {', '.join(files)}")
    typer.echo("next:")
    if folder != Path.cwd():
        typer.echo(f"  cd {shlex.quote(place(folder))}")
    typer.echo("  rlhf run -r recipe.yaml      # or make: the whole chain on the sample data, in about a minute")
    typer.echo("then put in your own base and data: recipe.yaml says where.")


def _check_free(folder: Path) -> None:
    """Raises RecipeError where something is there already. OSError: it cannot be looked at."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError("this is a file.", location=str(folder), hint="Name a new folder.")
    found = sorted({path.name for path in folder.iterdir()} - NO_CONTENT) if folder.exists() else []
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise RecipeError(
            f"the folder holds {found[0]}{more}.", location=str(folder), hint="Name a new or an empty one."
        )


def _write(path: Path, content: bytes, made: list[Path]) -> None:
    """Write one file, and note in `made` what was not there before, folders first."""
    for above in reversed(path.parents):
        if not above.exists():
            above.mkdir()
            made.append(above)
    made.append(path)
    path.write_bytes(content)


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[list[Path]]:
    """Where the writing fails, what was written is taken away again, so that it can be tried again."""
    made: list[Path] = []
    try:
        yield made
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise
