"""How much of a score is memory: correct predictions on products with a near-copy in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.bootstrap import LEVEL, Estimate
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.seeds import DIFFERENCE, SHARE, over_seeds, within
from vlm_core.evaluation.summary import summarise

ALL: Final = "all"  # in place of a category


@dataclass(frozen=True)
class CategoryLeak:
    """A category's tested rows, with and without a near-copy in training; nan where there are none."""

    category: str  # "all" for all categories
    support: int  # rows
    copied: float  # share of the rows
    accuracy_copied: float
    accuracy_others: float
    correct_with_copy: float  # share of the correct predictions whose product has a near-copy in training


@dataclass(frozen=True)
class ProtocolScore:
    """F1 of a category under both protocols, means over seeds with their interval; nan of one seed."""

    category: str  # "all" for macro-F1
    holdout: Estimate
    original: Estimate
    difference: Estimate  # original minus holdout, with Welch's interval


def measure_leak(predictions: Predictions, copied: NDArray[np.bool_]) -> tuple[CategoryLeak, ...]:
    """Return the leak of each category and, last, of all labelled rows together.

    `copied` (n,) marks the rows with a near-copy in training: `np.isin(groups[split.test], groups[split.train])`.
    Raises ValueError when its shape does not fit.
    """
    if copied.shape != predictions.labels.shape:
        raise ValueError(f"{copied.shape} marks of near-copies do not fit {predictions.labels.shape} rows")
    labels, correct = predictions.labels, predictions.predicted == predictions.labels
    parts = [(name, labels == index) for index, name in enumerate(predictions.categories)]
    return tuple(_leak(name, copied[rows], correct[rows]) for name, rows in [*parts, (ALL, labels >= 0)])


def _leak(category: str, copied: NDArray[np.bool_], correct: NDArray[np.bool_]) -> CategoryLeak:
    return CategoryLeak(
        category=category,
        support=len(correct),
        copied=_share(copied),
        accuracy_copied=_share(correct[copied]),
        accuracy_others=_share(correct[~copied]),
        correct_with_copy=_share(copied[correct]),
    )


def _share(marks: NDArray[np.bool_]) -> float:
    return float(marks.mean()) if len(marks) else float("nan")


def leak_comparison(holdout: Sequence[Predictions], original: Sequence[Predictions]) -> tuple[ProtocolScore, ...]:
    """Return F1 of each category and, last, macro-F1 of one configuration under both protocols, each over its seeds.

    The protocols test different products, so the seeds are not paired. A category is nan under a protocol whose seeds
    do not test it. Raises ValueError when categories differ or there is no seed.
    """
    categories = holdout[0].categories if holdout else ()
    if not original or any(each.categories != categories for each in (*holdout, *original)):
        raise ValueError("two protocols can only be compared on the same categories, with at least one seed each")
    honest, leaking = (np.stack([_scores(each) for each in seeds]) for seeds in (holdout, original))  # (S, C + 1)
    return tuple(
        ProtocolScore(
            category=name,
            holdout=over_seeds(honest[:, index].tolist(), SHARE),
            original=over_seeds(leaking[:, index].tolist(), SHARE),
            difference=_difference(leaking[:, index], honest[:, index]),
        )
        for index, name in enumerate([*categories, ALL])
    )


def _scores(predictions: Predictions) -> NDArray[np.float64]:
    """Return F1 of each category, nan without support, and macro-F1 (C + 1,) of the labelled rows."""
    known = predictions.labels >= 0
    labels, predicted = predictions.labels[known], predictions.predicted[known]
    summary = summarise(labels, predicted, predictions.categories, loss=0.0)
    scores = [
        summary.per_category_f1[name] if (labels == index).any() else np.nan
        for index, name in enumerate(predictions.categories)
    ]
    return np.array([*scores, summary.macro_f1])


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> Estimate:
    """Return mean(a) - mean(b) with the interval of Welch 1947, within -1 to 1.

    https://doi.org/10.1093/biomet/34.1-2.28
    """
    from scipy.stats import ttest_ind

    value = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Estimate(value, float("nan"), float("nan"))
    if a.std() == b.std() == 0:
        return Estimate(value, value, value)
    interval = ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return within(Estimate(value, float(interval.low), float(interval.high)), DIFFERENCE)
