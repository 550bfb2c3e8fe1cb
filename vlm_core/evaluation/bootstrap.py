"""How far figures would move had other products been drawn: intervals from the confusion matrix alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
PRIOR_PRODUCTS: Final = 1.0  # added to each category before products are drawn: half right, half wrong
_MEANS: Final = ("accuracy", "natural_accuracy", "macro_f1")
_CELLS_A_PART = 2_000_000  # resamples x categories held at once: 16 MB an array


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ResampledMetrics:
    """Figures of each resample, over the categories with support."""

    accuracy: NDArray[np.float64]  # (R,)
    macro_f1: NDArray[np.float64]  # (R,)
    f1: NDArray[np.float64]  # (R, C), 0 for categories without support
    natural_accuracy: NDArray[np.float64]  # (R,)
    natural_macro_f1: NDArray[np.float64]  # (R,)


def resample_metrics(
    confusion: NDArray[np.int64], shares: NDArray[np.float64], *, resamples: int, seed: int
) -> ResampledMetrics:
    """Figures of `resamples` bootstrap samples of the rows behind a confusion matrix (C, C), rows = true category.

    `shares` (C,) are the categories' parts of the catalogue, 0 without support, for the natural-prior figures.

    Every figure is a function of the confusion matrix, and drawing the n_k products of true category k with
    replacement makes its row multinomial(n_k, row / n_k): so rows of the matrix are drawn in place of products, which
    is the same distribution exactly. Each category is drawn by itself, because splits are: they are stratified, hence
    the n_k are settled before a picture is seen, and a resample with another mix would count variance that the
    design excludes (Davison & Hinkley 1997, Bootstrap Methods and their Application, 3.2; scipy.stats.bootstrap
    with one sample a category; the default of pROC, https://doi.org/10.1186/1471-2105-12-77).

    To the products of each category one is added that is half right and half wrong, anywhere (Jeffreys' prior of a
    recall: Brown, Cai & DasGupta 2001, https://doi.org/10.1214/ss/1009213286). Where a model makes no error the plain
    bootstrap makes none either, and its interval of a category's F1 held the truth in 79 to 95 % of simulated draws
    with 13 to 120 products; with the added one in 93 to 98 %. What it shifts adds up over categories, so the resamples
    of their means (accuracies and macro-F1, but not the skewed one under the natural prior) are shifted back.
    """
    generator = np.random.default_rng(seed)
    support = confusion.sum(axis=1)
    part = max(1, _CELLS_A_PART // len(confusion))
    sizes = [min(part, resamples - start) for start in range(0, resamples, part)]
    parts = [_figures(*_draw(confusion, shares, size, generator), support, shares) for size in sizes]
    names = ResampledMetrics.__dataclass_fields__
    drawn = ResampledMetrics(**{name: np.concatenate([getattr(each, name) for each in parts]) for name in names})
    observed, expected = (
        _figures(
            matrix.diagonal()[None],
            matrix.sum(axis=0)[None],
            (_weights(shares, support) @ matrix)[None],
            support,
            shares,
        )
        for matrix in (confusion.astype(np.float64), _with_prior(confusion))
    )
    shifted = {name: getattr(drawn, name) + getattr(observed, name) - getattr(expected, name) for name in _MEANS}
    return replace(drawn, **{name: np.clip(samples, 0, 1) for name, samples in shifted.items()})


def _with_prior(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """The matrix (C, C) that resamples scatter around: each row as large as it was."""
    support = confusion.sum(axis=1, keepdims=True)
    right = np.eye(len(confusion))
    prior = PRIOR_PRODUCTS / 2 * (right + (1 - right) / max(len(confusion) - 1, 1))
    return np.asarray(support * (confusion + prior) / (support + PRIOR_PRODUCTS))


def _weights(shares: NDArray[np.float64], support: NDArray[np.int64]) -> NDArray[np.float64]:
    """The natural weight (C,) of a product of each category."""
    return np.divide(shares, support, out=np.zeros(len(support)), where=support > 0)


def _draw(
    confusion: NDArray[np.int64], shares: NDArray[np.float64], size: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """How often each category was rightly the answer, was it at all, and was it by natural weight (R, C)."""
    support = confusion.sum(axis=1)  # (C,)
    weights = _weights(shares, support)
    hits = np.zeros((size, len(confusion)))
    chosen, natural_chosen = np.zeros_like(hits), np.zeros_like(hits)
    for index in np.flatnonzero(support):
        hits[:, index], answers = _draw_answers(confusion[index], int(index), size, generator)
        chosen += answers
        natural_chosen += answers * weights[index]
    return hits, chosen, natural_chosen


def _figures(
    hits: NDArray[np.float64],
    chosen: NDArray[np.float64],
    natural_chosen: NDArray[np.float64],
    support: NDArray[np.int64],
    shares: NDArray[np.float64],
) -> ResampledMetrics:
    present = support > 0
    weights = _weights(shares, support)
    f1 = _f1(hits, support, chosen)
    return ResampledMetrics(
        accuracy=hits.sum(axis=1) / support.sum(),
        macro_f1=f1[:, present].mean(axis=1),
        f1=f1,
        natural_accuracy=hits @ weights,
        natural_macro_f1=_f1(hits * weights, shares, natural_chosen)[:, present].mean(axis=1),
    )


def _draw_answers(
    row: NDArray[np.int64], index: int, size: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many of a category's products were right (R,), and how many got each answer (R, C)."""
    products = row.sum()
    wrong = np.flatnonzero((row > 0) & (np.arange(len(row)) != index))
    half = PRIOR_PRODUCTS / 2
    seen = np.concatenate([[row[index] + half], row[wrong], [half]])  # right, each error seen, and any error
    drawn = generator.multinomial(products, seen / (products + PRIOR_PRODUCTS), size=size)
    answers = np.repeat(drawn[:, -1:] / max(len(row) - 1, 1), len(row), axis=1)
    answers[:, index] = drawn[:, 0]
    answers[:, wrong] += drawn[:, 1:-1]
    return drawn[:, 0], answers


def _f1(hits: NDArray[np.float64], support: NDArray[np.number], chosen: NDArray[np.float64]) -> NDArray[np.float64]:
    total = support + chosen
    f1: NDArray[np.float64] = np.divide(2 * hits, total, out=np.zeros_like(hits), where=support > 0)
    return f1


def estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """The figure with the interval between the 2.5th and the 97.5th percentile of its resamples (R,), or up to it."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def corrected_estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """The figure with its percentile interval, corrected for resamples (R,) that lie more to one side of it.

    Efron 1981, https://doi.org/10.2307/3314608: with 13 of 613 products in one category the interval of macro-F1 held
    the truth in 90 to 93 % of simulated draws without, and in 94 % with it.
    """
    from scipy.stats import norm

    below = ((samples < value).mean() + (samples <= value).mean()) / 2
    side = norm.ppf(np.clip(below, 1 / len(samples), 1 - 1 / len(samples)))
    ends = norm.cdf(2 * side + norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = np.quantile(samples, ends)
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))
