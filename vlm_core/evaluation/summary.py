"""The original study's metrics of one pass over a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Summary:
    """Loss, accuracy and F1 of one pass; the dictionaries have one entry per category, in order."""

    loss: float
    accuracy: float
    macro_f1: float  # over the categories with support
    per_category_f1: dict[str, float]
    precision: dict[str, float]
    recall: dict[str, float]
    confusion: NDArray[np.int64]  # (C, C), rows = true category

    def to_dict(self, *, with_confusion: bool = False) -> dict[str, Any]:
        """Return the original log's `training_summary`, or with the confusion matrix its `validation_summary`."""
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
        """Return precision, recall and F1 per category, the original log's `fairness_metrics`."""
        return {
            category: {"precision": self.precision[category], "recall": self.recall[category], "f1": f1}
            for category, f1 in self.per_category_f1.items()
        }


def summarise(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], categories: tuple[str, ...], loss: float
) -> Summary:
    """Summarise true and predicted categories, both (n,) indices, by scikit-learn.

    A metric that would divide by zero is 0. Macro-F1 is the mean over the categories with support: a category that is
    absent has no F1, and products predicted as it still lower the recall of their own category.
    Raises ValueError when there are no rows or a true category is not one of `categories`.
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
    """Return the mean F1 over the categories that occur in `labels` (n,), optionally weighted by row (n,)."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(labels, predicted, labels=np.unique(labels), average="macro", sample_weight=weights, zero_division=0)
    )
