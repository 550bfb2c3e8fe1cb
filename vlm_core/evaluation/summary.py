"""The original paper's metrics of one pass over a split."""

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
    """Summarise true and predicted categories, both (n,) indices; a prediction of -1 is none of the categories.

    A metric that would divide by zero is 0. Macro-F1 is the mean over the categories with support: a category that is
    absent has no F1, and products predicted as it still lower the recall of their own category.
    Raises ValueError when there are no rows or a true category is not one of `categories`.
    """
    count = len(categories)
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= count:
        raise ValueError("a summary needs rows, each with one of the categories as its true one")
    correct, given, support = _counts(labels, predicted, count)
    f1 = _ratios(2 * correct, support + given)
    known = predicted >= 0
    cells = np.bincount(labels[known] * count + predicted[known], minlength=count**2)
    return Summary(
        loss=float(loss),
        accuracy=float((labels == predicted).mean()),
        macro_f1=float(f1[support > 0].mean()),
        per_category_f1=dict(zip(categories, f1.tolist(), strict=True)),
        precision=dict(zip(categories, _ratios(correct, given).tolist(), strict=True)),
        recall=dict(zip(categories, _ratios(correct, support).tolist(), strict=True)),
        confusion=cells.reshape(count, count),
    )


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return the mean F1 over the categories that occur in `labels` (n,), which are indices; predictions may be -1."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    correct, given, support = _counts(labels, predicted, int(labels.max()) + 1)
    return float(_ratios(2 * correct, support + given)[support > 0].mean())


def _counts(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return how many rows (C,) of each of the first categories are predicted correctly, predicted, and true.

    scikit-learn counts the same, in thirty times the time: that would be most of an epoch of training a head.
    """
    rows = labels[labels == predicted], predicted[(predicted >= 0) & (predicted < count)], labels
    correct, given, support = (np.bincount(each, minlength=count) for each in rows)
    return correct, given, support


def _ratios(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return parts / wholes (C,), 0 where the whole is 0."""
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)
