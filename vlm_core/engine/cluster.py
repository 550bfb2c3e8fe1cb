"""The interface to Ray: a cluster of this machine or of many, and tasks that it places, and repeats where a node died.

Nothing here or in what it runs depends on a node: tasks are given the folder, the messages and the addresses of stores,
and what they make is in the store, or in that folder where machines share it.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic

from vlm_core.engine.tasks import Ended, R, T, attempt
from vlm_core.errors import UserError, redact, require_extra
from vlm_core.progress import log_to_stdout, shows_messages
from vlm_core.tracking.signals import SECONDS_TO_STOP, ending_workers, keeping_handlers

logger = logging.getLogger(__name__)

TRIES: Final = 4  # of a task whose node or process dies: what kills every node it is on ends there
OBJECT_STORE_BYTES: Final = 256 << 20  # Ray's default is 30 % of memory; what tasks are given and return is small
_SECONDS_TO_ANSWER: Final = 5.0
SECONDS_OF_A_WAIT: Final = 1.0  # after which Python hears signals
_LONGEST_FOLDER: Final = 35  # characters; below it are sockets, whose names may have 107
NEEDS_CODE: Final = (
    "Every node needs this project in the same version: install it there, or call `ray start` in its folder."
)
# Variables that a task needs to find stores as its leader does. They travel as arguments: Ray shows the settings of a
# job on its dashboard, and some of these are passwords.
_HANDED_ON: Final = re.compile(r"(AWS|AZURE|GOOGLE|HF|MLFLOW|PG|STORE_WAIT|OMP_WAIT|GOMP)[A-Z0-9_]*")


@contextmanager
def connected(address: str, *, object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[None]:
    """Be connected to the cluster at `address` inside the block; empty: to one of this machine, which ends with it.

    Inside a task, or inside another such block, nothing changes. Raises UserError where the cluster cannot be reached.
    """
    require_extra("ray")
    address = address or os.environ.get("RAY_ADDRESS", "")
    # Ray reads them when it is imported.
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"})
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns in every task
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # who may run code here; Ray makes ~/.ray/auth_token
    import ray

    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise UserError(
            f"address={address} is that of Ray's client, which is not supported: run the command on a node of the "
            "cluster with address=auto, or there with `ray job submit`."
        )
    try:
        with keeping_handlers():
            _join(address) if address else _start(object_store_bytes)
    except (ray.exceptions.RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        ray.shutdown()
        where = f"The Ray cluster at address={address} cannot be reached" if address else "Ray cannot be started"
        raise UserError(
            f"{where}: {first_line(error)} This machine must be a node of it (`ray start --address=...`) and have "
            "its token in ~/.ray/auth_token; an empty address= starts a cluster of this machine."
        ) from error
    nodes = cpus_of_nodes()
    logger.info(f"Ray: {sum(nodes)} cores on {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}.")
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Connect to a running cluster. Raises what Ray does, and OSError where nobody answers."""
    import ray

    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()  # Ray would try for two minutes
    folder = os.environ.pop("TMPDIR", None)  # a command's own: the cluster's address is not there
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    finally:
        if folder is not None:
            os.environ["TMPDIR"] = folder


def _start(object_store_bytes: int) -> None:
    """Start a cluster of this machine."""
    import ray

    folder = tempfile.gettempdir()
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        object_store_memory=object_store_bytes,
        include_dashboard=False,
        logging_level=logging.ERROR,
        _temp_dir=folder if len(folder) <= _LONGEST_FOLDER else "/tmp/ray",
    )


def alive_nodes() -> list[Mapping[str, Any]]:
    """Return the nodes that are alive, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def cpus_of_nodes() -> list[int]:
    """Return the cores of each node that is alive."""
    return [int(node["Resources"].get("CPU", 0)) for node in alive_nodes()]


def count_machines() -> int:
    """Return on how many machines the nodes run; a machine may run several."""
    return len({node["NodeManagerHostname"] for node in alive_nodes()})


def require_shared(stores: Sequence[str]) -> None:
    """Raise UserError where the nodes run on several machines and a store is a file, which only this one has."""
    machines = count_machines()
    files = [address for address in stores if address.startswith(("sqlite:", "file:", "/"))]
    if machines > 1 and files:
        raise UserError(
            f"{redact(files[0])} is a file of this machine, and the cluster has {machines}: runs need "
            "MLFLOW_TRACKING_URI with the address of a server or a database that all of them reach, and a search "
            "storage= with that of a database."
        )


def cpus_per_task(nodes: Sequence[int], at_once: int, most: int) -> int:
    """Return the most cores that each of `at_once` tasks can have at the same time, given the cores of each node."""
    return max((cpus for cpus in range(1, most + 1) if sum(node // cpus for node in nodes) >= at_once), default=1)


@dataclass(frozen=True)
class WorkerEnvironment:
    """What a process of any node needs to work as its leader does."""

    variables: Mapping[str, str] = field(repr=False)
    folder: Path
    messages: bool

    @classmethod
    def here(cls) -> WorkerEnvironment:
        """Return those of this process."""
        variables = {name: text for name, text in os.environ.items() if _HANDED_ON.fullmatch(name)}
        return cls(variables, Path.cwd(), shows_messages())

    def enter(self) -> None:
        """Make them those of this process. Raises UserError where the folder is missing on this node."""
        os.environ.update(self.variables)
        if self.messages:
            log_to_stdout()
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UserError(
                f"The folder {self.folder} is not on the node {platform.node()}: all nodes of a cluster need the "
                "folder that a command is started in, under the same path, on a shared disk if they are several "
                "machines."
            ) from error


@dataclass(frozen=True)
class _Attempt(Generic[T]):
    """A task that was given to Ray, for which time, and with how many cores."""

    task: T
    number: int
    cpus: int


@dataclass(frozen=True)
class Cluster:
    """Runs tasks on any node, `workers` at a time; this process must be connected."""

    workers: int
    most_threads: int
    gpu: bool  # whether a task takes a GPU where the cluster has any

    def threads(self, tasks: int) -> int:
        """Return how many threads each of so many tasks may use: as many as it is given cores."""
        return cpus_per_task(cpus_of_nodes(), min(self.workers, tasks), self.most_threads)

    def run(self, work: Callable[[T], R], tasks: Sequence[T], again: Callable[[T], T]) -> Iterator[Ended[T, R]]:
        """Yield how each task ended. One whose node or process died is repeated elsewhere, up to three times."""
        import ray

        gpus = int(self.gpu and ray.cluster_resources().get("GPU", 0) >= 1)
        remote: Any = ray.remote(num_gpus=gpus, max_retries=0)(_attempt)
        cpus = self.threads(len(tasks))
        given = WorkerEnvironment.here()
        waiting = deque((task, 1) for task in tasks)
        running: dict[Any, _Attempt[T]] = {}
        with ending_workers(partial(cancel_tasks, running)):
            while waiting or running:
                largest = max(cpus_of_nodes(), default=0) or cpus  # 0: nodes are still to come
                for reference in [each for each, begun in running.items() if begun.cpus > largest]:
                    ray.cancel(reference, force=True)  # it waits for a node that has died
                    begun = running.pop(reference)
                    waiting.append((again(begun.task), begun.number))
                while waiting and len(running) < self.workers:
                    task, number = waiting.popleft()
                    now = min(cpus, largest)
                    running[remote.options(num_cpus=now).remote(given, work, task)] = _Attempt(task, number, now)
                done, _ = ray.wait([*running], timeout=SECONDS_OF_A_WAIT)
                for reference in done:
                    begun = running.pop(reference)
                    try:
                        ended: Ended[T, R] = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:  # before the task began
                        ended = Ended(begun.task, None, f"{first_line(error.cause)} {NEEDS_CODE}", 0.0)
                    except ray.exceptions.RayError as error:
                        if begun.number < TRIES:
                            logger.warning(f"A task is repeated, because its node or process died. {first_line(error)}")
                            waiting.append((again(begun.task), begun.number + 1))
                            continue
                        ended = Ended(begun.task, None, f"It died {TRIES} times with its node or process.", 0.0)
                    yield ended


def _attempt(given: WorkerEnvironment, work: Callable[[T], R], task: T) -> Ended[T, R]:
    """Do the task on a node."""

    def there(task: T) -> R:
        given.enter()
        return work(task)

    return attempt(there, task)


def cancel_tasks(running: Iterable[Any]) -> None:
    """End tasks politely, as Ctrl-C would, then by force."""
    import ray

    left = [*running]
    for reference in left:
        ray.cancel(reference)
    if left:
        _, left = ray.wait(left, num_returns=len(left), timeout=SECONDS_TO_STOP)
    for reference in left:
        ray.cancel(reference, force=True)


def first_line(error: object) -> str:
    """Return what an error says first; Ray's texts take pages."""
    lines = [line.strip() for line in redact(str(error)).splitlines()]
    return next(filter(None, lines), type(error).__name__)
