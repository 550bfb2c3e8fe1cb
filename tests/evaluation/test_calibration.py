import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tests.evaluation.made_predictions import random_predictions
from vlm_core.evaluation.calibration import BINS, measure_calibration


def test_figures_worked_by_hand() -> None:
    # top probabilities 0.9 (right), 0.9 (wrong) and 0.5 (right): bins [13/15, 14/15) and [7/15, 8/15)
    probabilities = np.array([[0.9, 0.1, 0.0001], [0.9, 0.05, 0.05], [0.3, 0.2, 0.5]])
    probabilities[0, 2] = 1e-9
    calibration = measure_calibration(np.array([0, 1, 2]), np.log(probabilities).astype(np.float32))
    assert calibration.nll == pytest.approx(-(np.log(0.9) + np.log(0.05) + np.log(0.5)) / 3, abs=1e-6)
    squares = (0.01 + 0.01) + (0.81 + 0.95**2 + 0.0025) + (0.09 + 0.04 + 0.25)
    assert calibration.brier == pytest.approx(squares / 3, abs=1e-6)
    assert calibration.ece == pytest.approx(2 / 3 * abs(0.5 - 0.9) + 1 / 3 * abs(1 - 0.5), abs=1e-6)
    filled = {index: part for index, part in enumerate(calibration.curve) if part.n}
    assert {index: (part.n, part.accuracy) for index, part in filled.items()} == {7: (1, 1.0), 13: (2, 0.5)}


@pytest.mark.slow
@pytest.mark.parametrize(("n", "count"), [(1, 2), (3, 3), (400, 5), (5000, 40)])
def test_the_calibration_error_is_torchmetrics_to_the_last_bit(n: int, count: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes seconds

    predictions = random_predictions(n, count, seed=n)
    expected = multiclass_calibration_error(
        torch.from_numpy(predictions.probabilities / predictions.probabilities.sum(axis=1, keepdims=True)).float(),
        torch.from_numpy(predictions.labels),
        num_classes=count,
        n_bins=BINS,
        norm="l1",
    )
    assert measure_calibration(predictions.labels, predictions.log_probabilities).ece == float(expected)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_they_agree_with_scikit_learn_and_with_the_curve(count: int) -> None:
    predictions = random_predictions(400, count, seed=3)
    calibration = measure_calibration(predictions.labels, predictions.log_probabilities)
    probabilities = predictions.probabilities
    reference = log_loss(predictions.labels, probabilities / probabilities.sum(1, keepdims=True), labels=range(count))
    assert calibration.nll == pytest.approx(reference, abs=1e-6)
    assert len(calibration.curve) == BINS
    assert sum(part.n for part in calibration.curve) == 400
    gaps = sum(part.n / 400 * abs(part.accuracy - part.confidence) for part in calibration.curve)
    assert calibration.ece == pytest.approx(gaps, abs=1e-6)


def test_a_sure_model_is_measured_as_it_is() -> None:
    # float32 rounds the top probability to one, and to a little above it; an error costs all its 200 nats
    logs = np.array([[0.0, -200.0], [1e-7, -200.0], [0.0, -200.0], [0.0, -200.0]], dtype=np.float32)
    calibration = measure_calibration(np.array([0, 0, 0, 1]), logs)
    assert calibration.nll == pytest.approx(50)
    assert calibration.brier == pytest.approx(0.5)
    assert calibration.ece == pytest.approx(0.25)
    assert calibration.curve[-1].n == 4
    assert (calibration.curve[-1].high, calibration.curve[-1].accuracy) == (1.0, 0.75)


def test_certainty_lies_in_the_last_bin_with_its_neighbours() -> None:
    logs = np.log(np.array([[0.95, 0.05], [1.0, 1e-30]])).astype(np.float32)
    calibration = measure_calibration(np.array([0, 1]), logs)  # right and wrong
    assert calibration.ece == pytest.approx(abs(0.5 - 0.975))
    assert calibration.curve[-1].n == 2
