"""Three simple classifiers on a pretrained model's frozen features: majority, nearest class mean and k-NN.

They show what fine-tuning adds. scikit-learn fits them; this module turns their predictions into log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vlm_core.models.baseline import PictureSource
from vlm_core.pixels.arrays import Float32Array, FloatArray, Labels, Rows
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.models.categoriser import VisionLanguageCategoriser

NEIGHBOURS: Final = (1, 3, 5, 10, 20, 50)  # candidates for k, chosen on validation
_MAX_LOG_SHARPNESS: Final = 7.0  # and minus it is the minimum


@dataclass(frozen=True)
class LabelledFeatures:
    """Features and labels of distinct products; copies would count as neighbours of their own."""

    features: Float32Array  # (n, D)
    labels: Labels  # (n,) index of the category


@dataclass(frozen=True)
class FittedClassifier:
    """A fitted classifier."""

    settings: dict[str, float]  # chosen on validation
    log_probabilities: Callable[[Float32Array], Float32Array]  # features (m, D) -> finite log-probabilities (m, C)


def majority(training: LabelledFeatures, validation: LabelledFeatures, count: int) -> FittedClassifier:
    """Return a classifier that predicts each of `count` categories by its share of training."""
    from sklearn.dummy import DummyClassifier

    model = DummyClassifier(strategy="prior").fit(training.features, training.labels)
    return FittedClassifier(
        {},
        lambda features: _smoothed_log_shares(
            model.predict_proba(features), model.classes_, len(training.labels), count
        ),
    )


def nearest_class_mean(training: LabelledFeatures, validation: LabelledFeatures, count: int) -> FittedClassifier:
    """Return a softmax of -sharpness * mean squared distance to each category's mean, over standardised features.

    Mensink et al. 2013, https://doi.org/10.1109/TPAMI.2013.83, without a learnt metric. The sharpness is the inverse
    temperature of Guo et al. 2017, https://arxiv.org/abs/1706.04599, with the lowest negative log-likelihood on
    validation; it changes no prediction. Raise ValueError if training holds fewer than two categories.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import softmax
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.neighbors import NearestCentroid
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(training.features)
    model = NearestCentroid().fit(scaler.transform(training.features), training.labels)

    def predict(features: Float32Array, sharpness: float) -> Float32Array:
        distances = euclidean_distances(scaler.transform(features), model.centroids_, squared=True) / features.shape[1]
        return _smoothed_log_shares(
            softmax(-sharpness * distances, axis=1), model.classes_, len(training.labels), count
        )

    def loss(log_sharpness: float) -> float:
        log_probabilities = predict(validation.features, np.exp(log_sharpness))
        return -float(log_probabilities[np.arange(len(log_probabilities)), validation.labels].mean())

    sharpness = float(np.exp(minimize_scalar(loss, bounds=(-_MAX_LOG_SHARPNESS, _MAX_LOG_SHARPNESS)).x))
    return FittedClassifier({"sharpness": sharpness}, lambda features: predict(features, sharpness))


def k_nearest(training: LabelledFeatures, validation: LabelledFeatures, count: int) -> FittedClassifier:
    """Return a classifier by the votes of the k training products of highest cosine, with Laplace smoothing.

    k is the one of `NEIGHBOURS` with the best macro-F1 on validation, the largest of equal ones.
    """
    from sklearn.neighbors import KNeighborsClassifier

    from vlm_core.evaluation.summary import macro_f1

    def fit(neighbours: int) -> FittedClassifier:
        model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
        model.fit(training.features, training.labels)
        return FittedClassifier(
            {"neighbours": neighbours},
            lambda features: _smoothed_log_shares(model.predict_proba(features), model.classes_, neighbours, count),
        )

    fitted = [fit(neighbours) for neighbours in reversed(NEIGHBOURS) if neighbours <= len(training.labels)]
    predictions = [model.log_probabilities(validation.features).argmax(axis=1) for model in fitted]
    return fitted[int(np.argmax([macro_f1(validation.labels, predicted) for predicted in predictions]))]


SIMPLE_BASELINES: Final[dict[str, Callable[[LabelledFeatures, LabelledFeatures, int], FittedClassifier]]] = {
    "majority": majority,
    "nearest class mean": nearest_class_mean,
    "nearest neighbours": k_nearest,
}


def frozen_features(model: VisionLanguageCategoriser, pictures: PictureSource, rows: Rows) -> Float32Array:
    """Return the family's fused features (n, D) of catalogue rows (n,), computed batch by batch.

    The model's current weights are used: pass a model that was not fine-tuned.
    """
    import torch

    from vlm_core.models.categoriser import IMAGES_PER_BATCH
    from vlm_core.models.stages import run_stages
    from vlm_core.pixels.picture_store import fit_pictures

    stages = model.adapter.stages("fused")
    features = np.empty((len(rows), model.adapter.width("fused")), np.float32)
    model.hf.eval()
    starts = range(0, len(rows), IMAGES_PER_BATCH)
    with torch.inference_mode():
        for start in track(starts, "computing frozen features", len(starts)):
            batch = fit_pictures(pictures.take(rows[start : start + IMAGES_PER_BATCH]), model.canvas)
            pixels = model.pixels(batch).to(model.device)
            features[start : start + len(batch)] = run_stages(stages, (pixels,))[0].cpu().numpy()
    return features


def _smoothed_log_shares(shares: FloatArray, classes: Labels, votes: int, count: int) -> Float32Array:
    """Return log-probabilities (m, C) from shares (m, K) of `votes` votes for the categories `classes` (K,).

    Each category gets one vote more (Laplace's rule of succession), including those that training does not hold.
    """
    counts = np.ones((len(shares), count))
    counts[:, classes] += votes * shares
    return np.log(counts / (votes + count)).astype(np.float32)
