"""Predict the categories of images with a categoriser, and evaluate the predictions."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vlm_core.config import EvaluationSettings
from vlm_core.config.lists import split_list
from vlm_core.errors import UserError
from vlm_core.evaluation.category_matching import UNKNOWN_CATEGORY
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture, fit_picture
from vlm_core.progress import track

if TYPE_CHECKING:
    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.evaluation.evaluation import Evaluation
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.models.categoriser import Categoriser
    from vlm_core.pixels.picture_store import PixelBudget

PREDICTION_BATCH: Final = 64
REQUEST_BATCH: Final = 32
TIMED_PASSES: Final = 3
NOTHING: Final = "The product has neither an image nor a text."


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
    """Return the median seconds per image of several passes over decoded pictures (n, H, W, 3)."""
    passes = []
    for _ in range(TIMED_PASSES):
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
    predictions = predict_rows(model, catalogue, rows, labels)
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


def predict_rows(
    model: Categoriser,
    catalogue: Catalogue,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    without: Literal["text", "picture"] | None = None,
) -> Predictions:
    """Predict catalogue rows (n,), from their texts, too, if the model reads any; labels (n_products,) are for all.

    `without` withholds the texts or the pictures from a model that reads both.
    """
    from vlm_core.evaluation.level_scores import LevelPredictions
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.pixels.picture_store import fit_pictures

    ids = catalogue.products["product_id"].to_numpy(str)
    scores, texts, closest, levels = [], [], [], list[LevelPredictions]()
    starts = range(0, len(rows), PREDICTION_BATCH)
    for start in track(starts, "predicting", len(starts)):
        chosen = slice(start, start + PREDICTION_BATCH)
        batch = fit_pictures(catalogue.pictures.take(rows[chosen]), model.canvas)
        some_texts = model.reads.texts(catalogue.products.iloc[rows[chosen]]) if model.reads else None
        if without == "text":
            some_texts = [""] * len(batch)
        has_picture = np.zeros(len(batch), dtype=bool) if without == "picture" else None
        if several := model.levels(batch):
            scores.append(several[0])
            levels.append(several[1])
        else:
            scores.append(model.log_probabilities(batch, some_texts, has_picture))
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
        levels=LevelPredictions.joined(levels, _level_labels(model, catalogue, rows, labels)),
    )


def _level_labels(
    model: Categoriser, catalogue: Catalogue, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Return the true category of catalogue rows at each level of the model (n, L), -1 where it is none of them.

    None for a model of one label, and where the catalogue lacks a level's column.
    """
    hierarchy, products = model.hierarchy, catalogue.products
    if hierarchy is None or not set(hierarchy.labels[:-1]) <= set(products):
        return None
    above = [
        products[label].iloc[rows].map({name: index for index, name in enumerate(names)}).fillna(-1).to_numpy(np.int64)
        for label, names in zip(hierarchy.labels[:-1], hierarchy.categories, strict=False)
    ]
    return np.stack([*above, labels[rows]], axis=1)


def predict_records(
    model: Categoriser,
    readers: Sequence[Callable[[], bytes] | None],
    budget: PixelBudget | None = None,
    texts: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per image: category, confidence, p_<category>, and text and text_category where there is a text.

    A model of several labels adds category_<label> and confidence_<label> of those above the last.
    An image that cannot be read (OSError, ValueError, UnreadablePicture) has an `error` instead, and the others are
    predicted all the same. The `budget` bounds what they may cost together.

    A model that reads texts predicts from those of `texts` (B,), which are as the products have them, and says in
    `read` what there was. A product may have no image (None), and one that cannot be read has an `error` beside the
    prediction from its text.
    """
    texts = [model.reads.clean(text) for text in texts or [""] * len(readers)] if model.reads else None
    if texts is not None and model.reads and model.reads.inputs == "text":
        return _predict_texts(model, texts)
    pictures = [_read(reader, model.canvas, budget) for reader in readers]
    has_picture = np.array([not isinstance(picture, str) for picture in pictures], dtype=bool)
    has_text = np.array([bool(text) for text in texts] if texts else [False] * len(pictures), dtype=bool)
    used = np.flatnonzero(has_picture | has_text)
    if not len(used):
        return [{"error": picture or NOTHING} for picture in pictures]
    blank = np.zeros((*model.canvas, 3), dtype=np.uint8)
    shown = np.stack([blank if isinstance(pictures[place], str) else pictures[place] for place in used])
    some_texts = [texts[place] for place in used] if texts is not None else None
    predicted = dict(zip(used.tolist(), predict_pictures(model, shown, some_texts, has_picture[used]), strict=True))
    records = []
    for place, picture in enumerate(pictures):
        record = predicted.get(place, {})
        if record and model.reads:
            given = {"image": has_picture[place], "text": has_text[place]}
            record["read"] = "+".join(name for name, is_given in given.items() if is_given)
        error = (picture or ("" if record else NOTHING)) if isinstance(picture, str) else ""
        records.append(record | ({"error": error} if error else {}))
    return records


def _predict_texts(model: Categoriser, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `predict_records` for a model that reads texts (B,) alone."""
    if not texts:
        return []
    blank = np.zeros((len(texts), *model.canvas, 3), dtype=np.uint8)
    records = predict_pictures(model, blank, texts)
    return [
        {**record, "read": "text"} if text else {"error": "The product has no text, and this model reads nothing else."}
        for text, record in zip(texts, records, strict=True)
    ]


def record_columns(model: Categoriser) -> list[str]:
    """Return the columns of a record, `error` last."""
    from vlm_core.evaluation.level_scores import level_columns

    texts = ["text", "text_category"] if model.writes_text else []
    read = ["read"] if model.reads else []
    levels = level_columns(model.hierarchy.labels) if model.hierarchy else ()
    return ["category", "confidence", *(f"p_{name}" for name in model.categories), *levels, *texts, *read, "error"]


def _read(
    reader: Callable[[], bytes] | None, canvas: tuple[int, int], budget: PixelBudget | None
) -> NDArray[np.uint8] | str:
    """Return the picture (H, W, 3), or why it cannot be read; "" where there is none."""
    if reader is None:
        return ""
    try:
        return fit_picture(decode_picture(reader(), budget), canvas)
    except (OSError, ValueError, UnreadablePicture) as error:
        return str(error) or type(error).__name__


def predict_pictures(
    model: Categoriser,
    pictures: NDArray[np.uint8],
    texts: Sequence[str] | None = None,
    has_picture: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of `predict_records` for pictures (B, H, W, 3) on the model's canvas, and texts (B,)."""
    from vlm_core.evaluation.level_scores import level_records

    several = model.levels(pictures)
    scores = several[0] if several else model.log_probabilities(pictures, texts, has_picture)
    probabilities = np.exp(scores.astype(np.float64))  # (B, C)
    records: list[dict[str, Any]] = [
        {"category": model.categories[int(row.argmax())], "confidence": float(row.max())}
        | {f"p_{name}": float(value) for name, value in zip(model.categories, row, strict=True)}
        for row in probabilities
    ]
    if several:
        records = [record | levels for record, levels in zip(records, level_records(several[1]), strict=True)]
    if described := model.describe(pictures):
        for record, text, index in zip(records, *described, strict=True):
            record |= {"text": text, "text_category": model.categories[index] if index >= 0 else UNKNOWN_CATEGORY}
    return records
