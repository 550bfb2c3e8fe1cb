"""SIGTERM and Ctrl-C while a run is open: the first one stops the work, none interrupts how the run ends."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SECONDS_TO_STOP: Final = 5.0  # for a process to mark its run as stopped


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception; like Ctrl-C, it is not caught by `except Exception`."""


class StopSignals:
    """Handlers of SIGTERM, which raises Terminated once, from `catch` to `release`; from `hold` on, none raises.

    `mlflow run` reacts to Ctrl-C with a SIGTERM to a process that has just received the Ctrl-C itself: the second one
    must not interrupt what the first one started. Outside the main thread, where Python allows no handlers, nothing
    happens.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._stopping = False

    def catch(self) -> None:
        """Handle both signals; a Ctrl-C that is ignored or handled by someone else stays so."""
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
        """Restore the previous handlers."""
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
    """End the workers of this process, started by `multiprocessing`, when the block raises: politely, then by force.

    Otherwise they would first finish all remaining work, because a process that ends waits for them.
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
