"""The command line: its commands, and `main`, which turns every exception into a message and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Annotated

import typer

from rlhf_cli import __version__, distributed
from rlhf_cli.cli import doctor, init, options, schema, stage_commands, workers
from rlhf_cli.cli.annotate import annotate
from rlhf_cli.cli.failures import INTERRUPTED, report_failure
from rlhf_cli.cli.output import Output, prepare_streams, reserve_stdout
from rlhf_cli.cli.runs import runs
from rlhf_cli.runs.signals import STOP_SIGNALS
from rlhf_cli.stages import STAGES

ENVIRONMENT = {  # set before any library is imported, as they read these once; values set by the user are kept
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
TYPER_INTERRUPTED = 130  # the exit code that Typer returns after a KeyboardInterrupt

app = typer.Typer(
    name="rlhf",
    help="Take a base model through SFT, reward modeling, PPO, evaluation and export with one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"rlhf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[bool, options.Flag("--version", help="Print the version.", callback=_print_version)] = False,
) -> None:
    """Define the options that need no command."""


app.command("init", rich_help_panel="Setup")(init.init)
app.command("doctor", rich_help_panel="Setup")(doctor.doctor)
app.command("schema", rich_help_panel="Setup")(schema.schema)
for _name, _spec in STAGES.items():
    if _spec.command:  # registered under that name
        continue
    app.command(_name, help=_spec.help, rich_help_panel="Stages")(stage_commands.stage_command(_name))
app.command("run", rich_help_panel="Pipeline")(stage_commands.run)
app.command("check", rich_help_panel="Pipeline")(stage_commands.check)
app.add_typer(annotate, name="annotate", rich_help_panel="Feedback")
app.add_typer(runs, name="runs", rich_help_panel="Runs")


def main() -> None:
    """Run the command of `sys.argv` and exit with its code: the entry point of `rlhf`."""
    prepare_streams()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _raise_interrupt)
    workers.follow_launcher()
    workers.limit_to_one_gpu(sys.argv[1:])
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    json = "--json" in sys.argv  # known before the command line is parsed, so that its errors are JSON, too
    exit_code = INTERRUPTED  # if a second signal arrives while the first is reported
    with contextlib.suppress(KeyboardInterrupt), reserve_stdout() if json else contextlib.nullcontext():
        exit_code = _run_command(Output(json=json and distributed.is_main()))
    for number in STOP_SIGNALS:  # the exit code is decided: a late Ctrl-C must not change it
        signal.signal(number, signal.SIG_IGN)
    sys.exit(exit_code)


def _run_command(output: Output) -> int:
    """Run the command and return its exit code. The only place that catches what a command raises."""
    try:
        code = app(standalone_mode=False)
        if code == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error, output)
    return code if isinstance(code, int) else 0


def _raise_interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
