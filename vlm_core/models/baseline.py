"""The classical baseline: logistic regression on HOG, colour histogram and thumbnail."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import UserError
from vlm_core.files.atomic import write_atomically
from vlm_core.models.category_only import CategoryOnly
from vlm_core.pixels.arrays import Float32Array, FloatArray, Labels, Picture, Pictures, Rows
from vlm_core.progress import track

SCHEMA: Final = 1
PENALTIES: Final = (1e-3, 1e-2, 1e-1)  # scikit-learn's C; the score falls below them and stops rising above
MAX_TRAINING_ROWS: Final = 50_000  # distinct images; their features take 310 MB
_MIN_SCALE: Final = 0.01  # bounds the features of colours that are rare in training; scores are the same
_IMAGES_PER_CHUNK: Final = 256
_MAX_ITERATIONS: Final = 1000  # of L-BFGS, which needs about 100 to 150


class PictureSource(Protocol):
    """A source of images, such as a PictureStore."""

    def take(self, rows: Rows) -> Pictures:
        """Return the images (B, H, W, 3) of catalogue rows (B,)."""


@dataclass(frozen=True)
class FeatureExtractor:
    """Extracts hand-crafted features from images that are first resized to height x width pixels."""

    height: int = 80
    width: int = 60
    cell_pixels: int = 10  # side of a HOG cell
    orientations: int = 9  # of a HOG histogram
    colour_levels: int = 4  # per channel of the joint colour histogram
    thumbnail_height: int = 10
    thumbnail_width: int = 8

    def extract(self, pictures: Pictures) -> Float32Array:
        """Return features (B, D) of images (B, H, W, 3): HOG of grey levels, root of colour shares, thumbnail in 0..1.

        HOG (Dalal & Triggs 2005, https://doi.org/10.1109/CVPR.2005.177) is scikit-image's.
        """
        if len(pictures) == 0:
            return np.empty((0, self.count), np.float32)
        return np.stack([self._extract_one(picture) for picture in pictures]).astype(np.float32)

    @property
    def count(self) -> int:
        """Return D, the number of features."""
        blocks = (self.height // self.cell_pixels - 1) * (self.width // self.cell_pixels - 1)
        thumbnail = self.thumbnail_height * self.thumbnail_width * 3
        return blocks * 4 * self.orientations + self.colour_levels**3 + thumbnail

    def _extract_one(self, picture: Picture) -> FloatArray:
        from PIL import Image
        from skimage.color import rgb2gray
        from skimage.feature import hog

        if picture.shape[:2] != (self.height, self.width):
            resized = Image.fromarray(picture).resize((self.width, self.height), Image.Resampling.BILINEAR)
            picture = np.asarray(resized)
        cell = (self.cell_pixels, self.cell_pixels)
        hog_features = hog(rgb2gray(picture), self.orientations, pixels_per_cell=cell, cells_per_block=(2, 2))
        levels = picture.astype(np.int64) * self.colour_levels // 256  # (H, W, 3)
        bins = levels @ np.array([self.colour_levels**2, self.colour_levels, 1])
        colour = np.bincount(bins.ravel(), minlength=self.colour_levels**3) / bins.size
        size = (self.thumbnail_width, self.thumbnail_height)
        thumbnail = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) / 255
        return np.concatenate([hog_features, np.sqrt(colour), thumbnail.ravel()])


@dataclass(frozen=True)
class Baseline(CategoryOnly):
    """A fitted baseline: a Categoriser without text generation."""

    categories: tuple[str, ...]  # (C,)
    canvas: tuple[int, int]  # (height, width) that images are fitted to
    features: FeatureExtractor
    weights: Float32Array  # (C, D)
    bias: Float32Array  # (C,)
    mean: Float32Array  # (D,) of the training features
    scale: Float32Array  # (D,) standard deviation of these, at least 0.01
    penalty: float  # scikit-learn's C, the inverse regularisation strength

    @property
    def reads(self) -> None:
        """Return None: the baseline reads pictures alone."""
        return None

    def log_probabilities(
        self, pictures: Pictures, texts: Sequence[str] | None = None, has_picture: NDArray[np.bool_] | None = None
    ) -> Float32Array:
        """Return log-probabilities (B, C) of images (B, H, W, 3); there are no texts to read."""
        return log_softmax(self.logits(self.features.extract(pictures)))

    def logits(self, features: Float32Array) -> Float32Array:
        """Return logits (B, C) of features (B, D)."""
        return np.asarray((features - self.mean) / self.scale @ self.weights.T + self.bias, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, then `categoriser.json`, each atomically."""
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
        """Return the baseline that `save` wrote. Raise UserError if the folder holds no complete one."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            content: dict[str, Any] = json.loads((folder / "categoriser.json").read_bytes())
            if (content["family"], content["schema"]) != ("baseline", SCHEMA):
                raise ValueError(f"family {content['family']}, schema {content['schema']}")
            baseline = cls(
                categories=tuple(content["categories"]),
                canvas=(int(content["canvas"][0]), int(content["canvas"][1])),
                features=FeatureExtractor(**content["settings"]["features"]),
                penalty=float(content["settings"]["penalty"]),
                **load((folder / "model.safetensors").read_bytes()),
            )
            baseline._check()
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{folder} holds no complete baseline of schema {SCHEMA} ({error}): train again."
            ) from error
        return baseline

    def _check(self) -> None:
        count, width = len(self.categories), self.features.count
        shapes = {"weights": (count, width), "bias": (count,), "mean": (width,), "scale": (width,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} have shape {getattr(self, name).shape}, not {shape}")


def fit_baseline(
    pictures: PictureSource,
    labels: Labels,
    training_rows: Rows,
    validation_rows: Rows,
    categories: tuple[str, ...],
    canvas: tuple[int, int],
    seed: int,
    *,
    balance: str = "none",
) -> Baseline:
    """Return a baseline fitted on the training rows, with the penalty of the best macro-F1 on the validation rows.

    `labels` (n_products,) cover the whole catalogue; rows index it and the images. A training row that occurs k times
    has weight k. About 50,000 distinct training rows are used at most, sampled with `seed`. `balance` weights the rows
    (`weights`), or subtracts the logarithm of each category's share from its bias (`logit-adjusted`: Menon et al. 2021,
    arXiv 2007.07314, section 4.1). Raise UserError if a category has no training row.
    """
    rows, repeats = np.unique(training_rows, return_counts=True)
    missing = [name for index, name in enumerate(categories) if index not in labels[rows]]
    if missing or len(categories) < 2:
        raise UserError(f"the baseline needs two categories with training products (none in: {', '.join(missing)}).")
    chosen = _stratified_sample(labels[rows], MAX_TRAINING_ROWS / len(rows), seed)
    rows, repeats = rows[chosen], repeats[chosen]
    extractor = FeatureExtractor()
    training = np.empty((len(rows), extractor.count), np.float32)
    for start, chunk in _chunks_of_features(pictures, rows, extractor, "features of training images"):
        training[start : start + len(chunk)] = chunk
    mean, scale = training.mean(axis=0), np.maximum(training.std(axis=0), _MIN_SCALE)
    training -= mean
    training /= scale
    row_weights, shift = balanced_rows(labels[rows], repeats, len(categories), balance)
    fitted = []
    for penalty in track(PENALTIES, "fitting the baseline", len(PENALTIES)):
        weights, bias = fit_logistic_regression(training, labels[rows], row_weights, penalty)
        bias = (bias - shift).astype(np.float32)
        fitted.append(Baseline(tuple(categories), canvas, extractor, weights, bias, mean, scale, penalty))
    return _best(fitted, pictures, labels, validation_rows)


def _stratified_sample(labels: Labels, share: float, seed: int) -> NDArray[np.int64]:
    """Return sorted indices into labels (n,): a share of each category, and at least one of each."""
    generator = np.random.default_rng(seed)
    indices = [generator.permutation(np.flatnonzero(labels == index)) for index in np.unique(labels)]
    return np.sort(np.concatenate([part[: int(np.ceil(min(share, 1) * len(part)))] for part in indices]))


def _chunks_of_features(
    pictures: PictureSource, rows: Rows, extractor: FeatureExtractor, label: str
) -> Iterator[tuple[int, Float32Array]]:
    """Yield the start of each chunk of rows, and its features (B, D)."""
    starts = range(0, len(rows), _IMAGES_PER_CHUNK)
    for start in track(starts, label, len(starts)):
        yield start, extractor.extract(pictures.take(rows[start : start + _IMAGES_PER_CHUNK]))


def balanced_rows(
    labels: Labels, repeats: NDArray[np.int64], count: int, balance: str
) -> tuple[NDArray[np.number], FloatArray]:
    """Return the weight of each row (n,), and what is subtracted from each category's bias (C,), as `balance` says."""
    counts = np.bincount(labels, weights=repeats, minlength=count)
    row_weights = repeats * (counts.sum() / (count * counts))[labels] if balance == "weights" else repeats
    return row_weights, np.log(counts / counts.sum()) if balance == "logit-adjusted" else np.zeros(count)


def log_softmax(logits: NDArray[np.floating]) -> Float32Array:
    """Return log-probabilities (B, C) of logits (B, C)."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), dtype=np.float32)


def fit_logistic_regression(
    training: Any, labels: Labels, row_weights: NDArray[np.number], penalty: float
) -> tuple[Float32Array, Float32Array]:
    """Return weights (C, D) and bias (C,) of scikit-learn's multinomial logistic regression.

    `training` (n, D) is dense or sparse; each of the C categories has some of its rows.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    model = LogisticRegression(C=penalty, max_iter=_MAX_ITERATIONS)
    # The matmuls are small: a second thread gains little, and waiting for it on a busy machine costs tenfold.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation split decides
        model.fit(training, labels, sample_weight=row_weights.astype(np.float32))
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:  # of two categories scikit-learn returns one row: the second's logit over the first's
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return weights.astype(np.float32), bias.astype(np.float32)


def _best(
    fitted: list[Baseline],
    pictures: PictureSource,
    labels: Labels,
    rows: Rows,
) -> Baseline:
    """Return the baseline with the highest macro-F1 on rows (n,); of equal ones the most regularised."""
    from vlm_core.evaluation.summary import macro_f1

    predicted = np.empty((len(fitted), len(rows)), np.int64)
    for start, chunk in _chunks_of_features(pictures, rows, fitted[0].features, "features of validation images"):
        for predictions, model in zip(predicted, fitted, strict=True):
            predictions[start : start + len(chunk)] = model.logits(chunk).argmax(axis=1)
    scores = [macro_f1(labels[rows], predictions) for predictions in predicted]
    return fitted[int(np.argmax(scores))]
