"""Inspect and load Python functions that a recipe names as `file.py:function`."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf_cli.errors import Issue, RecipeError
from rlhf_cli.formatting import did_you_mean, format_exception, format_path
from rlhf_cli.recipe.local_imports import find_local_imports

Function = Callable[..., Any]

TOKEN_ARGUMENTS = ("prompt_ids", "completion_ids")  # offered besides prompts, completions and the dataset's columns


def split_spec(spec: str) -> tuple[Path, str]:
    """Return the file and the name of the function."""
    file, _, name = spec.rpartition(":")
    return Path(file), name


def function_issues(spec: str) -> Iterator[Issue]:
    """Yield issues, without location, that an existing file shows without being run."""
    path, name = split_spec(spec)
    file = format_path(path)
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        yield Issue("recipe.function-failed", f"{file}{line}: invalid Python: {error.msg}.", hint="Fix the file.")
        return
    except ValueError as error:
        yield Issue("recipe.function-failed", f"{file}: invalid Python: {error}.", hint="Fix the file.")
        return
    for module in dict.fromkeys(_required_packages(tree.body)):
        if not _is_importable(module, path.parent):
            message = f"{file}: imports {module}, which is not installed."
            yield Issue(
                "recipe.missing-module", message, hint=f"Install it for the Python interpreter {sys.executable}."
            )
    defined = _defined_names(tree.body)
    if name not in defined:
        hint = did_you_mean(name, defined, otherwise=f"Choose from {', '.join(defined)}." if defined else "")
        yield Issue("recipe.function-not-found", f"{file}: function {name} not found.", hint=hint)


def required_parameters(spec: str) -> list[str]:
    """Return the parameters without a default of a function that its file defines, without running the file.

    Empty if the function is imported or assigned.
    """
    path, name = split_spec(spec)
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            positional = [*node.args.posonlyargs, *node.args.args]
            required = positional[: len(positional) - len(node.args.defaults)]
            required += [
                argument
                for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                if default is None
            ]
            return [argument.arg for argument in required]
    return []


def check_loads_in_subprocess(spec: str) -> None:
    """Load the function in a subprocess, so that this process does not keep the memory and modules that it uses.

    Raises:
        RecipeError: As `load_function`, or the process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_load_issues, args=(spec, sender), daemon=True)
    process.start()
    sender.close()  # the receiver sees the end of the file when the subprocess dies
    try:
        issues: tuple[Issue, ...] = receiver.recv()
    except EOFError:
        path, _ = split_spec(spec)
        hint = f"Run `{sys.executable} {format_path(path)}` to see why."
        message = "the process that loaded the file crashed."
        issues = (Issue("recipe.function-failed", message, spec, hint),)
    process.join()
    if issues:
        raise RecipeError(issues)


def forget_user_modules() -> None:
    """Let the files of functions, and the modules that they import from their folders, be loaded anew.

    Called before a stage is resolved, so that the code that runs is the code that is hashed.
    """
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in _loaded_files:
            del sys.modules[name]
    _loaded_files.clear()
    importlib.invalidate_caches()


_loaded_files: set[str] = set()


def load_function(spec: str) -> Function:
    """Load a `file.py:function`. This runs the file, but only once per stage for all of its functions.

    Cached bytecode is not used: Python takes it for current if a file has the same size and time.

    Raises:
        RecipeError: The file or the function was not found, or the file fails.
    """
    path, name = split_spec(spec)
    if not path.is_file():
        message = f"file not found: {path}."
        raise RecipeError("recipe.path-not-found", message, location=spec, hint="Write file.py:function.")
    module_name = f"rlhf_reward_{path.resolve()}"
    module = sys.modules.get(module_name)
    if module is None:
        module_spec = importlib.util.spec_from_file_location(module_name, path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_name] = module  # dataclasses look up their module while the file runs
        _loaded_files.update(str(file) for file in (path, *find_local_imports(path)))
        sys.path.insert(0, str(path.parent))  # imports work as if the file were run as a script
        try:
            with _without_bytecode():
                module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # sys.exit() would end rlhf, possibly with code 0
            del sys.modules[module_name]
            message = f"cannot load {path.name}: {format_exception(error)}."
            location = error_location(error, path)
            raise RecipeError("recipe.function-failed", message, location=location, hint="Fix the file.") from error
        finally:
            sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        message, hint = f"{path.name}: function {name} not found.", "Use a function that the file defines."
        raise RecipeError("recipe.function-not-found", message, location=spec, hint=hint)
    return function


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """Neither read nor write cached bytecode."""
    before = sys.pycache_prefix, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix, sys.dont_write_bytecode = empty, True
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = before


def error_location(error: BaseException, path: Path) -> str:
    """Return `file:line` of the last line of `path` that led to the error, or `file` if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{format_path(Path(error.filename))}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{format_path(path)}:{lines[-1]}" if lines else format_path(path)


def _required_packages(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the top-level packages that must be importable: not those imported in functions or in `try`."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def _is_importable(module: str, folder: Path) -> bool:
    """Return whether `module` is in `folder` or installed."""
    if (folder / f"{module}.py").is_file() or (folder / module).is_dir():
        return True
    with contextlib.suppress(ValueError):  # raised for a loaded module without a spec
        return importlib.util.find_spec(module) is not None
    return True


def _defined_names(body: list[ast.stmt]) -> list[str]:
    """Return the names that may be functions: defined, imported by name, or assigned."""
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    names += [alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    names += [
        target.id
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return names


def _send_load_issues(spec: str, sender: Connection) -> None:
    """Load the function and send its issues. Its output is discarded: it prints again when the stage loads it."""
    try:
        with Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull):
            load_function(spec)
    except RecipeError as error:
        sender.send(error.issues)
    else:
        sender.send(())
