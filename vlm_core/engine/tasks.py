"""Tasks that run in other processes: what the engines share, which are processes of this machine and a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vlm_core.errors import redact

if TYPE_CHECKING:
    from vlm_core.config import WorkersSettings

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ended(Generic[T, R]):
    """How a task ended."""

    task: T
    result: R | None  # None where it failed
    error: str  # "" where it did not
    seconds: float


class Engine(Protocol):
    """Runs tasks, `workers` at a time."""

    def threads(self, tasks: int) -> int:
        """Return how many threads each of so many tasks may use."""

    def run(self, work: Callable[[T], R], tasks: Sequence[T], again: Callable[[T], T]) -> Iterator[Ended[T, R]]:
        """Call `work` with each task, in any order, and yield how each ended; an error is a value, and not raised.

        A task that died with its node is repeated, as `again` returns it. Where the iterator is left early, by an
        exception or by Ctrl-C, all tasks have been stopped some seconds later. Raises UserError where none can be run.
        `work` and the tasks are pickled, unless one worker of this machine is enough.
        """


def attempt(work: Callable[[T], R], task: T) -> Ended[T, R]:
    """Call `work` with the task. An error becomes its text, because not every exception survives being pickled."""
    started = time.monotonic()
    result, error = None, ""
    try:
        result = work(task)
    except Exception as problem:  # whatever a task fails with, the others continue
        error = redact(f"{type(problem).__name__}: {problem}")
    return Ended(task, result, error, time.monotonic() - started)


def run_children(
    engine: Engine, parent: str, work: Callable[[T], R], tasks: Sequence[T], again: Callable[[T], T]
) -> Iterator[Ended[T, R]]:
    """Run tasks that log runs below the run `parent`; those left early end as KILLED, on whatever machine they ran."""
    try:
        yield from engine.run(work, tasks, again)
    except BaseException:
        from vlm_core.tracking.opening import end_orphans

        end_orphans(parent)
        raise


@contextmanager
def open_engine(settings: WorkersSettings, *stores: str) -> Iterator[Engine]:
    """Yield the engine that the settings name, for the block.

    Raises UserError where its cluster cannot be reached, or where not all of its machines reach one of the stores.
    """
    if settings.engine == "local":
        from vlm_core.engine.local_processes import Processes

        yield Processes(settings.workers, settings.threads)
        return
    from vlm_core.engine.cluster import Cluster, connected, require_shared

    with connected(settings.address):
        require_shared(stores)
        yield Cluster(settings.workers, settings.threads, gpu=settings.device != "cpu")
