"""Frequent and rare categories apart."""

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.made_predictions import predictions_of
from vlm_core.evaluation.evaluation import Evaluation, evaluate

CONFUSION = np.array([[9, 1, 0, 0], [0, 8, 2, 0], [0, 0, 6, 4], [0, 0, 0, 0]])
F1 = (18 / 19, 16 / 19, 12 / 18)  # of the first three; the fourth has no test products


def _evaluate(trained):
    predictions = predictions_of(CONFUSION, ("a", "b", "c", "d"))
    attributes = pd.DataFrame(index=range(len(predictions)))
    shares = np.full(4, 0.25)
    return evaluate(predictions, attributes, shares, resamples=200, seed=0, trained=trained)


def test_parts_are_by_training_products_and_their_scores_means_of_f1():
    parts = _evaluate(np.array([101, 100, 20, 3])).long_tail
    assert [(part.part, part.categories, part.products) for part in parts] == [("frequent", 1, 10), ("middle", 2, 20)]
    assert parts[0].macro_f1.value == pytest.approx(F1[0])
    assert parts[1].macro_f1.value == pytest.approx((F1[1] + F1[2]) / 2)
    assert all(part.macro_f1.low < part.macro_f1.value < part.macro_f1.high for part in parts)


def test_the_interval_of_a_part_of_all_categories_would_be_that_of_macro_f1():
    """A part's resamples are shifted as those of macro-F1 are."""
    from vlm_core.evaluation.bootstrap import resample_metrics

    resampled = resample_metrics(CONFUSION, np.array([1, 1, 1, 0]) / 3, resamples=300, seed=0)
    means = resampled.f1[:, :3].mean(axis=1) + resampled.f1_shift[:3].mean()
    np.testing.assert_allclose(np.clip(means, 0, 1), resampled.macro_f1)


@pytest.mark.parametrize("trained", [None, np.array([500, 400, 300, 200]), np.array([5, 4, 3, 200])])
def test_there_are_no_parts_where_all_tested_categories_are_in_one(trained):
    evaluation = _evaluate(trained)
    assert evaluation.long_tail == ()
    assert not any("_rare" in name or "_frequent" in name for name in evaluation.metrics("test_"))


def test_parts_are_metrics_and_survive_a_file(tmp_path):
    evaluation = _evaluate(np.array([500, 400, 3, 3]))
    assert evaluation.metrics("test_")["test_macro_f1_rare"] == pytest.approx(F1[2])
    evaluation.write(tmp_path)
    assert Evaluation.read(tmp_path).long_tail == evaluation.long_tail
