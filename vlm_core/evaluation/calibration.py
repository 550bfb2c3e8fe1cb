"""How well predicted probabilities match observed accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as in Guo et al. 2017, https://arxiv.org/abs/1706.04599, and the default of torchmetrics


@dataclass(frozen=True)
class ReliabilityBin:
    """The products whose top probability lies in [low, high); the last bin holds 1 as well."""

    low: float
    high: float
    n: int
    confidence: float  # mean top probability, 0 for an empty bin
    accuracy: float  # share that is correct, 0 for an empty bin


@dataclass(frozen=True)
class Calibration:
    """Three scores, lower is better, and the reliability curve behind the last."""

    nll: float  # nats per product: mean of -log p(true category)
    brier: float  # mean over products of the sum over categories of squared errors, 0 to 2 (Brier 1950)
    ece: float  # expected calibration error of the top category over 15 bins of equal width
    curve: tuple[ReliabilityBin, ...]


def measure_calibration(labels: NDArray[np.int64], log_probabilities: NDArray[np.float32]) -> Calibration:
    """Return the calibration of log-probabilities (n, C) against true categories (n,), n > 0."""
    import torch
    from sklearn.metrics import brier_score_loss

    logs = log_probabilities.astype(np.float64)
    probabilities = np.exp(logs)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # undoes the rounding to float32
    # The last bin is open at 1, and holds a probability of exactly 1 all the same.
    below_one = np.minimum(probabilities.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))
    count = probabilities.shape[1]
    confidence, correct = below_one.max(axis=1), below_one.argmax(axis=1) == labels
    edges = torch.linspace(0, 1, BINS + 1).numpy()
    return Calibration(
        nll=float(-logs[np.arange(len(labels)), labels].mean()),
        brier=float(brier_score_loss(labels, probabilities, labels=np.arange(count), scale_by_half=False)),
        ece=_expected_error(confidence, correct, edges),
        curve=_curve(confidence, correct, edges),
    )


def _expected_error(confidence: NDArray[np.float32], correct: NDArray[np.bool_], edges: NDArray[np.float32]) -> float:
    """Return the expected calibration error of products (n,) in float32, to the last bit that of torchmetrics.

    Its `multiclass_calibration_error` is these lines; importing it takes every command that evaluates seconds.
    """
    import torch

    top = torch.from_numpy(confidence)
    places = torch.bucketize(top, torch.from_numpy(edges), right=True) - 1  # (n,)
    none = torch.zeros(len(edges))
    counts = none.scatter_add(0, places, torch.ones_like(top))
    confidences = torch.nan_to_num(none.scatter_add(0, places, top) / counts)
    accuracies = torch.nan_to_num(none.scatter_add(0, places, torch.from_numpy(correct).float()) / counts)
    return float(torch.sum(torch.abs(accuracies - confidences) * (counts / counts.sum())))


def _curve(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_], edges: NDArray[np.float32]
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of products (n,) between the edges (16,), which are linspace's in float32."""
    bins = np.searchsorted(edges, confidence, side="right") - 1  # (n,)
    counts = np.bincount(bins, minlength=BINS)
    full = np.maximum(counts, 1)
    confidences = np.bincount(bins, weights=confidence, minlength=BINS) / full
    accuracies = np.bincount(bins, weights=correct, minlength=BINS) / full
    bounds = np.linspace(0, 1, BINS + 1)
    return tuple(
        ReliabilityBin(float(low), float(high), int(n), float(confidence), float(accuracy))
        for (low, high), n, confidence, accuracy in zip(pairwise(bounds), counts, confidences, accuracies, strict=True)
    )
