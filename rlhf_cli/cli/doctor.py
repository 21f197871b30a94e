"""`rlhf doctor`: check the environment and show how to fix what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rlhf_cli.cli import options
from rlhf_cli.cli.doctor_checks import CheckResult, run_checks
from rlhf_cli.cli.output import Output, escape_markup
from rlhf_cli.errors import HardwareError, Issue

if TYPE_CHECKING:
    from rich.console import Console

COLORS = {"ok": "green", "missing": "yellow", "fail": "red"}


def doctor(runs_dir: options.RunsDir = options.DEFAULT_RUNS_DIR, json: options.Json = False) -> None:
    """Check packages, devices, kernels, disk and Hub access. Exit with code 5 if a required check fails."""
    output = Output(json=json)
    results = output.follow(run_checks(runs_dir.absolute()), _print_results)
    failed = [result for result in results if result.required and result.state != "ok"]
    data = {"stage": "doctor", "checks": [result._asdict() for result in results]}
    if failed:
        issues = [Issue("hardware.check-failed", f"{r.found}.", location=r.name, hint=r.hint) for r in failed]
        error = HardwareError(issues)
        error.result = data
        raise error
    output.result(data, lambda console: console.print("All required checks passed."))


def _print_results(console: Console, results: Iterable[CheckResult]) -> Iterator[CheckResult]:
    """Pass the results on and print them: as a table at the end on a terminal, else one line as soon as it is known."""
    if console.is_terminal:
        yield from _print_table(console, results)
        return
    for result in results:
        line = f"{result.state:<8} {result.group:<9} {result.name:<14} {_description(result)}"
        console.print(line, markup=False, soft_wrap=True)
        yield result


def _print_table(console: Console, results: Iterable[CheckResult]) -> Iterator[CheckResult]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("group", "name", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("description", overflow="fold")
    group = ""
    with console.status("checking"):
        for result in results:
            state = f"[{COLORS[result.state]}]{result.state}[/]"
            label = "" if result.group == group else result.group
            table.add_row(label, escape_markup(result.name), state, escape_markup(_description(result)))
            group = result.group
            yield result
    console.print(table)


def _description(result: CheckResult) -> str:
    return f"{result.found}. {result.hint}" if result.hint else result.found
