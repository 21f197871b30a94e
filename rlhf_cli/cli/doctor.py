"""`rlhf doctor`: what this machine can do, what is missing, and how to hint it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import typer

from rlhf_cli.cli import options, output
from rlhf_cli.cli.doctor_checks import CheckResult, findings
from rlhf_cli.errors import HardwareError, Issue

COLOURS = {"ok": "green", "missing": "yellow", "wrong": "red"}


def doctor(runs_dir: options.RunsDir = options.RUNS, json: options.Json = False) -> None:
    """Look at packages, devices, kernels, disk and hub; exit 5 where something is broken that every stage needs."""
    looked = findings(runs_dir.absolute())
    found = list(looked if json else _shown(looked))
    broken = [one for one in found if one.needed and one.state != "ok"]
    shown = {"stage": "doctor", "findings": [one._asdict() for one in found]}
    if broken:
        error = HardwareError([Issue(f"{one.found}.", one.name, one.hint) for one in broken])
        error.result = shown
        raise error
    if json:
        output.write_json({"status": "ok", **shown})
    else:
        typer.echo("what every stage needs is here")


def _shown(found: Iterable[CheckResult]) -> Iterator[CheckResult]:
    """Hand on what was found, and print it: on a terminal a table at the end, else a line as soon as there is one."""
    from rich.table import Table

    out = output.console()
    if not out.is_terminal:
        for one in found:
            out.print(f"{one.state:<8} {one.part:<9} {one.name:<14} {_text(one)}", markup=False)
            yield one
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("part", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    part = ""
    with out.status("looking"):
        for one in found:
            state = f"[{COLOURS[one.state]}]{one.state}[/]"
            table.add_row(
                "" if one.part == part else one.part,
                output.escape_markup(one.name),
                state,
                output.escape_markup(_text(one)),
            )
            part = one.part
            yield one
    out.print(table)


def _text(one: CheckResult) -> str:
    return f"{one.found}. {one.hint}" if one.hint else one.found
