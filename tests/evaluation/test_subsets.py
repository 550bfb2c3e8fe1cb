"""Scores on products that are new to a model."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from tests.evaluation.made_predictions import random_predictions
from vlm_core.evaluation.evaluation import Evaluation, evaluate


def test_a_subset_is_scored_as_if_it_were_all(tmp_path):
    predictions = random_predictions(200, 3, seed=1)
    chosen = np.arange(200) < 80
    evaluation = evaluate(
        predictions,
        pd.DataFrame(index=range(200)),
        np.full(3, 1 / 3),
        resamples=200,
        seed=0,
        subsets={"unseen": chosen, "new": np.zeros(200, dtype=bool)},
    )
    labels, predicted = predictions.labels[chosen], predictions.predicted[chosen]
    assert list(evaluation.subsets) == ["unseen"] and evaluation.subsets["unseen"].products == 80
    metrics = evaluation.metrics("test_")
    assert metrics["test_unseen_accuracy"] == pytest.approx((labels == predicted).mean())
    assert metrics["test_unseen_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["test_unseen_accuracy_low"] < metrics["test_unseen_accuracy"] < metrics["test_unseen_accuracy_high"]
    evaluation.write(tmp_path)
    assert Evaluation.read(tmp_path).subsets == evaluation.subsets
