"""`file.py:function`, as rewards and judges are named: looked at without being run, tried apart, loaded."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.recipe.yaml_document import show

Function = Callable[..., Any]


def split_spec(spec: str) -> tuple[Path, str]:
    """The file and the function's name."""
    file, _, name = spec.rpartition(":")
    return Path(file), name


def issues(spec: str) -> Iterator[tuple[str, str]]:
    """What can be seen of an existing file without running it: message and hint of each issue."""
    path, name = split_spec(spec)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        at = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        yield f"{show(path)}{at} is not Python: {reason}.", "Mend the file."
        return
    for module in dict.fromkeys(_imported(tree.body)):
        if not _is_there(module, path.parent):
            yield f"{show(path)} imports {module}, which is not installed.", f"Install it for {sys.executable}."
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    names += [a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]
    names += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It defines {', '.join(names) or 'nothing'}."
        yield f"{show(path)} has no function {name}.", hint


def _imported(body: list[ast.stmt]) -> Iterator[str]:
    """The top packages that are imported whatever happens: not in functions, not where a failure is caught."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def _is_there(module: str, beside: Path) -> bool:
    if (beside / f"{module}.py").is_file() or (beside / module).is_dir():
        return True
    with contextlib.suppress(ValueError):  # of a module that was made without a spec
        return importlib.util.find_spec(module) is not None
    return True


def check_loads_in_subprocess(spec: str) -> None:
    """Load the function in a process of its own: what the file takes up as it is run is given back.

    Raises:
        RecipeError: as `load_function`, or the process died.
    """
    context = multiprocessing.get_context("spawn")
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_load_and_tell, args=(spec, end), daemon=True)
    process.start()
    end.close()  # ours, so that its death is an end of the file here
    try:
        found: tuple[Issue, ...] = answer.recv()
    except EOFError:
        path, _ = split_spec(spec)
        found = (Issue("a process that loaded it died.", spec, f"Try `{sys.executable} {show(path)}`."),)
    process.join()
    if found:
        raise RecipeError(found)


def _load_and_tell(spec: str, answer: Connection) -> None:
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it will say it again
            load_function(spec)
    except RecipeError as error:
        answer.send(error.issues)
    else:
        answer.send(())


def load_function(spec: str) -> Function:
    """The function that `file.py:function` names. Runs the file; a file is run once, however many functions it gives.

    Raises:
        RecipeError: no such file or function, or the file fails as it is run.
    """
    path, name = split_spec(spec)
    if not path.is_file():
        raise RecipeError(f"there is no file {path}.", location=spec, hint="Write file.py:function.")
    module_name = f"rlhf_reward_{path.resolve()}"
    module = sys.modules.get(module_name)
    if module is None:
        loader = importlib.util.spec_from_file_location(module_name, path)
        assert loader is not None
        assert loader.loader is not None
        module = importlib.util.module_from_spec(loader)
        sys.modules[module_name] = module  # dataclasses look their module up while it is run
        sys.path.insert(0, str(path.parent))  # its own imports, as if it were run as a script
        try:
            loader.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # sys.exit() would end rlhf, and with 0
            del sys.modules[module_name]
            message = f"it fails as it is loaded: {told(error)}."
            raise RecipeError(message, location=error_location(error, path), hint="Mend the file.") from error
        finally:
            sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        hint = "Name a function that the file defines."
        raise RecipeError(f"{path.name} has no function {name}.", location=spec, hint=hint)
    return function


def told(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def error_location(error: BaseException, path: Path) -> str:
    """`path:line`, the last line of it that led to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{show(Path(error.filename))}:{error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{show(path)}:{lines[-1]}" if lines else show(path)
