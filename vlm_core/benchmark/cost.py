"""What a model costs to answer with: weights, arithmetic, seconds and memory; and which models are worth their cost."""

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
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

CALLS: Final = 60  # of one picture each
BATCH: Final = 32
BATCHES: Final = 5
_WATCHED_SECONDS: Final = 1.0  # of memory, looked at so often that a peak of milliseconds is met
_BETWEEN_LOOKS_SECONDS: Final = 0.002


@dataclass(frozen=True)
class Cost:
    """What answering costs, from pictures of the model's canvas to log-probabilities."""

    weights: int  # numbers that the saved model holds, tied ones once
    flops: int | None  # a picture, a multiply-add as two; None where PyTorch does not compute
    p50_seconds: float  # median of calls with one picture
    p95_seconds: float
    pictures_a_second: float  # 32 at a time: of the median batch
    threads: int
    peak_mib: float  # most memory of 32 at a time above that of the loaded model


def measure_cost(model: Categoriser, pictures: NDArray[np.uint8], *, threads: int) -> Cost:
    """The cost of a model's answers, measured on pictures (n, H, W, 3), which are repeated as needed.

    Memory is measured in a process of its own that loads the model as saved; it begins as any process that
    `multiprocessing` spawns, so a script that calls this needs its `if __name__ == "__main__"`.
    """
    from vlm_core.benchmark.profiling import count_flops, fixed_threads, timed
    from vlm_core.pixels.picture_store import fit_pictures

    batch = fit_pictures(np.take(pictures, np.arange(BATCH), axis=0, mode="wrap"), model.canvas)
    one_by_one = itertools.cycle([batch[index : index + 1] for index in range(BATCH)])
    with fixed_threads(threads):
        batches = timed(lambda: model.log_probabilities(batch), BATCHES)  # first: they warm up for the single calls
        calls = timed(lambda: model.log_probabilities(next(one_by_one)), CALLS)
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
    """Whether each point (cost, score) is on the front: none costs no more and scores no less, but for its equals."""
    front = [False] * len(points)
    best: tuple[float, float] | None = None  # last point found on the front
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if best is None or points[index][1] > best[1] or points[index] == best:
            front[index], best = True, points[index]
    return front


def _saved_weights(folder: Path) -> int:
    """Numbers in all safetensors files below a folder."""
    from safetensors import safe_open

    weights = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            weights += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return weights


def _peak_mib(folder: str, batch: NDArray[np.uint8], threads: int) -> float:
    """In a fresh process: what answers for a batch take above the loaded model, which has answered once."""
    from vlm_core.benchmark.profiling import PeakMemory, fixed_threads
    from vlm_core.models.saved import load_categoriser

    model = load_categoriser(Path(folder))
    with fixed_threads(threads):
        model.log_probabilities(batch[:1])
        with PeakMemory(_BETWEEN_LOOKS_SECONDS) as peak:
            started = time.perf_counter()
            while time.perf_counter() - started < _WATCHED_SECONDS:
                model.log_probabilities(batch)
    return peak.mib
