"""Render one run as text, for `rlhf runs show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.cli.tables import format_metrics
from rlhf_cli.formatting import format_bytes, format_duration, format_number, format_path

if TYPE_CHECKING:
    from rich.console import Console

INDENT = 28  # characters, of the column with a metric's or a file's name


def print_run(console: Console, run: Mapping[str, Any]) -> None:
    """Print a run's state, gates, metrics, inputs, files, warnings and samples.

    Args:
        console: Where to print.
        run: The object that `rlhf runs show --json` prints.
    """
    from rlhf_cli.evaluation.gates import format_verdict

    manifest = run["manifest"]
    gate_failed = any(not gate["passed"] for gate in run["gates"])
    state = f"{run['state']}, gate failed" if gate_failed else run["state"]
    console.print(f"{run['name']}/{run['stage']}@{run['version']}  {state}", style="bold", markup=False)
    console.print(f"  {format_path(Path(run['path']))}", markup=False, soft_wrap=True)
    if manifest is None:
        last = run["last_step"]
        console.print(f"  {run['detail']}; last logged step: {last['step'] if last else 'none'}", markup=False)
        return
    console.print(
        f"  {manifest['started']}  {format_duration(manifest['seconds'])}  {manifest['device']}", markup=False
    )
    verdict = manifest.get("verdict")
    for title, lines in (
        ("verdict", [] if verdict is None else [verdict["text"]]),
        ("gates", [f"{'pass' if gate['passed'] else 'FAIL'}  {format_verdict(gate)}" for gate in run["gates"]]),
        ("metrics", [f"{name:<{INDENT}} {text}" for name, text in format_metrics(manifest["metrics"])]),
        ("inputs", list(_input_lines(manifest["inputs"]))),
        (
            manifest.get("folder", "model"),
            [f"{name:<{INDENT}} {format_bytes(file['size'])}" for name, file in manifest["files"].items()],
        ),
        ("warnings", manifest["warnings"]),
        ("samples", [line for row in run["samples"] for line in _sample_lines(row)]),
    ):
        if lines:
            console.print(f"\n{title}", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _input_lines(inputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line per file or run. One that is read in several roles, as a file of several functions, is merged."""
    roles_by_source: dict[tuple[str, str], list[str]] = {}
    for item in inputs:
        version = item["version"] or (item["sha256"] or "?")[:12]
        roles_by_source.setdefault((item["path"], version), []).append(item["role"])
    rows = [(", ".join(_collapse_indices(roles)), version, path) for (path, version), roles in roles_by_source.items()]
    width = max((len(roles) for roles, _, _ in rows), default=0)
    for roles, version, path in rows:
        yield f"{roles:<{width}}  {version:<12}  {path}"


def _collapse_indices(roles: Sequence[str]) -> Iterator[str]:
    """Yield roles with those that differ only in their index as one, such as `eval.python.0–4`."""
    indices: dict[str, list[str]] = {}
    for role in roles:
        head, dot, last = role.rpartition(".")
        name, index = (head + dot, last) if last.isdecimal() else (role, "")
        indices.setdefault(name, []).append(index)
    for name, found in indices.items():
        yield name + (found[0] if len(found) == 1 else f"{found[0]}–{found[-1]}")


def _sample_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one sample."""
    for name, value in row.items():
        text = format_number(value) if isinstance(value, float) else _conversation(value)
        for index, line in enumerate(text.splitlines() or [""]):
            label = name if index == 0 else ""
            yield f"{label:<16} {line}"
    yield ""


def _conversation(value: Any) -> str:
    """Return a list of messages as one line per message, and anything else as text."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        return str(value)
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
