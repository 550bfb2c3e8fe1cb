"""Work on many pictures in processes, one for each core, in order and a few tasks at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final, TypeVar

from vlm_core.errors import UserError
from vlm_core.progress import shows_messages

T = TypeVar("T")
R = TypeVar("R")
MOST_THREADS: Final = 8  # each may need some hundred megabytes to decode a picture


def in_processes(work: Callable[[T], R], tasks: Iterable[T], *, worth: bool = True) -> Iterator[R]:
    """Yield what `work` returns for each task, in their order, from processes where they are `worth` their start.

    Otherwise, and outside commands, threads do it: a script without a main guard would be run again by each process.
    What `work` raises is raised here. Raises UserError where a process is killed.
    """
    is_worth = worth and cores() > 1 and shows_messages() and multiprocessing.parent_process() is None
    with _processes() if is_worth else ThreadPoolExecutor(min(MOST_THREADS, cores())) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > 2 * cores():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError("A process that reads pictures was killed: free some memory, then start again.") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn"), _begin)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    """Leave Ctrl-C to the process that leads, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_leader, daemon=True).start()


def _end_with_leader() -> None:
    leader = multiprocessing.parent_process()
    if leader:
        leader.join()
        os._exit(1)
