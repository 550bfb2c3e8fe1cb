"""Products whose label looks wrong to a model that did not learn from them: confident learning on frozen features."""

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
    """The suspects (m,), the most suspicious first."""

    audited: int  # labelled products that were looked at
    macro_f1: float  # of the models that look, on products they did not learn from: how far they can be trusted
    rows: tuple[int, ...]  # (m,) of the features
    given: tuple[str, ...]  # (m,) category
    suggested: tuple[str, ...]  # (m,) the most probable category
    scores: tuple[float, ...]  # (m,) self-confidence: probability of the given category, rising

    def to_frame(self, product_ids: Sequence[str]) -> pd.DataFrame:
        """One row a suspect: product_id, given, suggested, score. `product_ids` are those of the audited rows (n,)."""
        import pandas as pd

        ids = [str(product_ids[row]) for row in self.rows]
        return pd.DataFrame({"product_id": ids, "given": self.given, "suggested": self.suggested, "score": self.scores})


@dataclass(frozen=True)
class WithoutSuspects:
    """Macro-F1 with and without the products whose label looks wrong.

    It rises even where all labels are right, as what looks wrong is also what is hard.
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
    """The audit of labels (n,), indices of categories or -1, by features (n, D) of a model that has not seen them.

    Each product's probabilities come from a logistic regression that was fitted on the other folds; near-duplicates,
    which share a group (n,), never stand on both sides, or a wrong label would be confirmed by its own copy. What is
    suspicious is cleanlab's: confident learning, pruned by noise rate (Northcutt, Jiang & Chuang 2021,
    https://arxiv.org/abs/1911.00068). Raises UserError when a category has fewer groups than there are folds.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    known = np.flatnonzero(labels >= 0)
    present, given = np.unique(labels[known], return_inverse=True)  # cleanlab counts categories from 0 without gaps
    names = [categories[index] for index in present]
    _check_groups(given, groups[known], names, folds)
    probabilities = _out_of_fold(features[known], given, groups[known], folds, seed)
    scores = get_label_quality_scores(given, probabilities, method="self_confidence")
    found = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    answers = probabilities.argmax(axis=1)
    return LabelAudit(
        audited=len(known),
        macro_f1=macro_f1(given, answers),
        rows=tuple(known[found].tolist()),
        given=tuple(names[index] for index in given[found]),
        suggested=tuple(names[index] for index in answers[found]),
        scores=tuple(scores[found].tolist()),
    )


def _check_groups(given: NDArray[np.int64], groups: NDArray[np.int64], names: Sequence[str], folds: int) -> None:
    for index, name in enumerate(names):
        different = len(np.unique(groups[given == index]))
        if different < folds:
            raise UserError(
                f"The category {name} shows {different} different pictures, too few to audit its labels in {folds} "
                "folds: leave it out with min_products, or ask for fewer folds."
            )
    if len(names) < 2:
        raise UserError("an audit of labels needs products of two categories at least: choose another label.")


def _out_of_fold(
    features: NDArray[np.floating], given: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.float64]:
    """Probabilities (n, C) of each product by a model that was fitted without its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    sides = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    probabilities: NDArray[np.float64] = cross_val_predict(
        model, features, given, groups=groups, cv=sides, method="predict_proba"
    )
    return probabilities


def macro_f1_without(
    predictions: Predictions, suspects: Collection[str], *, resamples: int = 2000, seed: int = 0
) -> WithoutSuspects:
    """Macro-F1 of the labelled products, and of those whose id is not among the suspects, with intervals of 95 %.

    Raises UserError when nothing labelled is left.
    """
    labelled = predictions.labels >= 0
    kept = labelled & ~np.isin(predictions.product_ids, list(suspects))
    if not kept.any():
        raise UserError("no labelled product is left without those whose label looks wrong.")
    before, after = (_macro_f1(predictions, rows, resamples, seed) for rows in (labelled, kept))
    return WithoutSuspects(int(labelled.sum() - kept.sum()), before, after)


def _macro_f1(predictions: Predictions, rows: NDArray[np.bool_], resamples: int, seed: int) -> Estimate:
    from sklearn.metrics import confusion_matrix

    labels, predicted = predictions.labels[rows], predictions.predicted[rows]
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(predictions.categories)))
    shares = confusion.sum(axis=1) / confusion.sum()
    drawn = resample_metrics(confusion.astype(np.int64), shares, resamples=resamples, seed=seed)
    return corrected_estimate(macro_f1(labels, predicted), drawn.macro_f1)
