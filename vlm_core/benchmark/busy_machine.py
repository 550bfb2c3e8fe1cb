"""Training steps beside processes that want the same cores, with threads that spin or sleep while they wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

COMPETITORS: Final = (0, 2, 4, 8)  # processes that want one core each all the time
TINY_SIZE: Final = 64  # pixels: the project's tiny models; other sizes are published architectures
BATCH: Final = {True: 32, False: 8}  # images per step, of tiny models and of others
ROUNDS: Final = 3  # in which each number of competitors is measured with both kinds of waiting
SECONDS: Final = 3.0  # of steps per measurement, and at least two steps
# What OpenMP does by itself, and what `vlm_core` has it do.
WAITING: Final[Mapping[str, Mapping[str, str]]] = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
}


def measure_busy(family: str, image_size: int, threads: int) -> dict[str, Any]:
    """Return the seconds of a forward and backward pass per image, for each number of competitors and kind of waiting.

    The two kinds are measured in turn, so that they share whatever else the machine does.
    """
    from vlm_core.benchmark.steps import Quartiles

    seconds: dict[str, dict[int, list[float]]] = {name: {count: [] for count in COMPETITORS} for name in WAITING}
    with (
        _worker(family, image_size, threads, "spinning") as spinning,
        _worker(family, image_size, threads, "sleeping") as sleeping,
    ):
        for _ in range(ROUNDS):
            for count in COMPETITORS:
                with _competitors(count):
                    seconds["spinning"][count] += spinning()
                    seconds["sleeping"][count] += sleeping()
    return {
        "family": family,
        "image_size": image_size,
        "threads": threads,
        "cores": os.cpu_count(),
        "waiting": {
            name: {str(count): asdict(Quartiles.of(values)) for count, values in of_kind.items()}
            for name, of_kind in seconds.items()
        },
    }


@contextmanager
def _worker(family: str, image_size: int, threads: int, waiting: str) -> Iterator[Callable[[], list[float]]]:
    """Start a process with a model; yield the function that has it take steps and returns their seconds per image."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING["sleeping"]}
    command = [sys.executable, "-m", __name__, family, str(image_size), str(threads), str(SECONDS)]
    with subprocess.Popen(
        command, env={**environment, **WAITING[waiting]}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        into, out = process.stdin, process.stdout

        def steps() -> list[float]:
            into.write("\n")
            into.flush()
            found: list[float] = json.loads(out.readline())
            return found

        try:
            steps()  # a warm-up
            yield steps
        finally:
            process.kill()


@contextmanager
def _competitors(count: int) -> Iterator[None]:
    """Run that many processes that compute without end, within the context."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _serve_steps(arguments: Sequence[str]) -> None:
    """Take steps for some seconds whenever a line comes in, and print their seconds per image as JSON."""
    import torch

    from vlm_core.benchmark.device_steps import StepBench, architecture_of

    family, image_size, threads, at_least = arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3])
    torch.set_num_threads(threads)
    images = BATCH[image_size == TINY_SIZE]
    with tempfile.TemporaryDirectory() as folder:
        bench = StepBench.build(architecture_of(family, image_size), images, Path(folder))
        for _ in sys.stdin:
            seconds: list[float] = []
            while sum(seconds) < at_least or len(seconds) < 2:
                started = time.perf_counter()
                bench.loss_and_gradients(0, "fp32", images)
                seconds.append(time.perf_counter() - started)
            sys.stdout.write(json.dumps([each / images for each in seconds]) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _serve_steps(sys.argv[1:])
