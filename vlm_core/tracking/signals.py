"""SIGTERM and Ctrl-C: the first one stops the work, none interrupts how a run ends, a second one ends the process."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

SECONDS_TO_STOP: Final = 5.0  # for a process to mark its run as stopped
SECONDS_TO_HEAR: Final = 2.0  # for a command to begin its end, after a signal
SECONDS_OF_AN_ECHO: Final = 1.0  # after a signal, in which another one means the same
SECONDS_OF_WAKING: Final = 0.5  # after a signal that the main thread has not heard, in which it is sent again
SECONDS_OF_MLFLOW: Final = 5.0  # after a Ctrl-C, in which a SIGTERM means the same
SECONDS_BETWEEN_CHECKS: Final = 0.5  # of a worker, whether the process that started it is alive
SECONDS_WITHOUT_LEADER: Final = 2.5  # for a worker to mark its run as stopped
STOPPED: Final = 130  # exit code, which a shell reports after Ctrl-C


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception; like Ctrl-C, it is not caught by `except Exception`."""


@dataclass
class _Process:
    """What this process knows of the signals it was sent."""

    before: dict[signal.Signals, Any] = field(default_factory=dict)  # handlers that ours took the place of
    users: int = 0  # that want them handled
    holding: int = 0  # users that let none interrupt them
    first: tuple[int, float] | None = None  # the signal that was heard, and when, by `time.monotonic`
    pending: int = 0  # a signal that was heard while it was held
    lost: int = 0  # one whose exception Python could not pass on
    sent_again: float = -math.inf  # when a signal was, by `time.monotonic`
    ending: bool = False  # whether what the first signal raised has arrived where the work ends
    is_command: bool = False
    is_over: bool = False  # the command, while Python still ends


_process = _Process()


class StopSignals:
    """Handlers of both signals, which raise Terminated or KeyboardInterrupt, from `catch` to `release`.

    From `hold` on none raises, until `release` raises what was held back. `mlflow run` reacts to Ctrl-C with a SIGTERM
    to a process that has just received the Ctrl-C itself: the two are one. A second one that comes later ends a command
    at once, see `catching`. Outside the main thread, where Python allows no handlers, nothing happens.
    """

    def __init__(self) -> None:
        self._catches = self._holds = False

    def catch(self) -> None:
        """Handle both signals; a Ctrl-C that is ignored or handled by someone else stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        if not _process.users:
            _install()
        _process.users += 1
        self._catches = True

    def hold(self) -> None:
        """Let neither signal interrupt what follows, until `release`."""
        if self._catches and not self._holds:
            self._holds = True
            _process.holding += 1
            _process.ending = _process.first is not None

    def release(self) -> None:
        """Restore the previous handlers. Raises KeyboardInterrupt or Terminated for a signal that was held back."""
        if not self._catches:
            return
        self._catches = False
        _process.users -= 1
        if self._holds:
            self._holds = False
            _process.holding -= 1
        if not _process.users:
            _restore()
        if _process.pending and not _process.holding:
            number, _process.pending = _process.pending, 0
            raise _stop(number)


@contextmanager
def catching() -> Iterator[None]:
    """Handle both signals for a whole command: heard within two seconds, and a second one ends the process at once.

    A thread watches, because Python calls no handler while a library computes or waits, as SQLite does for a lock,
    because what a handler raises is lost where Python cannot pass it on, as in the midst of an import, and because a
    signal that comes right before a call that waits does not end the waiting.
    """
    signals = StopSignals()
    signals.catch()
    if not signals._catches or _process.is_command:
        try:
            yield
        finally:
            signals.release()
        return
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    wakeup, unraisable = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False), sys.unraisablehook

    def note_lost(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            _process.lost = signal.SIGTERM if isinstance(lost.exc_value, Terminated) else signal.SIGINT
        else:
            unraisable(lost)

    sys.unraisablehook = note_lost
    _process.is_command = True
    threading.Thread(target=_watch_signals, args=(ears,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        _process.ending = _process.is_over = True
        if _process.first is None:  # else the process ends, watched to its end
            _process.ending = _process.is_over = _process.is_command = False
            sys.unraisablehook = unraisable
            signal.set_wakeup_fd(wakeup)
            mouth.close()
            signals.release()


def _watch_signals(ears: socket.socket) -> None:
    """End the process at a second signal, or where the first one has no effect; return when `ears` are closed."""
    first = None
    with ears:
        while number := ears.recv(1)[:1]:
            if time.monotonic() - _process.sent_again < SECONDS_OF_AN_ECHO:
                continue
            if _process.before.keys() & {*number} and not _is_echo(number[0], first):
                if first:
                    _end_at_once()
                first = (number[0], time.monotonic())
                threading.Thread(target=_watch_end, args=first, name="end", daemon=True).start()


def _watch_end(number: int, sent: float) -> None:
    """End the process where nothing ends; where a run is open, say how to end it at once."""
    limit = time.monotonic() + SECONDS_TO_HEAR
    while not _process.ending:
        if _process.lost:
            number, _process.lost, _process.first, sent = _process.lost, 0, None, time.monotonic()
        is_unheard = _process.first is None and signal.getsignal(number) is _hear  # no handler of a library
        if is_unheard and time.monotonic() - sent < SECONDS_OF_WAKING:
            _process.sent_again = time.monotonic()
            os.kill(os.getpid(), number)
        if time.monotonic() > limit:
            if _process.users == 1:  # no run is open: nothing is lost
                _end_at_once()
            limit = math.inf
            _say("Stopping when the present step has ended; press Ctrl-C again to end at once.")
        time.sleep(0.05)
    while not _process.is_over:
        time.sleep(0.05)
    time.sleep(SECONDS_TO_HEAR)  # Python waits for threads
    os._exit(STOPPED)


def _is_echo(number: int, first: tuple[int, float] | None) -> bool:
    if first is None:
        return False
    after_ctrl_c = (first[0], number) == (signal.SIGINT, signal.SIGTERM)
    return time.monotonic() - first[1] < (SECONDS_OF_MLFLOW if after_ctrl_c else SECONDS_OF_AN_ECHO)


def _say(sentence: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def _end_at_once() -> None:
    _say("Stopped at once; the next command marks a run that was open as KILLED.")
    os._exit(STOPPED)


def _install() -> None:
    _process.first, _process.pending, _process.ending = None, 0, False
    _process.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, _hear)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _process.before[signal.SIGINT] = signal.signal(signal.SIGINT, _hear)


def _restore() -> None:
    while _process.before:
        signal.signal(*_process.before.popitem())


def _hear(number: int, frame: FrameType | None) -> None:
    if _is_echo(number, _process.first):
        return
    _process.first = (number, time.monotonic())
    if _process.holding:
        _process.pending = number
    else:
        raise _stop(number)


def _stop(number: int) -> KeyboardInterrupt:
    return Terminated("SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def ending_workers(end: Callable[[], None] | None = None) -> Iterator[None]:
    """End the workers of this process when the block raises: those of `multiprocessing`, or as `end` does it.

    Otherwise they would first finish all remaining work, because a process that ends waits for them.
    """
    try:
        yield
    except BaseException:
        _process.ending = True
        (end or _end_children)()
        raise


def _end_children() -> None:
    """End the processes that `multiprocessing` started: politely, then by force."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    end = time.monotonic() + SECONDS_TO_STOP
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
        worker.kill()


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the handlers of both signals after the block, in which a library sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def end_with(leader: int) -> None:
    """End this worker soon after the process `leader`, which started it, has ended; nobody waits for its work.

    First as Ctrl-C would, so that its run is marked as stopped, then by force.
    """

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(SECONDS_BETWEEN_CHECKS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_WITHOUT_LEADER)
        os._exit(1)

    threading.Thread(target=watch, name="leader", daemon=True).start()
