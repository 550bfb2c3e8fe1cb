"""How far figures would move had other products been drawn: intervals from the confusion matrix alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_CELLS_A_PART = 2_000_000  # resamples x categories held at once: 16 MB an array


@dataclass(frozen=True)
class Estimate:
    """A figure with its percentile interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Figures of each resample, over the categories with support."""

    accuracy: NDArray[np.float64]  # (R,)
    macro_f1: NDArray[np.float64]  # (R,)
    f1: NDArray[np.float64]  # (R, C), 0 for categories without support
    worst_recall: NDArray[np.float64]  # (R,)
    natural_accuracy: NDArray[np.float64]  # (R,)
    natural_macro_f1: NDArray[np.float64]  # (R,)


def resample(confusion: NDArray[np.int64], shares: NDArray[np.float64], *, resamples: int, seed: int) -> Resampled:
    """Figures of `resamples` bootstrap samples of the rows behind a confusion matrix (C, C), rows = true category.

    `shares` (C,) are the categories' parts of the catalogue, 0 without support, for the natural-prior figures.

    Every figure is a function of the confusion matrix, and drawing the n_k products of true category k with
    replacement makes its row multinomial(n_k, row / n_k): so rows of the matrix are drawn in place of products, which
    is the same distribution exactly. Each category is drawn by itself, because splits are: they are stratified, hence
    the n_k are settled before a picture is seen, and a resample with another mix would count variance that the
    design excludes (Davison & Hinkley 1997, Bootstrap Methods and their Application, 3.2; scipy.stats.bootstrap
    with one sample a category; the default of pROC, https://doi.org/10.1186/1471-2105-12-77).
    """
    generator = np.random.default_rng(seed)
    part = max(1, _CELLS_A_PART // len(confusion))
    sizes = [min(part, resamples - start) for start in range(0, resamples, part)]
    parts = [_resample_part(confusion, shares, size, generator) for size in sizes]
    names = Resampled.__dataclass_fields__
    return Resampled(**{name: np.concatenate([getattr(drawn, name) for drawn in parts]) for name in names})


def _resample_part(
    confusion: NDArray[np.int64], shares: NDArray[np.float64], size: int, generator: np.random.Generator
) -> Resampled:
    support = confusion.sum(axis=1)  # (C,)
    present = support > 0
    weights = np.divide(shares, support, out=np.zeros(len(support)), where=present)  # (C,) a product's natural weight
    hits = np.zeros((size, len(confusion)))
    chosen, natural_chosen = np.zeros_like(hits), np.zeros_like(hits)  # times a category was the answer
    for index in np.flatnonzero(present):
        answers = np.flatnonzero(confusion[index])
        drawn = generator.multinomial(support[index], confusion[index, answers] / support[index], size=size)
        chosen[:, answers] += drawn
        natural_chosen[:, answers] += drawn * weights[index]
        if confusion[index, index]:
            hits[:, index] = drawn[:, np.searchsorted(answers, index)]
    f1 = _f1(hits, support, chosen)
    return Resampled(
        accuracy=hits.sum(axis=1) / support.sum(),
        macro_f1=f1[:, present].mean(axis=1),
        f1=f1,
        worst_recall=(hits[:, present] / support[present]).min(axis=1),
        natural_accuracy=hits @ weights,
        natural_macro_f1=_f1(hits * weights, shares, natural_chosen)[:, present].mean(axis=1),
    )


def _f1(hits: NDArray[np.float64], support: NDArray[np.number], chosen: NDArray[np.float64]) -> NDArray[np.float64]:
    total = support + chosen
    f1: NDArray[np.float64] = np.divide(2 * hits, total, out=np.zeros_like(hits), where=support > 0)
    return f1


def estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """The figure with the interval between the 2.5th and the 97.5th percentile of its resamples (R,)."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))
