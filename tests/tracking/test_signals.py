"""Signals, sent for real, at the moments that matter."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from vlm_core.tracking.signals import SECONDS_TO_STOP, StopSignals, Terminated, ending_workers


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    signals = StopSignals()
    signals.catch()
    yield signals
    signals.release()


def _send(number: signal.Signals) -> None:
    signal.raise_signal(number)


def test_sigterm_becomes_an_exception_that_passes_handlers_of_errors(signals: StopSignals) -> None:
    with pytest.raises(Terminated):
        try:
            _send(signal.SIGTERM)
        except Exception:
            pytest.fail("it was caught as an ordinary error")


def test_a_sigterm_that_follows_a_stop_changes_nothing(signals: StopSignals) -> None:
    with pytest.raises(KeyboardInterrupt) as raised:
        try:
            _send(signal.SIGINT)
        finally:
            _send(signal.SIGTERM)
    assert not isinstance(raised.value, Terminated)


def test_a_second_ctrl_c_still_gets_out_of_what_hangs(signals: StopSignals) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)


def test_nothing_interrupts_the_end(signals: StopSignals) -> None:
    signals.hold()
    _send(signal.SIGTERM)
    _send(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as after `nohup ... &`
    try:
        signals = StopSignals()
        signals.catch()
        _send(signal.SIGINT)
        signals.hold()
        signals.release()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        signals = StopSignals()
        signals.catch()
        signals.hold()
        signals.release()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stopped_process_does_not_wait_for_its_workers_to_do_all_that_is_left() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    started = time.monotonic()
    with pytest.raises(Terminated), ending_workers():
        raise Terminated("SIGTERM")
    assert not worker.is_alive() and time.monotonic() - started < SECONDS_TO_STOP


def test_workers_that_have_done_their_work_are_left_alone() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.01,))
    with ending_workers():
        worker.start()
        worker.join()
    assert worker.exitcode == 0
