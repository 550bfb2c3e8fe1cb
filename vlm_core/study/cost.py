"""The cost of a model's predictions (weights, FLOPs, latency, memory), and the Pareto front of cost and score."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.pixels.arrays import Pictures

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

CALLS: Final = 60  # with one image each
BATCH: Final = 32
BATCHES: Final = 5
_MEMORY_SECONDS: Final = 1.0  # of repeated predictions while memory is sampled
_MEMORY_INTERVAL_SECONDS: Final = 0.002  # short enough to see a peak of milliseconds


@dataclass(frozen=True)
class Cost:
    """The cost of prediction, from images of the model's canvas to log-probabilities."""

    weights: int  # parameters in the saved model; tied ones count once
    flops: int | None  # per image, a multiply-add as two; None for a model without PyTorch
    p50_seconds: float  # median of calls with one image
    p95_seconds: float
    images_per_second: float  # at batch size 32, from the median batch
    threads: int
    peak_mib: float  # peak memory at batch size 32, above that of the loaded model


def measure_cost(model: Categoriser, pictures: Pictures, *, threads: int) -> Cost:
    """Return the cost of a model's predictions, measured on images (n, H, W, 3), which are repeated as needed.

    Memory is measured in a separate process that loads the saved model. `multiprocessing` spawns it, so a script that
    calls this needs its `if __name__ == "__main__"`.
    """
    from vlm_core.models.profiling import count_flops, fixed_threads, timed
    from vlm_core.pixels.picture_store import fit_pictures

    batch = fit_pictures(np.take(pictures, np.arange(BATCH), axis=0, mode="wrap"), model.canvas)
    single_images = itertools.cycle([batch[index : index + 1] for index in range(BATCH)])
    with fixed_threads(threads):
        batches = timed(lambda: model.log_probabilities(batch), BATCHES)  # first, as a warm-up of the single calls
        calls = timed(lambda: model.log_probabilities(next(single_images)), CALLS)
        flops = count_flops(lambda: model.log_probabilities(batch[:1]))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        weights = _saved_weights(Path(folder))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak_mib = pool.apply(_peak_mib, (folder, batch, threads))
    p50, p95 = np.quantile(calls, [0.5, 0.95])
    speed = BATCH / statistics.median(batches)
    return Cost(weights, flops or None, float(p50), float(p95), speed, threads, peak_mib)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return whether each point (cost, score) is on the Pareto front; equal points are on it together."""
    front = [False] * len(points)
    best: tuple[float, float] | None = None  # last point on the front
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if best is None or points[index][1] > best[1] or points[index] == best:
            front[index], best = True, points[index]
    return front


def _saved_weights(folder: Path) -> int:
    """Return the number of parameters in all safetensors files below a folder."""
    from safetensors import safe_open

    weights = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            weights += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return weights


def _peak_mib(folder: str, batch: Pictures, threads: int) -> float:
    """Return the peak MiB of a batch above that of the loaded model after its first prediction, in a fresh process."""
    from vlm_core.models.profiling import PeakMemory, fixed_threads
    from vlm_core.models.saved import load_categoriser

    model = load_categoriser(Path(folder))
    with fixed_threads(threads):
        model.log_probabilities(batch[:1])
        with PeakMemory(_MEMORY_INTERVAL_SECONDS) as peak:
            started = time.perf_counter()
            while time.perf_counter() - started < _MEMORY_SECONDS:
                model.log_probabilities(batch)
    return peak.mib
