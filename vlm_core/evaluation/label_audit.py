"""Label audit: confident learning on frozen features, by models that were not trained on the audited product."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import Estimate, corrected_estimate, resample_metrics
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.summary import macro_f1

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LabelAudit:
    """The products with suspicious labels (m,), the most suspicious first."""

    audited: int  # labelled products
    macro_f1: float  # of the auditing models on held-out folds: how far they can be trusted
    rows: tuple[int, ...]  # (m,) of the features
    given: tuple[str, ...]  # (m,) the catalogue's category: the "given label" of confident learning
    suggested: tuple[str, ...]  # (m,) the most probable category
    scores: tuple[float, ...]  # (m,) self-confidence: probability of the given category, rising

    def to_frame(self, product_ids: Sequence[str]) -> pd.DataFrame:
        """Return one row per suspect: product_id, given, suggested, score; `product_ids` (n,) are the audited rows'."""
        import pandas as pd

        ids = [str(product_ids[row]) for row in self.rows]
        return pd.DataFrame({"product_id": ids, "given": self.given, "suggested": self.suggested, "score": self.scores})


@dataclass(frozen=True)
class WithoutSuspects:
    """Macro-F1 with and without the products that have suspicious labels.

    It rises even where all labels are correct, because products that look mislabelled are also hard ones.
    """

    left_out: int
    before: Estimate
    after: Estimate


def audit_labels(
    features: NDArray[np.floating],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    categories: Sequence[str],
    *,
    folds: int = 5,
    seed: int,
) -> LabelAudit:
    """Audit labels (n,), indices of categories or -1, by features (n, D) of a model that has not seen them.

    Each product's probabilities come from a logistic regression that was fitted on the other folds; near-duplicates,
    which share a group (n,), are never on both sides, or an incorrect label would be confirmed by its own copy.
    Suspicious labels are found by cleanlab: confident learning, pruned by noise rate (Northcutt, Jiang & Chuang 2021,
    https://arxiv.org/abs/1911.00068). Raises UserError when a category has fewer groups than there are folds.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    known = np.flatnonzero(labels >= 0)
    # cleanlab needs indices from 0 without gaps
    present, given_labels = np.unique(labels[known], return_inverse=True)
    names = [categories[index] for index in present]
    _check_groups(given_labels, groups[known], names, folds)
    probabilities = _out_of_fold(features[known], given_labels, groups[known], folds, seed)
    scores = get_label_quality_scores(given_labels, probabilities, method="self_confidence")
    issues = find_label_issues(given_labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    predicted = probabilities.argmax(axis=1)
    return LabelAudit(
        audited=len(known),
        macro_f1=macro_f1(given_labels, predicted),
        rows=tuple(known[issues].tolist()),
        given=tuple(names[index] for index in given_labels[issues]),
        suggested=tuple(names[index] for index in predicted[issues]),
        scores=tuple(scores[issues].tolist()),
    )


def _check_groups(given_labels: NDArray[np.int64], groups: NDArray[np.int64], names: Sequence[str], folds: int) -> None:
    for index, name in enumerate(names):
        different = len(np.unique(groups[given_labels == index]))
        if different < folds:
            raise UserError(
                f"The category {name} has {different} different pictures, too few to audit its labels in {folds} "
                "folds: leave it out with min_products, or use fewer folds."
            )
    if len(names) < 2:
        raise UserError("a label audit needs products of at least two categories: choose another label.")


def _out_of_fold(
    features: NDArray[np.floating], given_labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.float64]:
    """Return probabilities (n, C) of each product from a model that was fitted without its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    probabilities: NDArray[np.float64] = cross_val_predict(
        model, features, given_labels, groups=groups, cv=split, method="predict_proba"
    )
    return probabilities


def macro_f1_without(
    predictions: Predictions, suspects: Collection[str], *, resamples: int = 2000, seed: int = 0
) -> WithoutSuspects:
    """Return macro-F1 of the labelled products with and without the suspects, with 95 % intervals.

    Raises UserError when no labelled product is left.
    """
    labelled = predictions.labels >= 0
    remaining = labelled & ~np.isin(predictions.product_ids, list(suspects))
    if not remaining.any():
        raise UserError("every labelled product has a suspicious label: none is left to score.")
    before, after = (_macro_f1(predictions, rows, resamples, seed) for rows in (labelled, remaining))
    return WithoutSuspects(int(labelled.sum() - remaining.sum()), before, after)


def _macro_f1(predictions: Predictions, rows: NDArray[np.bool_], resamples: int, seed: int) -> Estimate:
    from sklearn.metrics import confusion_matrix

    labels, predicted = predictions.labels[rows], predictions.predicted[rows]
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(predictions.categories)))
    shares = confusion.sum(axis=1) / confusion.sum()
    resampled = resample_metrics(confusion.astype(np.int64), shares, resamples=resamples, seed=seed)
    return corrected_estimate(macro_f1(labels, predicted), resampled.macro_f1)
