"""Signals, sent for real, at the moments that matter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import pytest

from tests.standins import wait_for
from vlm_core.tracking import signals as module
from vlm_core.tracking.signals import (
    SECONDS_TO_STOP,
    STOPPED,
    StopSignals,
    Terminated,
    catching,
    end_with,
    ending_workers,
)
from vlm_core.tracking.tags import process_is_alive, process_tag


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


def test_a_second_ctrl_c_still_gets_out_of_what_hangs(signals: StopSignals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_OF_AN_ECHO", 0.0)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)


def test_nothing_interrupts_the_end_and_what_was_sent_meanwhile_is_heard_after_it(signals: StopSignals) -> None:
    signals.hold()
    _send(signal.SIGTERM)
    _send(signal.SIGINT)
    with pytest.raises(Terminated):
        signals.release()


def test_handlers_of_one_in_another_are_one(signals: StopSignals) -> None:
    inner = StopSignals()
    inner.catch()
    inner.release()
    with pytest.raises(Terminated):
        _send(signal.SIGTERM)


@contextmanager
def _command(work: Callable[[Callable[[], None]], object]) -> Iterator[tuple[BaseProcess, Callable[[], bytes]]]:
    """A process that does `work` as a command does, and what waits until it calls what `work` is given.

    It exits with 3 when an interruption has reached its end.
    """
    reading, writing = os.pipe()

    def run() -> None:
        try:
            with catching():
                work(lambda: os.write(writing, b"x") and None)
        except KeyboardInterrupt:
            os._exit(3)
        os._exit(0)

    process = get_context("fork").Process(target=run)
    process.start()
    os.close(writing)
    try:
        yield process, lambda: os.read(reading, 1)
    finally:
        process.kill()
        process.join()
        os.close(reading)


def _exit_code(process: BaseProcess) -> int | None:
    process.join(30)
    return process.exitcode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_end_of_a_command(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_HEAR", 30.0)  # for a busy machine

    def work(here: Callable[[], None]) -> None:
        here()
        time.sleep(60)

    with _command(work) as (process, wait):
        wait()
        os.kill(process.pid or 0, number)
        assert _exit_code(process) == 3


def test_a_second_signal_ends_a_command_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_OF_AN_ECHO", 0.0)

    def work(here: Callable[[], None]) -> None:
        signals = StopSignals()  # a run is open, and takes its time to end
        signals.catch()
        try:
            here()
            time.sleep(60)
        finally:
            signals.hold()
            here()
            time.sleep(60)

    with _command(work) as (process, wait):
        for _ in range(2):
            wait()
            os.kill(process.pid or 0, signal.SIGINT)
        assert _exit_code(process) == STOPPED


def test_a_signal_that_has_no_effect_ends_a_command_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_HEAR", 0.05)

    def work(here: Callable[[], None]) -> None:
        while True:
            with suppress(KeyboardInterrupt):  # as some libraries do where they try out imports
                here()
                time.sleep(60)

    with _command(work) as (process, wait):
        wait()
        os.kill(process.pid or 0, signal.SIGINT)
        assert _exit_code(process) == STOPPED


def test_a_signal_that_python_loses_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_HEAR", 30.0)  # for a busy machine

    class Thing:
        pass

    def lose(reference: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    def work(here: Callable[[], None]) -> None:
        thing = Thing()
        reference = weakref.ref(thing, lose)  # nothing that is raised in its call is passed on; imports have such, too
        del thing
        time.sleep(60)
        del reference

    with _command(work) as (process, _):
        assert _exit_code(process) == 3


def test_a_signal_that_comes_right_before_the_main_thread_waits_ends_the_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_HEAR", 30.0)  # for a busy machine

    def interrupt() -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # the system does not wake the main thread

    def work(here: Callable[[], None]) -> None:
        threading.Thread(target=interrupt).start()
        time.sleep(60)

    with _command(work) as (process, _):
        assert _exit_code(process) == 3


@pytest.mark.parametrize("deaf", [False, True])
def test_a_worker_ends_soon_after_its_leader_was_killed(deaf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKS", 0.01)
    monkeypatch.setattr(module, "SECONDS_WITHOUT_LEADER", 0.01)
    reading, writing = os.pipe()

    def work(leader: int) -> None:
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_with(leader)
        os.write(writing, f"{process_tag()}\n".encode())
        time.sleep(60)

    def lead() -> None:
        get_context("fork").Process(target=work, args=(os.getpid(),)).start()
        time.sleep(60)

    leader = get_context("fork").Process(target=lead)
    leader.start()
    os.close(writing)
    with os.fdopen(reading) as said:
        worker = said.readline().strip()
    assert process_is_alive(worker)
    leader.kill()
    leader.join()
    wait_for(lambda: not process_is_alive(worker))


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
