"""Profiling tools: seconds, memory, FLOPs and a fixed number of threads."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil


def timed(work: Callable[[], Any], times: int) -> list[float]:
    """Return the seconds of each of `times` calls, after one warm-up call."""
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def count_flops(work: Callable[[], Any]) -> int:
    """Return the floating-point operations of the matmuls and convolutions in a call, a multiply-add as two.

    PyTorch's counter does not know its fused attention on a CPU, so attention runs unfused here, as two matmuls. Nor
    does the counter know oneDNN's linear layers (`models.onednn_linear`); their formula is added.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from vlm_core.models.onednn_linear import onednn_is_faster

    def linear_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    # not every build of PyTorch has this operation
    custom = {torch.ops.mkldnn._linear_pointwise: linear_flops} if onednn_is_faster() else {}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=custom) as counter:
        work()
    return int(counter.get_total_flops())


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Use that number of threads in PyTorch and in numpy's libraries within the context."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    try:
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before)


class PeakMemory:
    """Samples the process's own memory, without shared and mapped files, within its context."""

    def __init__(self, interval_seconds: float = 0.05) -> None:
        self._interval = interval_seconds

    def __enter__(self) -> PeakMemory:
        self._process, self._stopped = psutil.Process(), threading.Event()
        self._initial = self._highest = self._own_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        """Return the peak so far above the initial memory, in MiB."""
        return (self._highest - self._initial) / 2**20

    def _own_bytes(self) -> int:
        memory = self._process.memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval):
            self._highest = max(self._highest, self._own_bytes())
