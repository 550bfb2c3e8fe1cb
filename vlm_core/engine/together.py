"""One task that several processes do together, such as a data-parallel training.

Ray Train places them, on one node or on several, and connects them by PyTorch's process group: gloo on processors, NCCL
on GPUs. They work in step, so where one of them dies, all begin again.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, cast

from vlm_core.engine.cluster import (
    NEEDS_CODE,
    SECONDS_OF_A_WAIT,
    TRIES,
    WorkerEnvironment,
    cancel_tasks,
    cpus_of_nodes,
    cpus_per_task,
    first_line,
)
from vlm_core.engine.tasks import R, T
from vlm_core.errors import UserError
from vlm_core.tracking.signals import ending_workers

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT: Final = 24 * 3600  # for one another: while the first one evaluates, say. A death is noticed at once


@dataclass(frozen=True)
class Place:
    """What each process is given: a number of cores, and a GPU or none."""

    cpus: int
    gpu: bool


@dataclass(frozen=True)
class _Ended(Generic[R]):
    """How the processes ended: with what the first one returned, a problem that the user can fix, or a death."""

    result: R | None = None
    problem: str = ""
    death: str = ""


def work_together(work: Callable[[T, Place], R], task: T, *, workers: int, threads: int, device: str) -> R:
    """Call `work` with the task in that many processes at once, and return what the first of them returns.

    Each has as many cores as fit that number, `threads` at most, and a GPU where there are enough of them and `device`
    is not "cpu". Where a process dies, all are ended and begin again, up to three times. This process must be connected
    to a cluster. Raises UserError with what a process raised, and where the cluster is too small.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(_lead).options(scheduling_strategy=here)
    given = WorkerEnvironment.here()
    for number in range(1, TRIES + 1):
        place = place_workers(workers, threads, device)
        reference = remote.remote(given, work, task, workers, place)
        with ending_workers(partial(cancel_tasks, [reference])):
            while not ray.wait([reference], timeout=SECONDS_OF_A_WAIT)[0]:
                pass
        try:
            ended: _Ended[R] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # before the work began
            raise UserError(f"{first_line(error.cause)} {NEEDS_CODE}") from error
        except ray.exceptions.RayError as error:
            ended = _Ended(death=first_line(error))
        if ended.problem:
            raise UserError(ended.problem)
        if not ended.death:
            return ended.result  # type: ignore[return-value]
        if number < TRIES:
            logger.warning("All workers begin again at the last checkpoint, because one of them has died.")
    raise UserError(f"A worker has died {TRIES} times, the last time with: {ended.death}")


def place_workers(workers: int, threads: int, device: str) -> Place:
    """Return what each worker is given. Raises UserError where the cluster is too small for them."""
    import ray

    nodes, gpus = cpus_of_nodes(), int(ray.cluster_resources().get("GPU", 0))
    if sum(nodes) < workers:
        raise UserError(f"workers={workers} is more than the {sum(nodes)} cores of the cluster: give fewer workers=.")
    if device == "cuda" and gpus < workers:
        raise UserError(f"workers={workers} with device=cuda takes as many GPUs, and the cluster has {gpus}.")
    return Place(cpus_per_task(nodes, workers, threads), device != "cpu" and gpus >= workers)


def _lead(given: WorkerEnvironment, work: Callable[[T, Place], R], task: T, workers: int, place: Place) -> _Ended[R]:
    """Let Ray Train run the workers to their end, in a process of its own: it takes over the handling of Ctrl-C."""
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # a node that goes is a worker that dies
    from ray import exceptions, train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class ReleaseCores(ControllerCallback, WorkerGroupCallback):
        """Give the cores back at the end, also where a worker died before it began: Ray Train keeps them then."""

        def after_worker_group_start(self, worker_group: Any) -> None:
            self._cores = worker_group.get_worker_group_state().placement_group_handle

        async def before_controller_shutdown(self) -> None:
            if hasattr(self, "_cores"):
                self._cores.shutdown()

    class _ReleasingTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            """Replace what asks Ray's dashboard every second whether this trainer lives, which may not run."""
            every: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            kept = [each for each in every if type(each).__name__ != "PlacementGroupCleanerCallback"]
            return [ReleaseCores(), *kept]

    api: Any = train  # whose types are those of its first version
    with tempfile.TemporaryDirectory() as folder:  # Ray Train asks for one; our checkpoints are elsewhere
        trainer: Any = _ReleasingTrainer(
            cast("Any", partial(_work, given, work, task, place)),
            torch_config=TorchConfig(timeout_s=_SECONDS_TO_WAIT),
            scaling_config=api.ScalingConfig(
                num_workers=workers, use_gpu=place.gpu, resources_per_worker={"CPU": place.cpus}
            ),
            run_config=api.RunConfig(
                storage_path=folder,
                logging_config=api.LoggingConfig("CRITICAL"),  # what a worker raises is told once, by the command
                worker_runtime_env={"env_vars": {"TORCH_CPP_LOG_LEVEL": "ERROR"}},  # advice that no user can follow
            ),
        )
        try:
            return _Ended(trainer.fit().return_value)
        except api.WorkerGroupError as error:
            failures = [*error.worker_failures.values()]
            problems = [str(each) for each in failures if isinstance(each, UserError)]
            return _Ended(problem=problems[0]) if problems else _Ended(death=first_line(failures[0]))
        except api.ControllerError as error:  # before all of them had begun
            cause = error.controller_failure
            if isinstance(cause, exceptions.RayError) and not isinstance(cause, exceptions.RayTaskError):
                return _Ended(death=first_line(cause))
            return _Ended(problem=f"Ray cannot start the workers: {first_line(cause)} {NEEDS_CODE}")
        except api.TrainingFailedError as error:  # a node was taken away
            return _Ended(death=first_line(error))


def _work(given: WorkerEnvironment, work: Callable[[T, Place], R], task: T, place: Place) -> R:
    """Do the task in a worker. Raises UserError, which can be pickled where its kinds cannot, and whatever else."""
    try:
        given.enter()
        return work(task, place)
    except UserError as error:
        raise UserError(str(error)) from None
