"""The temperature against scikit-learn's, and what it does to probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from tests.evaluation.made_predictions import log_softmax, random_predictions
from vlm_core.errors import UserError
from vlm_core.evaluation.predictions import Predictions
from vlm_core.evaluation.temperature import fit_temperature, measure_scaling, scale_predictions

NAMES = ("a", "b", "c", "d")


class _Logits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its answers."""

    def __init__(self) -> None:
        self.classes_ = np.arange(4)

    def fit(self, features, labels):
        return self

    def decision_function(self, features):
        return features

    def predict(self, features):
        return features.argmax(axis=1)


def _too_sure(n: int, seed: int, times: float = 3.0) -> Predictions:
    """Log-probabilities that are `times` as far apart as they should be."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 1.5, (n, 4))
    chances = np.exp(log_softmax(scores).astype(np.float64))
    labels = (chances.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1).clip(0, 3)
    return Predictions(np.arange(n).astype(str), labels, log_softmax(times * scores), NAMES)


def test_the_temperature_is_scikit_learns() -> None:
    predictions = _too_sure(400, seed=0)
    reference = CalibratedClassifierCV(FrozenEstimator(_Logits()), method="temperature", ensemble=False)
    logs = predictions.log_probabilities.astype(np.float64)
    reference.fit(logs, predictions.labels)
    expected = np.log(reference.predict_proba(logs))
    found = scale_predictions(predictions, fit_temperature(predictions)).log_probabilities
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_was_three_times_too_sure_is_brought_back() -> None:
    assert fit_temperature(_too_sure(4000, seed=1)) == pytest.approx(3, rel=0.08)
    assert fit_temperature(_too_sure(4000, seed=2, times=0.5)) == pytest.approx(0.5, rel=0.08)


def test_calibration_on_other_products_gets_better() -> None:
    found = measure_scaling(_too_sure(600, seed=3), _too_sure(600, seed=4))
    assert found.after.nll < found.before.nll
    assert found.after.ece < found.before.ece / 2
    assert found.temperature > 2


@given(st.floats(0.1, 10), st.integers(0, 50))
def test_answers_stay_and_probabilities_are_such(temperature: float, seed: int) -> None:
    predictions = random_predictions(30, 4, seed, texts=True)
    cooled = scale_predictions(predictions, temperature)
    np.testing.assert_array_equal(cooled.predicted, predictions.predicted)
    assert cooled.texts == predictions.texts
    back = scale_predictions(cooled, 1 / temperature)
    np.testing.assert_allclose(back.log_probabilities, predictions.log_probabilities, atol=1e-3)


def test_it_stays_within_bounds_when_nothing_is_wrong_or_everything() -> None:
    labels = np.arange(40) % 4
    logs = log_softmax(5.0 * np.eye(4)[labels])
    ids = labels.astype(str)
    assert 0.1 <= fit_temperature(Predictions(ids, labels, logs, NAMES)) < 0.2  # the loss is 0 to the last bit there
    assert 9.9 < fit_temperature(Predictions(ids, (labels + 1) % 4, logs, NAMES)) <= 10


def test_only_labelled_products_count() -> None:
    known = _too_sure(300, seed=5)
    labels = np.where(np.arange(300) < 150, known.labels, -1)
    half = Predictions(known.product_ids, labels, known.log_probabilities, NAMES)
    first = Predictions(known.product_ids[:150], known.labels[:150], known.log_probabilities[:150], NAMES)
    assert fit_temperature(half) == pytest.approx(fit_temperature(first))
    with pytest.raises(UserError, match="known category"):
        fit_temperature(Predictions(known.product_ids, np.full(300, -1), known.log_probabilities, NAMES))
