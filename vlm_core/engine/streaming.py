"""Items that stream through a pool of actors, each of which holds something that is slow to make, such as a model.

Ray Data places the actors, restarts those that died and repeats what they had in hand. An item is a number there, and
what is made of it a short text: the actors read and write data themselves, and nothing large is in Ray's memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from vlm_core.engine.cluster import WorkerEnvironment, cpus_of_nodes
from vlm_core.errors import UserError, redact

T = TypeVar("T")
Work = Callable[[T], Mapping[str, Any]]


def through_actors(make: Callable[[], Work[T]], items: Sequence[T], *, workers: int, cpus: int) -> Iterator[Any]:
    """Yield what actors make of the items, as JSON has it, in no order; each holds what `make` returns.

    There are `workers` of them (0: as many as there are cores for) with so many `cpus` each. What one that died had in
    hand is done again, however often. This process must be connected. Raises UserError with what an actor could not do.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    most = sum(node // cpus for node in cpus_of_nodes())
    if not most:
        raise UserError(f"threads={cpus} is more than the cores of any node of the cluster: give fewer.")
    size = min(workers or most, most, len(items))
    numbers = ray.data.from_items([{"number": number} for number in range(len(items))], override_num_blocks=len(items))
    results = numbers.map_batches(
        _Actor,
        fn_constructor_args=(WorkerEnvironment.here(), make, items),
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=cpus,
    )
    for row in _rows(results):
        done = json.loads(row["result"])
        if problem := done.get("problem"):
            raise UserError(problem)
        yield done["result"]


def _rows(results: Any) -> Iterator[Any]:
    """Yield the rows of a data set. Raises UserError where Ray cannot make them."""
    try:
        yield from results.iter_rows()
    except Exception as error:  # Ray's share no class, and end with what happened
        lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
        raise UserError(
            f"Ray gave up: {lines[-1] if lines else type(error).__name__}. Every node needs this project, with its "
            "extras, in the same version."
        ) from error


class _Actor:
    """Makes something of items; whatever goes wrong is a result, because Ray would repeat it."""

    def __init__(self, given: WorkerEnvironment, make: Callable[[], Work[Any]], items: Sequence[Any]) -> None:
        self._items, self._problem = items, ""
        try:
            given.enter()
            self._work = make()
        except Exception as error:
            self._problem = _told(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"result": np.array([json.dumps(self._do(int(number))) for number in batch["number"]], dtype=object)}

    def _do(self, number: int) -> dict[str, Any]:
        if self._problem:
            return {"problem": self._problem}
        try:
            return {"result": self._work(self._items[number])}
        except Exception as error:
            return {"problem": _told(error)}


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"An actor failed: {type(error).__name__}: {error}"
