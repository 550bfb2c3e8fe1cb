"""Tasks in processes of this machine, which end soon after the one that started them, from their first moment on.

This module is all that a worker has imported when it begins to watch: what it works with takes seconds to import, and
more on a busy machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from vlm_core.engine.tasks import Ended, R, T, attempt
from vlm_core.errors import UserError
from vlm_core.progress import log_to_stdout, shows_messages
from vlm_core.tracking.signals import end_with, ending_workers


@dataclass(frozen=True)
class Processes:
    """Runs tasks in `workers` processes that share `threads`; a single one is this process."""

    workers: int
    most_threads: int

    def threads(self, tasks: int) -> int:
        """Return how many threads each of so many tasks may use."""
        at_once = min(self.workers, tasks)
        return self.most_threads if at_once < 2 else max(1, min(self.most_threads, os.cpu_count() or 1) // self.workers)

    def run(self, work: Callable[[T], R], tasks: Sequence[T], again: Callable[[T], T]) -> Iterator[Ended[T, R]]:
        """Yield how each task ended. Raises UserError where a process was killed, as when memory runs out."""
        if min(self.workers, len(tasks)) < 2:
            yield from (attempt(work, task) for task in tasks)
            return
        context = multiprocessing.get_context("spawn")
        given = (os.getpid(), shows_messages())
        with ProcessPoolExecutor(self.workers, context, initializer=start_worker, initargs=given) as pool:
            futures = [pool.submit(_attempt, work, task) for task in tasks]
            try:
                with ending_workers():
                    for future in as_completed(futures):
                        yield future.result()
            except BrokenProcessPool:
                raise UserError(
                    "A worker process was killed. Run the same command again to resume; if memory ran out, use fewer "
                    "workers=."
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def start_worker(leader: int, messages: bool) -> None:
    """Watch the process `leader`, which started this one, and log as it does if it shows `messages`."""
    end_with(leader)
    if messages:
        log_to_stdout()


def _attempt(work: Callable[[T], R], task: T) -> Ended[T, R]:
    """Do the task; a worker that was stopped exits, because its pool would have it start another one."""
    try:
        return attempt(work, task)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)
