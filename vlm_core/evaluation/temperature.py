"""Temperature scaling: calibration by one number that is fitted on validation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log
from typing import Final

import numpy as np

from vlm_core.errors import UserError
from vlm_core.evaluation.calibration import Calibration, measure_calibration
from vlm_core.evaluation.predictions import Predictions

LOWEST: Final = 0.1  # without a bound, an error-free validation split would drive the temperature to 0
HIGHEST: Final = 10.0


@dataclass(frozen=True)
class TemperatureScaling:
    """The calibration of test products before and after scaling by a temperature."""

    temperature: float  # above 1: the model was overconfident
    before: Calibration
    after: Calibration


def measure_scaling(validation: Predictions, test: Predictions) -> TemperatureScaling:
    """Measure calibration of the labelled test products before and after scaling by validation's temperature.

    Raises UserError when a split has no labelled product.
    """
    temperature = fit_temperature(validation)
    return TemperatureScaling(temperature, _calibration(test), _calibration(scale_predictions(test, temperature)))


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature in 0.1..10 that minimises the labelled products' negative log-likelihood.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599. Raises UserError when no product is labelled.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    known = _known(predictions)
    logs, labels = predictions.log_probabilities[known].astype(np.float64), predictions.labels[known]
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logs / exp(log_temperature), axis=1)[rows, labels].mean())

    # The loss is convex in 1 / T, so it has one minimum in log T.
    minimum = minimize_scalar(loss, bounds=(log(LOWEST), log(HIGHEST)), method="bounded", options={"xatol": 1e-6})
    return exp(float(minimum.x))


def scale_predictions(predictions: Predictions, temperature: float) -> Predictions:
    """Return the predictions with probabilities softmax(log p / T); the predicted categories stay the same."""
    from scipy.special import log_softmax

    logs = log_softmax(predictions.log_probabilities.astype(np.float64) / temperature, axis=1)
    return replace(predictions, log_probabilities=logs.astype(np.float32))


def _calibration(predictions: Predictions) -> Calibration:
    known = _known(predictions)
    return measure_calibration(predictions.labels[known], predictions.log_probabilities[known])


def _known(predictions: Predictions) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    known = predictions.labels >= 0
    if not known.any():
        raise UserError("none of the products has a known category: fitting a temperature needs labelled ones.")
    return known
