"""Robustness against scores computed apart, and on a planted cue: a model that looks at the background alone."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tests.evaluation.made_predictions import sure
from tests.models.families import CATEGORIES, make_categoriser
from vlm_core.pixels.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vlm_core.study.robustness import measure_robustness

GENERATOR = np.random.default_rng(0)


@pytest.mark.slow
def test_scores_are_those_of_the_corrupted_pictures():
    model = make_categoriser("clip")
    pictures = GENERATOR.integers(0, 256, (12, 80, 60, 3), dtype=np.uint8)
    pictures = (pictures * GENERATOR.random((12, 1, 1, 3))).astype(np.uint8)
    labels = model.log_probabilities(pictures).argmax(axis=1)  # its own predictions, so that there is much to lose
    robustness = measure_robustness(model, pictures, labels, CATEGORIES, seed=4)
    assert (robustness.n, robustness.seed, robustness.accuracy, robustness.macro_f1) == (12, 4, 1.0, 1.0)
    assert [(s.corruption, s.severity) for s in robustness.scores] == [(n, s) for n in CORRUPTIONS for s in SEVERITIES]
    for score in robustness.scores[::5]:
        corrupted = corrupt(pictures, score.corruption, score.severity, seed=4, rows=np.arange(12))
        predicted = model.log_probabilities(corrupted).argmax(axis=1)
        assert score.accuracy == pytest.approx(accuracy_score(labels, predicted))
        f1 = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
        assert score.macro_f1 == pytest.approx(f1) and score.drop == pytest.approx(1 - f1)
        assert score.strength == CORRUPTIONS[score.corruption].strengths[score.severity - 1]
    by_name = {name: [s.drop for s in robustness.scores if s.corruption == name] for name in CORRUPTIONS}
    assert robustness.drops == pytest.approx({name: sum(drops) / 3 for name, drops in by_name.items()})
    assert robustness.mean_drop == pytest.approx(sum(sum(drops) for drops in by_name.values()) / 24)
    content = dataclasses.asdict(robustness)
    assert json.loads(json.dumps(content, allow_nan=False)) == {**content, "scores": list(content["scores"])}


class _Corner:
    """Tells two categories by how light the picture's first corner is."""

    categories, canvas = ("light", "lighter"), (40, 30)

    def log_probabilities(self, pictures):
        assert pictures.shape[1:] == (40, 30, 3)
        return sure((pictures[:, 0, 0].mean(axis=1) > 240).astype(int), 2)


@pytest.mark.slow
def test_a_model_that_reads_the_background_loses_its_score_with_it():
    labels = np.arange(66) % 2  # more than are asked at once
    pictures = np.where(labels[:, None, None, None], 255, 228).repeat(40, 1).repeat(30, 2).repeat(3, 3).astype(np.uint8)
    pictures[:, 10:30, 8:22] = (200, 30, 60)
    robustness = measure_robustness(_Corner(), pictures, labels, _Corner.categories, seed=0)
    assert robustness.macro_f1 == 1.0
    assert robustness.drops["blur"] == robustness.drops["rotation"] == 0
    assert robustness.drops["background"] > 0.4


def test_without_a_correct_prediction_nothing_is_lost():
    white = np.full((6, 40, 30, 3), 255, np.uint8)
    robustness = measure_robustness(_Corner(), white, np.zeros(6, int), _Corner.categories, seed=0)
    assert robustness.macro_f1 == robustness.accuracy == robustness.mean_drop == 0


@pytest.mark.parametrize(
    ("labels", "categories"),
    [
        ([0], ("light", "lighter")),
        ([0, 2], ("light", "lighter")),
        ([0, -1], ("light", "lighter")),
        ([0, 1], ("a", "b")),
    ],
)
def test_labels_and_categories_must_fit(labels, categories):
    pictures = np.zeros((2, 40, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="categories"):
        measure_robustness(_Corner(), pictures, np.array(labels), categories, seed=0)
