"""Signals stop a run after its step if the stage handles them, else at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from rlhf_cli.runs import signals
from tests.support.runs import NewRun


def send(number: int) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def no_signal_ignored() -> Iterator[None]:
    """Handle every signal as by default: under nohup, SIGHUP is ignored, and stays so."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


every_signal = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@every_signal
def test_signal_before_training_interrupts(new_run: NewRun, number: int) -> None:
    run = new_run()
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(run):
        send(number)
    assert not run.stop_requested


@every_signal
def test_signal_in_stage_without_handling_interrupts(new_run: NewRun, number: int) -> None:
    run = new_run()
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(run):  # noqa: PT012
        run.begin(3, "part")
        send(number)


@every_signal
def test_signal_in_stage_with_handling_requests_stop(
    new_run: NewRun, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    run = new_run()
    with signals.graceful_shutdown(run):
        run.begin(3, "step", handles_signals=True)
        assert not run.stop_requested
        send(number)
        assert run.stop_requested
    assert capfd.readouterr().err == signals.STOPPING_MESSAGE.decode()


@every_signal
def test_second_signal_interrupts(new_run: NewRun, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "DUPLICATE_SIGNAL_WINDOW_S", 0.0)
    run = new_run()
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(run):  # noqa: PT012
        run.begin(3, "step", handles_signals=True)
        send(number)
        send(number)


def test_duplicate_signal_is_ignored(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends it to the process and to its process group."""
    monkeypatch.setattr(signals, "DUPLICATE_SIGNAL_WINDOW_S", 60.0)
    run = new_run()
    with signals.graceful_shutdown(run):
        run.begin(3, "step", handles_signals=True)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert run.stop_requested


def test_signal_handlers_are_restored(new_run: NewRun) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), signals.graceful_shutdown(new_run()):
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_signal_ignored_before_stays_ignored(new_run: NewRun) -> None:
    """As under nohup, or Ctrl-C in a background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.graceful_shutdown(new_run()):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "survives"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_signal_in_forked_worker_is_ignored_if_ctrl_c(new_run: NewRun, number: int, survives: bool) -> None:
    """Ctrl-C at a terminal reaches a data loader's workers too, and the end of one would end the training."""
    run = new_run()
    with signals.graceful_shutdown(run):
        run.begin(3, "step", handles_signals=True)
        child = os.fork()
        if child == 0:
            send(number)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == (0 if survives else 128 + number)
        assert not run.stop_requested
