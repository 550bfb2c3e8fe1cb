"""How good answers are that may be Unknown Category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.summary import macro_f1


@dataclass(frozen=True)
class DecodingScore:
    """Scores of one decision rule; Unknown Category counts as wrong everywhere but in `covered_accuracy`."""

    n: int
    accuracy: float
    macro_f1: float
    unknown_rate: float
    coverage: float  # 1 - unknown_rate
    covered_accuracy: float | None  # of the answers that name a category; None where none does


def score_decoding(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> DecodingScore:
    """The scores of answers (n,), -1 for Unknown Category, where the true categories are labels (n,), n > 0.

    Coverage and accuracy on what is covered are those of selective classification (El-Yaniv & Wiener 2010,
    https://jmlr.org/papers/v11/el-yaniv10a.html). Raises ValueError when shapes do not fit or a label is not known.
    """
    if labels.shape != answers.shape or not len(labels) or labels.min() < 0:
        raise ValueError(f"answers {answers.shape} need as many known labels, at least one, not {labels.shape}")
    covered, right = answers >= 0, answers == labels
    return DecodingScore(
        n=len(labels),
        accuracy=float(right.mean()),
        macro_f1=macro_f1(labels, answers),
        unknown_rate=float(1 - covered.mean()),
        coverage=float(covered.mean()),
        covered_accuracy=float(right[covered].mean()) if covered.any() else None,
    )
