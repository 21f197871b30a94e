"""Render runs, stages and checks as text: tables and lists."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_cli.cli.json_output import run_state
from rlhf_cli.cli.output import escape_markup
from rlhf_cli.formatting import (
    escape_control,
    format_bytes,
    format_count,
    format_duration,
    format_metric,
    format_number,
    format_path,
)
from rlhf_cli.runs.lineage import Ancestor, Verification, name_of
from rlhf_cli.runs.lock import read_started
from rlhf_cli.runs.resume import describe_incomplete
from rlhf_cli.stages import STAGES

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_cli.pipeline.runner import StageResult
    from rlhf_cli.runs.layout import RunEntry

INTERVAL_SUFFIXES = (".low", ".high", ".n")  # of a metric's confidence interval and sample size
WIDE_TERMINAL = 100  # columns
MIN_RESULT_WIDTH = 20  # columns of a listing's last column
EXAMPLE_TITLES = {  # by the dataset that a stage trains on; {mark}: how the completion is marked
    "pretrain": "first packed sequence ({mark})",
    "sft": "first row (the loss is computed on the part {mark})",
    "preferences": "first pair, chosen completion ({mark})",
    "prompts": "first prompt",
}


def format_metrics(metrics: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each metric, as `0.61 [0.55, 0.67] n=256` if it has an interval and a count."""
    for name, value in metrics.items():
        owner = name.rpartition(".")[0]
        if name.endswith(INTERVAL_SUFFIXES) and owner in metrics:
            continue
        text = format_metric(name, value)
        if f"{name}.low" in metrics:
            text += f" [{format_number(metrics[f'{name}.low'])}, {format_number(metrics[f'{name}.high'])}]"
        if f"{name}.n" in metrics:
            text += f" n={format_number(metrics[f'{name}.n'])}"
        yield name, text


def headline_metrics(stage: str, metrics: Mapping[str, float | None]) -> list[str]:
    """Return `<name> <value>` of the metrics that represent the stage; empty for an unknown stage."""
    names = STAGES[stage].headline_metrics if stage in STAGES else ()
    texts = dict(format_metrics(metrics))
    return [f"{name} {texts[name]}" for name in names if name in texts]


def print_chain(console: Console, results: Sequence[StageResult], chain: Sequence[str]) -> None:
    """Print a row per stage, then the comparison of the evaluation and the path of the exported model.

    Args:
        console: Where to print.
        results: The results of the stages that ended.
        chain: All stages, in order.
    """
    table = _table("stage", "state", "time", "result", "path")
    for result in results:
        headline = "\n".join(_results(result.stage, result.manifest))
        seconds = format_duration(result.manifest["seconds"])
        table.add_row(result.stage, _result_state(result), seconds, headline, format_path(result.path))
    for stage in chain[len(results) :]:
        table.add_row(stage, "not run", "", "", "")
    console.print()
    _print_table(console, table)
    for result in results:
        if STAGES[result.stage].evaluates:
            _print_table(console, _comparison(result.manifest))
            print_verdict(console, result.manifest)
    for result in results:
        if STAGES[result.stage].exports:
            console.print(f"Exported model: {format_path(result.path / 'model')}", markup=False, soft_wrap=True)


def _result_state(result: StageResult) -> str:
    if result.failed_gates:
        return "gate failed"
    return "up to date" if result.skipped else "done"


def _comparison(manifest: Mapping[str, Any]) -> Table:
    """Return a table with the metrics of candidate and baseline, and the gains with their intervals."""
    from rlhf_cli.evaluation.metrics import find_regressions, overview_rows

    metrics: Mapping[str, float | None] = manifest["metrics"]
    texts = dict(format_metrics(metrics))
    names = {item["role"]: item["ref"] for item in manifest["inputs"]}
    table = _table("metric", names.get("candidate", "base"), names.get("baseline", "base"), "gain [95% interval]")
    regressions = find_regressions(metrics)
    for row in overview_rows(metrics):
        change = "worse" if row.name in regressions else texts.get(row.gain, "")
        table.add_row(row.name, texts[row.name], texts.get(f"{row.name}.baseline", ""), change)
    return table


def print_verdict(console: Console, manifest: Mapping[str, Any]) -> None:
    """Print the result of an evaluation in words, and its gates, wrapped on a terminal. No-op for other stages."""
    from rlhf_cli.evaluation.gates import summarize

    verdict = manifest.get("verdict")
    if verdict is None:
        return
    console.print(verdict["text"], style="bold", markup=False)
    for warning in verdict["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if manifest["gates"]:
        console.print(f"{summarize(manifest['gates'])}", markup=False)


class _RunRow(NamedTuple):
    """One run in a listing; `results` are the parts of its last column, such as one metric each."""

    name: str
    state: str
    started: str
    time: str
    results: list[str]


def print_runs(console: Console, runs_dir: Path, entries: Sequence[RunEntry]) -> None:
    """Print one line per run; on a terminal, the last column is wrapped.

    Formatted without a Rich table, which takes a second for a thousand rows.
    """
    if not entries:
        console.print(f"no runs in {format_path(runs_dir)}", markup=False, soft_wrap=True)
        return
    width = console.width if console.is_terminal else None
    date_format = "%Y-%m-%d %H:%M" if width is None or width >= WIDE_TERMINAL else "%m-%d %H:%M"
    rows = [_RunRow("run", "state", "started", "time", ["result"])]
    rows += [_run_row(entry, date_format) for entry in entries]
    name_width, state_width, started_width, time_width = (max(len(row[i]) for row in rows) for i in range(4))
    lines = []
    for row in rows:
        head = (
            f"{row.name:<{name_width}}  {row.state:<{state_width}}  {row.started:<{started_width}}"
            f"  {row.time:>{time_width}}  "
        )
        first, *others = _wrap_results(row.results, None if width is None else width - len(head)) or [""]
        lines += [head + first, *(" " * len(head) + other for other in others)]
    longest = max(map(len, lines))
    lines.insert(1, "─" * (longest if width is None else min(longest, width)))
    sys.stdout.write("".join(escape_control(line.rstrip()) + "\n" for line in lines))


def _run_row(entry: RunEntry, date_format: str) -> _RunRow:
    state = run_state(entry)
    started = datetime.fromtimestamp(start_time(entry), UTC).strftime(date_format)
    if entry.manifest is None:
        detail = entry.manifest_error or describe_incomplete(entry.path)
        return _RunRow(name_of(entry), state, started, "", [detail])
    if _has_failed_gate(entry.manifest):
        state = "gate failed"
    duration = format_duration(entry.manifest["seconds"])
    return _RunRow(name_of(entry), state, started, duration, _results(entry.stage, entry.manifest))


def _results(stage: str, manifest: Mapping[str, Any]) -> list[str]:
    """Return the parts of a run's result: the outcome of an evaluation, the main metrics, and the gates."""
    from rlhf_cli.evaluation.gates import summarize

    parts = headline_metrics(stage, manifest["metrics"])
    if manifest.get("verdict"):
        parts.insert(0, manifest["verdict"]["headline"])
    if manifest.get("gates"):
        parts.append(summarize(manifest["gates"]))
    return parts


def _wrap_results(results: Sequence[str], width: int | None) -> list[str]:
    """Return the results on one line if they fit into `width` characters, and otherwise one or more lines for each."""
    joined = "  ".join(results)
    if width is None or len(joined) <= width:
        return [joined]
    wrapper = textwrap.TextWrapper(max(width, MIN_RESULT_WIDTH), break_long_words=False, break_on_hyphens=False)
    return [line for result in results for line in wrapper.wrap(result)]


def start_time(entry: RunEntry) -> float:
    """Return when a run started, in seconds since 1970; the folder's modification time if it is not recorded."""
    if entry.manifest is not None:
        return datetime.fromisoformat(entry.manifest["started"]).timestamp()
    record = read_started(entry.path)
    return entry.path.stat().st_mtime if record is None else record.started


def _has_failed_gate(manifest: Mapping[str, Any]) -> bool:
    return any(not gate["passed"] for gate in manifest.get("gates", []))


def print_verifications(console: Console, verifications: Sequence[tuple[RunEntry, Verification]]) -> None:
    """Print one line per run whose files are all intact. Damaged files are reported as issues."""
    for entry, verification in verifications:
        if not verification.issues:
            what = "OK" if entry.manifest else "incomplete, checkpoints OK"
            size = f"{format_count(verification.files, 'file')}, {format_bytes(verification.bytes)}"
            console.print(f"{name_of(entry)}  {what}: {size}", markup=False, soft_wrap=True)


def print_lineage(console: Console, entry: RunEntry, ancestors: Sequence[Ancestor]) -> None:
    """Print one line per input, indented by its distance from the run."""
    console.print(name_of(entry), style="bold", markup=False)
    for ancestor in ancestors:
        indent = "    " * ancestor.depth
        removed = "  (removed)" if ancestor.missing else ""
        detail = f"  ({ancestor.detail})" if ancestor.detail else ""
        line = f"{indent}  {ancestor.role:<16} {ancestor.name}  {ancestor.content[:12]}{removed}{detail}"
        console.print(line, markup=False, soft_wrap=True)


def print_differences(console: Console, names: Sequence[str], differences: Mapping[str, Sequence[Any]]) -> None:
    """Print one row per setting, input, package or metric in which two runs differ."""
    if not differences:
        console.print(f"{names[0]} and {names[1]} are identical", markup=False, soft_wrap=True)
        return
    table = _table("", *names, folded=names)
    for name, values in differences.items():
        table.add_row(name, *(escape_markup(_format_value(value)) for value in values))
    _print_table(console, table)


def _format_value(value: Any) -> str:
    if value is None:
        return ""
    return format_number(value) if isinstance(value, float) else str(value)


def print_check(console: Console, recipe: Path, stages: Sequence[str], counts: Mapping[str, Mapping[str, int]]) -> None:
    """Print which stages were checked, and the row counts of their datasets."""
    console.print(f"{recipe}: OK ({', '.join(stages)})", markup=False)
    for kind, numbers in counts.items():
        text = ", ".join(f"{number:,} {name}" for name, number in numbers.items())
        console.print(f"  data.{kind}: {text}", markup=False)


def print_previews(console: Console, previews: Iterable[Mapping[str, Any]]) -> None:
    """Print what `--dry-run` found for each stage: rows, tokens, and one example with its loss mask."""
    for preview in previews:
        _print_preview(console, preview)


def _print_preview(console: Console, preview: Mapping[str, Any]) -> None:
    stage = preview["stage"]
    console.print(stage, style="bold", markup=False)
    width = max((len(name) for name in preview["facts"]), default=0)
    for name, value in preview["facts"].items():
        text = f"{value:,}" if isinstance(value, int) else value
        console.print(f"  {name:<{width}}  {text}", markup=False, soft_wrap=True)
    dataset = STAGES[stage].dataset
    if preview.get("example") and dataset is not None:
        color = console.is_terminal and not console.no_color
        mark = "in green" if color else "in ⟦…⟧"
        console.print(f"  {EXAMPLE_TITLES[dataset].format(mark=mark)}:", style="dim", markup=False)
        console.print(_mark_completion(preview["example"], color=color), markup=False, soft_wrap=True)


def _mark_completion(example: str, *, color: bool) -> str | Text:
    """Return an example with its completion in green instead of in ⟦…⟧, if there is color."""
    from rich.text import Text

    prompt, bracket, completion = example.partition("⟦")
    if not color or not bracket:
        return example
    return Text.assemble((prompt, "dim"), (completion.removesuffix("⟧"), "green"))


def _table(*columns: str, folded: Sequence[str] = ("result",)) -> Table:
    """Return a table in which only the columns `folded` may be wrapped."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in folded, justify="right" if column == "time" else "left")
    return table


def _print_table(console: Console, table: Table) -> None:
    """Print a table as wide as its content if stdout is not a terminal; on one, let it exceed the width if needed.

    A path is thus never broken over lines.
    """
    from rich.measure import Measurement

    measured = Measurement.get(console, console.options.update(max_width=sys.maxsize), table)
    width = console.width
    console.width = max(width, measured.minimum) if console.is_terminal else measured.maximum
    console.print(table, crop=False)
    console.width = width
