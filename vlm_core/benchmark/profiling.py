"""What measurements are made with: seconds, memory, arithmetic and a fixed number of threads."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil


def timed(work: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of so many calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of PyTorch's matrix products and convolutions in a call, a multiply-add as two.

    On a CPU PyTorch's counter does not know the fused attention and counts nothing of it; so attention is computed
    by its formula here, as the two products that it is. Nor does it know oneDNN's products (`models.products`).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from vlm_core.models.onednn_linear import onednn_is_faster

    def product(tokens: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(tokens) * weight[0]

    known = (
        {torch.ops.mkldnn._linear_pointwise: product} if onednn_is_faster() else {}
    )  # not every PyTorch has that operation
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return int(counter.get_total_flops())


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """So many threads for PyTorch and for the libraries below numpy; as before afterwards."""
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
    """Watches the process's own memory, shared and mapped files left out: `mib` above what it was at first."""

    def __init__(self, interval_seconds: float = 0.05) -> None:
        self._interval = interval_seconds

    def __enter__(self) -> PeakMemory:
        self._process, self._over = psutil.Process(), threading.Event()
        self._first = self._highest = self._own()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        """The highest so far, in MiB."""
        return (self._highest - self._first) / 2**20

    def _own(self) -> int:
        memory = self._process.memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            self._highest = max(self._highest, self._own())
