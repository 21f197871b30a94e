"""Signals while a run is under way: what waits for a step, and what does not."""

from __future__ import annotations

import os
import signal

import pytest

from rlhf_cli.runs import signals
from tests.support.runs import NewRun


def send(number: int) -> None:
    os.kill(os.getpid(), number)


BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_before_training_a_signal_stops_at_once(new_run: NewRun, number: int) -> None:
    run = new_run()
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(run):
        send(number)
    assert not run.stopping


@BOTH
def test_a_stage_that_does_not_save_is_stopped_at_once(new_run: NewRun, number: int) -> None:
    run = new_run()
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(run):  # noqa: PT012
        run.begin(3, "parts")
        send(number)


@BOTH
def test_a_stage_that_saves_is_asked_to_stop(new_run: NewRun, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    run = new_run()
    with signals.graceful_shutdown(run):
        run.begin(3, "steps", handles_signals=True)
        assert not run.stopping
        send(number)
        assert run.stopping
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


@BOTH
def test_a_second_signal_stops_at_once(new_run: NewRun, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME", 0.0)
    run = new_run()
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(run):  # noqa: PT012
        run.begin(3, "steps", handles_signals=True)
        send(number)
        send(number)


def test_a_signal_that_comes_twice_at_once_is_one(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends it to the process and to its group."""
    monkeypatch.setattr(signals, "SAME", 60.0)
    run = new_run()
    with signals.graceful_shutdown(run):
        run.begin(3, "steps", handles_signals=True)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert run.stopping


def test_afterwards_the_handlers_are_what_they_were(new_run: NewRun) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(new_run()):
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored(new_run: NewRun) -> None:
    """As under nohup, or for Ctrl-C of a job in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.graceful_shutdown(new_run()):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "survives"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_worker_leaves_ctrl_c_to_its_owner(new_run: NewRun, number: int, survives: bool) -> None:
    """A Ctrl-C at a terminal goes to a data loader's workers too; one that dies of it would end the training."""
    run = new_run()
    with signals.graceful_shutdown(run):
        run.begin(3, "steps", handles_signals=True)
        child = os.fork()
        if child == 0:
            send(number)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == (0 if survives else 128 + number)
        assert not run.stopping
