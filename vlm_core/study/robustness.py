"""Scores of a model on pictures corrupted in ways that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.evaluation.summary import macro_f1
from vlm_core.pixels.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vlm_core.pixels.picture_store import fit_pictures
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.models.categoriser import Categoriser

_BATCH_SIZE: Final = 64


@dataclass(frozen=True)
class CorruptedScore:
    """Scores under one corruption at one severity."""

    corruption: str
    severity: int  # 1 (mild) to 3
    strength: float  # in the corruption's own unit
    accuracy: float
    macro_f1: float
    drop: float  # of macro-F1, relative to the clean one; below 0 where the corrupted pictures score higher


@dataclass(frozen=True)
class Robustness:
    """Scores of the same pictures, clean and corrupted."""

    n: int
    seed: int
    accuracy: float  # clean
    macro_f1: float  # clean
    scores: tuple[CorruptedScore, ...]  # every corruption at severities 1, 2, 3
    drops: dict[str, float]  # corruption -> mean of its relative drops over the severities
    mean_drop: float  # over all of `scores`


def measure_robustness(
    model: Categoriser,
    pictures: NDArray[np.uint8],
    labels: NDArray[np.int64],
    categories: tuple[str, ...],
    *,
    seed: int,
) -> Robustness:
    """Score the model on pictures (n, H, W, 3) with true categories (n,), clean and under every corruption.

    A picture's random parameters depend on its place: models that score the same pictures see the same pixels.
    A relative drop is 1 - corrupted / clean macro-F1, the share of the clean score that is lost, and 0 where the clean
    score is 0: models of different clean scores can be compared, as Hendrycks & Dietterich 2019
    (https://arxiv.org/abs/1903.12261, section 4) compare rises of the error, but without their reference network.
    Raises ValueError when the labels do not fit or the model has other categories.
    """
    if model.categories != categories:
        raise ValueError(f"the model's categories are {model.categories}, not {categories}")
    if not len(labels) == len(pictures) > 0 or labels.min() < 0 or labels.max() >= len(categories):
        raise ValueError("robustness needs pictures, each with one of the categories as its true one")
    accuracy, clean = _scores(model, pictures, labels)
    kinds = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    scores = []
    for name, severity in track(kinds, "corrupting pictures", len(kinds)):
        corrupted = corrupt(pictures, name, severity, seed=seed, rows=np.arange(len(pictures)))
        corrupted_accuracy, f1 = _scores(model, corrupted, labels)
        strength = float(CORRUPTIONS[name].strengths[severity - 1])
        scores.append(
            CorruptedScore(name, severity, strength, corrupted_accuracy, f1, 1 - f1 / clean if clean else 0.0)
        )
    drops = {name: float(np.mean([s.drop for s in scores if s.corruption == name])) for name in CORRUPTIONS}
    mean_drop = float(np.mean([score.drop for score in scores]))
    return Robustness(len(labels), seed, accuracy, clean, tuple(scores), drops, mean_drop)


def _scores(model: Categoriser, pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and macro-F1."""
    predicted = np.concatenate([rows.argmax(axis=1) for rows in _log_probabilities(model, pictures)])
    return float((predicted == labels).mean()), macro_f1(labels, predicted)


def _log_probabilities(model: Categoriser, pictures: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(pictures), _BATCH_SIZE):
        yield model.log_probabilities(fit_pictures(pictures[start : start + _BATCH_SIZE], model.canvas))
