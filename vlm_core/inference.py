"""Predict the categories of images with a categoriser, and evaluate the predictions."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vlm_core.config import EvaluationSettings
from vlm_core.data import split_list
from vlm_core.errors import UserError
from vlm_core.evaluation.texts import UNKNOWN_CATEGORY
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture, fit_picture
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.models.categoriser import Categoriser
    from vlm_core.pixels.picture_store import PictureStore, PixelBudget

PREDICTION_BATCH: Final = 64
REQUEST_BATCH: Final = 32


def set_threads(threads: int) -> None:
    """Let PyTorch use that many threads, at most one per core."""
    import torch

    torch.set_num_threads(min(threads, os.cpu_count() or 1))


def choose_device(device: str) -> str:
    """Return "cuda" or "cpu" for the setting `device`, of which "auto" is CUDA where it is available.

    On CUDA, convolutions run in single precision from then on, where PyTorch's default is TF32: the feature cache
    serves both devices, so that the embeddings of patches must not differ by more than rounding.

    Raises UserError for "cuda" where it is not available.
    """
    import torch

    if device == "cpu":
        return "cpu"
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("device=cuda: PyTorch finds no CUDA device; use device=cpu or device=auto.")
    if not has_cuda:
        return "cpu"
    torch.backends.cudnn.allow_tf32 = False
    return "cuda"


def seconds_per_image(model: Categoriser, pictures: NDArray[np.uint8]) -> float:
    """Return the median seconds per image of three passes over decoded pictures (n, H, W, 3)."""
    passes = []
    for _ in range(3):
        started = time.perf_counter()
        model.log_probabilities(pictures)
        passes.append((time.perf_counter() - started) / len(pictures))
    return statistics.median(passes)


def evaluate_rows(
    config: EvaluationSettings,
    catalogue: Catalogue,
    model: Categoriser,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    prior: NDArray[np.float64],
    trained: NDArray[np.int64] | None = None,
    subsets: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Evaluation:
    """Evaluate the model on catalogue rows (n,); labels (n_products,) are indices of its categories.

    `trained` (C,) are the products of each category that it was trained on, if they are known; `subsets` (n,) mark rows
    to score apart as well.
    """
    ids = catalogue.products["product_id"].to_numpy(str)
    predictions = _predict_rows(model, catalogue.pictures, rows, ids, labels)
    return evaluate_predictions(config, catalogue, predictions, rows, prior, trained, subsets)


def evaluate_predictions(
    config: EvaluationSettings,
    catalogue: Catalogue,
    predictions: Predictions,
    rows: NDArray[np.int64],
    prior: NDArray[np.float64],
    trained: NDArray[np.int64] | None = None,
    subsets: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Evaluation:
    """Evaluate a model's predictions on catalogue rows (n,), also by the subgroups that the settings name."""
    from vlm_core.evaluation.evaluation import evaluate

    attributes = [name for name in split_list(config.attributes) if name in catalogue.products.columns]
    subgroups = catalogue.products[attributes].iloc[rows].reset_index(drop=True)
    return evaluate(
        predictions, subgroups, prior, resamples=config.resamples, seed=config.seed, trained=trained, subsets=subsets
    )


def _predict_rows(
    model: Categoriser,
    pictures: PictureStore,
    rows: NDArray[np.int64],
    ids: NDArray[np.str_],
    labels: NDArray[np.int64],
) -> Predictions:
    """Predict catalogue rows (n,); ids and labels (n_products,) are the whole catalogue's."""
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.pixels.picture_store import fit_pictures

    scores, texts, closest = [], [], []
    starts = range(0, len(rows), PREDICTION_BATCH)
    for start in track(starts, "predicting", len(starts)):
        batch = fit_pictures(pictures.take(rows[start : start + PREDICTION_BATCH]), model.canvas)
        scores.append(model.log_probabilities(batch))
        if described := model.describe(batch):
            texts.extend(described[0])
            closest.append(described[1])
    return Predictions(
        product_ids=ids[rows],
        labels=labels[rows],
        log_probabilities=np.concatenate(scores),
        categories=model.categories,
        texts=tuple(texts) if texts else None,
        text_categories=np.concatenate(closest) if closest else None,
    )


def predict_records(
    model: Categoriser, readers: Sequence[Callable[[], bytes]], budget: PixelBudget | None = None
) -> list[dict[str, Any]]:
    """Return one row per image: category, confidence, p_<category>, and text and text_category where there is a text.

    An image that cannot be read (OSError, ValueError, UnreadablePicture) has an `error` instead, and the others are
    predicted all the same. The `budget` bounds what they may cost together.
    """
    pictures = [_read(reader, model.canvas, budget) for reader in readers]
    readable = [picture for picture in pictures if not isinstance(picture, str)]
    records = iter(predict_pictures(model, np.stack(readable)) if readable else ())
    return [{"error": picture} if isinstance(picture, str) else next(records) for picture in pictures]


def record_columns(model: Categoriser) -> list[str]:
    """Return the columns of a record, `error` last."""
    texts = ["text", "text_category"] if model.writes_text else []
    return ["category", "confidence", *(f"p_{name}" for name in model.categories), *texts, "error"]


def _read(reader: Callable[[], bytes], canvas: tuple[int, int], budget: PixelBudget | None) -> NDArray[np.uint8] | str:
    try:
        return fit_picture(decode_picture(reader(), budget), canvas)
    except (OSError, ValueError, UnreadablePicture) as error:
        return str(error)


def predict_pictures(model: Categoriser, pictures: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Return the rows of `predict_records` for pictures (B, H, W, 3) on the model's canvas."""
    probabilities = np.exp(model.log_probabilities(pictures).astype(np.float64))  # (B, C)
    records: list[dict[str, Any]] = [
        {"category": model.categories[int(row.argmax())], "confidence": float(row.max())}
        | {f"p_{name}": float(value) for name, value in zip(model.categories, row, strict=True)}
        for row in probabilities
    ]
    if described := model.describe(pictures):
        for record, text, index in zip(records, *described, strict=True):
            record |= {"text": text, "text_category": model.categories[index] if index >= 0 else UNKNOWN_CATEGORY}
    return records
