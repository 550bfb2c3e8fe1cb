"""Scores on test products that are new to a model, where it was also tested on others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.bootstrap import Estimate, corrected_estimate, resample_metrics
from vlm_core.evaluation.summary import summarise

MEANING: Final = {
    "unseen": "that no weights known here were pretrained on",
    "new": "that are, with their near-copies, in neither pretraining nor training",
}


@dataclass(frozen=True)
class SubsetScore:
    """Scores on some of the test products."""

    products: int
    accuracy: Estimate
    macro_f1: Estimate  # over the categories with such products


def score_subsets(
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    categories: tuple[str, ...],
    subsets: Mapping[str, NDArray[np.bool_]],
    *,
    resamples: int,
    seed: int,
) -> dict[str, SubsetScore]:
    """Return the scores of true and predicted categories (n,) on each subset (n,) that has a product."""
    scores = {}
    for name, rows in subsets.items():
        if not rows.any():
            continue
        summary = summarise(labels[rows], predicted[rows], categories, loss=0.0)
        shares = summary.confusion.sum(axis=1) / rows.sum()
        resampled = resample_metrics(summary.confusion, shares, resamples=resamples, seed=seed)
        scores[name] = SubsetScore(
            products=int(rows.sum()),
            accuracy=corrected_estimate(summary.accuracy, resampled.accuracy),
            macro_f1=corrected_estimate(summary.macro_f1, resampled.macro_f1),
        )
    return scores
