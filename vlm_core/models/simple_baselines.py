"""Three classifiers that learn next to nothing, on features that a pretrained model gives without any fine-tuning.

What a fine-tuned model is worth shows against these: the commonest category, the nearest class mean and the nearest
neighbours. scikit-learn fits them; here their answers become log-probabilities like any model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.models.baseline import PictureSource
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.models.categoriser import VisionLanguageCategoriser

NEIGHBOURS: Final = (1, 3, 5, 10, 20, 50)  # that validation chooses from
_PICTURES_A_BATCH: Final = 32
_SHARPEST: Final = 7.0  # bound of the logarithm of the factor before a mean squared distance, both ways


@dataclass(frozen=True)
class Labelled:
    """Products that a classifier is fitted or judged on, each of them once: copies would vote as neighbours do."""

    features: NDArray[np.float32]  # (n, D)
    labels: NDArray[np.int64]  # (n,) index of the category


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier."""

    settings: dict[str, float]  # what validation chose
    log_probabilities: Callable[[NDArray[np.float32]], NDArray[np.float32]]  # of features (m, D): finite rows (m, C)


def majority(training: Labelled, validation: Labelled, count: int) -> Fitted:
    """The share of each of `count` categories in training, whatever the picture."""
    from sklearn.dummy import DummyClassifier

    model = DummyClassifier(strategy="prior").fit(training.features, training.labels)
    return Fitted(
        {}, lambda features: _counted(model.predict_proba(features), model.classes_, len(training.labels), count)
    )


def nearest_class_mean(training: Labelled, validation: Labelled, count: int) -> Fitted:
    """A softmax of -sharpness * mean squared distance to each category's mean, over standardised features.

    Mensink et al. 2013, https://doi.org/10.1109/TPAMI.2013.83, without a learnt metric. The sharpness is one over the
    temperature of Guo et al. 2017, https://arxiv.org/abs/1706.04599: that with the least negative log-likelihood on
    validation; it moves no answer. Raises ValueError when training holds fewer than two categories.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import softmax
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.neighbors import NearestCentroid
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(training.features)
    model = NearestCentroid().fit(scaler.transform(training.features), training.labels)

    def answer(features: NDArray[np.float32], sharpness: float) -> NDArray[np.float32]:
        distances = euclidean_distances(scaler.transform(features), model.centroids_, squared=True) / features.shape[1]
        return _counted(softmax(-sharpness * distances, axis=1), model.classes_, len(training.labels), count)

    def loss(logarithm: float) -> float:
        logs = answer(validation.features, np.exp(logarithm))
        return -float(logs[np.arange(len(logs)), validation.labels].mean())

    sharpness = float(np.exp(minimize_scalar(loss, bounds=(-_SHARPEST, _SHARPEST)).x))
    return Fitted({"sharpness": sharpness}, lambda features: answer(features, sharpness))


def k_nearest(training: Labelled, validation: Labelled, count: int) -> Fitted:
    """The votes of the k training products with the largest cosine, and one vote more for each category.

    k is that of `NEIGHBOURS` with the best macro-F1 on validation, the largest of equals.
    """
    from sklearn.neighbors import KNeighborsClassifier

    from vlm_core.evaluation.summary import macro_f1

    def fit(neighbours: int) -> Fitted:
        model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
        model.fit(training.features, training.labels)
        return Fitted(
            {"neighbours": neighbours},
            lambda features: _counted(model.predict_proba(features), model.classes_, neighbours, count),
        )

    fitted = [fit(neighbours) for neighbours in reversed(NEIGHBOURS) if neighbours <= len(training.labels)]
    answers = [model.log_probabilities(validation.features).argmax(axis=1) for model in fitted]
    return fitted[int(np.argmax([macro_f1(validation.labels, predicted) for predicted in answers]))]


SIMPLE_BASELINES: Final[dict[str, Callable[[Labelled, Labelled, int], Fitted]]] = {
    "majority": majority,
    "nearest class mean": nearest_class_mean,
    "nearest neighbours": k_nearest,
}


def frozen_features(
    model: VisionLanguageCategoriser, pictures: PictureSource, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The family's fused state (n, D) of catalogue rows (n,), as it stands before a head; few pictures at a time.

    It is read from the weights as they are: give a model that nothing has been learnt with.
    """
    import torch

    from vlm_core.models.stages import run_stages
    from vlm_core.pixels.picture_store import fit_pictures
    from vlm_core.pixels.views import plain_view

    stages = model.adapter.stages("fused")
    features = np.empty((len(rows), model.adapter.width("fused")), np.float32)
    model.hf.eval()
    starts = range(0, len(rows), _PICTURES_A_BATCH)
    with torch.inference_mode():
        for start in track(starts, "reading frozen features", len(starts)):
            taken = fit_pictures(pictures.take(rows[start : start + _PICTURES_A_BATCH]), model.canvas)
            pixels = plain_view(taken, model.image_size).to(model.device)
            features[start : start + len(taken)] = run_stages(stages, (pixels,))[0].cpu().numpy()
    return features


def _counted(shares: NDArray[np.float64], classes: NDArray[np.int64], votes: int, count: int) -> NDArray[np.float32]:
    """Log-probabilities (m, C) of so many votes, of which the categories `classes` (K,) have shares (m, K).

    Each category gets one vote more (Laplace's rule of succession), also those that training does not hold.
    """
    counted = np.ones((len(shares), count))
    counted[:, classes] += votes * shares
    return np.log(counted / (votes + count)).astype(np.float32)
