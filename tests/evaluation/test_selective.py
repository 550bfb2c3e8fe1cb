"""Risk, coverage and the telling of unknown products, by hand and against scikit-learn and scipy."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score

from tests.evaluation.made_predictions import random_predictions
from vlm_core.errors import UserError
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.selective import auroc_unknown, detect_unknown, measure_risk_coverage


def _predictions(confidence, right):
    confidence = np.array(confidence)
    labels = np.where(right, 0, 1)
    logs = np.log(np.stack([confidence, 1 - confidence], axis=1))
    return Predictions(np.arange(len(labels)).astype(str), labels, logs, ("a", "b"))


def test_areas_by_hand():
    found = measure_risk_coverage(_predictions([0.6, 0.9, 0.7, 0.8], [False, True, True, False]))
    assert found.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert found.coverage == (0.25, 0.5, 0.75, 1)
    assert found.aurc == pytest.approx(4 / 12)
    assert found.excess == pytest.approx(4 / 12 - (0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_the_best_order_has_no_excess_and_the_whole_has_the_error_rate():
    best = measure_risk_coverage(_predictions([0.9, 0.8, 0.7, 0.6], [True, True, False, False]))
    assert best.excess == 0
    predictions = random_predictions(700, 5, seed=1)
    found = measure_risk_coverage(predictions)
    assert found.risk[-1] == pytest.approx((predictions.predicted != predictions.labels).mean())
    assert len(found.risk) == len(found.coverage) == 100 and found.coverage[-1] == 1
    assert 0 < found.aurc < found.risk[-1]  # the drawn scores know something


def test_equally_sure_products_are_in_no_order():
    confidence, right = np.array([0.9, 0.7, 0.7, 0.7, 0.6]), np.array([True, False, True, True, False])
    areas = []
    for order in permutations(range(1, 4)):
        wrong = ~right[[0, *order, 4]]
        areas.append((np.cumsum(wrong) / np.arange(1, 6)).mean())
    assert measure_risk_coverage(_predictions(confidence, right)).aurc == pytest.approx(np.mean(areas))
    with pytest.raises(UserError, match="known category"):
        measure_risk_coverage(Predictions(["x"], np.array([-1]), np.log([[0.5, 0.5]]), ("a", "b")))


def test_the_area_is_scikit_learns_also_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(20):
        known, unknown = generator.integers(3, 9, 60) / 10, generator.integers(1, 7, 20) / 10
        expected = roc_auc_score(np.repeat([1, 0], [60, 20]), np.concatenate([known, unknown]))
        assert auroc_unknown(known, unknown).value == pytest.approx(expected)


@pytest.mark.slow
def test_the_interval_is_about_that_of_a_stratified_bootstrap():
    generator = np.random.default_rng(1)
    known, unknown = generator.normal(1.2, 1, 600), generator.normal(0, 1, 120)

    def area(x, y):
        return roc_auc_score(np.repeat([1, 0], [len(x), len(y)]), np.concatenate([x, y]))

    rng = np.random.default_rng(2)
    reference = bootstrap((known, unknown), area, vectorized=False, n_resamples=500, method="percentile", rng=rng)
    found = auroc_unknown(known, unknown)
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.012)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.012)


def test_false_acceptances_by_hand():
    known = np.arange(1, 21) / 20  # 95 % of them lie at 0.1 or above
    unknown = np.array([0.05, 0.07, 0.1, 0.5])
    found = detect_unknown(known, unknown)
    assert found.fpr == 0.5
    assert (found.known, found.unknown) == (20, 4)
    assert found.auroc.low < found.auroc.value < found.auroc.high


def test_twenty_that_are_all_told_leave_a_doubt_and_so_does_one():
    known, unknown = np.linspace(0.6, 1, 500), np.linspace(0.3, 0.5, 20)
    found = detect_unknown(known, unknown)
    assert (found.auroc.value, found.auroc.high, found.fpr) == (1, 1, 0)
    assert 0.6 < found.auroc.low < 0.9
    assert detect_unknown(unknown, known).auroc.low == 0
    alone = auroc_unknown(known, np.array([0.1]))
    assert alone.value == 1 and alone.low < 0.7
    with pytest.raises(UserError, match="one of each"):
        detect_unknown(known, np.array([]))


def test_confidence_that_says_nothing_tells_nothing():
    same = np.full(30, 0.5)
    found = detect_unknown(same, same[:10])
    assert found.auroc.value == 0.5 and found.auroc.low < 0.5 < found.auroc.high
    assert found.fpr == 1
