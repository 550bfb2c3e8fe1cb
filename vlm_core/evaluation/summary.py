"""The study's figures of one pass over a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Summary:
    """Loss, accuracy and F1 of one pass; the dictionaries have one entry a category, in their order."""

    loss: float
    accuracy: float
    macro_f1: float  # over the categories with support
    per_category_f1: dict[str, float]
    precision: dict[str, float]
    recall: dict[str, float]
    confusion: NDArray[np.int64]  # (C, C), rows = true category

    def to_dict(self, *, with_confusion: bool = False) -> dict[str, Any]:
        """The `training_summary`, or with the confusion matrix the `validation_summary`, of the study's log."""
        content: dict[str, Any] = {
            "overall_loss": self.loss,
            "overall_accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "per_class_f1": dict(self.per_category_f1),
        }
        if with_confusion:
            content["confusion_matrix"] = self.confusion.tolist()
        return content

    def fairness_metrics(self) -> dict[str, dict[str, float]]:
        """Precision, recall and F1 a category, as `fairness_metrics` of the study's log."""
        return {
            category: {"precision": self.precision[category], "recall": self.recall[category], "f1": f1}
            for category, f1 in self.per_category_f1.items()
        }


def summarise(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], categories: tuple[str, ...], loss: float
) -> Summary:
    """The summary of true and predicted categories, both (n,) indices, computed by scikit-learn.

    A figure that would divide by zero is 0. Macro-F1 is the mean over the categories with support: one that is absent
    from the rows has no F1 to speak of, and products wrongly put there still cost their own category its recall.
    Raises ValueError when there are no rows or a true category lies outside of `categories`.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(categories):
        raise ValueError("a summary needs rows, each with one of the categories as its true one")
    indices = np.arange(len(categories))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    return Summary(
        loss=float(loss),
        accuracy=float(accuracy_score(labels, predicted)),
        macro_f1=macro_f1(labels, predicted),
        per_category_f1=dict(zip(categories, f1.tolist(), strict=True)),
        precision=dict(zip(categories, precision.tolist(), strict=True)),
        recall=dict(zip(categories, recall.tolist(), strict=True)),
        confusion=confusion_matrix(labels, predicted, labels=indices).astype(np.int64),
    )


def macro_f1(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> float:
    """Mean F1 over the categories that occur in `labels` (n,), which may be weighted by row (n,)."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(labels, predicted, labels=np.unique(labels), average="macro", sample_weight=weights, zero_division=0)
    )
