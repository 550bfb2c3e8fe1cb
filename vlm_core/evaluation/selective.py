"""Selective classification by confidence, and detection of products of unknown categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.evaluation.bootstrap import LEVEL, PRIOR_PRODUCTS, Estimate
from vlm_core.evaluation.predictions import Predictions

POINTS: Final = 100  # of a stored curve
KNOWN_ACCEPTED: Final = 0.95  # share of known products accepted where the false-positive rate is measured


@dataclass(frozen=True)
class RiskCoverage:
    """The error rate when only the most confident predictions are accepted."""

    n: int
    aurc: float  # area under the curve: mean risk over all coverages
    excess: float  # aurc minus the optimum for the same predictions; 0 where all errors are the least confident
    coverage: tuple[float, ...]  # up to 100 shares of accepted predictions, rising to 1
    risk: tuple[float, ...]  # share of errors among them


@dataclass(frozen=True)
class UnknownDetection:
    """How well confidence separates products of known categories from those of unknown ones."""

    known: int
    unknown: int
    auroc: Estimate
    fpr: float  # share of unknown products accepted as known where 95 % of the known ones are


def measure_risk_coverage(predictions: Predictions) -> RiskCoverage:
    """Return the risk-coverage curve of the labelled products by top probability.

    Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500; the areas are those of Geifman, Uziel & El-Yaniv 2019,
    https://arxiv.org/abs/1805.08206. Errors are spread evenly over equally confident products.
    Raises UserError when no product is labelled.
    """
    known = predictions.labels >= 0
    if not known.any():
        raise UserError("none of the products has a known category: there are no errors to count.")
    confidence = predictions.log_probabilities[known].max(axis=1)
    errors = (predictions.predicted != predictions.labels)[known]
    risks = _risks(confidence, errors)  # (n,)
    points = np.unique(np.ceil(np.arange(1, POINTS + 1) * len(risks) / POINTS).astype(np.int64)) - 1
    return RiskCoverage(
        n=len(risks),
        aurc=float(risks.mean()),
        excess=float(risks.mean() - _risks(-errors.astype(np.float32), errors).mean()),
        coverage=tuple(((points + 1) / len(risks)).tolist()),
        risk=tuple(risks[points].tolist()),
    )


def _risks(confidence: NDArray[np.float32], errors: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of errors (n,) among the k most confident predictions, k = 1..n."""
    _, inverse, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    spread = np.bincount(inverse, weights=errors) / counts
    return np.asarray(np.cumsum(np.repeat(spread, counts)) / np.arange(1, len(errors) + 1))


def detect_unknown(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> UnknownDetection:
    """Measure how well top probabilities separate known (m,) from unknown (n,) products, known as positives.

    Hendrycks & Gimpel 2017, https://arxiv.org/abs/1610.02136. Raises UserError when either side is empty.
    """
    from sklearn.metrics import roc_curve

    auroc = auroc_unknown(known, unknown)
    truth = np.repeat([1, 0], [len(known), len(unknown)])
    false, true, _ = roc_curve(truth, np.concatenate([known, unknown]), drop_intermediate=False)
    return UnknownDetection(len(known), len(unknown), auroc, float(false[np.argmax(true >= KNOWN_ACCEPTED)]))


def auroc_unknown(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> Estimate:
    """Return the AUROC of known (m,) against unknown (n,) products' confidences, with a 95 % interval.

    DeLong, DeLong & Clarke-Pearson 1988, https://doi.org/10.2307/2531595, on the logit, which keeps the interval within
    0..1 (Pepe 2003, The Statistical Evaluation of Medical Tests, 5.2.4). To either side one product is added that is
    half detected and half not, as in `vlm_core.evaluation.bootstrap.resample_metrics`, because 20 unknown products
    that are all detected would give an interval of no width: with 20 it held the truth in 69 to 96 % of simulations
    without the added product, and in 90 to 97 % with it. Raises UserError when either side is empty.
    """
    from scipy.stats import norm, rankdata

    m, n = len(known), len(unknown)
    if min(m, n) == 0:
        raise UserError("separating known from unknown products needs at least one of each.")
    ranks = rankdata(np.concatenate([known, unknown]))
    above = (ranks[:m] - rankdata(known)) / n  # (m,) share of the unknown below each known product
    below = 1 - (ranks[m:] - rankdata(unknown)) / m  # (n,) share of the known above each unknown product
    value = float(above.mean())
    added = PRIOR_PRODUCTS / min(m, n)
    centre = (value + added / 2) / (1 + added)
    error = np.sqrt(_variance(above) + _variance(below)) / (centre * (1 - centre))  # of the logit
    reach = float(norm.ppf((1 + LEVEL) / 2) * error)
    low, high = (1 / (1 + np.exp(-np.log(centre / (1 - centre)) - side)) for side in (-reach, reach))
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def _variance(shares: NDArray[np.float64]) -> float:
    """Return the variance of the mean of shares (n,), with half a product of share 0 and half of share 1 added."""
    n, half = len(shares), PRIOR_PRODUCTS / 2
    mean = (shares.sum() + half) / (n + PRIOR_PRODUCTS)
    squares = ((shares - mean) ** 2).sum() + half * (mean**2 + (1 - mean) ** 2)
    return float(squares / n / (n + PRIOR_PRODUCTS))
