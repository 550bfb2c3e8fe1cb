"""SIGTERM and Ctrl-C while a run is open: the first one stops the work, none cuts short how the run ends."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SECONDS_TO_STOP: Final = 5.0  # of a process, to say of its run that it was stopped


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the program stood; it passes whatever catches `Exception`, as Ctrl-C does."""


class StopSignals:
    """From `catch` to `release` SIGTERM raises Terminated, once; from `hold` on, no signal raises anything.

    `mlflow run` answers Ctrl-C with a SIGTERM to a process that has just had the Ctrl-C itself: the second one must
    not interrupt what the first one set going. Outside the main thread, where Python lets nobody handle signals,
    nothing happens.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._stopping = False

    def catch(self) -> None:
        """Take both signals over; a Ctrl-C that is ignored or handled by someone else stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def hold(self) -> None:
        """Ignore both signals until `release`."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def release(self) -> None:
        """Give both signals back to who had them."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = True
            raise Terminated("SIGTERM")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        raise KeyboardInterrupt


@contextmanager
def ending_workers() -> Iterator[None]:
    """Whatever interrupts what is inside ends this process's workers, too: first as Ctrl-C would, then at any price.

    Those are the processes started by `multiprocessing`. Without this they would do all that is left first: a process
    that is asked to end waits for them.
    """
    try:
        yield
    except BaseException:
        workers = multiprocessing.active_children()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(SECONDS_TO_STOP)
            worker.kill()
        raise
