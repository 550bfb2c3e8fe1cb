"""Bootstrap intervals of metrics, from the confusion matrix alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
PRIOR_PRODUCTS: Final = 1.0  # added to each category before resampling: half correct, half incorrect
_MEANS: Final = ("accuracy", "natural_accuracy", "macro_f1")
_CELLS_PER_BATCH = 2_000_000  # resamples x categories in memory at once: 16 MB an array


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float

    def __neg__(self) -> Estimate:
        """Return the estimate of the same difference the other way round."""
        return Estimate(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class ResampledMetrics:
    """The metrics of each resample, over the categories with support."""

    accuracy: NDArray[np.float64]  # (R,)
    macro_f1: NDArray[np.float64]  # (R,)
    f1: NDArray[np.float64]  # (R, C), 0 for categories without support
    natural_accuracy: NDArray[np.float64]  # (R,)
    natural_macro_f1: NDArray[np.float64]  # (R,)
    # (C,) added to F1 in means over categories, as it has been in macro_f1
    f1_shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def resample_metrics(
    confusion: NDArray[np.int64], shares: NDArray[np.float64], *, resamples: int, seed: int
) -> ResampledMetrics:
    """Return the metrics of `resamples` bootstrap samples of the rows behind a confusion matrix (C, C), rows = true.

    `shares` (C,) are the categories' shares of the catalogue, 0 without support, for the natural-prior metrics.

    Every metric is a function of the confusion matrix, and sampling the n_k products of true category k with
    replacement makes its row multinomial(n_k, row / n_k): so rows of the matrix are sampled in place of products,
    which is the same distribution exactly. Each category is sampled by itself, because splits are: they are
    stratified, so the n_k are fixed by design, and a resample with another mix would add variance that the design
    excludes (Davison & Hinkley 1997, Bootstrap Methods and their Application, 3.2; scipy.stats.bootstrap with one
    sample a category; the default of pROC, https://doi.org/10.1186/1471-2105-12-77).

    To the products of each category one is added that is half correct and half incorrect, spread evenly over the
    other categories (Jeffreys' prior of a recall: Brown, Cai & DasGupta 2001,
    https://doi.org/10.1214/ss/1009213286). Where a model makes no error the plain bootstrap makes none either, and
    its interval of a category's F1 held the truth in 79 to 95 % of simulations with 13 to 120 products; with the
    added one in 93 to 98 %. Its bias adds up over categories, so the resamples of their means (accuracies and
    macro-F1, but not the skewed one under the natural prior) are shifted back.
    """
    generator = np.random.default_rng(seed)
    support = confusion.sum(axis=1)
    batch = max(1, _CELLS_PER_BATCH // len(confusion))
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    batches = [_metrics(*_sample_counts(confusion, shares, size, generator), support, shares) for size in sizes]
    names = [name for name in ResampledMetrics.__dataclass_fields__ if name != "f1_shift"]
    sampled = ResampledMetrics(**{name: np.concatenate([getattr(part, name) for part in batches]) for name in names})
    observed, expected = (
        _metrics(
            matrix.diagonal()[None],
            matrix.sum(axis=0)[None],
            (_weights(shares, support) @ matrix)[None],
            support,
            shares,
        )
        for matrix in (confusion.astype(np.float64), _with_prior(confusion))
    )
    shifted = {name: getattr(sampled, name) + getattr(observed, name) - getattr(expected, name) for name in _MEANS}
    means = {name: np.clip(samples, 0, 1) for name, samples in shifted.items()}
    return replace(sampled, **means, f1_shift=(observed.f1 - expected.f1)[0])


def _with_prior(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the expected matrix (C, C) of a resample: the prior added, each row scaled to its own support."""
    support = confusion.sum(axis=1, keepdims=True)
    correct = np.eye(len(confusion))
    prior = PRIOR_PRODUCTS / 2 * (correct + (1 - correct) / max(len(confusion) - 1, 1))
    return np.asarray(support * (confusion + prior) / (support + PRIOR_PRODUCTS))


def _weights(shares: NDArray[np.float64], support: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the natural weight (C,) of one product of each category."""
    return np.divide(shares, support, out=np.zeros(len(support)), where=support > 0)


def _sample_counts(
    confusion: NDArray[np.int64], shares: NDArray[np.float64], size: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return true positives, predictions and naturally weighted predictions of each category, (R, C) each."""
    support = confusion.sum(axis=1)  # (C,)
    weights = _weights(shares, support)
    hits = np.zeros((size, len(confusion)))
    predicted, natural_predicted = np.zeros_like(hits), np.zeros_like(hits)
    for index in np.flatnonzero(support):
        hits[:, index], counts = _sample_predictions(confusion[index], int(index), size, generator)
        predicted += counts
        natural_predicted += counts * weights[index]
    return hits, predicted, natural_predicted


def _metrics(
    hits: NDArray[np.float64],
    predicted: NDArray[np.float64],
    natural_predicted: NDArray[np.float64],
    support: NDArray[np.int64],
    shares: NDArray[np.float64],
) -> ResampledMetrics:
    present = support > 0
    weights = _weights(shares, support)
    f1 = _f1(hits, support, predicted)
    return ResampledMetrics(
        accuracy=hits.sum(axis=1) / support.sum(),
        macro_f1=f1[:, present].mean(axis=1),
        f1=f1,
        natural_accuracy=hits @ weights,
        natural_macro_f1=_f1(hits * weights, shares, natural_predicted)[:, present].mean(axis=1),
    )


def _sample_predictions(
    row: NDArray[np.int64], index: int, size: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return one true category's correct predictions (R,) and its predictions by category (R, C)."""
    products = row.sum()
    errors = np.flatnonzero((row > 0) & (np.arange(len(row)) != index))
    half = PRIOR_PRODUCTS / 2
    outcomes = np.concatenate([[row[index] + half], row[errors], [half]])  # correct, each observed error, any error
    sampled = generator.multinomial(products, outcomes / (products + PRIOR_PRODUCTS), size=size)
    counts = np.repeat(sampled[:, -1:] / max(len(row) - 1, 1), len(row), axis=1)
    counts[:, index] = sampled[:, 0]
    counts[:, errors] += sampled[:, 1:-1]
    return sampled[:, 0], counts


def _f1(hits: NDArray[np.float64], support: NDArray[np.number], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    total = support + predicted
    f1: NDArray[np.float64] = np.divide(2 * hits, total, out=np.zeros_like(hits), where=support > 0)
    return f1


def estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """Return the value with the 2.5th to 97.5th percentile of its resamples (R,), widened to include the value."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def corrected_estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """Return the value with the bias-corrected percentile interval of its resamples (R,).

    Efron 1981, https://doi.org/10.2307/3314608: with 13 of 613 products in one category the interval of macro-F1 held
    the truth in 90 to 93 % of simulations without the correction, and in 94 % with it.
    """
    from scipy.special import ndtr, ndtri

    below = ((samples < value).mean() + (samples <= value).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(samples), 1 - 1 / len(samples)))
    ends = ndtr(2 * bias + ndtri([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = np.quantile(samples, ends)
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))
