"""Scores of predicted categories that may be Unknown Category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.summary import macro_f1


@dataclass(frozen=True)
class DecodingScore:
    """The scores of one decoding; Unknown Category counts as incorrect in all but `covered_accuracy`."""

    n: int
    accuracy: float
    macro_f1: float
    unknown_rate: float
    coverage: float  # 1 - unknown_rate
    covered_accuracy: float | None  # of the predictions that name a category; None where none does


def score_decoding(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> DecodingScore:
    """Return the scores of predicted categories (n,), -1 for Unknown Category, against true ones (n,), n > 0.

    Coverage and accuracy on what is covered are those of selective classification (El-Yaniv & Wiener 2010,
    https://jmlr.org/papers/v11/el-yaniv10a.html). Raises ValueError when shapes do not fit or a true category is
    unknown.
    """
    if labels.shape != predicted.shape or not len(labels) or labels.min() < 0:
        raise ValueError(f"predictions {predicted.shape} need as many known labels, at least one, not {labels.shape}")
    covered, correct = predicted >= 0, predicted == labels
    return DecodingScore(
        n=len(labels),
        accuracy=float(correct.mean()),
        macro_f1=macro_f1(labels, predicted),
        unknown_rate=float(1 - covered.mean()),
        coverage=float(covered.mean()),
        covered_accuracy=float(correct[covered].mean()) if covered.any() else None,
    )
