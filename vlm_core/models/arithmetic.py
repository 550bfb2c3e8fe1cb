"""The precision in which a model computes: single precision, or bfloat16 matmuls over float32 weights."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]
TRIAL_SECONDS: Final = 1.0
MOST_SHARE: Final = 0.9  # of fp32's time that bf16 may take: a smaller gain is not worth other digits


def mixed_precision(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which matmuls run in that precision, whatever an outer context says.

    In bf16 weights, sums and what is sensitive to rounding stay in float32 (PyTorch's automatic mixed precision).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def choose_precision(
    setting: Literal["auto", "fp32", "bf16"],
    run: Callable[[], Iterable[Tensor]],
    weights: Iterable[nn.Parameter],
    device: torch.device,
) -> Precision:
    """Return the precision of the setting, of which "auto" is what pays on this machine for what `run` computes."""
    if setting != "auto":
        return setting
    seconds = measure_precisions(run, weights, device)
    share = seconds["bf16"] / seconds["fp32"]
    chosen: Precision = "bf16" if share <= MOST_SHARE else "fp32"
    logger.info(f"precision={chosen}: a pass in bf16 takes {share:.2f} of the time in fp32 on this machine.")
    return chosen


def measure_precisions(
    run: Callable[[], Iterable[Tensor]],
    weights: Iterable[nn.Parameter],
    device: torch.device,
    trial_seconds: float = TRIAL_SECONDS,
) -> dict[Precision, float]:
    """Return the median seconds of a forward and backward pass in each precision, over some seconds, in turn.

    `run` returns what the model computes; no gradient is left behind. Without trainable `weights` there is no backward
    pass.
    """
    trainable = [weight for weight in weights if weight.requires_grad]
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}

    def take(precision: Precision) -> float:
        started = time.perf_counter()
        with mixed_precision(device, precision), torch.set_grad_enabled(bool(trainable)):
            total = torch.stack([part.float().sum() for part in run()]).sum()
        if total.requires_grad:
            torch.autograd.grad(total, trainable, allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for precision in seconds:
        take(precision)  # the first pass asks the system for memory
    until = time.perf_counter() + trial_seconds
    while not seconds["fp32"] or time.perf_counter() < until:
        for precision, passes in seconds.items():
            passes.append(take(precision))
    return {precision: statistics.median(passes) for precision, passes in seconds.items()}
