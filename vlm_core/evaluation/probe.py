"""A linear probe of frozen features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.summary import macro_f1

MIN_PER_CATEGORY = 5  # rows to fit, and rows to score


def probe_macro_f1(features: NDArray[np.float32], labels: NDArray[np.str_]) -> float:
    """Return macro-F1 of a logistic regression that is fitted on every other row and scored on the rest.

    `features` (n, D), `labels` (n,), "" where unknown. Categories with fewer than five rows in either half are left
    out; nan when fewer than two categories remain.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = np.arange(len(labels)) % 2 == 0
    names = [
        name
        for name in np.unique(labels[labels != ""])
        if min((labels[fitted] == name).sum(), (labels[~fitted] == name).sum()) >= MIN_PER_CATEGORY
    ]
    if len(names) < 2:
        return float("nan")
    used, categories = np.isin(labels, names), np.unique(labels, return_inverse=True)[1]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, class_weight="balanced"))
    probe.fit(features[fitted & used], categories[fitted & used])
    return macro_f1(categories[~fitted & used], probe.predict(features[~fitted & used]))
