"""What a person sees, and what a script reads, of runs that are complete: tables, issues, JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_module
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_cli.runs.layout import place
from rlhf_cli.runs.lineage import Ancestor, Verdict, name_of
from rlhf_cli.runs.lock import read_started
from rlhf_cli.runs.resume import describe_incomplete

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rlhf_cli.errors import Issue
    from rlhf_cli.pipeline.runner import StageResult
    from rlhf_cli.runs.layout import Entry

# The one or two figures by which a stage is known in a table.
HEADLINES = {
    "pretrain": ("pretrain.nll",),
    "sft": ("sft.train_loss", "sft.nll"),
    "reward": ("reward.train_loss", "reward.accuracy"),
    "ppo": ("ppo.reward", "ppo.kl"),
    "eval": ("reward.accuracy",),
    "export": ("export.kl",),
}
ALWAYS_COMPARED = ("response_length", "truncation_rate")  # where reward hacking shows first


def console(*, stderr: bool = False) -> Console:
    """A Rich console. Names and figures are not guessed at and coloured."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=not sys.stdout.isatty())


def escape_markup(text: str) -> str:
    """`text` without meaning to Rich's markup."""
    from rich.markup import escape

    return escape(text)


def format_duration(seconds: float) -> str:
    """Seconds as 0:05, 12:05 or 1:12:05."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def figures(metrics: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    """Name and text of each metric; an interval stands in brackets behind its estimate, a count in round ones."""
    parts = (".low", ".high", ".n")
    for name, value in metrics.items():
        owner = name.rpartition(".")[0]
        if name.endswith(parts) and owner in metrics:
            continue
        text = _number(value)
        if f"{name}.low" in metrics:
            text += f" [{_number(metrics[f'{name}.low'])}, {_number(metrics[f'{name}.high'])}]"
        if f"{name}.n" in metrics:
            text += f" n={_number(metrics[f'{name}.n'])}"
        yield name, text


def _table(*columns: str, folded: Sequence[str] = ("result",)) -> Table:
    """A table in which no other column than `folded` may be broken over lines."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column not in folded, justify="right" if column == "time" else "left")
    return table


def _print(out: Console, table: Table) -> None:
    """As wide as it is where there is no terminal; on one it may go beyond the edge, but no path is broken."""
    from rich.measure import Measurement

    measured = Measurement.get(out, out.options.update(max_width=sys.maxsize), table)
    before = out.width
    out.width = max(before, measured.minimum) if out.is_terminal else measured.maximum
    out.print(table, crop=False)
    out.width = before


def print_chain(outcomes: Sequence[StageResult]) -> None:
    """The chain at a glance: each stage's state, time, headline and folder; then what the evaluation found."""
    table = _table("stage", "state", "time", "result", "where")
    for outcome in outcomes:
        shown = dict(figures(outcome.manifest["metrics"]))
        headline = "\n".join(f"{name} {shown[name]}" for name in HEADLINES[outcome.stage] if name in shown)
        state = "gate failed" if outcome.failed_gates else "up to date" if outcome.skipped else "done"
        table.add_row(outcome.stage, state, format_duration(outcome.manifest["seconds"]), headline, place(outcome.path))
    out = console()
    out.print()
    _print(out, table)
    evaluated = next((o for o in outcomes if o.stage == "eval"), None)
    if evaluated is not None and "win_rate" in evaluated.manifest["metrics"]:
        _print(out, _comparison(evaluated.manifest))
    exported = next((o for o in outcomes if o.stage == "export"), None)
    if exported is not None:
        out.print(f"The exported model: {place(exported.path / 'model')}", markup=False, soft_wrap=True)


def _comparison(manifest: Mapping[str, Any]) -> Table:
    """Each measure of the two sides beside each other, and the gain with its interval."""
    metrics: Mapping[str, float] = manifest["metrics"]
    shown = dict(figures(metrics))
    names = {item["role"]: item["ref"] for item in manifest["inputs"]}
    table = _table("metric", names.get("candidate", "base"), names.get("baseline", "base"), "gain  [95 % interval]")
    table.add_row("win_rate", shown["win_rate"], "", "")
    for name in metrics:
        gain = next((g for g in (f"{name}.gain", f"{name}_gain") if g in metrics), None)
        if f"{name}.baseline" in metrics and (gain or name in ALWAYS_COMPARED):
            table.add_row(name, shown[name], shown[f"{name}.baseline"], shown[gain] if gain else "")
    table.add_row("kl", shown["kl"], "", "")
    return table


def began(entry: Entry) -> float:
    """When a run was begun, in seconds since 1970; of one that does not say, when its folder was changed last."""
    if entry.manifest is not None:
        return datetime.fromisoformat(entry.manifest["started"]).timestamp()
    return float((read_started(entry.path) or {}).get("started") or entry.path.stat().st_mtime)


def print_runs(runs_dir: Path, entries: Sequence[Entry]) -> None:
    """A line a run. Written out by hand: a Rich table takes a second over a thousand of them."""
    if not entries:
        print(f"no runs in {runs_dir}")
        return
    rows: list[tuple[str, ...]] = [("run", "state", "started", "time", "result"), *map(_listed, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("─" * width for width in widths))
    for name, kind, started, time, result in rows:
        line = f" {name:<{widths[0]}}   {kind:<{widths[1]}}   {started:<{widths[2]}}   {time:>{widths[3]}}   {result}"
        print(line.replace("─   ─", "─────").rstrip())


def _listed(entry: Entry) -> tuple[str, str, str, str, str]:
    """One line's columns."""
    manifest, name = entry.manifest, name_of(entry)
    started = f"{datetime.fromtimestamp(began(entry), UTC):%Y-%m-%d %H:%M}"
    if manifest is None:
        return (
            name,
            "damaged" if entry.damage else "incomplete",
            started,
            "",
            entry.damage or describe_incomplete(entry.path),
        )
    shown = dict(figures(manifest["metrics"]))
    headline = "  ".join(f"{name} {shown[name]}" for name in HEADLINES.get(entry.stage, ()) if name in shown)
    kind = "gate failed" if _failed(manifest) else "smoke" if manifest["smoke"] else "complete"
    return name, kind, started, format_duration(manifest["seconds"]), headline


def _failed(manifest: Mapping[str, Any]) -> bool:
    """Whether a gate of an evaluation failed."""
    return any(not gate["passed"] for gate in manifest.get("gates", []))


def print_run(content: Mapping[str, Any]) -> None:
    """One run: where, when, gates, figures, inputs, files, samples."""
    from rlhf_cli.evaluation.gates import said

    out = console()
    manifest = content["manifest"]
    state = f"{content['state']}{', gate failed' if _failed(content) else ''}"
    out.print(f"{content['name']}/{content['stage']}@{content['version']}  {state}", style="bold", markup=False)
    out.print(f"  {content['path']}", markup=False, soft_wrap=True)
    if manifest is None:
        last = content["last_step"]
        out.print(f"  {content['detail']}; last step logged: {last['step'] if last else 'none'}", markup=False)
        return
    out.print(f"  {manifest['started']}  {format_duration(manifest['seconds'])}  {manifest['device']}", markup=False)
    for title, lines in (
        ("gates", [f"{'pass' if gate['passed'] else 'FAIL'}  {said(gate)}" for gate in content["gates"]]),
        ("figures", [f"{label:<28} {text}" for label, text in figures(manifest["metrics"])]),
        ("inputs", list(_inputs(manifest["inputs"]))),
        ("model", [f"{name:<28} {file['size']:,} bytes" for name, file in manifest["files"].items()]),
        ("warnings", manifest["warnings"]),
        ("samples", [line for row in content["samples"] for line in _sample(row)]),
    ):
        if lines:
            out.print(f"\n{title}", style="bold")
        for line in lines:
            out.print(f"  {line}", markup=False, soft_wrap=True)


def _inputs(inputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line an input; one that is read in several roles, as a file of several functions, is told once."""
    by_place: dict[tuple[str, str], list[str]] = {}
    for item in inputs:
        content = item["version"] or (item["sha256"] or "?")[:12]
        by_place.setdefault((item["path"], content), []).append(item["role"])
    shown = [(", ".join(_spanned(roles)), content, path) for (path, content), roles in by_place.items()]
    width = max((len(roles) for roles, _, _ in shown), default=0)
    for roles, content, path in shown:
        yield f"{roles:<{width}}  {content:<12}  {path}"


def _spanned(roles: Sequence[str]) -> Iterator[str]:
    """Roles that differ in their number alone, as one: eval.python.0–4."""
    numbers: dict[str, list[str]] = {}
    for role in roles:
        head, dot, last = role.rpartition(".")
        name, number = (head + dot, last) if last.isdecimal() else (role, "")
        numbers.setdefault(name, []).append(number)
    for name, found in numbers.items():
        yield name + (found[0] if len(found) == 1 else f"{found[0]}–{found[-1]}")


def _sample(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        text = _number(value) if isinstance(value, float) else _conversation(value)
        for index, line in enumerate(text.splitlines() or [""]):
            shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)  # it must not steer the terminal
            yield f"{'' if index else name:<16} {shown}"
    yield ""


def _conversation(value: Any) -> str:
    """Text as it is; of turns, who says what, a line each."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        return str(value)
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in value)


def print_verdicts(verdicts: Sequence[tuple[Entry, Verdict]]) -> None:
    """A line a run that is as it was written; what is not is told as issues."""
    out = console()
    for entry, verdict in verdicts:
        if not verdict.issues:
            what = "whole" if entry.manifest else "incomplete, its checkpoints whole"
            out.print(f"{name_of(entry)}  {what}: {verdict.files:,} files, {verdict.bytes:,} bytes", markup=False)


def print_lineage(entry: Entry, found: Sequence[Ancestor]) -> None:
    """A line an input, further in the further it is away."""
    out = console()
    out.print(name_of(entry), style="bold", markup=False)
    for one in found:
        gone = "  (removed)" if one.missing else ""
        out.print(f"{'    ' * one.depth}  {one.role:<16} {one.what}  {one.content[:12]}{gone}", markup=False)


def print_differences(names: Sequence[str], found: Mapping[str, Sequence[Any]]) -> None:
    """A line a thing that two runs have not in common."""
    out = console()
    if not found:
        out.print(f"{names[0]} and {names[1]} are alike", markup=False)
        return
    table = _table("", *names, folded=names)
    for name, sides in found.items():
        shown = ["" if s is None else _number(s) if isinstance(s, float) else str(s) for s in sides]
        table.add_row(name, *map(escape_markup, shown))
    _print(out, table)


def print_check(recipe: Path, stages: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> None:
    """What was checked, and what the data files hold."""
    out = console()
    out.print(f"{recipe}: good for {', '.join(stages)}", markup=False)
    for kind, numbers in counts.items():
        text = ", ".join(f"{reason} {number:,}" for reason, number in numbers.items())
        out.print(f"  data.{kind}: {text}", markup=False)


def print_issues(issues: Sequence[Issue]) -> None:
    """Print one line per issue to stderr, ending with the code, which docs/errors.md explains."""
    out = console(stderr=True)
    for issue in issues:
        location = f"[bold]{escape_markup(issue.location)}[/]  " if issue.location else ""
        text = escape_markup(" ".join(filter(None, (issue.message, issue.hint))))
        out.print(f"[bold red]error[/]  {location}{text} [dim]{escape_markup(f'[{issue.code}]')}[/]", soft_wrap=True)


@contextlib.contextmanager
def stdout_for_json() -> Iterator[None]:
    """Inside, file descriptor 1 leads to stderr, for C libraries and children too; write_json has the real one."""
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


_json_descriptor: int | None = None


def real_stdout() -> int:
    """The descriptor of stdout, for a child that writes the one JSON object itself."""
    return 1 if _json_descriptor is None else _json_descriptor


def write_json(content: Mapping[str, Any]) -> None:
    """The one JSON object on stdout."""
    text = json_module.dumps(content, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    assert _json_descriptor is not None
    with open(_json_descriptor, "w", encoding="utf-8", closefd=False) as out:
        out.write(text)


def outcome_json(outcome: StageResult) -> dict[str, Any]:
    """One stage as the contract has it."""
    manifest = outcome.manifest
    return {
        "status": "gate failed" if outcome.failed_gates else "ok",
        "stage": outcome.stage,
        "run": f"{manifest['name']}/{outcome.stage}@{manifest['version']}",
        "path": str(outcome.path),
        "seconds": manifest["seconds"],
        "skipped": outcome.skipped,
        "smoke": manifest["smoke"],
        "metrics": manifest["metrics"],
    }


def chain_json(outcomes: Sequence[StageResult]) -> dict[str, Any]:
    """The chain: its stages, and their metrics in one map."""
    merged: dict[str, float] = {}
    for outcome in outcomes:
        merged.update(outcome.manifest["metrics"])
    return {
        "status": "ok",
        "stage": "run",
        "seconds": sum(o.manifest["seconds"] for o in outcomes if not o.skipped),
        "stages": [outcome_json(outcome) for outcome in outcomes],
        "metrics": merged,
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """A run in a listing."""
    manifest = entry.manifest or {}
    made = "smoke" if manifest.get("smoke") else "complete"
    incomplete = entry.manifest is None and not entry.damage
    return {
        "name": entry.name,
        "stage": entry.stage,
        "version": entry.version,
        "path": str(entry.path),
        "state": "damaged" if entry.damage else "incomplete" if incomplete else made,
        "detail": describe_incomplete(entry.path) if incomplete else entry.damage,
        "started": manifest.get("started"),
        "seconds": manifest.get("seconds"),
        "metrics": manifest.get("metrics", {}),
        "gates": manifest.get("gates", []),
    }


def error_json(exit_code: int, issues: Sequence[Issue]) -> dict[str, Any]:
    """Return the JSON object of a failed command."""
    content = [dataclasses.asdict(issue) for issue in issues]
    return {"status": "error", "exit_code": exit_code, "issues": content}
