"""The baseline a reader asks for: shapes, colours and a thumbnail of the picture, and a logistic regression on them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_core.atomic import write_atomically
from vlm_core.errors import UserError
from vlm_core.progress import track

SCHEMA: Final = 1
PENALTIES: Final = (1e-3, 1e-2, 1e-1)  # scikit-learn's C; below them the score falls, above them it no longer rises
MOST_TRAINING_ROWS: Final = 50_000  # different pictures; their features take 310 MB
_LEAST_SCALE: Final = 0.01  # or a colour rare in training would shout in another picture; scores are the same
_PICTURES_A_PART: Final = 256
_MOST_STEPS: Final = 1000  # of L-BFGS; it takes about 100 to 150


class PictureSource(Protocol):
    """Where pictures come from: a PictureStore."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures (B, H, W, 3) of catalogue rows (B,)."""


@dataclass(frozen=True)
class Features:
    """What is measured in a picture after it is brought to height x width pixels."""

    height: int = 80
    width: int = 60
    cell_pixels: int = 10  # side of a HOG cell
    orientations: int = 9  # of a HOG histogram
    colour_levels: int = 4  # a channel of the joint colour histogram
    thumbnail_height: int = 10
    thumbnail_width: int = 8

    def of(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (B, D) of pictures (B, H, W, 3): HOG of the grey picture, root of colour shares, thumbnail in 0..1.

        HOG is of Dalal & Triggs 2005, https://doi.org/10.1109/CVPR.2005.177, as scikit-image has it.
        """
        if len(pictures) == 0:
            return np.empty((0, self.count), np.float32)
        return np.stack([self._of_one(picture) for picture in pictures]).astype(np.float32)

    @property
    def count(self) -> int:
        """Number D of features."""
        blocks = (self.height // self.cell_pixels - 1) * (self.width // self.cell_pixels - 1)
        thumbnail = self.thumbnail_height * self.thumbnail_width * 3
        return blocks * 4 * self.orientations + self.colour_levels**3 + thumbnail

    def _of_one(self, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
        from PIL import Image
        from skimage.color import rgb2gray
        from skimage.feature import hog

        if picture.shape[:2] != (self.height, self.width):
            resized = Image.fromarray(picture).resize((self.width, self.height), Image.Resampling.BILINEAR)
            picture = np.asarray(resized)
        cell = (self.cell_pixels, self.cell_pixels)
        shape = hog(rgb2gray(picture), self.orientations, pixels_per_cell=cell, cells_per_block=(2, 2))
        levels = picture.astype(np.int64) * self.colour_levels // 256  # (H, W, 3)
        places = levels @ np.array([self.colour_levels**2, self.colour_levels, 1])
        colour = np.bincount(places.ravel(), minlength=self.colour_levels**3) / places.size
        size = (self.thumbnail_width, self.thumbnail_height)
        thumbnail = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) / 255
        return np.concatenate([shape, np.sqrt(colour), thumbnail.ravel()])


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline: a Categoriser that writes no text."""

    categories: tuple[str, ...]  # (C,)
    canvas: tuple[int, int]  # (height, width) that pictures are fitted to
    features: Features
    weights: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)
    mean: NDArray[np.float32]  # (D,) of the training features
    scale: NDArray[np.float32]  # (D,) their standard deviation, at least 0.01
    penalty: float  # scikit-learn's C, the smaller the stronger

    def log_probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows (B, C) for pictures (B, H, W, 3)."""
        scores = self.scores(self.features.of(pictures)).astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return np.asarray(logs, dtype=np.float32)

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, C) for features (B, D)."""
        return np.asarray((features - self.mean) / self.scale @ self.weights.T + self.bias, dtype=np.float32)

    @property
    def writes_text(self) -> bool:
        """Never."""
        return False

    def describe(self, pictures: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64]] | None:
        """None: the baseline writes nothing."""
        return None

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, then `categoriser.json`, each whole or not at all."""
        from safetensors.numpy import save

        names = ("weights", "bias", "mean", "scale")
        tensors = save({name: np.ascontiguousarray(getattr(self, name)) for name in names})
        content = {
            "family": "baseline",
            "schema": SCHEMA,
            "categories": list(self.categories),
            "canvas": list(self.canvas),
            "settings": {"penalty": self.penalty, "features": asdict(self.features)},
        }
        write_atomically(folder / "model.safetensors", lambda file: file.write(tensors))
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_atomically(folder / "categoriser.json", lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        """The baseline that `save` wrote. Raises UserError when the folder does not hold one whole."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            content: dict[str, Any] = json.loads((folder / "categoriser.json").read_bytes())
            if (content["family"], content["schema"]) != ("baseline", SCHEMA):
                raise ValueError(f"family {content['family']}, schema {content['schema']}")
            baseline = cls(
                categories=tuple(content["categories"]),
                canvas=(int(content["canvas"][0]), int(content["canvas"][1])),
                features=Features(**content["settings"]["features"]),
                penalty=float(content["settings"]["penalty"]),
                **load((folder / "model.safetensors").read_bytes()),
            )
            baseline._check()
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder} holds no whole baseline of schema {SCHEMA} ({error}): train again.") from error
        return baseline

    def _check(self) -> None:
        count, width = len(self.categories), self.features.count
        shapes = {"weights": (count, width), "bias": (count,), "mean": (width,), "scale": (width,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} have shape {getattr(self, name).shape}, not {shape}")


def fit_baseline(
    pictures: PictureSource,
    labels: NDArray[np.int64],
    training_rows: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
    categories: tuple[str, ...],
    canvas: tuple[int, int],
    seed: int,
) -> Baseline:
    """A baseline fitted on the training rows, with the penalty that has the best macro-F1 on the validation rows.

    `labels` (n_products,) are of the whole catalogue; rows index it and the pictures. A training row that occurs k
    times counts k times, but is measured once. Some 50,000 different training rows are
    used at most, drawn by `seed`.
    Raises UserError when a category has no training row.
    """
    rows, repeats = np.unique(training_rows, return_counts=True)
    missing = [name for index, name in enumerate(categories) if index not in labels[rows]]
    if missing or len(categories) < 2:
        raise UserError(f"the baseline needs two categories with training products (none in: {', '.join(missing)}).")
    chosen = _draw(labels[rows], MOST_TRAINING_ROWS / len(rows), seed)
    rows, repeats = rows[chosen], repeats[chosen]
    measure = Features()
    training = np.empty((len(rows), measure.count), np.float32)
    for start, part in _measured(pictures, rows, measure, "measuring training pictures"):
        training[start : start + len(part)] = part
    mean, scale = training.mean(axis=0), np.maximum(training.std(axis=0), _LEAST_SCALE)
    training -= mean
    training /= scale
    fitted = []
    for penalty in track(PENALTIES, "fitting the baseline", len(PENALTIES)):
        weights, bias = _fit(training, labels[rows], repeats, penalty)
        fitted.append(Baseline(tuple(categories), canvas, measure, weights, bias, mean, scale, penalty))
    return _best(fitted, pictures, labels, validation_rows)


def _draw(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Places in labels (n,), in order: that share of each category, at least one; all of them for a share from 1 on."""
    generator = np.random.default_rng(seed)
    places = [generator.permutation(np.flatnonzero(labels == index)) for index in np.unique(labels)]
    return np.sort(np.concatenate([part[: int(np.ceil(min(share, 1) * len(part)))] for part in places]))


def _measured(
    pictures: PictureSource, rows: NDArray[np.int64], features: Features, label: str
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Where each part of the rows begins, and its features (B, D)."""
    starts = range(0, len(rows), _PICTURES_A_PART)
    for start in track(starts, label, len(starts)):
        yield start, features.of(pictures.take(rows[start : start + _PICTURES_A_PART]))


def _fit(
    training: NDArray[np.float32], labels: NDArray[np.int64], repeats: NDArray[np.int64], penalty: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (C, D) and bias (C,) of scikit-learn's multinomial logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    model = LogisticRegression(C=penalty, max_iter=_MOST_STEPS)
    # the products are small: a second thread gains little, and on a busy machine waiting for it costs tenfold
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation split judges what it came to
        model.fit(training, labels, sample_weight=repeats.astype(np.float32))
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:  # of two categories scikit-learn keeps one row: the second's score over the first's
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return weights.astype(np.float32), bias.astype(np.float32)


def _best(
    fitted: list[Baseline],
    pictures: PictureSource,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Baseline:
    """The baseline with the highest macro-F1 on rows (n,); the most strongly penalised of equals."""
    from vlm_core.evaluation.summary import macro_f1

    predicted = np.empty((len(fitted), len(rows)), np.int64)
    for start, part in _measured(pictures, rows, fitted[0].features, "measuring validation pictures"):
        for answers, model in zip(predicted, fitted, strict=True):
            answers[start : start + len(part)] = model.scores(part).argmax(axis=1)
    scores = [macro_f1(labels[rows], answers) for answers in predicted]
    return fitted[int(np.argmax(scores))]
