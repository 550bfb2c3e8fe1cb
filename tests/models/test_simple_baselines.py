"""Simple classifiers against scikit-learn's predictions and votes counted by hand; features against the model's own."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler

from tests.models.families import FAMILIES, make_categoriser
from vlm_core.config.families import FAMILIES as KNOWN
from vlm_core.evaluation.predictions import Predictions
from vlm_core.models.simple_baselines import (
    NEIGHBOURS,
    SIMPLE_BASELINES,
    LabelledFeatures,
    frozen_features,
    k_nearest,
    majority,
    nearest_class_mean,
)


def _drawn(n, seed, classes=4, spread=1.5):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % classes)
    centres = np.random.default_rng(99).normal(size=(classes, 12))
    features = centres[labels] + spread * generator.normal(size=(n, 12))
    return LabelledFeatures((features * np.geomspace(0.01, 100, 12)).astype(np.float32), labels)


TRAINING, VALIDATION, TEST = _drawn(200, 1), _drawn(80, 2), _drawn(120, 3)


@pytest.mark.parametrize("name", SIMPLE_BASELINES)
def test_answers_are_predictions_also_with_a_category_that_training_lacks(name):
    fitted = SIMPLE_BASELINES[name](TRAINING, VALIDATION, 6)
    rows = fitted.log_probabilities(TEST.features)
    assert rows.dtype == np.float32
    ids = np.arange(len(rows)).astype(str)
    predictions = Predictions(ids, TEST.labels, rows, ("a", "b", "c", "d", "e", "f"))
    assert predictions.predicted.max() < 4
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_majority_has_the_shares_of_training_and_one_vote_more_each():
    training = LabelledFeatures(np.zeros((6, 2), np.float32), np.array([2, 2, 2, 0, 0, 2]))
    rows = np.exp(majority(training, training, 3).log_probabilities(np.ones((2, 2), np.float32)))
    np.testing.assert_allclose(rows, [[3 / 9, 1 / 9, 5 / 9]] * 2, rtol=1e-6)


def test_the_nearest_class_mean_answers_as_scikit_learns_and_learns_how_sure_to_be():
    fitted = nearest_class_mean(TRAINING, VALIDATION, 4)
    scaler = StandardScaler().fit(TRAINING.features)
    theirs = NearestCentroid().fit(scaler.transform(TRAINING.features), TRAINING.labels)
    rows = fitted.log_probabilities(TEST.features)
    np.testing.assert_array_equal(rows.argmax(axis=1), theirs.predict(scaler.transform(TEST.features)))

    def validation_loss(sharpness):  # written out, without the vote more that each category gets
        scaled = scaler.transform(VALIDATION.features)
        away = ((scaled[:, None] - theirs.centroids_[None]) ** 2).mean(axis=2)
        return -log_softmax(-sharpness * away, axis=1)[np.arange(80), VALIDATION.labels].mean()

    best = fitted.settings["sharpness"]
    assert validation_loss(best) <= min(validation_loss(best * factor) for factor in (0.7, 1.4)) + 1e-4


def test_neighbours_vote_by_cosine():
    angles = np.deg2rad([0, 10, 20, 100, 110, 120, 130])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    lengths = np.array([1, 50, 3, 2, 9, 0.1, 4], np.float32)[:, None]  # cosine does not see them
    training = LabelledFeatures(features * lengths, np.array([0, 0, 1, 1, 1, 2, 2]))
    query = LabelledFeatures(np.array([[np.cos(0.1), np.sin(0.1)]], np.float32), np.array([0]))
    fitted = k_nearest(training, query, 3)
    assert fitted.settings == {"neighbours": 3}  # the largest that is right: of five, three are of category 1
    np.testing.assert_allclose(np.exp(fitted.log_probabilities(query.features)), [[3 / 6, 2 / 6, 1 / 6]], rtol=1e-6)


def test_the_number_of_neighbours_is_the_best_on_validation():
    fitted = k_nearest(TRAINING, VALIDATION, 4)
    theirs = {
        k: KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(TRAINING.features, TRAINING.labels)
        for k in NEIGHBOURS
    }
    chosen = theirs[fitted.settings["neighbours"]]
    predictions = fitted.log_probabilities(TEST.features).argmax(axis=1)
    np.testing.assert_array_equal(predictions, chosen.predict(TEST.features))
    predicted = {k: model.predict(VALIDATION.features) for k, model in theirs.items()}
    scores = {k: f1_score(VALIDATION.labels, predictions, average="macro") for k, predictions in predicted.items()}
    best = max(scores.values())
    assert fitted.settings["neighbours"] == max(k for k, score in scores.items() if score == best)


class _Store:
    def __init__(self, pictures):
        self.pictures, self.largest = pictures, 0

    def take(self, rows):
        self.largest = max(self.largest, len(rows))
        return self.pictures[rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_features_are_what_the_head_reads_whatever_the_answer(family):
    store = _Store(np.random.default_rng(0).integers(0, 256, (40, 80, 60, 3), dtype=np.uint8))
    model = make_categoriser(family)
    rows = np.array([39, 0, 7, *range(37)])
    features = frozen_features(model, store, rows)
    assert features.shape == (40, model.adapter.width("fused")) and store.largest <= 32
    weight, bias = (tensor.detach().numpy() for tensor in model.head.linear.parameters())
    expected = model.log_probabilities(store.pictures[rows])
    np.testing.assert_allclose(log_softmax(features @ weight.T + bias, axis=1), expected, atol=1e-5)
    if not (head := KNOWN[family].zero_shot):
        return
    other = make_categoriser(family, head)
    np.testing.assert_allclose(frozen_features(other, store, rows[:5]), features[:5], atol=1e-5)


def test_no_rows_have_no_features():
    store = _Store(np.zeros((1, 80, 60, 3), np.uint8))
    assert frozen_features(make_categoriser("clip"), store, np.arange(0)).shape == (0, 128)
