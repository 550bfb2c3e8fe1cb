"""From uploads to predictions, as plain data that a page can hold; everything is bounded."""

from __future__ import annotations

import base64
import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dashboard.heatmaps import overlay
from dashboard.limits import MOST_PICTURES
from dashboard.model_cache import ModelCache, Uploads
from vlm_core.errors import UserError
from vlm_core.evaluation.category_matching import UNKNOWN_CATEGORY
from vlm_core.evaluation.spreadsheets import spreadsheet_text
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture, fit_picture
from vlm_core.tracking.serving import picture_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlm_core.attention.inputs import InputRelevance
    from vlm_core.models.categoriser import Categoriser

MOST_CATEGORIES: Final = 5  # listed for each prediction
MOST_ENTRIES: Final = 4 * MOST_PICTURES  # refused files of a drop included
MOST_TITLE: Final = 1000  # characters
SAMPLES: Final = 8
THUMBNAIL_PIXELS: Final = 320
_CSV_COLUMNS: Final = [
    *("picture", "run", "run_id", "category", "confidence"),
    *("threshold", "levels", "text", "text_category", "read", "ms", "error"),
]


def receive(uploads: Uploads, contents: Sequence[str | None], names: Sequence[str]) -> list[dict[str, str]]:
    """Return one entry per upload, `name` with `token` or `error`; takes eight, and checks lengths before decoding."""
    entries = []
    for place, (content, name) in enumerate(zip(contents, names, strict=True)):
        if place >= MOST_PICTURES:
            entries.append({"name": name, "error": f"Only {MOST_PICTURES} images can be uploaded at once."})
            continue
        try:
            entries.append({"name": name, "token": uploads.put(picture_bytes(content))})
        except ValueError as error:
            entries.append({"name": name, "error": str(error)})
    return entries


def categorise(
    models: ModelCache,
    uploads: Uploads,
    pictures: Sequence[Mapping[str, str]],
    run_ids: Sequence[str],
    title: str = "",
) -> list[dict[str, Any]]:
    """Return one result per picture: `name`, `source`, `thumbnail` and `predictions` by run id, or `name` and `error`.

    A prediction has `top` (category and probability, at most five), `levels` (label, category and probability of each
    label above these), `confidence`, `ms`, `seen` (the picture as the
    model sees it), `map` (where it looks; None without attention) and, where the model writes, `text` and
    `text_category`; or only an `error`. Models that read texts read the `title`, say so in `read`, and what it depends
    on in `words`. `source` names the picture for `dashboard.attention`. Each picture is decoded once for all models,
    and not again for what is already known of it.
    """
    title = title[:MOST_TITLE]
    return [_categorise_picture(models, uploads, picture, run_ids, title) for picture in pictures[:MOST_ENTRIES]]


def _categorise_picture(
    models: ModelCache, uploads: Uploads, entry: Mapping[str, str], run_ids: Sequence[str], title: str
) -> dict[str, Any]:
    name, token = entry["name"], entry.get("token", "")
    data = uploads.get(token)
    if data is None:
        return {"name": name, "error": entry.get("error", "This image is no longer in memory: upload it again.")}
    picture = lru_cache(maxsize=1)(lambda: decode_picture(data))  # for this call, and only if something needs it
    try:
        thumbnail = uploads.made(token, "thumbnail", lambda: _thumbnail(picture()))
        predictions = {run_id: _predict(models, uploads, token, run_id, picture, title) for run_id in run_ids}
    except UnreadablePicture as error:
        return {"name": name, "error": f"This file cannot be read as an image: {error}."}
    source = f"sample:{entry['sample']}" if "sample" in entry else f"upload:{token}"
    return {"name": name, "source": source, "thumbnail": thumbnail, "predictions": predictions}


def _predict(
    models: ModelCache, uploads: Uploads, token: str, run_id: str, picture: Callable[[], Image], title: str
) -> dict[str, Any]:
    def predict(model: Categoriser) -> dict[str, Any]:
        return _prediction(model, fitted(uploads, token, model.canvas, picture), title)

    try:
        return uploads.made(token, ("prediction", run_id, title), lambda: models.use(run_id, predict))
    except UserError as error:
        return {"error": str(error)}


def fitted(uploads: Uploads, token: str, canvas: tuple[int, int], picture: Callable[[], Image]) -> NDArray[np.uint8]:
    """Return an upload (H, W, 3) fitted to the canvas (H, W). Raises UnreadablePicture as `picture` does."""
    return uploads.made(token, ("fitted", canvas), lambda: fit_picture(picture(), canvas))


def _prediction(model: Categoriser, picture: NDArray[np.uint8], title: str) -> dict[str, Any]:
    """Return what the model predicts for a picture (H, W, 3) on its canvas, as `categorise` describes it.

    Raises UserError for a model that reads texts alone, and no title.
    """
    from vlm_core.attention.inputs import explain_inputs
    from vlm_core.inference import predict_pictures

    text = model.reads.clean(title) if model.reads else ""
    if model.reads and model.reads.inputs == "text" and not text:
        raise UserError("This model reads texts alone: type the product's title.")
    inputs = model.reads.inputs if model.reads and text else "image"
    started = time.perf_counter()
    (row,) = predict_pictures(model, picture[None], [text] if model.reads else None)
    seconds = time.perf_counter() - started
    relevance = explain_inputs(model, picture, text) if model.reads else None
    probabilities = [(name[2:], value) for name, value in row.items() if name.startswith("p_")]
    top = sorted(probabilities, key=lambda pair: -pair[1])[:MOST_CATEGORIES]
    return {
        "top": [[name, round(value, 6)] for name, value in top],
        "confidence": row["confidence"],
        "ms": round(seconds * 1000, 1),
        "seen": _model_input(model, picture),
        "map": _map(model, picture, relevance),
        **({"read": inputs, "words": _words(relevance)} if relevance else {}),
        "levels": _levels(model, row),
        **{name: row[name] for name in ("text", "text_category") if name in row},
    }


def _levels(model: Categoriser, row: Mapping[str, Any]) -> list[list[Any]]:
    """Return label, category and probability of each level above the last; none for a model of one label."""
    if model.hierarchy is None:
        return []
    return [
        [label, row[f"category_{label}"], round(row[f"confidence_{label}"], 6)] for label in model.hierarchy.labels[:-1]
    ]


def _words(relevance: InputRelevance) -> list[list[Any]]:
    """Return each word, or the whole of an input, with how far the log odds fall without it; the most telling first."""
    words = sorted(relevance.words, key=lambda pair: -abs(pair[1]))[:MOST_CATEGORIES]
    return [[word, round(fall, 2)] for word, fall in [("the image", relevance.picture), *words]]


def predicted_category(prediction: Mapping[str, Any], threshold: float) -> str:
    """Return the most probable category, or "Unknown Category" below the threshold."""
    return str(prediction["top"][0][0]) if prediction["confidence"] >= threshold else UNKNOWN_CATEGORY


def as_csv(results: Sequence[Mapping[str, Any]], names: Mapping[str, str], threshold: float) -> str:
    """Return one row per picture and model; an apostrophe leads texts that a spreadsheet would evaluate."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _CSV_COLUMNS)
    writer.writeheader()
    for result in results:
        if "error" in result:
            writer.writerow(_safe({"picture": result["name"], "error": result["error"]}))
        for run_id, prediction in result.get("predictions", {}).items():
            row = {
                "picture": result["name"],
                "run": names.get(run_id, run_id),
                "run_id": run_id,
                "threshold": threshold,
                **{name: prediction[name] for name in _CSV_COLUMNS if name in prediction},
            }
            if "error" not in prediction:
                row["category"] = predicted_category(prediction, threshold)
                row["levels"] = "; ".join(f"{label}={category}" for label, category, _ in prediction.get("levels", []))
            writer.writerow(_safe(row))
    return buffer.getvalue()


@lru_cache(maxsize=SAMPLES)
def sample_picture(place: int) -> bytes:
    """Return a product of the sample catalogue as JPEG; places count from 0 and start again after the last."""
    from vlm_core.catalogue.sample import draw_picture, plan_rows

    by_appearance: dict[str, Any] = {}
    for row in plan_rows(200, seed=2027):
        by_appearance.setdefault(row.looks_like, row)
    return draw_picture(list(by_appearance.values())[place % SAMPLES], seed=2027)


def _thumbnail(picture: Image) -> str:
    thumbnail = picture.copy()
    thumbnail.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return _data_url(thumbnail)


def _model_input(model: Categoriser, picture: NDArray[np.uint8]) -> str:
    """Return the picture (H, W, 3) resized to the model's input, as it is before normalising."""
    from PIL import Image

    image = Image.fromarray(picture)
    size = getattr(model, "image_size", 0)  # the baseline sees the canvas
    return _data_url(image.resize((size, size), Image.Resampling.BILINEAR) if size else image)


def _map(model: Categoriser, picture: NDArray[np.uint8], relevance: InputRelevance | None) -> str | None:
    """Return what the prediction depends on, over the picture (H, W, 3); None for a model without attention to it."""
    from vlm_core.attention.maps import explain
    from vlm_core.models.categoriser import VisionLanguageCategoriser

    if relevance and model.reads:
        return None if model.reads.inputs == "text" else overlay(picture, relevance.map(model.canvas))
    if not isinstance(model, VisionLanguageCategoriser):
        return None
    return overlay(picture, explain(model, picture[None], method="gradient")[0])


def _data_url(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _safe(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: spreadsheet_text(value)
        for name, value in row.items()
        if not (isinstance(value, float) and math.isnan(value))
    }
