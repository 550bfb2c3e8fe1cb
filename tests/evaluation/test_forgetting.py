"""Forgetting and transfer, on numbers worked by hand."""

import numpy as np
import pytest

from vlm_core.errors import UserError
from vlm_core.evaluation.forgetting import measure_forgetting, score_sequence, widened
from vlm_core.evaluation.predictions import Predictions


def _predictions(predicted, labels, categories):
    logs = np.log(np.where(np.eye(len(categories))[predicted] > 0, 0.9, 0.1 / (len(categories) - 1)))
    ids = [f"p{number}" for number in range(len(labels))]
    return Predictions(np.array(ids), np.array(labels), logs, tuple(categories))


def test_forgetting_by_hand():
    labels = [0, 0, 1, 1]
    before = _predictions([0, 0, 1, 0], labels, "ab")  # F1 4/5 and 2/3
    after = _predictions([0, 2, 1, 2], labels, "abc")  # F1 2/3 and 2/3: what is taken for c is missed
    found = measure_forgetting(before, after, resamples=100, seed=0)
    assert (found.products, found.categories) == (4, 2)
    assert found.before == pytest.approx((4 / 5 + 2 / 3) / 2) and found.after == pytest.approx(2 / 3)
    assert (found.accuracy_before, found.accuracy_after) == (0.75, 0.5)
    assert found.metrics()["forgetting"] == pytest.approx((4 / 5 - 2 / 3) / 2)
    assert (found.test.only_a_correct, found.test.only_b_correct, found.test.p_mcnemar) == (1, 0, 1)


def test_a_model_that_stays_the_same_forgets_nothing():
    before = _predictions([0, 1, 1, 0], [0, 0, 1, 1], "ab")
    found = measure_forgetting(before, widened(before, tuple("abc")), resamples=100, seed=0).metrics()
    assert found["forgetting"] == 0 and found["forgetting_p"] == 1
    assert np.exp(widened(before, tuple("abc")).log_probabilities[:, 2]).max() < 1e-12


def test_other_products_or_categories_are_refused():
    before = _predictions([0, 1], [0, 1], "ab")
    with pytest.raises(ValueError, match="must come first"):
        measure_forgetting(before, _predictions([0, 1], [0, 1], "bac"), resamples=100, seed=0)
    with pytest.raises(UserError, match="same products"):
        measure_forgetting(before, _predictions([0, 1, 1], [0, 1, 1], "abc"), resamples=100, seed=0)


def test_the_scores_of_a_sequence_by_hand():
    accuracies = np.array([[0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]])
    found = score_sequence(accuracies, np.array([0.0, 0.05, 0.1]))
    assert found.average_accuracy == pytest.approx((0.9 + 0.7 + 2.2 / 3) / 3)
    assert found.final_accuracy == pytest.approx(2.2 / 3)
    assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert found.backward_transfer == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.1 - 0.05) + (0.3 - 0.1)) / 2)


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_first():
    found = score_sequence(np.array([[0.5, 0, 0], [0.9, 0.8, 0], [0.7, 0.8, 0.6]]), np.zeros(3))
    assert found.forgetting == pytest.approx((0.2 + 0) / 2)
    assert found.backward_transfer == pytest.approx((0.2 + 0) / 2)


def test_one_step_forgets_nothing():
    found = score_sequence(np.array([[0.7]]), np.zeros(1))
    assert (found.average_accuracy, found.forgetting, found.backward_transfer, found.forward_transfer) == (0.7, 0, 0, 0)
