"""The commands. Each parses, calls and prints; the only try/except of the command line is in `main`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_cli import __version__, distributed
from rlhf_cli.cli import doctor, init, options, output, progress, workers
from rlhf_cli.cli.runs import runs
from rlhf_cli.errors import GateError, Issue, RecipeError, RlhfError
from rlhf_cli.redaction import redact
from rlhf_cli.stages import STAGES

if TYPE_CHECKING:
    from rlhf_cli.recipe.schema import Recipe

ENVIRONMENT = {  # before a library is imported, which reads these once; what the caller has set stays
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
ONE_GPU = {"CUDA_VISIBLE_DEVICES": "0"}  # of one process: with more in sight Trainer would split batches over them
AFTER_MAIN = 8.0  # seconds, in which a process that failed comes to its end
TYPERS_INTERRUPT = 130  # what Typer makes of a KeyboardInterrupt
BUG = "This is a bug in rlhf. Please report it with the lines above."

app = typer.Typer(
    name="rlhf",
    help="From a base model and human preferences to an aligned, evaluated, exported model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlhf {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[bool, options.Flag("--version", help="Print the version.", callback=_version)] = False,
) -> None:
    """Takes `--version`, which is answered before a command is looked for."""


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        recipe: options.Recipe,
        set_: options.Set = None,
        runs_dir: options.RunsDir = options.RUNS,
        skip_if_done: options.SkipIfDone = False,
        resume: options.Resume = False,
        dry_run: options.DryRun = False,
        smoke: options.Smoke = False,
        json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        with _recipe(recipe, set_, [stage]) as loaded:
            if dry_run:
                _dry_run(loaded, [stage], runs_dir, smoke=smoke, json=json)
                return
            _check(loaded, [stage], runs_dir, smoke=smoke)
            _spread(loaded, smoke=smoke)
            from rlhf_cli.pipeline.runner import run_stage

            with progress.reporter(json=json, quiet=quiet) as reporter:
                outcome = run_stage(
                    stage,
                    loaded,
                    runs_dir.absolute(),
                    smoke=smoke,
                    reporter=reporter,
                    skip_if_done=skip_if_done,
                    resume=resume,
                )
            _finish(output.outcome_json(outcome), outcome.failed_gates, json=json)

    command.__doc__ = STAGES[stage].help
    return command


app.command("init", rich_help_panel="Set-up")(init.init)
app.command("doctor", rich_help_panel="Set-up")(doctor.doctor)
for _name in STAGES:
    app.command(_name, help=STAGES[_name].help, rich_help_panel="Stages")(_stage_command(_name))


@app.command("run", rich_help_panel="Chain")
def run_(
    recipe: options.Recipe,
    stages: options.Stages = None,
    set_: options.Set = None,
    runs_dir: options.RunsDir = options.RUNS,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    smoke: options.Smoke = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the recipe's stages in one process; what is up to date is skipped."""
    with _recipe(recipe, set_, stages or None) as loaded:
        wanted = _chain(loaded, stages)
        if dry_run:
            _dry_run(loaded, wanted, runs_dir, smoke=smoke, json=json)
            return
        _check(loaded, wanted, runs_dir, smoke=smoke, thorough=True)
        _spread(loaded, smoke=smoke)
        from rlhf_cli.pipeline.runner import run_chain

        outcomes = []
        try:
            with progress.reporter(json=json, quiet=quiet) as reporter:
                chain = run_chain(loaded, wanted, runs_dir.absolute(), smoke=smoke, reporter=reporter, resume=resume)
                for outcome in chain:
                    outcomes.append(outcome)
        finally:
            if len(outcomes) > 1 and not json and not quiet and distributed.is_main():
                output.print_chain(outcomes)
        _finish(output.chain_json(outcomes), outcomes[-1].failed_gates, json=json)


@app.command(rich_help_panel="Chain")
def check(
    recipe: options.Recipe,
    stages: options.Stages = None,
    set_: options.Set = None,
    runs_dir: options.RunsDir = options.RUNS,
    json: options.Json = False,
) -> None:
    """Check the recipe, its data files and what it refers to; train nothing, load no model."""
    with _recipe(recipe, set_, stages or None) as loaded:
        wanted = _chain(loaded, stages)
        counts = _check(loaded, wanted, runs_dir)
    if json:
        output.write_json({"status": "ok", "stage": "check", "recipe": str(recipe), "stages": wanted, "data": counts})
    else:
        output.print_check(recipe, wanted, counts)


app.add_typer(runs, name="runs", rich_help_panel="Runs")


@contextlib.contextmanager
def _recipe(path: Path, overrides: list[str] | None, stages: Sequence[str] | None) -> Iterator[Recipe]:
    """The recipe; inside, a issue that names one of its keys is told with that key's line."""
    from rlhf_cli.recipe.loader import read_recipe

    loaded = read_recipe(path, overrides or (), stages)
    try:
        yield loaded.recipe
    except RlhfError as error:
        error.issues = tuple(loaded.located(issue) for issue in error.issues)
        raise


def _check(
    recipe: Recipe, stages: Sequence[str], runs_dir: Path, *, smoke: bool = False, thorough: bool = False
) -> dict[str, dict[str, int]]:
    """What is told before the first stage trains; counts of rows. `thorough`: what a stage itself would tell, too."""
    from rlhf_cli.pipeline.preflight import check_functions, check_references, check_rows

    check_references(recipe, stages, runs_dir.absolute(), smoke=smoke, thorough=thorough)
    counts = check_rows(recipe, stages, smoke=smoke)
    if thorough:
        check_functions(recipe, stages)
    return counts


def _spread(recipe: Recipe, *, smoke: bool) -> None:
    """Where the recipe asks for several processes, and this is none of them, let them do it, and end as they end.

    A smoke run is one process.
    """
    workers.check_environment()
    if recipe.launch.processes > 1 and not workers.is_worker() and not smoke:
        environment = {name: value for name, value in os.environ.items() if (name, value) not in ONE_GPU.items()}
        raise typer.Exit(workers.run(recipe.launch.processes, sys.argv[1:], environment, output.real_stdout()))


def _chain(recipe: Recipe, stages: Sequence[str] | None) -> list[str]:
    """The named stages in the chain's order, or all that the recipe has a section for."""
    from rlhf_cli.recipe.validation import named_stages

    wanted = [stage for stage in STAGES if stage in stages] if stages else named_stages(recipe)
    if not wanted:
        hint = f"Add one of the sections {', '.join(STAGES)}, or name the stages."
        raise RecipeError("the recipe has no stage to run.", hint=hint)
    return wanted


def _finish(result: dict[str, Any], failed_gates: Sequence[Issue], *, json: bool) -> None:
    if failed_gates:
        raise GateError(failed_gates, result)
    if json and distributed.is_main():
        output.write_json(result)


def _dry_run(loaded: Recipe, stages: list[str], runs_dir: Path, *, smoke: bool, json: bool) -> None:
    from rlhf_cli.cli.dry_run import print_preview
    from rlhf_cli.pipeline.dry_run import preview

    _check(loaded, stages, runs_dir, smoke=smoke, thorough=True)
    previews = [
        preview(stage, loaded, runs_dir.absolute(), smoke=smoke, earlier=stages[:index])
        for index, stage in enumerate(stages)
    ]
    if json:
        output.write_json({"status": "ok", "stage": stages[0] if len(stages) == 1 else "run", "dry_run": previews})
    else:
        for shown in previews:
            print_preview(shown)


def main() -> None:
    """Entry point of `rlhf`: run the command, and turn what it raises into one message and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    sees_all = workers.is_worker() or sys.argv[1:2] == ["doctor"]
    for name, value in (ENVIRONMENT if sees_all else ENVIRONMENT | ONE_GPU).items():
        os.environ.setdefault(name, value)
    as_json = "--json" in sys.argv and distributed.is_main()
    with output.stdout_for_json() if as_json else contextlib.nullcontext():
        try:
            code = _run(as_json)
        except KeyboardInterrupt:  # another one while the first was told
            code = 75
    for number in (signal.SIGINT, signal.SIGTERM):  # the end is decided: an impatient Ctrl-C must not change its code
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.flush()
    sys.exit(code)


def _run(as_json: bool) -> int:
    """Run the command; its exit code."""
    try:
        code = app(standalone_mode=False)
        if code == TYPERS_INTERRUPT:
            raise KeyboardInterrupt
    except RlhfError as error:
        code = _fail(error.exit_code, list(error.issues), as_json, error.result)
    except typer.TyperException as error:
        code = _usage(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(75, [Issue("run.stopped", "stopped before the run began.")], as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if distributed.world_size() > 1:
            time.sleep(AFTER_MAIN)  # it may be that another process is gone, which has told why
        sys.stderr.write(redact(traceback.format_exc()))
        code = _fail(1, [Issue("internal.error", f"{type(error).__name__}: {error}", hint=BUG)], as_json)
    return code if isinstance(code, int) else 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _usage(error: typer.TyperException, as_json: bool) -> int:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if as_json:
        return _fail(2, [Issue("recipe.usage", message)], as_json)
    error.show()  # type: ignore[attr-defined]
    return 2


def _fail(code: int, issues: list[Issue], as_json: bool, result: Mapping[str, Any] = MappingProxyType({})) -> int:
    if not distributed.is_main():
        # Mostly the main process fails alike, tells it, and ends this one in the meantime.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(AFTER_MAIN)
    if os.environ.get("RLHF_DEBUG") == "1" and code != 1:
        sys.stderr.write(redact(traceback.format_exc()))
    if as_json:
        output.write_json({**result, **output.error_json(code, issues)})
    output.print_issues(issues)
    return code
